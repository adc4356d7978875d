"""Gauges: the newest values of lines, those merged that fall together in one series of ours."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf

from exporter.core.lines import Kind, Owner, Single
from exporter.core.mapping import SourceMap
from exporter.core.rule import Rule
from exporter.core.types import Labels, Sample, Series


class GaugeLine(Single):
    """A line whose newest value is shown."""

    __slots__ = ("_owner", "changed", "kind", "pid", "slots")

    def __init__(self, owner: Owner, kind: Kind, slots: list[GaugeSlot], value: float, pid: str | None) -> None:
        super().__init__(value)
        self._owner = owner
        self.kind = kind
        self.slots = slots
        self.pid = pid
        self.changed = owner.read

    def take(self, values: Sequence[float], places: Sequence[int] | None = None) -> None:  # noqa: ARG002 - it is one
        self.last = values[0]
        self.changed = self._owner.read
        for slot in self.slots:
            slot.merged = None

    def vanished(self) -> float:
        self._owner.present[self.kind] -= 1
        for slot in self.slots:
            del slot.lines[self]
            slot.merged = None
        return 0.0


@dataclass(slots=True, eq=False)
class GaugeSlot:
    """A gauge series and the lines that fall together in it, each with what tells copies of one gauge apart."""

    series: Series
    rule: Rule
    lines: dict[GaugeLine, Labels] = field(default_factory=dict)
    merged: tuple[float | None] | None = None  # the value, where no line has changed since

    @property
    def value(self) -> float | None:
        """The merged value of the lines, or None where there is none to show."""
        if self.merged is None:
            self.merged = (self._merge(),)
        return self.merged[0]

    def _merge(self) -> float | None:
        """Of copies (one gauge told by several workers) those count that changed last."""
        newest: dict[Labels, int] = {}
        for line, copy in self.lines.items():
            newest[copy] = max(newest.get(copy, 0), line.changed)
        values = [
            line.last for line, copy in self.lines.items() if line.changed == newest[copy] and -inf < line.last < inf
        ]
        if not values or (self.rule.merge == "none" and len(values) > 1):
            return None
        merged = max(values) if self.rule.merge == "max" else min(values) if self.rule.merge == "min" else sum(values)
        return merged * self.rule.scale


class Gauges:
    """The gauge series of one target, by rule, alternative and series. `chosen` is each rule's alternative that counts.

    Where several rules tell the same series, the first of them that is there is shown.
    """

    def __init__(self, source_map: SourceMap, chosen: Mapping[str, int]) -> None:
        self._chosen = chosen
        self._before = source_map.before()
        self._slots: dict[tuple[str, int, Series], GaugeSlot] = {}

    def __len__(self) -> int:
        return len(self._slots)

    def slot(self, rule: Rule, alternative: int, series: Series, *, full: bool) -> GaugeSlot | None:
        """The slot of this place, made where it is new; None where it is, and there is no room."""
        place = rule.key, alternative, series
        slot = self._slots.get(place)
        if slot is None and not full:
            slot = self._slots[place] = GaugeSlot(series, rule)
        return slot

    def clear(self) -> None:
        """As if no line had ever been seen."""
        self._slots.clear()

    def drop_empty(self) -> None:
        """Forget the slots whose lines have all vanished."""
        for place in [place for place, slot in self._slots.items() if not slot.lines]:
            del self._slots[place]

    def workers(self) -> frozenset[str]:
        """The process ids that lines tell."""
        return frozenset(line.pid for slot in self._slots.values() for line in slot.lines if line.pid is not None)

    def internal(self, key: str) -> Iterator[tuple[Labels, float]]:
        """The values of an internal rule by labels, without those that the whole target carries."""
        for (rule, alternative, series), slot in self._slots.items():
            if rule == key and alternative == self._chosen[key] and (value := slot.value) is not None:
                yield series.own, value

    def current(self, names: Collection[str]) -> Iterator[Sample]:
        """The values of these families."""
        for (key, alternative, series), slot in self._slots.items():
            if series.family.name in names and alternative == self._chosen[key] and (value := slot.value) is not None:
                yield series, value

    def shown(self) -> list[Sample]:
        """What is shown now."""
        return [
            (slot.series, value)
            for (key, alternative, _), slot in self._slots.items()
            if not slot.rule.internal
            and alternative == self._chosen[key]
            and (key not in self._before or self._is_first(key, slot.series))
            and (value := slot.value) is not None
        ]

    def _is_first(self, key: str, series: Series) -> bool:
        """Whether no rule before this one tells the same series."""
        return not any((other, self._chosen[other], series) in self._slots for other in self._before[key])
