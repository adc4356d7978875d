"""The machine that the exporter runs on, and what the servers on it cost."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from threading import Thread
from typing import ClassVar, Literal

from pydantic import Field, field_validator

from exporter.config.model import TargetConfig, WithThresholds
from exporter.config.values import Text, Url
from exporter.core.errors import ReadError
from exporter.core.fetch import Upstream
from exporter.core.source import Context, Result, Row
from exporter.core.types import Advice
from exporter.sources.host import machine
from exporter.sources.host.workloads import Workloads

NODE_EXPORTER = "http://127.0.0.1:9100"
LOOK_AGAIN = 60.0
"""Seconds between two looks for workloads (one costs ten times what their numbers do), and for a node_exporter."""
WORKLOADS = "llm_workload_"


class Host(WithThresholds):
    """The machine that the exporter runs on."""

    source: Literal["host"] = "host"
    url: Url = Field(default="", description="Not for the host: it is the one that the exporter runs on.")
    workloads: tuple[Text, ...] = Field(
        default=(),
        description="Units, containers or processes to show beside the servers that are known or watched: "
        "`search.service`, `worker*`.",
    )
    step_back: bool = Field(
        default=False,
        description="Show workloads alone while a node_exporter answers on this machine, which tells the rest. So it "
        "is for a host that was found, not configured.",
    )

    @field_validator("url", mode="before")
    @classmethod
    def _nowhere_else(cls, _: object) -> str:
        raise ValueError("the host is the one that the exporter runs on (leave url out, run an exporter on each)")

    @property
    def place(self) -> str:
        return "this machine"


class Machine:
    """Reads it, in a thread: a disk that hangs holds up nothing but its own target."""

    kind: ClassVar[str] = "host"
    Config: ClassVar[type[TargetConfig]] = Host

    def __init__(self, config: Host, context: Context) -> None:
        self._config = config
        self._context = context
        self._cpu: dict[str, float] = {}
        self._workloads = Workloads(config.workloads)
        self._look = self._look_aside = float("-inf")
        self._other = False
        self._reading: Future[list[Row]] | None = None

    @staticmethod
    def at(_: str, __: Mapping[str, str]) -> Host:
        return Host()

    @staticmethod
    def candidates(_: Mapping[str, str]) -> Sequence[Host]:
        return [Host(step_back=True)]

    @staticmethod
    async def recognise(_: Upstream, target: TargetConfig) -> bool:
        if isinstance(target, Host):
            _must_be_linux()
        return isinstance(target, Host)

    async def read(self) -> Result:
        _must_be_linux()
        if self._config.step_back and self._context.clock() >= self._look_aside:
            self._look_aside = self._context.clock() + LOOK_AGAIN
            self._other = await _is_node_exporter(self._context.upstream.elsewhere(NODE_EXPORTER))
        if self._reading is not None and not self._reading.done():
            raise ReadError("timeout", "this machine: what was asked before hangs (is there a disk that is gone?)")
        ports = self._context.ports()  # here, and not in the thread: targets come and go
        self._reading = _in_thread(lambda: list(self._rows(ports)))
        rows = await asyncio.wrap_future(self._reading)
        self._context.tell(rows)
        if not self._other:
            return Result()
        told = Advice(f"the machine itself: the node_exporter at {NODE_EXPORTER} tells of it", "step_back: false")
        return Result(advice=[told], shows=lambda series: series.family.name.startswith(WORKLOADS))

    def _rows(self, ports: Mapping[int, str]) -> Iterator[Row]:
        yield from machine.rows()
        for mode, seconds in machine.cpu_times().items():
            # the kernel sets idle and iowait back by a hair at times, which is no restart
            self._cpu[mode] = max(seconds, self._cpu.get(mode, 0.0))
            yield "cpu_times", {"mode": mode}, self._cpu[mode]
        if self._context.clock() >= self._look:
            self._workloads.look(ports)
            self._look = self._context.clock() + LOOK_AGAIN
        yield from self._workloads.rows()


def _must_be_linux() -> None:
    """Raises ReadError where this machine is none that can be read."""
    if not machine.BOOT.exists():
        raise ReadError("connect", f"this machine: Linux alone is read, and there is no {machine.BOOT} here")


async def _is_node_exporter(upstream: Upstream) -> bool:
    try:
        async with upstream.get("/") as answer:
            return b"node exporter" in (await answer.start(1 << 16)).lower()
    except ReadError:
        return False


def _in_thread(work: Callable[[], list[Row]]) -> Future[list[Row]]:
    """Done by a thread that nobody waits for at the end, as the threads of a pool are."""
    done: Future[list[Row]] = Future()
    done.set_running_or_notify_cancel()  # it can no longer be cancelled: it ends when it does

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:  # noqa: BLE001 - raised again where it is waited for
            done.set_exception(error)

    Thread(target=run, daemon=True, name="host").start()
    return done


SOURCE = Machine
