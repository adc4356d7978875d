"""Totals that never lie: what an upstream's counters gained, whatever happens to their lines.

Many upstream lines (one for each key, user, worker) fall together into one series of ours. An exposed counter is not
their sum, which would fall when a line vanishes, but what they gained:

- a line that grew adds the difference; one that fell has been reset and adds its whole value;
- a line that vanishes adds nothing and is remembered for `RETENTION`, so that its return adds what it gained meanwhile;
  one forgotten and back is a new baseline;
- another process behind the same URL (its start time tells) adds the whole of each of its values;
- alternatives of a rule (old and new names) gather side by side; one is shown, and a switch changes no total.

The numbers live in the slots of a ledger (`ledger.py`): one for each rule, alternative and series. A line keeps its
last value and its slots (`lines.py`), and both move together, so a read that is cut midway loses nothing and counts
nothing twice.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from math import inf
from typing import Any

from exporter.core import saved as saving
from exporter.core.alike import Alike, Model
from exporter.core.gauges import GaugeLine, Gauges, GaugeSlot
from exporter.core.ledger import Ledger, Slot
from exporter.core.lines import (
    RETENTION,
    Counters,
    CreatedLines,
    IdentityLine,
    Kind,
    Refused,
    kind_of,
)
from exporter.core.mapping import SourceMap
from exporter.core.naming import Naming, is_too_long
from exporter.core.process import Process
from exporter.core.rule import Rule
from exporter.core.shown import Shown
from exporter.core.types import Family, Labels, LabelSet, Sample, Samples, Series, SeriesTable
from exporter.text.parse import Line
from exporter.text.sink import Ignored, Known

FINGERPRINTS = 10_000
"""Forgotten lines that are told from new ones when they come back; while they are gathered, up to twice as many."""

REFUSALS = {
    "type": "its TYPE contradicts the map",
    "limit": "over a limit on series or on a label's length",
    "histogram": "a bucket without a number in its le",
    "value": "no number that a counter can have",
}
"""Why a line that is wanted is not taken, by the reason it is counted under."""

_UNTOLD = (None, "untyped", "unknown")
_LEFT_OUT = Ignored()


class Totals:
    """All numbers of one target: the sink of its reader (`exporter.text.sink`).

    `saved` is what `dump` gave before the exporter was restarted, as one mapping; None at a first start. With
    `from_zero` the first values are a baseline and every total begins at 0: right where no state can be kept, because a
    total that begins at the upstream's value again would be counted again by `increase()`. `clock` gives monotonic
    seconds.
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
        self.note = str((saved or {}).get("note", ""))
        """A short text of the source's own, such as a place to go on from: what it is set to in a read is saved with
        the totals of that read, and is there again after a restart of the exporter."""
        self._baseline = from_zero and saved is None
        self._owing = False
        self._watched = False  # a whole body has been read

        self.read = 0  # number of the read that is under way or was the last
        self.fallen = 0  # counters that fell within this read
        self.missing = 0  # counters that this body came without, and the one before had
        self.anew = False  # within this read the upstream turned out to be another process
        self.dropped: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()  # lines of the last body that are not taken, by reason

        self.ledger = Ledger()
        self.counters: set[Counters] = set()  # remembered ones included
        self.present: Counter[Kind] = Counter()  # destinations in the last body
        self.shown = Shown(source_map, table, self.ledger, self._is_shown, max_series)
        self._internal: dict[str, list[tuple[Series, Slot]]] = {
            rule.key: [] for rule in source_map.rules if rule.internal
        }
        self._forgotten: dict[int, None] = dict.fromkeys((saved or {}).get("forgotten", ()))
        self._created: set[CreatedLines] = set()

        self._naming = Naming(source_map, table, keep, (saved or {}).get("kept", {}))
        self._alike = Alike(source_map, self._naming, self.ledger, self.slot)
        self._wanted: dict[str, bool] = {}
        self._places: dict[tuple[object, ...], Series] = {}  # of lines opened in this body

        self.chosen = {rule.key: 0 for rule in source_map.rules}
        self._gauges = Gauges(source_map, self.chosen)
        self._renamed = [rule for rule in source_map.rules if len(rule.sources) > 1]
        self._gates = frozenset(name for rule in source_map.rules for name in rule.when)
        self._open_gates: set[str] = set()

        self._checkpoint: list[float] = []  # the slots' totals when it was last certain which process told them
        self._confirmed = True
        self._process = Process(ordered=source_map.identity_label is None)
        self._identity_line: IdentityLine | None = None

    # -- one read ------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        self.read += 1
        self.fallen = self.missing = 0
        self.anew = False
        if self._confirmed and self._is_full():
            self._make_room()
        if self._confirmed:
            self._checkpoint = self.ledger.checkpoint()
        self._confirmed = False

    def wants(self, name: str) -> bool:
        wanted = self._wanted.get(name)
        if wanted is None:
            wanted = bool(self.map.wants(name)) or name == self.map.identity or name in self._gates
            wanted |= self._is_created(name)
            if len(self._wanted) < 10_000:
                self._wanted[name] = wanted
        return wanted

    def open(self, line: Line, upstream_type: str | None) -> Known:
        """A line not known by its bytes: find its places, take its value."""
        if line.name in self._gates and line.name not in self._open_gates:
            self._open_gates.add(line.name)
            self.shown.changed = True
        if not self.map.wants(line.name):
            return self._unmapped(line)
        labels = self._naming.learn(line)
        if self._naming.must_wait(line, labels):
            return self._naming.wait(line, upstream_type, labels)
        return self._place(line, labels, upstream_type)

    def settle(self) -> Iterator[tuple[Known, Known]]:
        for waiting in self._naming.decide():
            yield waiting.known, self._place(waiting.line, waiting.labels, waiting.type)

    def abort(self) -> bool:
        """The body was cut.

        What its lines gained stays. But where the cut came before the line that tells the process, those gains are
        taken back should the next body come from another one: they may have been its own, and would count twice.
        Before the first whole body there is nothing to go on from, and everything begins with the next one.
        """
        self._naming.take_waiting()
        self._places.clear()
        if not self._watched:
            self._start_over()
            return False
        self._confirmed = self._identity_line is None or self._identity_line.read == self.read
        return True

    def _start_over(self) -> None:
        """As if no body had ever begun."""
        self.shown = Shown(self.map, self._table, self.ledger, self._is_shown, self._max_series)
        self.ledger.clear()
        self._gauges.clear()
        for places in (self.counters, self._created, self.refused, self.present, self._open_gates):
            places.clear()
        for slots in self._internal.values():
            slots.clear()
        self._alike.forget()
        self._forgotten = dict.fromkeys((self._saved or {}).get("forgotten", ()))
        self._process = Process(ordered=self.map.identity_label is None)
        self._identity_line = None
        self._confirmed = True

    def end(self) -> bool:
        if self._is_another() and self._watched:
            self._begin_anew()
        self._confirmed = True
        parted = self._process.end()
        if parted:
            self._part()
        self._gauges.drop_empty()
        self._choose()
        if self._saved is not None:
            self._resume(self._saved)
            self._saved = None
        self.dropped.update(self.refused)
        self._places.clear()
        self._watched = True
        self._baseline = parted
        return not parted

    def verify(self) -> None:
        """Raises ReadError("identity") while two processes take turns."""
        self._process.verify()

    def drop(self, reason: str, samples: int = 1) -> None:
        self.dropped[reason] += samples

    # -- lines ---------------------------------------------------------------------------------------------------

    def _is_created(self, name: str) -> bool:
        base = name.removesuffix("_created")
        return base != name and any(self.map.wants(base + suffix) for suffix in ("_total", "_count"))

    def _unmapped(self, line: Line) -> Known:
        if line.name == self.map.identity:
            return self._identity(line)
        if self._is_created(line.name):
            return CreatedLines(self._created, (line.value,))
        return _LEFT_OUT

    def _identity(self, line: Line) -> Known:
        """The line that tells the process, by its value or by a label; without the label it tells nothing."""
        label, number = self.map.identity_label, None
        if label is not None:
            told = self.map.present(line.labels).get(label)
            if told is None:
                return _LEFT_OUT
            number = float(saving.fingerprint(told.encode()) >> 11)  # as many bits as a float keeps
        self._identity_line = IdentityLine(self, line.value, number)
        return self._identity_line

    def _place(self, line: Line, labels: LabelSet, upstream_type: str | None) -> Known:
        slots: list[Slot] = []
        gauges: list[tuple[GaugeSlot, Labels]] = []
        ways: list[tuple[str, int]] = []
        wraps = 0
        kept = tuple(self._naming.kept(labels))
        for rule, alternative, suffix in self.map.wants(line.name):
            ours = self._naming.place(rule, labels)
            if ours is None:
                continue
            if not rule.internal and upstream_type not in (*_UNTOLD, *rule.declared):
                return Refused(self.refused, "type")
            if is_too_long(ours, kept):
                return Refused(self.refused, "limit")
            le = None
            if suffix == "_bucket":
                try:
                    le = rule.boundary(labels["le"])
                except (KeyError, ValueError):
                    return Refused(self.refused, "histogram")
            place = rule.key, ours, kept, suffix, le
            series = self._places.get(place)
            if series is None:
                series = self._places[place] = self._naming.series(rule, ours, kept, suffix, le)
            if rule.family.kind == "gauge":
                gauge = self._gauges.slot(rule, alternative, series, full=self._is_full())
                if gauge is None:
                    return Refused(self.refused, "limit")
                gauges.append(
                    (gauge, tuple((name, value) for name, value in labels.items() if name not in rule.copies))
                )
            else:
                slot = self.slot(rule.key, rule, alternative, series)
                if slot is None:
                    return Refused(self.refused, "limit")
                slots.append(slot)
            ways.append((rule.key, alternative))
            wraps = max(wraps, rule.wraps)
        if gauges:
            kind = kind_of("gauge", frozenset(ways))
            self.present[kind] += 1
            gauge_line = GaugeLine(self, kind, [slot for slot, _ in gauges], line.value, labels.get("pid"))
            for gauge, copy in gauges:
                gauge.lines[gauge_line] = copy
                gauge.merged = None
            return gauge_line
        if slots:
            return self._counter(line, kind_of("counter", frozenset(ways), wraps), slots)
        return _LEFT_OUT

    def _counter(self, line: Line, kind: Kind, slots: list[Slot]) -> Counters:
        good = 0.0 <= line.value < inf
        numbers = [slot.number for slot in slots]
        lanes = tuple((number,) for number in numbers)
        known = Counters(self, kind, lanes, (line.value if good else 0.0,), bad=() if good else (0,))
        self.present[kind] += 1
        self.ledger.feed(numbers)
        if not good:
            self.refused["value"] += 1
            return known
        if self._baseline or (self._forgotten and self._forgotten.pop(saving.fingerprint(line.identity), 0) is None):
            return known
        for slot in slots:
            claimed = min(slot.owed, line.value)
            if claimed:
                slot.owed -= claimed
            slot.total += line.value - claimed
        return known

    def model(self, known: Known) -> Model | None:
        return self._alike.model(known) if isinstance(known, Counters) else None

    def open_like(self, model: Model, line: Line, values: Sequence[float]) -> Known | None:
        if self._forgotten or self._owes() or min(values) < 0.0:
            return None
        lanes = self._alike.lanes(model, line)
        if lanes is None:
            return None
        known = Counters(self, model.kind, lanes, values)
        self.present[model.kind] += 1
        for lane in lanes:
            self.ledger.feed(lane)
        if not self._baseline:
            known.gain(values)
        return known

    def _owes(self) -> bool:
        """Whether lines that were there before the exporter was restarted have not come yet."""
        self._owing = self._owing and any(slot.owed for slot in self.ledger.slots.values())
        return self._owing

    def forget(self, identity: bytes, last: float) -> None:
        """A counter's line has been gone for too long."""
        if last > 0.0:  # one that had counted nothing comes back as what it is: all new
            self._forgotten[saving.fingerprint(identity)] = None
        if len(self._forgotten) >= 2 * FINGERPRINTS:  # one by one each would be searched for behind those before it
            self._forgotten = dict.fromkeys(islice(self._forgotten, FINGERPRINTS, None))

    def slot(self, key: str, rule: Rule | None, alternative: int, series: Series) -> Slot | None:
        """The slot of this place, made where it is new; None where there are too many series."""
        place = key, alternative, series
        slot = self.ledger.slots.get(place)
        if slot is None:
            if self._is_full():
                return None
            slot = self.ledger.open(place, rule, self._scale(rule, series))
            if rule is not None and rule.internal:
                self._internal[key].append((series, slot))
            else:
                self.shown.output(series, new=self._watched).slots += (slot,)
        return slot

    def _is_full(self) -> bool:
        return len(self.ledger) + len(self._gauges) >= self._max_series

    def _make_room(self) -> None:
        """Drop what nothing feeds and nobody sees any more."""
        idle = self.shown.drop_hidden()
        self.ledger.close(
            [
                place
                for place, slot in self.ledger.slots.items()
                if place[2] in idle or (slot.rule is not None and slot.rule.internal and not slot.inputs)
            ]
        )
        self._alike.forget_lanes()
        for key, slots in self._internal.items():
            self._internal[key] = [(series, slot) for series, slot in slots if slot.inputs]

    @staticmethod
    def _scale(rule: Rule | None, series: Series) -> float:
        """What the slot's total is multiplied with: of a histogram the sum alone has a unit."""
        return 1.0 if rule is None or series.suffix in ("_bucket", "_count") else rule.scale

    # -- processes -----------------------------------------------------------------------------------------------

    def identify(self, value: float) -> None:
        """What tells the upstream's process: when it began, in Unix seconds, or a number of its own."""
        if self._process.tell(value):
            self._begin_anew()

    def _begin_anew(self) -> None:
        """Another process: the totals as before this read, and the whole of what it has counted since it began."""
        self.anew = True
        self.ledger.restore(self._checkpoint)
        for slot in self.ledger.slots.values():
            slot.owed = 0.0
        for line in self.counters:
            if line.read == self.read:
                line.gain(line.last)
            else:
                line.begin_anew()
        self._forgotten.clear()

    def _part(self) -> None:
        """Two processes take turns: what this body said counts nowhere, and the next one is a baseline."""
        self.ledger.restore(self._checkpoint)
        self.ledger.unfeed_all()
        self.shown.hold(self._clock() + RETENTION)
        self._gauges.clear()
        self.counters.clear()
        self.present.clear()
        self._created.clear()
        self.refused.clear()

    def _is_another(self) -> bool:
        if self._process.start is not None:  # it has been told
            return False
        created = [value for line in self._created for value in line.last]
        return self._process.guess(created, self._gauges.workers(), self._most_fell)

    def _most_fell(self) -> bool:
        """Whether most counters fell or vanished with this body; all vanished together is more likely a bad answer."""
        if not self.fallen:
            return False
        there = (line for line in self.counters if not (line.absent or line.kind.wraps))
        alive = sum(last > 0.0 for line in there for last in line.last)
        return 2 * (self.fallen + self.missing) > alive + self.missing

    def _choose(self) -> None:
        """For each rule the first alternative that is there; what is shown goes on from where it was."""
        there = {way for kind, lines in self.present.items() if lines for way in kind.ways}
        for rule in self._renamed:
            present = [index for index in range(len(rule.sources)) if (rule.key, index) in there]
            before = self.chosen[rule.key]
            if not present or (before in present and self._watched and not self.anew):
                continue
            self.chosen[rule.key] = now = present[0]
            if now != before:
                self.shown.changed = True
                if self._watched:
                    self._switch(rule, before, now)

    def _switch(self, rule: Rule, before: int, now: int) -> None:
        """The newcomer's present value is its baseline; after a restart, its value when the new process began: 0."""
        for (key, alternative, series), slot in self.ledger.slots.items():
            if key == rule.key and alternative == now:
                old = self.ledger.slots.get((key, before, series))
                began = self._checkpoint[slot.number] if slot.number < len(self._checkpoint) else 0.0
                slot.shift = (old.total + old.shift if old is not None else 0.0) - (began if self.anew else slot.total)

    # -- state ---------------------------------------------------------------------------------------------------

    def dump(self, remembered: Iterable[tuple[Known, Iterable[bytes]]] = ()) -> saving.Dump | None:
        """What a restart of the exporter needs to go on exactly.

        None while there is nothing better than what was dumped before: nothing whole has been read, or a body was cut
        before it told its process. `remembered` is the reader's.
        """
        if not self._watched or not self._confirmed:
            return None
        gone = [
            saving.fingerprint(identity)
            for line, identities in remembered
            if isinstance(line, Counters)
            for identity, last in zip(identities, line.last, strict=True)
            if last > 0.0
        ]
        head = {
            "identity": self._process.start,
            "kept": self._naming.shown,
            "note": self.note,
            "forgotten": [*self._forgotten, *gone][-FINGERPRINTS:],
        }
        return saving.Dump(head, saving.slots(self.ledger, self.counters, self.chosen))

    def _resume(self, saved: Mapping[str, Any]) -> None:
        """Go on from what was saved, once the first body is whole and tells whether it is the same process."""
        known = saving.resume(self, saved, self._process.start, self._table, self._clock() + RETENTION)
        if known.another:
            self._forgotten.clear()
        self._owing = True
        self.shown.bear_all_but(known.series)

    def add(self, family: Family, labels: Iterable[tuple[str, str]], gain: float, suffix: str = "") -> None:
        """Count in a series of our own making; it is kept over restarts as the others are."""
        slot = self.slot("", None, 0, self._table(family, labels, suffix))
        if slot is not None:
            if not slot.inputs:
                self.ledger.feed((slot.number,))
            slot.total += gain

    def leave(self, family: Family, labels: Iterable[tuple[str, str]]) -> None:
        """What a series of our own making is told of is gone: it is shown for RETENTION yet, or until it is back."""
        series = self._table(family, labels)
        slot = self.ledger.slots.get(("", 0, series))
        if slot is not None and slot.inputs:
            self.ledger.unfeed((slot.number,))
            self.shown.output(series).until = self._clock() + RETENTION

    def internal(self, name: str) -> dict[Labels, float]:
        """The totals, or the gauge, of an internal rule by labels, without those that the whole target carries."""
        chosen = self.chosen[name]
        found = {
            series.own: slot.total + slot.shift for series, slot in self._internal[name] if slot.alternative == chosen
        }
        return found | dict(self._gauges.internal(name))

    def why_left_out(self, known: object, identity: bytes) -> str | None:
        """Why a line adds nothing to the page; None where it does."""
        if isinstance(known, Refused):
            return REFUSALS[known.reason]
        if not isinstance(known, Ignored):
            return None
        name = identity.partition(b"{")[0].decode(errors="replace")
        return "by a rule of the map" if self.map.wants(name) else "no word of ours for it"

    def current(self, names: Iterable[str]) -> Iterator[Sample]:
        """The true values of mapped counters by family, those included that a page does not show yet."""
        self._mark_changes()
        return self.shown.current(names, self._clock())

    def _mark_changes(self) -> None:
        self.shown.changed |= self.ledger.changed
        self.ledger.changed = False

    def gauges(self, names: Collection[str]) -> Iterator[Sample]:
        """The values of mapped gauges by family."""
        return self._gauges.current(names)

    def values(self, name: str) -> dict[Labels, float]:
        """The true values of one mapped counter family by labels, without those that the whole target carries."""
        return {series.own: value for series, value in self.current((name,))}

    def samples(self, carried: int) -> Samples:
        """What is shown now. `carried` is the number of pages that have carried this target so far."""
        self._mark_changes()
        counters = self.shown.samples(carried, self._clock())
        self.dropped["histogram"] += self.shown.broken
        self.dropped["limit"] += self.shown.over
        shown = self._gauges.shown()
        return Samples(
            [*counters.series, *(series for series, _ in shown)], [*counters.values, *(value for _, value in shown)]
        )

    def _is_shown(self, slot: Slot) -> bool:
        rule = slot.rule
        if rule is None:
            return True
        return self.chosen[rule.key] == slot.alternative and (not rule.when or bool(rule.when & self._open_gates))
