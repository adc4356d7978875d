"""One unit: what systemd has said of it, what has happened to it, and the samples that come of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from exporter.catalogue import families
from exporter.core.source import Row
from exporter.core.types import Labels

UNIT = ("LoadState", "ActiveState", "ActiveEnterTimestamp", "InvocationID")
"""Properties that every unit has; of each change there is a signal."""
TYPE = ("NRestarts", "Result", "ExecMainCode", "ExecMainStatus", "CPUUsageNSec", "MemoryCurrent", "TasksCurrent")
"""Properties that depend on the unit's type; of the last three there is no signal."""

UNTOLD = TYPE[-3:]
"""Those of which no signal tells."""

NOT_SET = 2**64 - 1
"""What systemd says where it has no number."""

STATES = {"maintenance": "inactive", "refreshing": "reloading"}
"""Rare states, as the usual one that they come down to."""
ENDED = ("inactive", "failed")
NO_FAILURES = ("success", "exec-condition", None)
"""Results of a run that did not fail: a condition that does not hold is none."""
KILLED = (2, 3)
"""Of ExecMainCode: ended by a signal, without or with a core dump; 1 is an exit, 0 no end yet."""


@dataclass(slots=True)
class Unit:
    """A unit by its name."""

    name: str
    watched: bool = False  # what happened to it before is known
    fresh: bool = False  # it was asked about on this connection
    heard: int = 0  # changes that signals have told
    stirred: bool = False  # something has changed since it was last asked about
    said: dict[str, Any] = field(default_factory=dict)
    _invocation: str = ""  # the newest one seen
    _failed: str = ""  # the newest one seen that failed
    _restarts: dict[int, int] = field(default_factory=lambda: {0: 0})  # NRestarts, each time that it began at 0 again

    def take(self, told: Mapping[str, Any]) -> tuple[int, int]:
        """Take what systemd says; what that tells of starts and failures since what it said before."""
        invocation = told.get("InvocationID") or self._invocation
        started = invocation != self._invocation
        if started or told.get("ActiveState") in ENDED:  # what it used was another run's
            self.said = {name: value for name, value in self.said.items() if name not in UNTOLD}
        self.said.update(told)
        counted, restarts = max(self._restarts), self.number("NRestarts") or 0
        self._restarts[counted + (restarts < self._restarts[counted])] = restarts
        if not invocation:
            return 0, 0
        failed = self.said.get("Result") not in NO_FAILURES and invocation != self._failed
        self._invocation = invocation
        if failed:
            self._failed = invocation
        return (int(started), int(failed)) if self.watched else (0, 0)

    @property
    def state(self) -> str:
        state = str(self.said.get("ActiveState", "inactive"))
        if state == "inactive" and self.said.get("LoadState", "not-found") == "not-found":
            return "not_found"
        return STATES.get(state, state)

    def number(self, name: str) -> int | None:
        """A property that is a number, None where systemd has none."""
        value = self.said.get(name)
        return value if isinstance(value, int) and value != NOT_SET else None

    def rows(self, scope: str) -> Iterator[Row]:
        """What it has counted, as samples under systemd's names. What no longer grows is told once."""
        labels = {"unit": self.name, "scope": scope}
        for counted, restarts in self._restarts.items():
            yield "NRestarts", {**labels, "counted": counted}, float(restarts)
        self._restarts = dict([self._restarts.popitem()])
        if (cpu := self.number("CPUUsageNSec")) is not None:
            yield "CPUUsageNSec", {**labels, "invocation": self._invocation}, float(cpu)

    def samples(self, scope: str) -> Iterator[tuple[str, Labels, float]]:
        """How it is now, in our words."""
        known = families()
        labels = (("unit", self.name), ("scope", scope))
        for state in known["llm_unit_state"].closed["state"]:
            yield "llm_unit_state", (*labels, ("state", state)), float(state == self.state)
        if self.state == "not_found":
            return
        if (result := self.said.get("Result")) is not None:
            results = known["llm_unit_result"].closed["result"]
            if result not in results:
                result = "other"
            for each in results:
                yield "llm_unit_result", (*labels, ("result", each)), float(each == result)
        if self.state in ("active", "reloading", "deactivating") and (began := self.number("ActiveEnterTimestamp")):
            yield "llm_unit_start_timestamp_seconds", labels, began / 1e6
        if code := self.number("ExecMainCode"):
            status = self.number("ExecMainStatus") or 0
            yield "llm_unit_exit_status", labels, float(128 + status if code in KILLED else status)
        for name, family in (("MemoryCurrent", "llm_unit_memory_bytes"), ("TasksCurrent", "llm_unit_tasks")):
            if (value := self.number(name)) is not None:
                yield family, labels, float(value)
