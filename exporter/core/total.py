"""Totals that never lie: what an upstream's counters gained, whatever happens to their lines.

Many upstream lines (one for each key, user, worker) fall together into one series of ours. An exposed counter is not
their sum, which would fall when a line vanishes, but what they gained:

- a line that grew adds the difference; one that fell has been reset and adds its whole value;
- a line that vanishes adds nothing and is remembered for `RETENTION`, so that its return adds what it gained meanwhile;
  one forgotten and back is a new baseline;
- another process behind the same URL (its start time tells) adds the whole of each of its values;
- alternatives of a rule (old and new names) gather side by side; one is shown, and a switch changes no total.

The numbers live in slots: one for each rule, alternative and series. A line keeps its last value and its slots, and
both move together, so a read that is cut midway loses nothing and counts nothing twice.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b
from math import inf
from typing import Any
from weakref import WeakSet

from exporter.catalogue import families
from exporter.core.lines import (
    RETENTION,
    CounterLine,
    CreatedLine,
    GaugeLine,
    GaugeSlot,
    IdentityLine,
    Known,
    Output,
    Refused,
    Slot,
)
from exporter.core.mapping import Rule, SourceMap
from exporter.core.naming import Naming
from exporter.core.process import Process
from exporter.core.shown import Shown
from exporter.core.types import Family, Labels, Sample, Series, SeriesTable
from exporter.text.parse import Line

LABEL_LENGTH = 512
"""Characters of a label's value at most; a line with more is left out."""

FINGERPRINTS = 10_000
"""Forgotten lines that are told from new ones when they come back."""

REFUSALS = {
    "type": "its TYPE contradicts the map",
    "limit": "over a limit on series or on a label's length",
    "histogram": "a bucket without a number in its le",
}
"""Why a line that is wanted is not taken, by the reason it is counted under."""

_UNTOLD = (None, "untyped", "unknown")


