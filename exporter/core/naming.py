"""What a new line is called in our words.

Two things take the rest of the body: a label that is looked up in a table (a deployment's group, learnt from other
lines), and which values of a kept label are large enough to be shown. Lines that depend on them wait until the body has
ended.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from exporter.core.lines import Waiting
from exporter.core.mapping import KEPT_VALUES, SourceMap
from exporter.core.rule import Rule
from exporter.core.types import Labels, LabelSet, Series, SeriesTable
from exporter.text.parse import Line

LABEL_LENGTH = 512
"""Characters of a label's value at most; a line with more is left out."""


def is_too_long(*several: Labels) -> bool:
    """Whether a label's value has more characters than it may."""
    return any(len(value) > LABEL_LENGTH for labels in several for _, value in labels)


@dataclass(slots=True, eq=False)
class Undecided:
    """A line whose place depends on the rest of the body; `known` stands for it until then."""

    line: Line
    labels: LabelSet  # those that it really has
    type: str | None
    known: Waiting


class Naming:
    """Tables and kept labels of one target. `keep` names the upstream labels to keep, `shown` their saved values."""

    def __init__(
        self, source_map: SourceMap, table: SeriesTable, keep: Iterable[str], shown: Mapping[str, list[str]]
    ) -> None:
        self._map = source_map
        self._table = table
        self._tables: dict[str, dict[str, str]] = {name: {} for name in source_map.tables}
        self._keep = tuple(keep)
        self.shown = {name: list(shown[name]) for name in self._keep if name in shown}
        self._waiting: list[Undecided] = []

    def learn(self, line: Line) -> dict[str, str]:
        """The labels that a line really has; what they say about the tables is taken."""
        labels = self._map.present(line.labels)
        self._map.learn(labels, self._tables)
        return labels

    def must_wait(self, line: Line, labels: LabelSet) -> bool:
        """Whether the line's place depends on the rest of the body."""
        return any(name in labels and name not in self.shown for name in self._keep) or any(
            key in labels and labels[key] not in self._tables[table]
            for rule, _, _ in self._map.wants(line.name)
            for table, key in rule.lookups
        )

    def wait(self, line: Line, upstream_type: str | None, labels: LabelSet) -> Waiting:
        """What stands for the line until the body has ended."""
        known = Waiting()
        self._waiting.append(Undecided(line, labels, upstream_type, known))
        return known

    def take_waiting(self) -> list[Undecided]:
        """The lines that wait; they wait no more."""
        waiting, self._waiting = self._waiting, []
        return waiting

    def decide(self) -> list[Undecided]:
        """The body has ended: what waited can be placed."""
        waiting = self.take_waiting()
        undecided = [name for name in self._keep if name not in self.shown]
        for name in undecided if waiting else ():
            self._rank(name, waiting)
        return waiting

    def _rank(self, name: str, waiting: Iterable[Undecided]) -> None:
        """Show the values of a kept label that have most requests in the first body that has any."""
        weights: dict[str, float] = {}
        for line, labels in ((each.line, each.labels) for each in waiting):
            if name in labels:
                requests = any(rule.family.name == "llm_requests_total" for rule, _, _ in self._map.wants(line.name))
                weights[labels[name]] = weights.get(labels[name], 0.0) + (line.value if requests else 0.0)
        if weights:
            ranked = sorted((-weight, value) for value, weight in weights.items())
            self.shown[name] = [value for _, value in ranked[:KEPT_VALUES]]

    def kept(self, labels: LabelSet) -> Iterator[tuple[str, str]]:
        """The kept labels of a line; a value beyond those that are shown is `other`. Who is shown stays."""
        for name in self._keep:
            if name in labels:
                shown = self.shown.setdefault(name, [])
                if labels[name] not in shown and len(shown) < KEPT_VALUES:
                    shown.append(labels[name])
                yield name, labels[name] if labels[name] in shown else "other"

    def place(self, rule: Rule, labels: LabelSet) -> Labels | None:
        """Our labels for a line under a rule, or None where the rule leaves the line out."""
        return rule.place(labels, self._tables)

    def series(self, rule: Rule, ours: Labels, kept: Labels, suffix: str, le: float | None) -> Series:
        """The series of ours that a line with these labels feeds; what is for our own code alone keeps none."""
        return self._table(rule.family, ours if rule.internal else (*ours, *kept), suffix, le)
