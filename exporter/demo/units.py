"""The stack's units of systemd: how each is, what it uses, and what it writes to the journal."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from exporter.demo.world import World

RUNS, PAUSE, BURST = 5.0, 2.0, 5
"""Of a unit that cannot run: seconds until it ends, seconds until it is started again, and how often at most."""
BOOT = "5eb1c0de5eb1c0de5eb1c0de5eb1c0de"
MANAGER = "init.scope"


class Unit:
    """One unit. `work` is the CPUs that it keeps busy, `held` bytes, `talks` journal entries a second at full load.

    It is killed while it is not `there`. With a `trouble` it ends soon after each start, until systemd gives it up.
    """

    def __init__(
        self,
        name: str,
        *,
        held: float,
        tasks: int,
        work: Callable[[], float],
        talks: float = 0.2,
        complains: str = "",  # about a trouble
        there: Callable[[], bool] = lambda: True,
        trouble: str = "",
    ) -> None:
        self.name = name
        self.tasks, self.talks, self.complains, self.there, self.trouble = tasks, talks, complains, there, trouble
        self.held, self.work = held, work
        self.state, self.result, self.code, self.status = "active", "success", 0, 0
        self.invocation = b""
        self.began = self.until = 0.0  # of this run; of what is next where it restarts, in real seconds
        self.restarts = 0
        self.cpu = 0.0  # seconds, of this run

    def is_active(self) -> bool:
        return self.state == "active"


class Units:
    """All of them. `changed` and `broke` are told of the unit, `written` gets the journal's entries."""

    def __init__(self, world: World, units: Sequence[Unit]) -> None:
        self.all = {unit.name: unit for unit in units}
        self.changed: list[Callable[[Unit], None]] = []
        self.written: list[Callable[[bytes], None]] = []
        self.broke: list[Callable[[Unit], None]] = []
        self._world = world
        self._entries = 0
        for unit in units:
            self._start(unit, -7200.0)
        world.steppers.append(self._step)

    def _start(self, unit: Unit, at: float) -> None:
        unit.state, unit.result, unit.code, unit.status = "active", "success", 0, 0
        unit.invocation = self._world.random.randbytes(16)
        unit.began, unit.cpu, unit.until = at, 0.0, at + RUNS
        self._change(unit)
        self._write(MANAGER, 6, UNIT=unit.name)

    def _end(self, unit: Unit, result: str, code: int, status: int, state: str = "failed") -> None:
        unit.state, unit.result, unit.code, unit.status = state, result, code, status
        unit.until = self._world.now + PAUSE
        self._change(unit)
        self._write(MANAGER, 4, UNIT=unit.name)

    def _change(self, unit: Unit) -> None:
        for tell in self.changed:
            tell(unit)

    def _step(self, seconds: float) -> None:
        world = self._world
        for unit in self.all.values():
            if unit.trouble:
                self._suffer(unit)
            elif unit.is_active() and not unit.there():
                self._end(unit, "signal", 2, 9)
            elif not unit.is_active() and unit.there():
                self._start(unit, world.now)
            if unit.is_active():
                unit.cpu += unit.work() * seconds
                ill = bool(unit.complains) and world.troubled(unit.complains)
                for _ in range(world.happens(unit.talks * (0.1 + world.load) * seconds)):
                    self._write(unit.name, 3 if ill and world.random.random() < 0.5 else 6)

    def _suffer(self, unit: Unit) -> None:
        """Restart in a loop until systemd has enough of it; who looks after it starts it by hand once it can run."""
        now = self._world.now
        if not self._world.troubled(unit.trouble):
            if not unit.is_active():
                unit.restarts = 0
                self._start(unit, now)
        elif unit.is_active() and now >= unit.until:
            for each in range(6):
                self._write(unit.name, 2 if each == 5 else 3)
            for tell in self.broke:
                tell(unit)
            self._end(unit, "exit-code", 1, 1, "failed" if unit.restarts == BURST else "activating")
        elif unit.state == "activating" and now >= unit.until:
            unit.restarts += 1
            self._start(unit, now)

    def _write(self, unit: str, priority: int, **more: str) -> None:
        """An entry of the journal, as journalctl prints it. What it says is nobody's business."""
        self._entries += 1
        at = int(self._world.wall * 1e6)
        cursor = f"s={BOOT};i={self._entries:x};b={BOOT};m={int(self._world.now * 1e6):x};t={at:x};x={self._entries:x}"
        entry = {"__CURSOR": cursor, "PRIORITY": str(priority), "_SYSTEMD_UNIT": unit, **more}
        for take in self.written:
            take(json.dumps(entry).encode() + b"\n")
