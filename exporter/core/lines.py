"""What a known line of an upstream's body is to us, and the places that its value goes to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Protocol

from exporter.core.mapping import Rule
from exporter.core.types import Series

RETENTION = 3600.0
"""Seconds for which a vanished line's last value is remembered."""


class Ledger(Protocol):
    """What lines need of the Totals that they belong to."""

    read: int
    fallen: int

    def drop(self, reason: str) -> None: ...
    def remember(self, line: CounterLine, identity: bytes) -> None: ...
    def forget(self, line: CounterLine, identity: bytes) -> None: ...
    def identify(self, value: float) -> None: ...


@dataclass(slots=True, eq=False)
class Slot:
    """What one alternative of one rule gathered for one series; without a rule, what our own code counted."""

    rule: Rule | None
    alternative: int
    scale: float = 1.0
    total: float = 0.0
    shift: float = 0.0  # added where the slot is shown: what its predecessors had gathered
    inputs: int = 0  # lines that feed it, remembered ones included
    owed: float = 0.0  # of the saved live sum, what no line has claimed since a restart of the exporter


@dataclass(slots=True, eq=False)
class Output:
    """One counter series (or bucket, sum, count) as shown."""

    series: Series
    slots: list[Slot] = field(default_factory=list)
    until: float = 0.0  # shown until then (monotonic seconds), though nothing feeds it
    floor: float = 0.0  # what is shown until a page has carried it
    born: int | None = None  # pages carried when it was first published; -1 before that; None once carried
    active: Sequence[Slot] = ()  # the slots that make its value now
    shown: bool = False

    @property
    def value(self) -> float:
        total = 0.0
        for slot in self.active:
            total += (slot.total + slot.shift) * slot.scale
        return total


class Known:
    """A line known by its bytes. `text` is what stood behind the identity, `read` the read that last saw it."""

    __slots__ = ("__weakref__", "read", "text")

    def __init__(self) -> None:
        self.text = b""
        self.read = 0

    def take(self, value: float) -> None:
        """The line has a new value."""

    def vanished(self, identity: bytes, now: float) -> bool:  # noqa: ARG002 - for lines that are remembered
        """A whole body came without the line. True: forget it."""
        return True


class Refused(Known):
    """A line that is wanted and cannot be taken, counted at each read by its reason."""

    __slots__ = ("_refused", "reason")

    def __init__(self, refused: Counter[str], reason: str) -> None:
        super().__init__()
        self._refused = refused
        self.reason = reason
        refused[reason] += 1

    def vanished(self, identity: bytes, now: float) -> bool:  # noqa: ARG002 - see Known
        self._refused[self.reason] -= 1
        return True


class CounterLine(Known):
    """A line whose growth is counted."""

    __slots__ = ("_totals", "gone", "last", "missed", "slots")

    def __init__(self, totals: Ledger, slots: list[Slot]) -> None:
        super().__init__()
        self._totals = totals
        self.slots = slots
        self.last = 0.0
        self.gone = 0.0  # when it vanished, if the read that last saw it is `missed`
        self.missed = -1

    @property
    def absent(self) -> bool:
        """Whether the last whole body came without the line."""
        return self.missed == self.read

    def take(self, value: float) -> None:
        if self.last <= value < inf:
            gain = value - self.last
        elif 0.0 <= value < inf:
            gain = value
            self._totals.fallen += 1
        else:
            self._totals.drop("value")
            return
        self.last = value
        for slot in self.slots:
            slot.total += gain

    def vanished(self, identity: bytes, now: float) -> bool:
        if not self.absent:
            self.missed = self.read
            self.gone = now
            self._totals.remember(self, identity)
        if now - self.gone < RETENTION:
            return False
        self._totals.forget(self, identity)
        return True


class GaugeLine(Known):
    """A line whose newest value is shown."""

    __slots__ = ("_totals", "changed", "last", "pid", "slots")

    def __init__(self, totals: Ledger, slots: list[GaugeSlot], value: float, pid: str | None) -> None:
        super().__init__()
        self._totals = totals
        self.slots = slots
        self.pid = pid
        self.take(value)

    def take(self, value: float) -> None:
        self.last = value
        self.changed = self._totals.read

    def vanished(self, identity: bytes, now: float) -> bool:  # noqa: ARG002 - see Known
        for slot in self.slots:
            del slot.lines[self]
        return True


@dataclass(slots=True, eq=False)
class GaugeSlot:
    """A gauge series and the lines that fall together in it, each with what tells copies of one gauge apart."""

    series: Series
    rule: Rule
    lines: dict[GaugeLine, tuple[tuple[str, str], ...]] = field(default_factory=dict)

    @property
    def value(self) -> float | None:
        """The merged value of the lines, or None where there is none to show.

        Of copies (one gauge told by several workers) those count that changed last.
        """
        newest: dict[tuple[tuple[str, str], ...], int] = {}
        for line, copy in self.lines.items():
            newest[copy] = max(newest.get(copy, 0), line.changed)
        values = [
            line.last for line, copy in self.lines.items() if line.changed == newest[copy] and -inf < line.last < inf
        ]
        if not values or (self.rule.merge == "none" and len(values) > 1):
            return None
        merged = max(values) if self.rule.merge == "max" else min(values) if self.rule.merge == "min" else sum(values)
        return merged * self.rule.scale


class IdentityLine(Known):
    """The line that tells one process from another."""

    __slots__ = ("_totals",)

    def __init__(self, totals: Ledger, value: float) -> None:
        super().__init__()
        self._totals = totals
        self.take(value)

    def take(self, value: float) -> None:
        self._totals.identify(value)


class CreatedLine(Known):
    """A `_created` line: tells one process from another where nothing better does."""

    __slots__ = ("last",)

    def __init__(self, value: float) -> None:
        super().__init__()
        self.last = value

    def take(self, value: float) -> None:
        self.last = value