class Totals:
    """All numbers of one target. Driven by a reader: `begin`, then `open` or `take` for lines, then `end` or `abort`.

    `saved` is what `dump` gave before the exporter was restarted, None at a first start. With `from_zero` the first
    values are a baseline and every total begins at 0: right where no state can be kept, because a total that begins at
    the upstream's value again would be counted again by `increase()`. `clock` gives monotonic seconds.
    """

    def __init__(
        self,
        source_map: SourceMap,
        table: SeriesTable,
        *,
        keep: Iterable[str] = (),
        max_series: int = 100_000,
        saved: Mapping[str, Any] | None = None,
        from_zero: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.map = source_map
        self._table = table
        self._max_series = max_series
        self._clock = clock
        self._saved = saved
        self._baseline = from_zero and saved is None
        self._watched = False  # a whole body has been read

        self.read = 0  # number of the read that is under way or was the last
        self.fallen = 0  # counters that fell within this read
        self.dropped: Counter[str] = Counter()
        self._refused: Counter[str] = Counter()

        self._shown = Shown(source_map, table, self._is_shown)
        self._slots: dict[tuple[str, int, Series], Slot] = {}
        self._internal: dict[str, list[tuple[Series, Slot]]] = {
            rule.key: [] for rule in source_map.rules if rule.internal
        }
        self._gauges: dict[tuple[str, Series], GaugeSlot] = {}
        self._lines: set[CounterLine] = set()
        self._gone: dict[CounterLine, bytes] = {}
        self._forgotten: dict[int, None] = dict.fromkeys((saved or {}).get("forgotten", ()))
        self._created: WeakSet[CreatedLine] = WeakSet()

        self._naming = Naming(source_map, keep, (saved or {}).get("kept", {}))

        self._choices: dict[str, list[WeakSet[Known]]] = {
            rule.key: [WeakSet() for _ in rule.sources] for rule in source_map.rules if len(rule.sources) > 1
        }
        self._chosen = {rule.key: 0 for rule in source_map.rules}
        self._gates = frozenset(name for rule in source_map.rules for name in rule.when)
        self._open_gates: set[str] = set()

        self._checkpoint: list[float] = []  # the slots' totals when it was last certain which process told them
        self._confirmed = True
        self._process = Process()
        self._identity_line: IdentityLine | None = None
        self._anew = False  # within this read the upstream turned out to be another process

    # -- one read ------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        self.read += 1
        self.fallen = 0
        self._anew = False
        if self._confirmed and self._is_full():
            self._make_room()
        if self._confirmed:
            self._checkpoint = [slot.total for slot in self._slots.values()]
        self._confirmed = False

    def open(self, line: Line, upstream_type: str | None) -> Known:
        """A line not known by its bytes: find its places, take its value, and return it as known."""
        if line.name in self._gates and line.name not in self._open_gates:
            self._open_gates.add(line.name)
            self._shown.changed = True
        wanted = self.map.wants(line.name)
        if not wanted:
            return self._unmapped(line)
        labels = self._naming.learn(line)
        return self._naming.wait(line, upstream_type, labels) or self._place(line, labels, upstream_type)

    def settle(self) -> Iterator[tuple[bytes, Known]]:
        """At the end of a body: each line that waited for it, by its identity, and what it has become."""
        for waiting in self._naming.decide():
            known = self._place(waiting.line, waiting.labels, waiting.type)
            known.text, known.read = waiting.known.text, waiting.known.read
            yield waiting.line.identity, known

    def abort(self) -> Iterable[bytes] | None:
        """The body was cut: the identities of lines that must be opened again, None for all.

        What its lines gained stays. But where the cut came before the line that tells the process, those gains are
        taken back should the next body come from another one: they may have been its own, and would count twice.
        Before the first whole body there is nothing to go on from, and everything begins with the next one.
        """
        waiting = [waiting.line.identity for waiting in self._naming.take_waiting()]
        if not self._watched:
            self._start_over()
            return None
        self._confirmed = self._identity_line is None or self._identity_line.read == self.read
        return waiting

    def _start_over(self) -> None:
        """As if no body had ever begun."""
        self._shown = Shown(self.map, self._table, self._is_shown)
        for places in (self._slots, self._gauges, self._lines, self._gone, self._refused, self._open_gates):
            places.clear()
        for slots in self._internal.values():
            slots.clear()
        self._forgotten = dict.fromkeys((self._saved or {}).get("forgotten", ()))
        self._process = Process()
        self._identity_line = None
        self._confirmed = True

    def end(self) -> bool:
        """The body was whole, its lines are settled, vanished ones were told. False: no line is known any more."""
        if self._is_another() and self._watched:
            self._begin_anew()
        self._confirmed = True
        parted = self._process.end()
        if parted:
            self._part()
        self._choose()
        if self._saved is not None:
            self._resume(self._saved)
            self._saved = None
        self.dropped.update(self._refused)
        self._watched = True
        self._baseline = parted
        return not parted

    def verify(self) -> None:
        """Raises ReadError("identity") while two processes take turns."""
        self._process.verify()

    def drop(self, reason: str) -> None:
        """A sample was left out."""
        self.dropped[reason] += 1

    # -- lines ---------------------------------------------------------------------------------------------------

    def _unmapped(self, line: Line) -> Known:
        if line.name == self.map.identity:
            self._identity_line = IdentityLine(self, line.value)
            return self._identity_line
        base = line.name.removesuffix("_created")
        if base != line.name and any(self.map.wants(base + suffix) for suffix in ("_total", "_count")):
            created = CreatedLine(line.value)
            self._created.add(created)
            return created
        return Known()

    def _place(self, line: Line, labels: Mapping[str, str], upstream_type: str | None) -> Known:
        counters: list[Slot] = []
        gauges: list[tuple[GaugeSlot, tuple[tuple[str, str], ...]]] = []
        ways: list[WeakSet[Known]] = []
        kept = tuple(self._naming.kept(labels))
        for rule, alternative, suffix in self.map.wants(line.name):
            ours = self._naming.place(rule, labels)
            if ours is None:
                continue
            if not rule.internal and upstream_type not in (*_UNTOLD, rule.family.kind):
                return Refused(self._refused, "type")
            if any(len(value) > LABEL_LENGTH for _, value in (*ours, *kept)):
                return Refused(self._refused, "limit")
            le = None
            if suffix == "_bucket":
                try:
                    le = rule.boundary(labels["le"])
                except (KeyError, ValueError):
                    return Refused(self._refused, "histogram")
            series = self._table(rule.family, ours if rule.internal else (*ours, *kept), suffix, le)
            if rule.family.kind == "gauge":
                gauge = self._gauge(rule, series)
                if gauge is None:
                    return Refused(self._refused, "limit")
                gauges.append(
                    (gauge, tuple((name, value) for name, value in labels.items() if name not in rule.copies))
                )
            else:
                slot = self._slot(rule.key, rule, alternative, series)
                if slot is None:
                    return Refused(self._refused, "limit")
                counters.append(slot)
            if rule.key in self._choices:
                ways.append(self._choices[rule.key][alternative])
        known: Known = Known()
        if gauges:
            known = gauge_line = GaugeLine(self, [slot for slot, _ in gauges], line.value, labels.get("pid"))
            for place, copy in gauges:
                place.lines[gauge_line] = copy
        elif counters:
            known = self._counter(line, counters)
        for way in ways:
            way.add(known)
        return known

    def _counter(self, line: Line, slots: list[Slot]) -> CounterLine:
        known = CounterLine(self, slots)
        self._lines.add(known)
        for slot in slots:
            self._shown.changed |= slot.inputs == 0
            slot.inputs += 1
        if not 0.0 <= line.value < inf:
            self.drop("value")
            return known
        known.last = line.value
        if self._baseline or (self._forgotten and self._forgotten.pop(_fingerprint(line.identity), 0) is None):
            return known
        for slot in slots:
            claimed = min(slot.owed, line.value)
            slot.owed -= claimed
            slot.total += line.value - claimed
        return known

    def remember(self, line: CounterLine, identity: bytes) -> None:
        """A counter's line has vanished."""
        self._gone[line] = identity

    def forget(self, line: CounterLine, identity: bytes) -> None:
        """A counter's line has been gone for too long."""
        self._gone.pop(line, None)
        self._lines.discard(line)
        if line.last > 0.0:  # one that had counted nothing comes back as what it is: all new
            self._forgotten[_fingerprint(identity)] = None
        while len(self._forgotten) > FINGERPRINTS:
            del self._forgotten[next(iter(self._forgotten))]
        for slot in line.slots:
            slot.inputs -= 1
            self._shown.changed |= slot.inputs == 0

    def _slot(self, key: str, rule: Rule | None, alternative: int, series: Series) -> Slot | None:
        """The slot of this place, made where it is new; None where there are too many series."""
        slot = self._slots.get((key, alternative, series))
        if slot is None:
            if self._is_full():
                return None
            slot = self._slots[key, alternative, series] = Slot(rule, alternative, self._scale(rule, series))
            if rule is not None and rule.internal:
                self._internal[key].append((series, slot))
            else:
                self._shown.output(series, new=self._watched).slots.append(slot)
        return slot

    def _is_full(self) -> bool:
        return len(self._slots) + len(self._gauges) >= self._max_series

    def _make_room(self) -> None:
        """Drop what nothing feeds and nobody sees any more."""
        idle = self._shown.drop_hidden()
        self._slots = {
            place: slot
            for place, slot in self._slots.items()
            if place[2] not in idle and not (slot.rule is not None and slot.rule.internal and not slot.inputs)
        }
        for key, slots in self._internal.items():
            self._internal[key] = [(series, slot) for series, slot in slots if slot.inputs]

    @staticmethod
    def _scale(rule: Rule | None, series: Series) -> float:
        """What the slot's total is multiplied with: of a histogram the sum alone has a unit."""
        return 1.0 if rule is None or series.suffix in ("_bucket", "_count") else rule.scale

    def _gauge(self, rule: Rule, series: Series) -> GaugeSlot | None:
        slot = self._gauges.get((rule.key, series))
        if slot is None:
            if self._is_full():
                return None
            slot = self._gauges[rule.key, series] = GaugeSlot(series, rule)
        return slot

    # -- processes -----------------------------------------------------------------------------------------------

    def identify(self, value: float) -> None:
        """The upstream's process began at `value`, in Unix seconds."""
        if self._process.tell(value):
            self._begin_anew()

    def _begin_anew(self) -> None:
        """Another process: the totals as before this read, and the whole of what it has counted since it began."""
        self._anew = True
        for slot, total in _with_checkpoint(self._slots.values(), self._checkpoint):
            slot.total = total
            slot.owed = 0.0
        for line in self._lines:
            if line.read == self.read:
                for slot in line.slots:
                    slot.total += line.last
            else:
                line.last = 0.0
                line.text = b" "  # no line's text: whatever comes is looked at
        self._gone.clear()
        self._forgotten.clear()

    def _part(self) -> None:
        """Two processes take turns: what this body said counts nowhere, and the next one is a baseline."""
        for slot, total in _with_checkpoint(self._slots.values(), self._checkpoint):
            slot.total = total
            slot.inputs = 0
        self._shown.hold(self._clock() + RETENTION)
        self._gauges.clear()
        self._lines.clear()
        self._gone.clear()
        self._refused.clear()

    def _is_another(self) -> bool:
        created = [line.last for line in self._created if line.read == self.read]
        workers = frozenset(line.pid for slot in self._gauges.values() for line in slot.lines if line.pid is not None)
        return self._process.guess(created, workers, self._most_fell)

    def _most_fell(self) -> bool:
        """Whether most counters fell or vanished with this body; all vanished together is more likely a bad answer."""
        absent = sum(line.absent and line.read == self.read - 1 for line in self._lines)
        alive = sum(line.read == self.read and line.last > 0.0 for line in self._lines)
        return self.fallen > 0 and 2 * (self.fallen + absent) > alive + absent

    def _choose(self) -> None:
        """For each rule the first alternative that is there; what is shown goes on from where it was."""
        for rule in self.map.rules:
            if rule.key not in self._choices:
                continue
            present = [
                index
                for index, lines in enumerate(self._choices[rule.key])
                if any(line.read == self.read for line in lines)
            ]
            before = self._chosen[rule.key]
            if not present or (before in present and self._watched and not self._anew):
                continue
            self._chosen[rule.key] = now = present[0]
            if now != before:
                self._shown.changed = True
                if self._watched:
                    self._switch(rule, before, now)

    def _switch(self, rule: Rule, before: int, now: int) -> None:
        """The newcomer's present value is its baseline; after a restart, its value when the new process began: 0."""
        began = dict(zip(self._slots, self._checkpoint, strict=False)) if self._anew else {}
        for (key, alternative, series), slot in self._slots.items():
            if key == rule.key and alternative == now:
                old = self._slots.get((key, before, series))
                baseline = began.get((key, alternative, series), 0.0) if self._anew else slot.total
                slot.shift = (old.total + old.shift if old is not None else 0.0) - baseline

    # -- state ---------------------------------------------------------------------------------------------------

    def dump(self) -> dict[str, Any] | None:
        """What a restart of the exporter needs to go on exactly; JSON's types only.

        None while there is nothing better than what was dumped before: nothing whole has been read, or a body was cut
        before it told its process.
        """
        if not self._watched or not self._confirmed:
            return None
        live = self._live()
        slots = [
            [
                key,
                slot.rule.sources[slot.alternative] if slot.rule is not None else series.family.name,
                series.own,
                series.suffix,
                None if series.le is None else repr(series.le),
                live.get(id(slot), 0.0),
                slot.total + slot.shift,
            ]
            for (key, alternative, series), slot in self._slots.items()
            if slot.rule is None or (self._chosen[key] == alternative and not slot.rule.internal)
        ]
        gone = [_fingerprint(identity) for line, identity in self._gone.items() if line.absent and line.last > 0.0]
        return {
            "identity": self._process.start,
            "kept": self._naming.shown,
            "forgotten": [*self._forgotten, *gone][-FINGERPRINTS:],
            "slots": slots,
        }

    def _live(self) -> dict[int, float]:
        """The sum of the last values of the lines that feed a slot and are there, by the slot's id()."""
        live: dict[int, float] = {}
        for line in self._lines:
            if not line.absent:
                for slot in line.slots:
                    live[id(slot)] = live.get(id(slot), 0.0) + line.last
        return live

    def _resume(self, saved: Mapping[str, Any]) -> None:
        """Go on from what was saved, once the first body is whole and tells whether it is the same process."""
        rules = {rule.key: rule for rule in self.map.rules}
        live = self._live()
        resumed: list[tuple[Slot, Output, bool, float, float]] = []
        for key, source, labels, suffix, le, was_live, total in saved["slots"]:
            rule = rules.get(key)
            if key and (rule is None or source not in rule.sources):
                continue
            family = rule.family if rule is not None else families().get(source)
            if family is None:
                continue
            series = self._table(
                family, [(name, value) for name, value in labels], suffix, None if le is None else float(le)
            )
            chosen = self._chosen[key] if rule is not None else 0
            place = self._slot(key, rule, chosen, series)
            if place is not None:
                same_name = rule is None or rule.sources[chosen] == source
                resumed.append((place, self._shown.output(series), same_name, was_live, total))
        before = saved["identity"]
        if before is not None and self._process.start is not None:
            same = before == self._process.start
        else:
            had = [(slot, was) for slot, _, same_name, was, _ in resumed if same_name and was > 0.0]
            same = 2 * sum(live.get(id(slot), 0.0) < was for slot, was in had) <= len(had)
        if not same:
            self._forgotten.clear()
        known = set()
        until = self._clock() + RETENTION
        for slot, output, same_name, was_live, total in resumed:
            gained = slot.total  # of the first body; what it has of forgotten lines is a baseline, and not in it
            known.add(output.series)
            output.until = until
            if slot.rule is None:
                slot.total += total
            elif not same:
                slot.total = total + live.get(id(slot), 0.0)
            elif same_name:
                slot.total = total + max(0.0, gained - was_live)
                slot.owed = max(0.0, was_live - gained)
            else:
                slot.shift = total - slot.total
        self._shown.bear_all_but(known)

    def add(self, family: Family, labels: Iterable[tuple[str, str]], gain: float, suffix: str = "") -> None:
        """Count in a series of our own making; it is kept over restarts as the others are."""
        slot = self._slot("", None, 0, self._table(family, labels, suffix))
        if slot is not None:
            self._shown.changed |= slot.inputs == 0
            slot.inputs = 1
            slot.total += gain

    def internal(self, name: str) -> dict[Labels, float]:
        """The totals, or the gauge, of an internal rule by labels, without those that the whole target carries."""
        chosen = self._chosen[name]
        found = {
            series.own: slot.total + slot.shift for series, slot in self._internal[name] if slot.alternative == chosen
        }
        gauges = ((series.own, gauge.value) for (key, series), gauge in self._gauges.items() if key == name)
        return found | {labels: value for labels, value in gauges if value is not None}

    def why_left_out(self, known: object, identity: bytes) -> str | None:
        """Why a line adds nothing to the page; None where it does."""
        if isinstance(known, Refused):
            return REFUSALS[known.reason]
        if type(known) is not Known:
            return None
        name = identity.partition(b"{")[0].decode(errors="replace")
        return "by a rule of the map" if self.map.wants(name) else "no word of ours for it"

    def current(self, names: Iterable[str]) -> Iterator[Sample]:
        """The true values of mapped counters by family, those included that a page does not show yet."""
        return self._shown.current(names, self._clock())

    def values(self, name: str) -> dict[Labels, float]:
        """The true values of one mapped counter family by labels, without those that the whole target carries."""
        return {series.own: value for series, value in self.current((name,))}

    def samples(self, carried: int) -> list[Sample]:
        """What is shown now. `carried` is the number of pages that have carried this target so far."""
        samples = self._shown.samples(carried, self._clock())
        self.dropped["histogram"] += self._shown.broken
        for key, slot in list(self._gauges.items()):
            if not slot.lines:
                del self._gauges[key]
            elif not slot.rule.internal and (gauge := slot.value) is not None:
                samples.append((slot.series, gauge))
        return samples

    def _is_shown(self, slot: Slot) -> bool:
        rule = slot.rule
        if rule is None:
            return True
        return self._chosen[rule.key] == slot.alternative and (not rule.when or bool(rule.when & self._open_gates))


def _fingerprint(identity: bytes) -> int:
    return int.from_bytes(blake2b(identity, digest_size=8).digest())


def _with_checkpoint(slots: Iterable[Slot], checkpoint: Sequence[float]) -> Iterator[tuple[Slot, float]]:
    """Each slot with its total before this read; slots made within it began at 0."""
    before = iter(checkpoint)
    return ((slot, next(before, 0.0)) for slot in slots)
