"""Which counters of a target are shown, and with what values: births, closed sets, whole histograms, leaving."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from math import inf

from exporter.core.ledger import NOWHERE, Ledger, Slot
from exporter.core.mapping import SourceMap
from exporter.core.types import Family, Sample, Samples, Series, SeriesTable


@dataclass(slots=True, eq=False)
class Output:
    """One counter series (or bucket, sum, count) as shown."""

    series: Series
    slots: tuple[Slot, ...] = ()
    until: float = 0.0  # shown until then (monotonic seconds), though nothing feeds it
    floor: float = 0.0  # what is shown until a page has carried it
    born: int | None = None  # pages carried when it was first published; -1 before that; None once carried
    active: tuple[Slot, ...] = ()  # the slots that make its value now: most often all of them
    shown: bool = False

    @property
    def number(self) -> int:
        """Its slot, where what that holds is its value; else NOWHERE."""
        if len(self.active) != 1 or self.active[0].shift or self.active[0].scale != 1.0:
            return NOWHERE
        return self.active[0].number

    @property
    def value(self) -> float:
        total = 0.0
        for slot in self.active:
            total += (slot.total + slot.shift) * slot.scale
        return total


class Shown:
    """The outputs of one target and their layout: what is shown, made anew only where something `changed`.

    `counts` says whether a slot makes the value of its output now (its name is the chosen one, its rule is in force).
    Beyond `most` outputs none is shown that is 0 because others are there.
    """

    def __init__(
        self,
        source_map: SourceMap,
        table: SeriesTable,
        ledger: Ledger,
        counts: Callable[[Slot], bool],
        most: int = 100_000,
    ) -> None:
        self._map = source_map
        self._table = table
        self._ledger = ledger
        self._counts = counts
        self._most = most
        self._zeros: dict[tuple[Family, Series, frozenset[str]], tuple[Series, ...]] = {}
        self._outputs: dict[Series, Output] = {}
        self._series: list[Series] = []  # what is shown
        self._numbers: list[int] = []  # for each its slot, where that alone makes its value
        self._made: list[tuple[int, Output]] = []  # places of the others
        self._unborn: list[tuple[int, Output]] = []  # places of those that no page has carried
        self._by_family: dict[str, list[Output]] = {}
        self._expiry = inf  # monotonic seconds at which the next output leaves
        self.changed = True
        self.broken = 0  # samples of histograms without +Inf
        self.over = 0  # series beside which those at 0 are left out, because there are too many

    def __len__(self) -> int:
        return len(self._outputs)

    def output(self, series: Series, *, new: bool = False) -> Output:
        """The output of a series. A `new` one, on a target already watched, is shown as 0 first."""
        output = self._outputs.get(series)
        if output is None:
            output = self._outputs[series] = Output(series, born=-1 if new else None)
            self.changed = True
        return output

    def drop_hidden(self) -> set[Series]:
        """Forget the outputs that are not shown, and say which they were."""
        idle = {series for series, output in self._outputs.items() if not output.shown}
        for series in idle:
            del self._outputs[series]
        return idle

    def hold(self, until: float) -> None:
        """Keep all outputs until then (monotonic seconds), though nothing feeds them."""
        for output in self._outputs.values():
            output.until = until
        self.changed = True

    def bear_all_but(self, known: Collection[Series]) -> None:
        """Outputs that were not there when the state was saved are shown as 0 first."""
        for series, output in self._outputs.items():
            if series not in known:
                output.born = -1
        self.changed = True

    def current(self, names: Iterable[str], now: float) -> Iterator[Sample]:
        """The true values of these families at `now` (monotonic seconds), also of what a page does not show yet."""
        self._refresh(now)
        return ((output.series, output.value) for name in names for output in self._by_family.get(name, ()))

    def samples(self, carried: int, now: float) -> Samples:
        """What is shown at `now` (monotonic seconds), after so many pages that carried this target.

        A counter that is new on a target already watched is shown as 0 until a page has carried it, so that
        `increase()` sees its first events.
        """
        self._refresh(now)
        values = list(map(self._ledger.amounts.__getitem__, self._numbers))
        for place, output in self._made:
            values[place] = output.value
        unborn = []
        for place, output in self._unborn:
            if output.born == -1:
                output.born = carried
            if output.born is not None and carried > output.born:
                output.born = None
            else:
                values[place] = output.floor
                unborn.append((place, output))
        self._unborn = unborn
        return Samples(self._series, values)

    def _refresh(self, now: float) -> None:
        if self.changed or now >= self._expiry:
            self._lay_out(now)

    def _lay_out(self, now: float) -> None:
        shown = dict(self._fed(now))
        whole = {(series.family.name, series.labels) for series in shown if series.le == inf}
        broken = [
            series
            for series in shown
            if series.family.kind == "histogram" and (series.family.name, series.labels) not in whole
        ]
        for series in broken:
            del shown[series]
        self.broken = len(broken)
        self._show_zeros(shown)
        for series, output in self._outputs.items():
            if output.shown and series not in shown:
                output.floor = output.value
                output.born = -1
            output.shown = series in shown
        self._series = list(shown)
        self._numbers, self._made, self._unborn, self._by_family = [], [], [], {}
        for place, output in enumerate(shown.values()):
            self._numbers.append(output.number)
            if output.number == NOWHERE:
                self._made.append((place, output))
            if output.born is not None:
                self._unborn.append((place, output))
            self._by_family.setdefault(output.series.family.name, []).append(output)
        self.changed = False

    def _fed(self, now: float) -> Iterator[tuple[Series, Output]]:
        """Outputs that lines feed, or that are held a while longer."""
        self._expiry = inf
        for series, output in self._outputs.items():
            counting = tuple([slot for slot in output.slots if self._counts(slot)])
            output.active = output.slots if counting == output.slots else counting
            if any(slot.inputs for slot in output.active):
                yield series, output
            elif output.active and now < output.until:
                self._expiry = min(self._expiry, output.until)
                yield series, output

    def _show_zeros(self, shown: dict[Series, Output]) -> None:
        """Add the series that exist at 0 because their parent exists, or because a sister with another value does.

        Where there are thousands, a new one must not cost to name the others again: their names are kept.
        """
        self.over = 0
        before, self._zeros = self._zeros, {}
        there = list(shown)
        for child in dict.fromkeys(rule.family for rule in self._map.rules if rule.family.parent is not None):
            for series in there:
                if series.family is not child and series.family.name != child.parent:
                    continue
                if len(shown) >= self._most:
                    self.over += 1
                    continue
                slots = self._outputs[series].active
                origins = frozenset("" if slot.rule is None else slot.rule.origin for slot in slots)
                key = child, series, origins
                zeros = self._zeros[key] = before.get(key) or tuple(self._beside(child, series, origins))
                for zero in zeros:
                    if zero not in shown:
                        shown[zero] = self.output(zero, new=True)

    def _beside(self, child: Family, series: Series, origins: frozenset[str]) -> Iterator[Series]:
        """The series of a family that exist because this one does, its parent or its sister."""
        labels = [
            (name, value)
            for name, value in series.labels
            if name not in child.closed and (name in child.labels or name not in series.family.labels)
        ]
        for label, values in child.closed.items():
            told = self._map.tells(child, label, dict(labels), origins)
            yield from (self._table(child, [*labels, (label, value)]) for value in values if value in told)
        if not child.closed and self._map.is_lazy(child, dict(labels), origins):
            yield self._table(child, labels)
