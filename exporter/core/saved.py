"""What is kept of a target's totals over a restart of the exporter, and how they go on from it.

Of each slot that is shown: its total, and the sum of the values of the lines that are there. The same process has
gained what that sum has grown by; another one all that it shows.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice
from typing import Any, Protocol

from exporter.catalogue import families
from exporter.core.ledger import Ledger, Slot
from exporter.core.lines import Counters
from exporter.core.mapping import SourceMap
from exporter.core.rule import Rule
from exporter.core.shown import Output, Shown
from exporter.core.types import Series, SeriesTable


def fingerprint(identity: bytes) -> int:
    """A number for a line that is forgotten, so that it is known when it comes back."""
    return int.from_bytes(blake2b(identity, digest_size=8).digest())


@dataclass(frozen=True, slots=True)
class Dump:
    """A target's state: JSON's types only. Its rows, one for each slot, come a few at a time, written as JSON."""

    head: Mapping[str, Any]
    rows: Iterator[str]

    def whole(self) -> dict[str, Any]:
        """All of it at once."""
        return {**self.head, "slots": json.loads(f"[{','.join(filter(None, self.rows))}]")}


def as_json(value: Any) -> str:
    """The one way in which state is written: what it says has a digest."""
    return json.dumps(value, separators=(",", ":"))


STEP = 200
"""Rows, or destinations of lines, that are looked at in one step: a millisecond's tenth or two."""


def slots(ledger: Ledger, counters: Iterable[Counters], chosen: Mapping[str, int]) -> Iterator[str]:
    """Each slot that is shown: rule, upstream name, labels, suffix, boundary, live sum, total; a few in each step."""
    live = [0.0] * len(ledger.amounts)
    for number, line in enumerate(counters):
        line.add_live(live)
        if number % STEP == STEP - 1:
            yield ""
    shown = (
        (key, series, slot)
        for (key, alternative, series), slot in ledger.slots.items()
        if slot.rule is None or (chosen[key] == alternative and not slot.rule.internal)
    )
    while some := list(islice(shown, STEP)):
        # the rows of one histogram child begin alike: 206 rows in a third of the time that lists of values take
        numbers = [number for _, _, slot in some for number in (live[slot.number], slot.total + slot.shift)]
        told = iter(as_json(numbers)[1:-1].split(","))
        rows, began, begin = [], None, ""
        for (key, series, slot), sum_, total in zip(some, told, told, strict=True):
            if began != (key, slot.alternative, series.family, series.own):
                began = key, slot.alternative, series.family, series.own
                name = slot.rule.sources[slot.alternative] if slot.rule is not None else series.family.name
                begin = as_json([key, name, series.own])[:-1]
            le = "null" if series.le is None else f'"{series.le!r}"'
            rows.append(f'{begin},"{series.suffix}",{le},{sum_},{total}]')
        yield ",".join(rows)


class Owner(Protocol):
    """What is needed of the Totals that go on."""

    map: SourceMap
    ledger: Ledger
    shown: Shown
    counters: set[Counters]
    chosen: dict[str, int]

    def slot(self, key: str, rule: Rule | None, alternative: int, series: Series) -> Slot | None: ...


@dataclass(frozen=True, slots=True)
class Resumed:
    """What came of it: the series that go on, and whether another process answers now."""

    series: frozenset[Series]
    another: bool


def resume(totals: Owner, saved: Mapping[str, Any], start: float | None, table: SeriesTable, until: float) -> Resumed:
    """Set the totals so that they go on from what was saved, after the first whole body.

    `start` is when the process that answers began, where it tells; what went on but is not there is shown `until` then.
    """
    rules = {rule.key: rule for rule in totals.map.rules}
    live = [0.0] * len(totals.ledger.amounts)
    for line in totals.counters:
        line.add_live(live)
    resumed: list[tuple[Slot, Output, bool, float, float]] = []
    for key, source, labels, suffix, le, was_live, total in saved["slots"]:
        rule = rules.get(key)
        if key and (rule is None or source not in rule.sources):
            continue
        family = rule.family if rule is not None else families().get(source)
        if family is None:
            continue
        series = table(family, [(name, value) for name, value in labels], suffix, None if le is None else float(le))
        chosen = totals.chosen[key] if rule is not None else 0
        slot = totals.slot(key, rule, chosen, series)
        if slot is not None:
            same_name = rule is None or rule.sources[chosen] == source
            resumed.append((slot, totals.shown.output(series), same_name, was_live, total))
    live += [0.0] * (len(totals.ledger.amounts) - len(live))
    before = saved["identity"]
    if before is not None and start is not None:
        same = before == start
    else:
        had = [
            (slot, was)
            for slot, _, same_name, was, _ in resumed
            if same_name and was > 0.0 and not (slot.rule is not None and slot.rule.wraps)
        ]
        same = 2 * sum(live[slot.number] < was for slot, was in had) <= len(had)
    for slot, output, same_name, was_live, total in resumed:
        gained = slot.total  # of the first body; what it has of forgotten lines is a baseline, and not in it
        output.until = until
        if slot.rule is None:
            slot.total += total
        elif not same:
            slot.total = total + live[slot.number]
        elif same_name:
            slot.total = total + max(0.0, gained - was_live)
            slot.owed = max(0.0, was_live - gained)
        else:
            slot.shift = total - slot.total
    return Resumed(frozenset(output.series for _, output, _, _, _ in resumed), not same)
