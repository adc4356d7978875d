"""Loose lines: those that are read by themselves, and become blocks again where they follow one another."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from exporter.text.sink import Ignored, Known

TOGETHER = 16
"""Lines of a block that are no histogram child: what one changed value costs, against what a block costs."""
UNMAPPED, REPEATED = Ignored(), Ignored()
"""Destinations of lines that nobody wants, and of those whose series stands in the body already."""


@dataclass(slots=True, eq=False)
class Loose:
    """A line by itself, within one read: of a dissolved block, or of the block that is being made.

    `line` is as it was last, named by its bytes up to `end`. `known` is None for a comment. `child` is the same number
    for all lines of one histogram child, `key` for all lines of one metric that differ in `le` alone. `until` is when a
    remembered line is forgotten, in monotonic seconds; 0 for others.
    """

    identity: bytes
    line: bytes
    end: int
    known: Known | None
    family: bytes
    child: int | None = None
    bucket: bool = False
    key: int | None = None
    until: float = 0.0
    read: int = 0
    types: tuple[tuple[str, str], ...] = ()

    @property
    def waits(self) -> bool:
        """Whether the line has a place only when the body has ended."""
        return self.known is not None and self.known.waits

    def fits(self, last: Loose, lines: int) -> bool:
        """Whether it can stand in one block with the line `last` before it and so many `lines` in all."""
        if self.family != last.family or self.until != last.until:
            return False
        if self.known is None or last.known is None:
            return self.known is last.known
        if self.known.kind is None or self.known.kind != last.known.kind:
            return False
        return self.child == last.child or not (self.bucket or last.bucket or lines >= TOGETHER)


class LooseLines:
    """The loose lines that have a destination, by their bytes and by their keys."""

    def __init__(self) -> None:
        self._lines: dict[bytes, Loose] = {}
        self._keys: dict[int, list[Loose]] = {}

    def __contains__(self, key: int) -> bool:
        return key in self._keys

    def named(self, identity: bytes) -> Loose | None:
        """The line of this identity."""
        return self._lines.get(identity)

    def keyed(self, key: int) -> Iterable[Loose]:
        """The lines with this key."""
        return self._keys.get(key, ())

    def add(self, loose: Loose) -> None:
        self._lines[loose.identity] = loose
        if loose.key is not None:
            self._keys.setdefault(loose.key, []).append(loose)

    def remove(self, lines: Iterable[Loose]) -> None:
        """They are in a block now, or forgotten."""
        keys = set()
        for loose in lines:
            if loose.key is not None:
                self._lines.pop(loose.identity, None)
                keys.add(loose.key)
        for key in keys:
            rest = [loose for loose in self._keys.pop(key, ()) if loose.identity in self._lines]
            if rest:
                self._keys[key] = rest

    def unread(self, read: int) -> Iterator[Loose]:
        """Those that this read has not seen."""
        return (loose for loose in list(self._lines.values()) if loose.read != read)
