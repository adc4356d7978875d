"""Reading by difference: a line is parsed once, and known again by its bytes.

Between two reads of one upstream most lines of its body do not change at all, and of those that do only the value
does. So the part of a line that names it, its *identity* (`name{label="value",…}`), is kept in a dictionary with the
text that stood behind it last. For each line of the next body:

- identity known, text the same: nothing to do but to note that the line is there;
- identity known, other text: the text is a new value, given to the line's destination;
- identity unknown: the strict parser takes the line apart, once, and a *sink* says where it goes.

The sink (`exporter.core.total.Totals`) knows numbers and nothing of bytes; this module knows bytes and nothing of what
they mean.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from math import inf
from typing import Protocol

from exporter.core.errors import ReadError
from exporter.text.parse import Comment, Line, Malformed, family_of, parse_line, parse_value

METRIC = re.compile(rb"[a-zA-Z_:][a-zA-Z0-9_:]{0,99}")


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds that hold while a body streams, before memory is spent: bytes of a body, of a line; sample lines."""

    body: int = 256 << 20
    line: int = 64 << 10
    lines: int = 2_000_000


class Known(Protocol):
    """A line's destination. `text` and `read` are the reader's: what stood behind the identity, when it was seen."""

    text: bytes
    read: int

    def take(self, value: float) -> None:
        """The line has a new value."""

    def vanished(self, identity: bytes, now: float) -> bool:
        """A whole body came without the line. True: forget it."""


class Sink(Protocol):
    """Where lines go. See `exporter.core.total.Totals`."""

    def begin(self) -> None: ...
    def open(self, line: Line, upstream_type: str | None) -> Known: ...
    def drop(self, reason: str) -> None: ...
    def settle(self) -> Iterator[tuple[bytes, Known]]: ...
    def abort(self) -> Iterable[bytes] | None: ...
    def end(self) -> bool: ...
    def verify(self) -> None: ...


