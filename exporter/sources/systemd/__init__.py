"""systemd's units: how they are, what they use, and each start and failure, of the system or of the user's own."""

from __future__ import annotations

import asyncio
import re
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field, field_validator

from exporter.catalogue import families
from exporter.config.model import TargetConfig, WithThresholds
from exporter.config.values import Url, shown
from exporter.core.errors import ReadError
from exporter.core.fetch import Upstream
from exporter.core.source import Context, Result, Row
from exporter.core.types import Advice, Labels, Sample, Series
from exporter.sources.systemd.bus import UNIT_INTERFACE, Manager, connected, interface_of
from exporter.sources.systemd.show import show
from exporter.sources.systemd.unit import ENDED, TYPE, UNIT, Unit

SERVERS = ("litellm", "ollama", "llama-server", "llama-cpp-python", "vllm", "sglang", "dynamo")
"""What serves models, as people call its unit; `vllm@a.service` and `vllm-a.service` belong to it, too."""
KNOWN = tuple(f"{name}.service" for name in SERVERS)
KNOWN_PATTERNS = tuple(f"{name}{mark}*.service" for name in SERVERS for mark in "@-")

AT_ONCE = 16
"""Questions that wait for an answer at a time: dbus-daemon drops those beyond 128."""
READS = 3
"""Reads in a row that must be slow until systemd is asked more rarely: the first asks for more than the others."""
CONNECT_AGAIN = 5.0
"""Seconds after which a connection that broke is tried again."""
GATHER = 0.05
"""Seconds in which changes are gathered before they are shown."""

ACTIVATIONS, FAILURES = "llm_unit_activations_total", "llm_unit_failures_total"
ABSENT = "not-found"
NO_SIGNALS = Advice(
    "starts and failures between two reads, and changes at once: the exporter cannot use D-Bus",
    "apt install dbus   # and run the exporter as a user of its own, not with DynamicUser=",
)

_TYPES = "service|socket|timer|target|scope|slice|mount|automount|swap|path|device"
_PATTERN = frozenset("*?[")


def _unit(value: str) -> str:
    """With its type, as systemd has it; `*` and `?` stand for any characters."""
    if not re.fullmatch(r"[\w:.@\\*?\[\]!-]{1,255}", value, re.ASCII):
        raise ValueError(f"no name of a unit: {shown(value)} (write litellm.service, or vllm@*.service)")
    return value if re.search(rf"\.({_TYPES}|\*)$", value) else f"{value}.service"


def _bus(value: str) -> str:
    if not re.fullmatch(r"(unix|tcp):[^\s=,]+=\S+", value):
        raise ValueError(f"no address of a bus: {shown(value)} (write unix:path=/host/run/dbus/system_bus_socket)")
    return value


class WithUnits(TargetConfig):
    """A target that reads this machine's own units, by names and patterns."""

    url: Url = Field(default="", description="Not of this source: it reads the machine that it runs on.")
    units: Annotated[tuple[Annotated[str, AfterValidator(_unit)], ...], Field(min_length=1)] | None = Field(
        default=None,
        description="Names, such as `litellm.service` (or `litellm`), and patterns, such as `vllm@*.service`. Left "
        f"out: the units that serve models, where they are there: {', '.join(SERVERS)}.",
    )

    @field_validator("url")
    @classmethod
    def _no_url(cls, url: str) -> str:
        if url:
            raise ValueError("a URL, and units have none (leave it out: those of this machine are read)")
        return url

    @property
    def names(self) -> tuple[str, ...]:
        return KNOWN if self.units is None else tuple(unit for unit in self.units if not _PATTERN & {*unit})

    @property
    def patterns(self) -> tuple[str, ...]:
        return KNOWN_PATTERNS if self.units is None else tuple(unit for unit in self.units if _PATTERN & {*unit})


