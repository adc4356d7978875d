"""What the lines of a histogram child have in common with those of every other child of the family.

Two children of one histogram differ in their labels, which stand in front of `le` and behind it, and in nothing else.
So what names the lines of a child that was never seen is known when its first line is: the names and boundaries of
another child, with the labels of this one between them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from exporter.text.again import Parser, Sample, family
from exporter.text.block import MISS, MORE, WIDER, Block, numbers, shared
from exporter.text.body import Body
from exporter.text.loose import REPEATED, UNMAPPED, Loose
from exporter.text.shelf import Shelf
from exporter.text.sink import Known, Sink

LEAST = 4
"""Lines of a child that is worth it."""


@dataclass(frozen=True, slots=True)
class Child:
    """The lines of a child: for each the metric's name, and its boundary where it is a bucket.

    `model` is the sink's.
    """

    names: tuple[bytes, ...]
    boundaries: tuple[bytes | None, ...]
    model: Any

    @property
    def le(self) -> bytes | None:
        """The first line's boundary."""
        return self.boundaries[0]

    @staticmethod
    def of(first: Sample, heads: Sequence[bytes], model: Any) -> Child | None:
        """The child whose first line is a bucket, or None where its lines are not written as each other.

        `heads` are the bytes in front of the values.
        """
        if first.le is None or len(heads) < LEAST:
            return None
        before, behind, plain = _around(first)
        names: list[bytes] = []
        boundaries: list[bytes | None] = []
        for head in heads:
            name, brace, rest = head.partition(b"{")
            if brace and rest.startswith(before) and rest.endswith(behind) and len(rest) > len(before) + len(behind):
                boundaries.append(rest[len(before) : -len(behind)])
            elif brace + rest == plain or (not brace and head == name + plain):
                boundaries.append(None)
                name = name.removesuffix(b" ")
            else:
                return None
            names.append(name)
        size = sum(map(len, names)) + sum(map(len, filter(None, boundaries)))
        child = Child(shared(tuple(names), size), shared(tuple(boundaries), size), model)
        return child if child.heads(first) == list(heads) else None

    def meet(self, sample: Sample, buffer: bytes, at: int, *, final: bool) -> tuple[int, tuple[int, ...], list[bytes]]:
        """Whether the child of this first line stands at `at`, whole; MISS and MORE as `Block.meet`.

        Where it ends, and for each line where what names it ends, and the text behind.
        """
        heads = self.heads(sample)
        most = sum(map(len, heads)) + 2 * WIDER * len(heads)
        lines = buffer[at : at + most].split(b"\n", len(heads))
        rest = lines.pop()
        if not all(map(bytes.startswith, lines, heads)):
            return MISS, (), []
        if len(lines) < len(heads):
            return (MORE if at + most > len(buffer) and not final else MISS), (), []
        ends = shared(tuple(map(len, heads)))
        after = min(at + most, len(buffer)) - len(rest)
        return after, ends, [line[end:] for line, end in zip(lines, ends, strict=True)]

    def heads(self, sample: Sample) -> list[bytes]:
        """What names the lines of the child whose first line this is."""
        before, behind, plain = _around(sample)
        return [
            b"%b{%b%b%b" % (name, before, le, behind) if le is not None else name + plain
            for name, le in zip(self.names, self.boundaries, strict=True)
        ]


def _around(sample: Sample) -> tuple[bytes, bytes, bytes]:
    """What stands in front of a boundary and behind it, and behind a name without one, up to the value."""
    comma = b"," if sample.before else b""
    labels = sample.before + (sample.behind if sample.before else sample.behind.removeprefix(b","))
    return sample.before + comma + b'le="', b'"' + sample.behind + b"} ", b"{" + labels + b"} " if labels else b" "


class Children:
    """A child of each family of histograms that was seen whole, and takes others whole that are written alike.

    Beyond `most` sample lines none is taken.
    """

    def __init__(self, sink: Sink, shelf: Shelf, parser: Parser, most: int) -> None:
        self._sink = sink
        self._shelf = shelf
        self._parser = parser
        self._most = most
        self._seen: dict[bytes, Child] = {}  # by the name of the buckets

    def clear(self) -> None:
        """Nothing is known of any family."""
        self._seen.clear()

    def learn(self, run: list[Loose], block: Block, *, openmetrics: bool) -> None:
        """How children of this family are written, where the block is one, made of the lines of `run`."""
        name, known = run[0].line.partition(b"{")[0], block.known
        if known is None or known is REPEATED or known.waits or not run[0].bucket or name in self._seen:
            return
        first = self._parser(run[0].line, openmetrics=openmetrics)
        if isinstance(first, Sample):
            model = known if known is UNMAPPED else self._sink.model(known)
            child = Child.of(first, [loose.line[: loose.end] for loose in run], model)
            if model is not None and child is not None:
                self._seen[name] = child

    def take(self, body: Body, sample: Sample, buffer: bytes, at: int, read: int, *, wanted: bool, final: bool) -> int:
        """Take the whole child whose first line this is, where its lines are those of another one with other labels.

        Where it ends; MISS and MORE as `Block.meet`. First read of 20,425 series: 530 ms line by line, 96 with this.
        """
        name = sample.line.name.encode()
        child = self._seen.get(name)
        if child is None or sample.le != child.le:
            return MISS
        body.close()  # its last line may be a part of this one
        after, ends, texts = child.meet(sample, buffer, at, final=final)
        if after < 0:
            return after
        values = numbers(texts)
        if values is None or self._shelf.lines + len(ends) > self._most:
            return MISS
        keys: tuple[int, ...] = ()
        known: Known | None = UNMAPPED
        if wanted:
            by_name = {part: hash((part.decode(), sample.labels_key)) for part in set(child.names)}
            if any(key in self._shelf or key in body.loose for key in by_name.values()):
                return MISS
            known = self._sink.open_like(child.model, sample.line, values)
            if known is None:
                return MISS
            keys = shared(tuple([by_name[part] for part in child.names]))
        assert known is not None  # noqa: S101 - for the type checker
        base = family(name)
        known.read = read
        block = Block(buffer[at:after], ends, known, base, hash((base, sample.labels_key)), read)
        block.keys = keys
        self._shelf.add(block)
        body.add(block)
        return after
