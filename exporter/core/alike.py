"""Whole histogram children that are placed as another one of their family was: not line by line, but all lines at once.

How such children are told by their bytes stands in `exporter.text.child`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from weakref import WeakSet

from exporter.core.ledger import Ledger, Slot
from exporter.core.lines import Counters, Kind
from exporter.core.mapping import SourceMap
from exporter.core.naming import Naming, is_too_long
from exporter.core.rule import Rule
from exporter.core.types import Series
from exporter.text.parse import Line

Lanes = tuple[tuple[int, ...], ...]
"""The numbers of the slots that lines feed, as `Counters` has them."""


@dataclass(slots=True, eq=False, weakref_slot=True)
class Model:
    """What the children of one histogram have in common: the rules they feed, and of each line its part.

    `lanes` are the slots' numbers by labels, for each child of ours that was seen.
    """

    kind: Kind
    rules: tuple[tuple[Rule, int], ...]
    parts: tuple[tuple[str, float | None], ...]  # suffix and boundary
    lanes: dict[object, Lanes] = field(default_factory=dict)


class Alike:
    """The models of one target. `slot` gives the slot of a place, or None where there are too many series."""

    def __init__(
        self,
        source_map: SourceMap,
        naming: Naming,
        ledger: Ledger,
        slot: Callable[[str, Rule | None, int, Series], Slot | None],
    ) -> None:
        self._map = source_map
        self._naming = naming
        self._ledger = ledger
        self._slot = slot
        self._models: WeakSet[Model] = WeakSet()

    def forget(self) -> None:
        """As if none had been made."""
        self._models.clear()

    def forget_lanes(self) -> None:
        """Slots have been closed: where children go is found out anew."""
        for model in self._models:
            model.lanes.clear()

    def model(self, known: Counters) -> Model | None:
        """What must be known of a child to place others as it was; None where its lines do not feed the same rules."""
        slots = {slot.number: (place, slot) for place, slot in self._ledger.slots.items()}
        rules, parts = [], None
        for lane in known.lanes:
            told = [slots[number] for number in lane if number in slots]
            of_lane = tuple((series.suffix, series.le) for (_, _, series), _ in told)
            rule = told[0][1].rule if told else None
            if rule is None or len(told) != len(lane) or parts not in (None, of_lane):
                return None
            parts = of_lane
            rules.append((rule, told[0][1].alternative))
            sources = {self._fed_by(rule.sample(told[0][1].alternative, suffix)) for suffix, _ in of_lane}
            if len(sources) > 1:
                return None
        if parts is None:
            return None
        model = Model(known.kind, tuple(rules), parts)
        self._models.add(model)
        return model

    def _fed_by(self, name: str) -> tuple[tuple[str, int], ...]:
        return tuple((rule.key, alternative) for rule, alternative, _ in self._map.wants(name))

    def lanes(self, model: Model, line: Line) -> Lanes | None:
        """The slots of a child's lines, from its first one; None where each line must be placed by itself."""
        labels = self._naming.learn(line)
        if self._naming.must_wait(line, labels):
            return None
        kept = tuple(self._naming.kept(labels))
        placed = [
            ((rule, alternative), ours)
            for rule, alternative, _ in self._map.wants(line.name)
            if (ours := self._naming.place(rule, labels)) is not None
        ]
        if tuple(rule for rule, _ in placed) != model.rules or any(is_too_long(ours, kept) for _, ours in placed):
            return None
        key = tuple(ours for _, ours in placed), kept
        lanes = model.lanes.get(key)
        if lanes is None:
            made = []
            for (rule, alternative), ours in placed:
                slots = [
                    self._slot(rule.key, rule, alternative, self._naming.series(rule, ours, kept, suffix, le))
                    for suffix, le in model.parts
                ]
                if None in slots:
                    return None
                made.append(tuple(slot.number for slot in slots if slot is not None))
            lanes = model.lanes[key] = tuple(made)
        return lanes