class Units(WithUnits, WithThresholds):
    """Units of this machine."""

    source: Literal["systemd"] = "systemd"
    scope: Literal["system", "user"] = Field(
        default="system", description="Whose units: the system's, or those of the user that the exporter runs as."
    )

    bus: Annotated[str, AfterValidator(_bus)] | None = Field(
        default=None,
        description="Address of the bus, where it is not this machine's own: `unix:path=/host/run/dbus/"
        "system_bus_socket` in a container.",
    )

    @property
    def target_name(self) -> str:
        return self.name or ("systemd" if self.scope == "system" else "systemd-user")

    @property
    def place(self) -> str:
        return f"units of the {self.scope}"


class Systemd:
    """Reads the units of one manager."""

    kind: ClassVar[str] = "systemd"
    Config: ClassVar[type[TargetConfig]] = Units

    def __init__(self, config: Units, context: Context) -> None:
        self._config = config
        self._context = context
        self._units: dict[str, Unit] = {}
        self._looked = False  # at all units, once
        self._manager: Manager | None = None  # while `follow` is connected
        self._owner: str | None = None  # the manager that was asked last, by its name on the bus
        self._began: float | None = None  # when it began, in Unix seconds
        self._version: str | None = None
        self._took = deque([0.0] * READS, maxlen=READS)  # seconds, of the last reads
        self._changed = asyncio.Event()
        self._made: dict[tuple[str, Labels], Series] = {}

    @staticmethod
    def at(url: str, _: Mapping[str, str]) -> Units:
        """`system` or `user`."""
        return Units(scope=url)  # type: ignore[arg-type]  # the model checks it

    @staticmethod
    def candidates(environ: Mapping[str, str]) -> Sequence[Units]:
        """The system's; and the user's own, where the environment tells of their bus."""
        user = [Units(scope="user")] if {"DBUS_SESSION_BUS_ADDRESS", "XDG_RUNTIME_DIR"} & {*environ} else []
        return [Units(), *user]

    @staticmethod
    async def recognise(_: Upstream, target: TargetConfig) -> bool:
        if not isinstance(target, Units):
            return False
        async with connected(target.scope, target.bus) as manager:
            found = await manager.units(target.names, target.patterns)
        if all(load == ABSENT for _, load, _, _ in found):
            raise ReadError(
                "content", f"no unit of the {target.scope} serves models, by its name ({', '.join(SERVERS)})"
            )
        return True

    # -- reading -------------------------------------------------------------------------------------------------

    async def read(self) -> Result:
        began = time.monotonic()
        try:
            if self._manager is not None:
                await self._look(self._manager)
            else:
                async with self._connected() as manager:
                    self._forget()
                    await self._look(manager)
        except ReadError as error:
            if self._config.bus is not None:  # systemctl would tell of this machine
                raise
            try:
                await self._show()
            except ReadError as other:
                text = f"{error}; {other} (where no systemd runs on this machine, take the target out)"
                raise ReadError(error.reason, text) from None
            return self._result(NO_SIGNALS)
        self._took.append(time.monotonic() - began)
        return replace(self._result(), seconds=min(self._took))

    def _connected(self) -> AbstractAsyncContextManager[Manager]:
        return connected(self._config.scope, self._config.bus)

    def _forget(self) -> None:
        """What was told on another connection may have changed unheard."""
        for unit in self._units.values():
            unit.fresh = False

    async def _look(self, manager: Manager) -> None:
        """Ask which units there are, and about those that are new, run, or have changed."""
        heard = {name: unit.heard for name, unit in self._units.items()}
        listed = await manager.units([*{*self._config.names, *self._units}], self._config.patterns)
        if manager.owner != self._owner:  # the first time, and after systemd has executed itself anew
            self._began, self._version = await manager.about()
            if manager is self._manager:
                await manager.subscribe()
            self._forget()
            self._owner = manager.owner
        turn = asyncio.Semaphore(AT_ONCE)

        async def ask(unit: Unit, told: dict[str, object], path: str) -> None:
            async with turn:
                unit.stirred = False
                if not unit.fresh:
                    told |= await manager.properties(path, UNIT_INTERFACE, UNIT)
                told |= await manager.properties(path, interface_of(unit.name), TYPE)
            if unit.heard == heard.get(unit.name, 0):
                unit.fresh = manager is self._manager
                self._take(unit, told)
            else:  # signals have told what is newer; it is asked about again
                unit.stirred = True

        questions = []
        for name, load, active, path in listed:
            unit = self._unit(name, there=load != ABSENT or active != "inactive")
            if unit is None:
                continue
            told: dict[str, object] = {"LoadState": load, "ActiveState": active}
            same = all(unit.said.get(key) == value for key, value in told.items())
            if not (same and unit.fresh and active in ENDED) or unit.stirred:
                questions.append(ask(unit, told, path))
        await asyncio.gather(*questions)
        self._tell([("UserspaceTimestamp", {}, self._began or 0.0)])

    async def _show(self) -> None:
        """Ask systemctl, without D-Bus."""
        for name, said in await show(
            self._config.scope, [*{*self._config.names, *self._config.patterns, *self._units}]
        ):
            unit = self._unit(name, there=said.get("LoadState") != ABSENT or said.get("ActiveState") != "inactive")
            if unit is not None:
                self._take(unit, said)
        self._tell([])

    def _unit(self, name: str, *, there: bool = True) -> Unit | None:
        """A unit that is shown; None where it is not there and nobody named it."""
        if not there and not self._is_named(name):
            if self._units.pop(name, None) is not None:
                for counter in (ACTIVATIONS, FAILURES):
                    self._context.totals.leave(families()[counter], self._labels(name))
            return None
        if name not in self._units:
            self._units[name] = Unit(name, watched=self._looked)
        return self._units[name]

    def _is_named(self, name: str) -> bool:
        return self._config.units is not None and name in self._config.names

    def _take(self, unit: Unit, told: Mapping[str, object]) -> None:
        """Take what systemd says of a unit, and count what has happened to it."""
        started, failed = unit.take(told)
        unit.watched = True
        for name, times in ((ACTIVATIONS, started), (FAILURES, failed)):
            self._context.totals.add(families()[name], self._labels(unit.name), float(times))

    def _labels(self, unit: str) -> Labels:
        return ("unit", unit), ("scope", self._config.scope)

    def _tell(self, rows: list[Row]) -> None:
        self._looked = True
        for unit in self._units.values():
            rows += unit.rows(self._config.scope)
        self._context.tell(rows)

    # -- signals -------------------------------------------------------------------------------------------------

    async def follow(self) -> AsyncIterator[Result]:
        """What systemd signals, as it happens."""
        while True:
            with suppress(ReadError):
                async with self._connected() as manager:
                    names = None if self._config.patterns else self._config.names
                    await manager.listen(names, self._hear)
                    self._forget()
                    self._manager = manager
                    lost = asyncio.create_task(manager.lost())
                    lost.add_done_callback(lambda _: self._changed.set())
                    try:
                        while not lost.done():
                            await self._changed.wait()
                            self._changed.clear()
                            if self._looked and not lost.done():
                                yield self._result()
                            await asyncio.sleep(GATHER)
                    finally:
                        self._manager = None
                        lost.cancel()
            await asyncio.sleep(CONNECT_AGAIN)

    def _hear(self, name: str, told: Mapping[str, object]) -> None:
        """Take what a signal says of a unit, of whichever it is."""
        wanted = name in self._config.names or any(fnmatchcase(name, pattern) for pattern in self._config.patterns)
        unit = self._unit(name) if wanted or name in self._units else None
        if unit is None:
            return
        changed = any(unit.said.get(key) != value for key, value in told.items())
        unit.heard += 1
        if changed:
            unit.stirred = True
            self._take(unit, told)
            self._changed.set()

    # -- what is shown -------------------------------------------------------------------------------------------

    def _result(self, *advice: Advice) -> Result:
        """The units as they are now. Series are made once."""
        known, table, made = families(), self._context.table, {}
        samples: list[Sample] = []
        for unit_name, unit in sorted(self._units.items()):
            if unit.state == "not_found" and not self._is_named(unit_name):
                continue
            for name, labels, value in unit.samples(self._config.scope):
                key = name, labels
                made[key] = self._made.get(key) or table(known[name], labels)
                samples.append((made[key], value))
        self._made = made
        return Result(samples, advice, self._version)


SOURCE = Systemd
