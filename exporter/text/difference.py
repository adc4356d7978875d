"""Reading by difference: between two reads of one upstream most lines of its body do not change at all.

The last body is kept as *blocks* (`block.py`), runs of its lines in their order, each with the *destination* of its
lines, which a *sink* gave (`sink.py`). For each block of the next body, in its order:

- the bytes are the same: nothing to do. One comparison of memory, and the reader is past all of its lines;
- the bytes that name the lines, their *identities* (`name{label="value",…}`), are the same: the values behind them
  have changed, and are given to the destination, all at once;
- other lines stand there: the block that begins with this line is looked for, among those of the last body and those
  remembered from before, and the reading goes on behind it. Where there is none, this one line is *loose*, and is read
  by itself: the plain path, right in every case, on which all else rests.

A loose line that stood in a block which is not there as it was takes its destination out of that block, which is
*dissolved*: all its lines are loose now. A line never seen before goes through the strict parser, and the sink says
where it goes. Loose lines that follow one another become a block of the body that is being read. At its end, what was
not in it has vanished: the sink says whether that is worth remembering, and for how long.

Between two reads every known line is in one block. To find the block of a line, however the line is written, there is
an index of numbers that say metric and labels; to find the block that begins with a line, a table of the hashes of
their first identities. Neither holds a copy of bytes; both only say where to look.

A first read takes each histogram child whole where its lines are those of another one with other labels (`child.py`).
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice

from exporter.core.errors import ReadError
from exporter.text.again import Parser, Sample, family
from exporter.text.block import MISS, MORE, Block, Places, are_numbers, numbers, shared
from exporter.text.body import Body
from exporter.text.child import Children
from exporter.text.loose import REPEATED, TOGETHER, UNMAPPED, Loose
from exporter.text.parse import Comment, Line, Malformed, family_of, parse_line
from exporter.text.shelf import Shelf
from exporter.text.sink import Known, Sink

METRIC = re.compile(rb"[a-zA-Z_:][a-zA-Z0-9_:]{0,99}")

JOINT = 32 << 10
"""Bytes of a chunk that are put together with the rest of the one before, so that the whole chunk is not copied."""

TURN = 256
"""Lines by themselves that are taken at once: 2 to 4 ms of work, then others have their turn. At least 2: what stands
where a line is may have to be taken apart first."""

CUT = 100_000
"""Lines that cut bodies may add to what is known. Beyond, what the newest of them did not tell counts as vanished: an
upstream that tells ever new lines and never comes to an end would fill the memory."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds that hold while a body streams, before memory is spent: bytes of a body, of a line; sample lines."""

    body: int = 256 << 20
    line: int = 64 << 10
    lines: int = 2_000_000


