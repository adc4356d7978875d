"""The shelf: where each block that is known can be found, by what it begins with or by the series in it.

It holds hashes and no bytes: it says where to look, and who looks compares. Blocks that have vanished and are worth
remembering stand there, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import inf

from exporter.text.block import Block
from exporter.text.loose import REPEATED

REMEMBERED = 10_000
"""Lines that vanished are remembered as many as there are live ones, and so many at least."""


class Shelf:
    """All known blocks. `lines` are the samples in them, `remembered` those that were not in the last body."""

    def __init__(self) -> None:
        self.lines = 0
        self._heads: dict[int, Block] = {}
        self._keys: dict[int, Block | list[Block]] = {}  # most keys lead to one block
        self.remembered: dict[Block, None] = {}
        self._expiry = inf  # when the first of those is forgotten

    def __bool__(self) -> bool:
        return bool(self._heads)

    def headed(self, head: bytes) -> Block | None:
        """The block whose first line is named so, or one that only has the same hash."""
        return self._heads.get(hash(head))

    def __contains__(self, key: int) -> bool:
        return key in self._keys

    def __getitem__(self, key: int) -> Sequence[Block]:
        """The blocks that have a line with this key."""
        found = self._keys.get(key)
        return () if found is None else found if isinstance(found, list) else (found,)

    def add(self, block: Block) -> None:
        """A block is known. One of lines that stand twice has no head: which of two is the first, each body says."""
        self.lines += block.samples
        if block.known is not REPEATED:
            self._heads[hash(block.head)] = block
        for key in set(block.keys):
            before = self._keys.setdefault(key, block)
            if before is not block:
                self._keys[key] = [*(before if isinstance(before, list) else (before,)), block]

    def dissolve(self, block: Block) -> None:
        """The block's lines are loose: only its keys lead to it still."""
        self.lines -= block.samples
        self.remembered.pop(block, None)
        block.dissolved = True
        head = hash(block.head)
        if self._heads.get(head) is block:
            del self._heads[head]

    def drop(self, block: Block) -> None:
        """The block is known no more."""
        if not block.dissolved:
            self.dissolve(block)
        self._drop_keys(block.keys, block)

    def join(self, first: Block, second: Block, read: int) -> Block:
        """One block of two, in their place."""
        assert first.known is not None and second.known is not None  # noqa: PT018, S101 - comments are left
        known = first.known.join([second.known])
        known.read = read
        self.drop(first)
        self.drop(second)
        one = Block(first.raw + second.raw, first.ends + second.ends, known, first.family, first.child, read)
        one.keys = first.keys + second.keys
        self.add(one)
        return one

    def remember(self, block: Block, until: float) -> None:
        """The block has vanished, and is worth remembering `until` then (monotonic seconds)."""
        block.place = -1
        block.until = until
        self.remembered[block] = None
        self._expiry = min(self._expiry, until)

    def recall(self, block: Block) -> None:
        """The block may have been remembered: it is there again."""
        if block.until and block.known is not None:
            block.until = 0.0
            del self.remembered[block]
            block.known.returned()

    def forget(self, block: Block) -> None:
        """The block's lines are known no more, and those who counted them are told."""
        if block.known is not None:
            if not block.until:
                block.known.vanished()
            block.known.forgotten(block.identities())
        self.drop(block)

    def forget_expired(self, now: float) -> None:
        """Forget what has been remembered for long enough."""
        if now < self._expiry:
            return
        for block in [block for block in self.remembered if block.until <= now]:
            self.forget(block)
        self._expiry = min((block.until for block in self.remembered), default=inf)

    def forget_many(self) -> int:
        """Forget what vanished first, where there is too much of it. How many lines are live."""
        remembered = sum(block.samples for block in self.remembered)
        live = self.lines - remembered
        over = remembered - max(live, REMEMBERED)
        for oldest in [*self.remembered] if over > 0 else ():
            self.forget(oldest)
            over -= oldest.samples
            if over <= 0:
                break
        return live

    def _drop_keys(self, keys: Iterable[int], block: Block) -> None:
        for key in set(keys):
            rest = [other for other in self[key] if other is not block]
            if len(rest) > 1:
                self._keys[key] = rest
            elif rest:
                self._keys[key] = rest[0]
            else:
                self._keys.pop(key, None)
