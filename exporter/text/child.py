"""What the lines of a histogram child have in common with those of every other child of the family.

Two children of one histogram differ in their labels, which stand in front of `le` and behind it, and in nothing else.
So what names the lines of a child that was never seen is known when its first line is: the names and boundaries of
another child, with the labels of this one between them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from exporter.text.again import Sample
from exporter.text.block import MISS, MORE, WIDER, shared

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