class Difference:
    """Reads one upstream's bodies: `begin`, `feed` for each chunk as it arrives, then `end`, or `abort` on any error.

    `feed` and `end` raise ReadError (malformed, truncated, too_large, identity) and leave the reader ready for
    `abort`. After `abort` the next `begin` goes on from what the cut body had told.
    """

    def __init__(self, sink: Sink, limits: Limits | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._sink = sink
        self._limits = limits or Limits()
        self._clock = clock
        self._parser = Parser()
        self._read = 0
        self.bodies = 0  # that were whole
        self._openmetrics = False
        self._forget_everything()

    def _forget_everything(self) -> None:
        self._blocks: list[Block] = []  # the last body
        self._often: dict[Block, None] = {}  # blocks that keep their form
        self._shelf = Shelf()
        self._children = Children(self._sink, self._shelf, self._parser, self._limits.lines)
        self._types: dict[str, str] = {}
        self._torn = False  # another process has begun, and no body since was whole: there may be stale destinations
        self._samples = 0
        self._whole_samples = 0
        self._repeats = 0
        self._begin_body()

    def _begin_body(self) -> None:
        self._rest = b""
        self._behind = False  # of the rest there are whole lines
        self._turn = 0  # lines by themselves that may yet be taken at once
        self._size = 0
        self._cursor = 0  # so far the body is the last one, up to here, with other values
        self._body: Body | None = None  # the body so far, where it is not
        self._dissolved: list[Block] = []

    def __len__(self) -> int:
        """Sample lines known by their bytes."""
        return self._shelf.lines

    def remembered(self) -> Iterator[tuple[Known, Iterator[bytes]]]:
        """What is remembered though it was not in the last body: destinations, with the identities of their lines."""
        for block in self._shelf.remembered:
            assert block.known is not None  # noqa: S101 - comments are not remembered
            yield block.known, block.identities()

    def lines(self) -> Iterator[tuple[bytes, object]]:
        """Every sample line of the last body by its identity, with its destination."""
        for block in self._blocks:
            if block.known is not None:
                yield from zip(block.identities(), block.known.each(len(block.ends)), strict=True)

    def comments(self) -> Iterator[Comment]:
        """What the last body says of its families: TYPE and HELP."""
        for block in self._blocks:
            for line in block.raw.split(b"\n") if block.known is None else ():
                comment = parse_line(line, openmetrics=self._openmetrics)
                if isinstance(comment, Comment):
                    yield comment

    @property
    def samples(self) -> int:
        """Sample lines in the last whole body."""
        return self._samples

    # -- one body ------------------------------------------------------------------------------------------------

    def begin(self, *, openmetrics: bool = False) -> None:
        """A body begins. `openmetrics` by its Content-Type."""
        self._read += 1
        self._begin_body()
        self._sink.begin()
        if openmetrics != self._openmetrics:  # what was right in one format need not be right in the other
            self._openmetrics = openmetrics
            for block in (*self._blocks, *self._shelf.remembered):
                self._dissolve(block)
        if self._torn:
            self._leave()

    def feed(self, chunk: bytes) -> bool:
        """The next bytes of the body, cut anywhere. True: more of them could be taken now, by `feed(b"")`.

        Lines that are new cost thousands of times what known ones do: a hostile body would hold the event loop for
        long. Nothing is lost where more bytes or the body's end follow at once.
        """
        self._turn = TURN
        self._size += len(chunk)
        if self._size > self._limits.body:
            raise ReadError("too_large", f"the body has more than {self._limits.body} bytes (raise limits.body)")
        at = 0
        if self._rest:
            joint = self._rest + chunk[:JOINT]
            self._advance(joint, 0, final=False)
            at = min(JOINT, len(chunk)) - len(self._rest)
        if at >= 0:
            self._advance(chunk, at, final=False)
        else:  # not even the joint holds the block that the chunk before ended in
            self._advance(self._rest + chunk[JOINT:], 0, final=False)
        if len(self._rest) > self._limits.line and b"\n" not in self._rest:
            raise self._too_long()
        return self._behind

    def end(self) -> None:
        """The body is whole."""
        self._advance(self._rest, 0, final=True)
        if not self._size:
            raise ReadError("content", "the answer is empty: no metrics are exposed there")
        if self._rest:
            self._rest = b""
            raise ReadError("truncated", "the body does not end with a line feed: it was cut on its way")
        if self._openmetrics and not self._ended:
            raise ReadError("truncated", "the body does not end with # EOF: it was cut on its way")
        settled = dict(self._sink.settle())
        if self._body is not None or self._cursor < len(self._blocks):
            body = self._leave()
            body.settle(settled)
            unread = [block for block in self._blocks if block.read != self._read and not block.dissolved]
            for block in (*unread, *body.unread()):
                self._vanish(block)
            self._install(body.blocks)
        self._whole_samples = self._samples
        self._often = {block: None for block in self._often if not block.cool(self._read)}
        self._shelf.forget_expired(self._clock())
        if self._repeats:
            self._sink.drop("duplicate", self._repeats)
        self._parser.forget()
        self._begin_body()
        self._torn = False
        self.bodies += 1
        if not self._sink.end():
            self._forget_everything()
        self._sink.verify()

    def abort(self) -> None:
        """The body was cut or is not to be trusted. Nothing has vanished; what its lines gained stays."""
        with suppress(ReadError):  # whole lines that waited for the rest of their block
            self._advance(b"" if self._behind else self._rest, 0, final=True)
        self._parser.forget()
        self._torn |= self._sink.anew
        if not self._sink.abort():
            self._forget_everything()
        elif self._body is not None:
            blocks = self._body.blocks
            for block in self._body.unread():
                if block.until:
                    self._shelf.remember(block, block.until)
                else:
                    blocks.append(block)
            before = [block for block in self._blocks if block.read != self._read and not block.dissolved]
            if self._shelf.lines > 2 * self._whole_samples + CUT:
                for block in before:
                    self._vanish(block)
                before = []
            self._install(blocks + before)
        self._begin_body()

    def _advance(self, buffer: bytes, at: int, *, final: bool) -> None:
        """Take what is whole in the buffer from `at` on; the rest is kept for the next chunk."""
        self._rest = b""  # where a line is malformed, nothing behind it is looked at again
        self._behind = False
        size = len(buffer)
        while at < size:
            after = MISS
            if self._body is None:
                at = self._skip(buffer, at)
                if self._cursor < len(self._blocks):
                    after = self._meet(self._blocks[self._cursor], buffer, at, final=final)
            if after == MISS:
                stop = buffer.find(b"\n", at)
                if stop < 0:
                    break
                if self._openmetrics and self._ended and buffer[at:stop].strip(b" \t\r"):
                    raise ReadError("malformed", f"line {self._number}: there is more after # EOF")
                if self._shelf:
                    after = self._find(buffer, at, stop, final=final)
                if after == MISS:
                    if self._turn == 0 and not final:
                        self._behind = True
                        break
                    self._turn -= 1
                    after = self._take_line(buffer, at, stop, final=final)
            if after == MORE:
                break
            at = after
        self._rest = buffer[at:]

    # -- blocks that are known ------------------------------------------------------------------------------------

    def _skip(self, buffer: bytes, at: int) -> int:
        """Pass over blocks that are the same, byte for byte: 20,425 lines in 1.7 ms, where splitting them takes 3."""
        read, cursor = self._read, self._cursor
        for block in islice(self._blocks, cursor, None):
            raw = block.raw
            if not buffer.startswith(raw, at):
                break
            at += len(raw)
            block.read = read
            if block.known is not None:
                block.known.read = read
            cursor += 1
        self._cursor = cursor
        return at

    def _find(self, buffer: bytes, at: int, stop: int, *, final: bool) -> int:
        """Take the block whose first line stands at `at`, the expected one or any other: where it ends there.

        MISS where there is none, MORE where the buffer ends too early to tell.
        """
        expected = self._expected()
        if expected is not None and self._body is not None:
            after = self._meet(expected, buffer, at, final=final)
            if after != MISS:
                return after
        line = buffer[at:stop]
        named = line if line[:1] == b"#" else line[: line.rfind(b" ") + 1]
        block = self._shelf.headed(named)
        if block is None or block is expected or block.read == self._read:
            return MISS
        return self._meet(block, buffer, at, final=final)

    def _expected(self) -> Block | None:
        """The next block of the last body that has not been met."""
        blocks = self._blocks
        while self._cursor < len(blocks):
            block = blocks[self._cursor]
            if self._body is None or not (block.read == self._read or block.dissolved or block.known is REPEATED):
                return block
            self._cursor += 1
        return None

    def _meet(self, block: Block, buffer: bytes, at: int, *, final: bool) -> int:
        """Take the block's lines where they stand at `at`; MISS or MORE as `Block.meet`."""
        known, raw = block.known, block.raw
        if buffer.startswith(raw, at) and not (known is not None and known.stale):
            after = at + len(raw)
        elif len(buffer) - at < len(raw) and not final and raw.startswith(buffer[at:]):
            return MORE
        elif known is None or not buffer.startswith(block.head, at):
            return MISS
        elif len(buffer) - at < len(raw) and not final:
            return MORE
        else:
            after, places, texts = block.meet(buffer, at, self._read, every=known.stale, final=final)
            if after < 0:
                return after
            values = None
            if known is not UNMAPPED or not are_numbers(texts):
                values = numbers(texts) or self._strict_values(buffer[at : after - 1].split(b"\n"), places)
            self._shelf.recall(block)
            block.raw = buffer[at:after]
            if values is not None:
                known.take(values, places)
            if block.has_form:
                self._often[block] = None
        self._met(block)
        return after

    def _met(self, block: Block) -> None:
        """The block is in this body."""
        if self._sink.anew or block.place != self._cursor:
            self._leave()
        block.read = self._read
        if block.known is not None:
            block.known.read = self._read
        self._shelf.recall(block)
        if self._body is not None:
            self._body.add(block)
        if block.place >= 0:
            self._cursor = block.place + 1

    def _leave(self) -> Body:
        """From here on the body is not the last one in its order."""
        if self._body is None:
            learn = partial(self._children.learn, openmetrics=self._openmetrics)
            self._body = Body(self._read, self._shelf, self._blocks[: self._cursor], learn)
        return self._body

    def _strict_values(self, lines: list[bytes], places: Places) -> list[float]:
        """The values of a block's lines that are not all plain."""
        values = []
        for place in range(len(lines)) if places is None else places:
            try:
                parsed = parse_line(lines[place], openmetrics=self._openmetrics)
            except Malformed as error:
                raise self._malformed(error, lines[place], place + 1) from None
            assert isinstance(parsed, Line)  # noqa: S101 - what names it was compared
            values.append(parsed.value)
        return values

    # -- lines by themselves --------------------------------------------------------------------------------------

    def _take_line(self, buffer: bytes, at: int, stop: int, *, final: bool) -> int:
        """Take the line, and where that is what it begins, its block or its whole child. Where what it took ends."""
        line = buffer[at:stop]
        if len(line) > self._limits.line:
            raise self._too_long()
        body = self._body
        if body is not None:
            identity, _, text = line.rpartition(b" ")
            loose = body.loose.named(identity)
            plain = numbers((text,)) if loose is not None else None
            if loose is not None and plain is not None:
                self._again(body, loose, line, len(identity) + 1, plain[0])
                return stop + 1
        try:
            sample = self._parser(line, openmetrics=self._openmetrics)
        except Malformed as error:
            raise self._malformed(error, line) from None
        if not isinstance(sample, Sample):
            self._comment(self._leave(), line, sample)
            return stop + 1
        wanted = self._sink.wants(sample.line.name)
        for block in self._shelf[sample.key] if wanted else ():
            if block.read != self._read and not block.dissolved:
                after = self._meet(block, buffer, at, final=final)
                if after != MISS:
                    return after
                self._dissolve(block)
        body = self._leave()
        if sample.key in body.loose:
            loose = body.loose.named(sample.line.identity) or self._written_otherwise(body, sample)
            if loose is not None:
                self._again(body, loose, line, sample.end, sample.line.value)
                return stop + 1
        if sample.le is not None:
            after = self._children.take(body, sample, buffer, at, self._read, wanted=wanted, final=final)
            if after != MISS:
                return after
        self._new(body, sample, line, wanted=wanted)
        return stop + 1

    def _again(self, body: Body, loose: Loose, line: bytes, end: int, value: float) -> None:
        """A loose line is there, perhaps with another value, perhaps a second time."""
        if loose.read == self._read:
            body.append(Loose(loose.identity, line, end, REPEATED, loose.family))
            return
        known = loose.known
        assert known is not None  # noqa: S101 - comments are not among `body.loose`
        changed = known.stale or line[end:] != loose.line[loose.end :]
        known.read = loose.read = self._read
        loose.line, loose.end = line, end
        if loose.until:
            loose.until = 0.0
            known.returned()
        if changed:
            known.take((value,))
        body.append(loose)

    def _new(self, body: Body, sample: Sample, line: bytes, *, wanted: bool) -> None:
        """A line never seen before, or forgotten."""
        name = line[: len(sample.line.name)]
        if body.samples >= self._limits.lines:
            raise ReadError("too_large", f"more than {self._limits.lines} samples")
        base = family(name)
        bucket = name.endswith(b"_bucket")
        child = hash((base, sample.labels_key))
        loose = Loose(sample.line.identity, line, sample.end, UNMAPPED, base, child, bucket, read=self._read)
        if wanted and sample.key in self._shelf and self._is_there(sample):
            loose.known = REPEATED
        elif wanted:
            declared = family_of(sample.line.name, self._types)
            loose.known = self._sink.open(sample.line, declared[1] if declared else None)
            loose.known.read = self._read
            loose.key = sample.key
            body.loose.add(loose)
        body.append(loose)

    def _is_there(self, sample: Sample) -> bool:
        """Whether the series stands in a block that this body has had already."""
        named = sample.line.identity
        for block in self._shelf[sample.key]:
            if block.read == self._read and not block.dissolved:
                if named in block.raw and named in block.identities():
                    return True
                if any(self._same(sample, line) for line in block.lines()):
                    return True
        return False

    def _written_otherwise(self, body: Body, sample: Sample) -> Loose | None:
        """A loose line of the same series, that is written in other bytes."""
        found = (loose for loose in body.loose.keyed(sample.key) if self._same(sample, loose.line))
        return next(found, None)

    def _same(self, sample: Sample, line: bytes) -> bool:
        """Whether a line with the sample's key is the same series."""
        if sample.le and b'"%b"' % sample.le not in line:
            return False
        other = self._parser(line, openmetrics=self._openmetrics)
        return isinstance(other, Sample) and other.series == sample.series

    def _dissolve(self, block: Block) -> None:
        """The block is not there as it was: its lines are loose."""
        body = self._leave()
        self._shelf.dissolve(block)
        self._dissolved.append(block)
        if block.known is None or block.known is UNMAPPED or block.known is REPEATED:
            return
        lines = block.lines()
        for line, end, known, key in zip(lines, block.ends, block.known.split(len(lines)), block.keys, strict=True):
            known.read = self._read - 1
            identity = line[:end].rstrip(b" \t")
            bucket = b"_bucket{" in identity
            body.loose.add(Loose(identity, line, end, known, block.family, block.child, bucket, key, block.until))

    def _comment(self, body: Body, line: bytes, comment: Comment | None) -> None:
        """A comment or a blank line that was not where the last body had it."""
        loose = Loose(line, line, len(line), None, b"#")
        if comment is not None and comment.keyword == "TYPE":
            if self._types.get(comment.name, comment.text) != comment.text:
                self._retype(body, comment.name)
            self._types[comment.name] = comment.text
            loose.types = shared(((comment.name, comment.text),), len(line))
        if comment is not None and comment.keyword == "EOF":  # stands by itself
            body.close()
            body.append(loose)
            body.close()
        else:
            body.append(loose)

    @property
    def _ended(self) -> bool:
        """Whether the body has come to its `# EOF`."""
        before = self._blocks[self._cursor - 1] if self._cursor else None
        last = before if self._body is None else self._body.last
        return last is not None and last.known is None and last.raw.strip() == b"# EOF"

    def _retype(self, body: Body, name: str) -> None:
        """The upstream has changed a family's type: its lines are opened anew."""
        base = family(name.encode())
        for block in (*self._blocks, *self._shelf.remembered):
            if block.family == base and block.read != self._read and not block.dissolved:
                self._shelf.forget(block)
        for loose in body.loose.unread(self._read):
            if loose.family == base and loose.known is not None:
                if not loose.until:
                    loose.known.vanished()
                loose.known.forgotten([loose.identity])
                body.loose.remove([loose])
        self._children.clear()

    # -- the end of a body ----------------------------------------------------------------------------------------

    def _vanish(self, block: Block) -> None:
        """The block was not in this body: it is remembered, or forgotten. It may have been remembered before."""
        if block.until:
            self._shelf.remember(block, block.until)
            return
        worth = 0.0 if block.known is None else block.known.vanished()
        if worth > 0.0:
            self._shelf.remember(block, self._clock() + worth)
        else:
            self._shelf.drop(block)

    def _install(self, blocks: list[Block]) -> None:
        """What was read is the last body now."""
        for block in self._dissolved:
            self._shelf.drop(block)
        self._blocks = self._whole(blocks) if self._blocks else blocks
        self._types = {}
        self._repeats = 0
        for place, block in enumerate(self._blocks):
            block.place = place
            if block.types:
                self._types.update(block.types)
            elif block.known is REPEATED:
                self._repeats += len(block.ends)
        self._samples = self._shelf.forget_many()

    def _whole(self, blocks: list[Block]) -> list[Block]:
        """The blocks, new ones made one with what they are a piece of."""
        whole: list[Block] = []
        for block in blocks:
            if whole and (block.place < 0 or whole[-1].place < 0) and whole[-1].is_continued_by(block, TOGETHER):
                whole[-1] = self._shelf.join(whole[-1], block, self._read)
            else:
                whole.append(block)
        return whole

    # -- what is said of a body that cannot be read -----------------------------------------------------------------

    @property
    def _number(self) -> int:
        """The number of the line at hand, from 1."""
        if self._body is not None:
            return 1 + self._body.number
        return 1 + sum(len(block.ends) for block in self._blocks[: self._cursor])

    def _too_long(self) -> ReadError:
        return ReadError("too_large", f"line {self._number} has more than {self._limits.line} bytes")

    def _malformed(self, error: Malformed, line: bytes, number: int = 1) -> ReadError:
        """Says where and why, and of the line no more than its metric's name: label values can be private."""
        name = METRIC.match(line)
        of = f" in a line of {name[0].decode()}" if name else ""
        at = self._number + number - 1
        return ReadError("malformed", f"line {at}{of}: {error.reason.partition(': ')[0]}")
