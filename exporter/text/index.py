"""The index of the reader: from a number that says metric and labels to the blocks that may hold such lines."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from exporter.text.block import Block


class Index:
    """Blocks by the keys of their lines. Most keys lead to one block; those of families in several places to more."""

    def __init__(self) -> None:
        self._blocks: dict[int, Block | list[Block]] = {}

    def __contains__(self, key: int) -> bool:
        return key in self._blocks

    def __getitem__(self, key: int) -> Sequence[Block]:
        found = self._blocks.get(key)
        return () if found is None else found if isinstance(found, list) else (found,)

    def add(self, keys: Iterable[int], block: Block) -> None:
        """The block holds lines with these keys."""
        for key in set(keys):
            before = self._blocks.setdefault(key, block)
            if before is not block:
                self._blocks[key] = [*(before if isinstance(before, list) else (before,)), block]

    def remove(self, keys: Iterable[int], block: Block) -> None:
        """The block holds them no more."""
        for key in set(keys):
            rest = [other for other in self[key] if other is not block]
            if len(rest) > 1:
                self._blocks[key] = rest
            elif rest:
                self._blocks[key] = rest[0]
            else:
                self._blocks.pop(key, None)

    def clear(self) -> None:
        self._blocks.clear()
