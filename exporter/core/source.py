"""What a source is: it knows its upstream, and nothing of timeouts, limits, health or rendering."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, ClassVar, Protocol, runtime_checkable

from exporter.catalogue import families, maps
from exporter.config.model import TargetConfig
from exporter.core.errors import ReadError
from exporter.core.fetch import Answer, Upstream, refuse_markup
from exporter.core.http import RECEIVE, SLICE
from exporter.core.mapping import SourceMap
from exporter.core.total import Totals
from exporter.core.types import Advice, Reading, Sample, Series, SeriesTable, escaped, number
from exporter.text.difference import Difference

Row = tuple[str, Mapping[str, object], float]
"""A sample under an upstream's name: name, labels, value."""

TOLD = 500
"""Rows that are taken in one piece."""


def waited() -> float:
    """A clock that stands while this thread works, for whatever target: in seconds, to tell an upstream's slowness."""
    return time.monotonic() - time.thread_time()


def written(name: str, labels: Mapping[str, object], value: float) -> bytes:
    """A row as a line of an exposition."""
    text = ",".join(f'{label}="{escaped(str(said))}"' for label, said in labels.items())
    return f"{name}{{{text}}} {number(value)}\n".encode()


@cache
def source_map(kind: str) -> SourceMap:
    """The map of a source, checked against the catalogue; an empty one where the source has none."""
    return SourceMap(f"exporter/sources/{kind}/map.yaml", maps().get(kind, {"families": {}}), families(), maps())


def own_map(given: Mapping[str, Any]) -> SourceMap:
    """The map that a user wrote for one target. Raises MapError."""
    return SourceMap("", given, families(), maps())


@dataclass(frozen=True, slots=True)
class Context:
    """What a source is given: its way to the upstream, the target's numbers, and the reader that fills them."""

    upstream: Upstream
    table: SeriesTable
    totals: Totals
    reader: Difference
    everything: bool = False  # ask for what is not mapped, too: to show what is left out
    clock: Callable[[], float] = time.monotonic
    timeout: float = 10.0  # seconds that a whole read may take
    found: Callable[[Sequence[TargetConfig]], None] = lambda _: None
    """To be told, at each read, the targets that this one's upstream knows of: they are watched as long as it does."""
    newest: Callable[[str], Reading | None] = lambda _: None
    """The newest reading of a target that was `found`, by its name."""
    ports: Callable[[], Mapping[int, str]] = dict
    """The ports of this machine at which targets are watched, and the targets' names."""

    def tell(self, rows: Iterable[Row]) -> None:
        """Take what an upstream says in a form of its own, as samples under the names that the source's map has.

        From there on they are as any exposition's: counters outlive restarts, a row that is gone has vanished.
        """
        self.hear(written(*row) for row in rows)

    def hear(self, lines: Iterable[bytes]) -> None:
        """As `tell`, of what is written already: lines of an exposition, or some of them in one piece."""
        said = [b"# \n", *lines]  # a body is never empty
        self.reader.begin()
        try:
            for start in range(0, len(said), TOLD):
                more = self.reader.feed(b"".join(said[start : start + TOLD]))
                while more:
                    more = self.reader.feed(b"")
            self.reader.end()
        except BaseException:
            self.reader.abort()
            raise

    async def take(self, answer: Answer, sentinel: bytes = b"") -> bool:
        """Read an exposition into the totals. Raises ReadError; what a cut body told is kept.

        A whole body without the `sentinel` is not what was asked for: it counts as cut, and False is returned.
        """
        refuse_markup(answer)
        self.reader.begin(openmetrics=answer.openmetrics)
        tail = b""
        found = not sentinel

        def look(piece: bytes) -> bool:
            nonlocal tail, found
            if not found:
                tail += piece
                found = sentinel in tail
                tail = tail[-len(sentinel) :]
            return self.reader.feed(piece)

        try:
            # lines that are new cost most: they are taken in smaller pieces, so that others have their turn
            await answer.into(look if sentinel else self.reader.feed, RECEIVE if len(self.reader) else SLICE)
            if not found:
                self.reader.abort()
                return False
            self.reader.end()
        except BaseException:
            self.reader.abort()
            raise
        return True


@dataclass(frozen=True, slots=True)
class Result:
    """What a source adds to its totals after a read: samples of its own, what it could not tell, its version.

    With a `failure` the target is down for that reason, and what is told is shown all the same: what can still be known
    of it. Most failures are raised instead, and leave nothing.
    """

    samples: Sequence[Sample] = ()
    advice: Sequence[Advice] = field(default=())
    version: str | None = None
    failure: ReadError | None = None
    seconds: float | None = None
    """How long the upstream worked, where that is not how long the read took: it also waited for others."""
    shows: Callable[[Series], bool] | None = None
    """Which series of the totals are shown, where not all: a counter is remembered for a while after its last line, and
    of what is known to be gone not even that is wanted."""


class Source(Protocol):
    """One kind of thing read. A class that fits stands as SOURCE in `exporter/sources/<kind>/__init__.py`."""

    kind: ClassVar[str]
    Config: ClassVar[type[TargetConfig]]

    def __init__(self, config: Any, context: Context) -> None: ...

    async def read(self) -> Result:
        """Read the upstream once into the context's totals. Raises ReadError."""

    @staticmethod
    def at(url: str, environ: Mapping[str, str]) -> TargetConfig:
        """The target at a URL, with the keys and endpoints that the environment gives."""

    @staticmethod
    def candidates(environ: Mapping[str, str]) -> Sequence[TargetConfig]:
        """Where such an upstream may run on this machine."""

    @staticmethod
    async def recognise(upstream: Upstream, target: TargetConfig, /) -> bool:
        """Whether this kind of upstream answers there. Asks without a key; raises ReadError where nothing answers.

        `target` is what `candidates` or `at` gave, or what is known of a target by its URL alone.
        """


@runtime_checkable
class Follower(Protocol):
    """A source that hears of changes between its reads."""

    def follow(self) -> AsyncIterator[Result]:
        """Runs beside the reads for as long as the target is watched; what it yields is published at once.

        The samples replace the source's own of the last read. It keeps going by itself: what it raises is a defect.
        """
