"""The body that is being read, as it becomes blocks: those that were known, and new ones made of the lines between."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from exporter.text.block import MOST, SIZE, Block, shared
from exporter.text.loose import Loose, LooseLines
from exporter.text.shelf import Shelf
from exporter.text.sink import Known


class Body:
    """Blocks and lines in their order, up to where the reading is.

    `learn` is told the lines of each block that is made. Lines that wait for the end of the body stay lines until then.
    """

    def __init__(
        self, read: int, shelf: Shelf, blocks: Iterable[Block], learn: Callable[[list[Loose], Block], None]
    ) -> None:
        self.loose = LooseLines()
        self._read = read
        self._shelf = shelf
        self._learn = learn
        self._order: list[Block | list[Loose]] = list(blocks)
        self._run: list[Loose] = []  # the block that is being made
        self._size = 0

    @property
    def number(self) -> int:
        """Lines so far."""
        return len(self._run) + sum(len(item.ends) if isinstance(item, Block) else len(item) for item in self._order)

    @property
    def samples(self) -> int:
        """Known sample lines, those included of the block that is being made."""
        return self._shelf.lines + len(self._run)

    @property
    def last(self) -> Block | None:
        """The block that comes last, None where lines do."""
        last = self._order[-1] if self._order and not self._run else None
        return last if isinstance(last, Block) else None

    @property
    def blocks(self) -> list[Block]:
        """The blocks in their order, without what waits."""
        self.close()
        return [item for item in self._order if isinstance(item, Block)]

    def add(self, block: Block) -> None:
        """The next block."""
        self.close()
        self._order.append(block)

    def append(self, loose: Loose) -> None:
        """The next line."""
        run = self._run
        full = len(run) >= MOST or self._size + len(loose.line) > SIZE
        if run and (full or not loose.fits(run[-1], len(run))):
            self.close()
        self._run.append(loose)
        self._size += len(loose.line)

    def close(self) -> None:
        """The block that is being made is whole."""
        if self._run:
            run, self._run, self._size = self._run, [], 0
            self._order.append(run if any(loose.waits for loose in run) else self._make(run))

    def _make(self, run: list[Loose]) -> Block:
        first = run[0]
        known = first.known
        if known is not None and len(run) > 1:
            known = known.join([loose.known for loose in run[1:] if loose.known is not None])
            known.read = first.read
        raw = b"\n".join([loose.line for loose in run]) + b"\n"
        ends = shared(tuple([loose.end for loose in run]))
        block = Block(raw, ends, known, first.family, first.child, self._read)
        block.types = tuple(told for loose in run for told in loose.types)
        block.keys = shared(tuple([loose.key for loose in run if loose.key is not None]))
        block.until = first.until
        self.loose.remove(run)
        self._shelf.add(block)
        self._learn(run, block)
        return block

    def settle(self, settled: Mapping[Known, Known]) -> None:
        """Lines that waited for the end of the body have their destinations."""
        self.close()
        order, self._order = self._order, []
        for item in order:
            if isinstance(item, Block):
                self.add(item)
                continue
            for loose in item:
                if loose.known is not None and loose.known in settled:
                    loose.known = settled[loose.known]
                    loose.known.read = self._read
                self.append(loose)
        self.close()

    def unread(self) -> list[Block]:
        """Blocks of the loose lines that are not in this body; they do not stand in its order."""
        order, self._order = self.blocks, []
        for loose in self.loose.unread(self._read):
            self.append(loose)
        unread, self._order = self.blocks, list(order)
        return unread
