"""The reader that is right because it is simple: every line through the strict parser, one dictionary of series."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from exporter.core.total import Totals
from exporter.text.parse import Comment, Line, family_of, parse_line
from exporter.text.sink import Known

Series = tuple[str, frozenset[tuple[str, str]]]


class PlainReader:
    """What `Difference` must be equal to. Bodies are well-formed, and cut, if at all, anywhere."""

    def __init__(self, totals: Totals, clock: Callable[[], float]) -> None:
        self._totals = totals
        self._clock = clock
        self._number = 0
        self._lines: dict[Series, tuple[Known, float, bytes]] = {}  # destination, last value, identity
        self._gone: dict[Series, float] = {}
        self._types: dict[str, str] = {}

    def remembered(self) -> Iterator[tuple[Known, Iterable[bytes]]]:
        return ((self._lines[series][0], [self._lines[series][2]]) for series in self._gone)

    def read(self, body: bytes, *, openmetrics: bool, whole: bool) -> None:
        self._number += 1
        self._totals.begin()
        seen: set[Series] = set()
        types: dict[str, str] = {}
        for line in body[: body.rfind(b"\n") + 1].split(b"\n")[:-1]:
            said = parse_line(line, openmetrics=openmetrics)
            if isinstance(said, Comment) and said.keyword == "TYPE":
                types.setdefault(said.name, said.text)
            if isinstance(said, Line) and self._totals.wants(said.name):
                series = said.name, frozenset(label for label in said.labels if label[1])
                if series in seen:
                    continue
                seen.add(series)
                self._take(series, said, types)
        if not whole:
            if not self._totals.abort():
                self._forget_all()
            return
        settled = dict(self._totals.settle())
        for series, (known, value, identity) in list(self._lines.items()):
            if known in settled:
                settled[known].read = self._number
                self._lines[series] = settled[known], value, identity
        now = self._clock()
        for series in self._lines.keys() - seen - self._gone.keys():
            worth = self._lines[series][0].vanished()
            self._gone[series] = now + worth
            if not worth:
                del self._gone[series], self._lines[series]
        for series, until in list(self._gone.items()):
            if until <= now:
                known, _, identity = self._lines.pop(series)
                del self._gone[series]
                known.forgotten([identity])
        if not self._totals.end():
            self._forget_all()

    def _take(self, series: Series, line: Line, types: dict[str, str]) -> None:
        if series not in self._lines:
            declared = family_of(line.name, types)
            known = self._totals.open(line, declared[1] if declared else None)
        else:
            known, last, _ = self._lines[series]
            if series in self._gone:
                del self._gone[series]
                known.returned()
            if known.stale or repr(line.value) != repr(last):
                known.read = self._number
                known.take((line.value,))
        known.read = self._number
        self._lines[series] = known, line.value, line.identity

    def _forget_all(self) -> None:
        self._lines.clear()
        self._gone.clear()