class Difference:
    """Reads one upstream's bodies: `begin`, `feed` for each chunk as it arrives, then `end`, or `abort` on any error.

    `feed` and `end` raise ReadError (malformed, truncated, too_large, identity) and leave the reader ready for
    `abort`. After `abort` the next `begin` goes on from what the cut body had told.
    """

    def __init__(self, sink: Sink, limits: Limits | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._sink = sink
        self._limits = limits or Limits()
        self._clock = clock
        self._lines: dict[bytes, Known] = {}
        self._comments: dict[bytes, int] = {}
        self._types: dict[str, str] = {}
        self._read = 0
        self._rest = b""
        self._size = 0
        self._number = 0
        self._seen = 0
        self._openmetrics = False
        self._ended = False

    def __len__(self) -> int:
        """Lines known by their bytes."""
        return len(self._lines)

    def lines(self) -> Iterable[tuple[bytes, Known]]:
        """Every known line by its identity."""
        return self._lines.items()

    @property
    def samples(self) -> int:
        """Sample lines in the body that is being read or was read last."""
        return self._seen

    def begin(self, *, openmetrics: bool = False) -> None:
        """A body begins. `openmetrics` by its Content-Type."""
        self._read += 1
        self._rest = b""
        self._size = self._number = self._seen = 0
        self._openmetrics = openmetrics
        self._ended = False
        self._sink.begin()

    def feed(self, chunk: bytes) -> None:
        """The next bytes of the body, cut anywhere."""
        self._size += len(chunk)
        if self._size > self._limits.body:
            raise ReadError("too_large", f"the body has more than {self._limits.body} bytes (raise limits.body)")
        lines = (self._rest + chunk).split(b"\n")
        self._rest = lines.pop()
        if len(self._rest) > self._limits.line:
            raise ReadError("too_large", f"line {self._number + 1} has more than {self._limits.line} bytes")
        known, read = self._lines, self._read
        for line in lines:
            self._number += 1
            identity, _, text = line.rpartition(b" ")
            found = known.get(identity)
            if found is None or self._ended:
                self._unknown(line)
            elif found.read == read:
                self._value(line, text)
                self._duplicate()
            elif found.text == text:
                found.read = read
                self._seen += 1
            else:
                self._changed(found, line, text)

    def _value(self, line: bytes, text: bytes) -> float:
        try:
            return parse_value(text.removesuffix(b"\r"))
        except Malformed as error:
            raise self._malformed(error, line) from None

    def _changed(self, found: Known, line: bytes, text: bytes) -> None:
        value = self._value(line, text)
        found.text = text
        found.read = self._read
        self._seen += 1
        found.take(value)

    def _duplicate(self) -> None:
        """Of a series that stands twice in one body the first counts, as Prometheus has it."""
        self._seen += 1
        self._sink.drop("duplicate")

    def _unknown(self, line: bytes) -> None:
        if line in self._comments:
            self._comments[line] = self._read
            return
        if len(line) > self._limits.line:
            raise ReadError("too_large", f"line {self._number} has more than {self._limits.line} bytes")
        try:
            parsed = parse_line(line, openmetrics=self._openmetrics)
        except Malformed as error:
            raise self._malformed(error, line) from None
        if parsed is None:
            return
        if self._ended:
            raise ReadError("malformed", f"line {self._number}: there is more after # EOF")
        if isinstance(parsed, Comment):
            self._comment(line, parsed)
            return
        text = line.partition(parsed.identity)[2].removeprefix(b" ")
        found = self._lines.get(parsed.identity)
        if found is None:
            if len(self._lines) >= self._limits.lines:
                raise ReadError("too_large", f"more than {self._limits.lines} samples")
            declared = family_of(parsed.name, self._types)
            found = self._lines[parsed.identity] = self._sink.open(parsed, declared[1] if declared else None)
        elif found.read == self._read:
            self._duplicate()
            return
        elif found.text != text:  # known, but written with a timestamp, an exemplar or other blanks
            found.take(parsed.value)
        found.text = text
        found.read = self._read
        self._seen += 1

    def _comment(self, line: bytes, comment: Comment) -> None:
        if comment.keyword == "EOF":
            self._ended = self._openmetrics
            return
        if comment.keyword == "TYPE" and self._types.get(comment.name, comment.text) != comment.text:
            self._retype(comment.name)
        if comment.keyword == "TYPE":
            self._types[comment.name] = comment.text
        self._comments[line] = self._read

    def _retype(self, family: str) -> None:
        """The upstream has changed a family's type: its lines are opened anew."""
        for line in [line for line in self._comments if line.split()[1:3] == [b"TYPE", family.encode()]]:
            del self._comments[line]
        names = {(family + suffix).encode() for suffix in ("", "_total", "_bucket", "_count", "_sum")}
        for identity in [identity for identity in self._lines if identity.partition(b"{")[0] in names]:
            if self._lines[identity].read != self._read:
                self._lines.pop(identity).vanished(identity, inf)

    def _malformed(self, error: Malformed, line: bytes) -> ReadError:
        """Says where and why, and of the line no more than its metric's name: label values can be private."""
        name = METRIC.match(line)
        of = f" in a line of {name[0].decode()}" if name else ""
        return ReadError("malformed", f"line {self._number}{of}: {error.reason.partition(': ')[0]}")

    def end(self) -> None:
        """The body is whole."""
        if not self._size:
            raise ReadError("content", "the answer is empty: no metrics are exposed there")
        if self._rest:
            raise ReadError("truncated", "the body does not end with a line feed: it was cut on its way")
        if self._openmetrics and not self._ended:
            raise ReadError("truncated", "the body does not end with # EOF: it was cut on its way")
        self._lines.update(self._sink.settle())
        if self._seen != len(self._lines):
            now = self._clock()
            gone = [(identity, line) for identity, line in self._lines.items() if line.read != self._read]
            for identity, line in gone:
                if line.vanished(identity, now):
                    del self._lines[identity]
        for comment in [comment for comment, read in self._comments.items() if read != self._read]:
            del self._comments[comment]
            words = comment.split()
            if words[1:2] == [b"TYPE"]:
                self._types.pop(words[2].decode(), None)
        if not self._sink.end():
            self._lines.clear()
        self._sink.verify()

    def abort(self) -> None:
        """The body was cut or is not to be trusted. Nothing has vanished; what its lines gained stays."""
        again = self._sink.abort()
        if again is None:
            self._lines.clear()
        else:
            for identity in again:
                self._lines.pop(identity, None)
        self._rest = b""
