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
from exporter.sources.host import machine
from exporter.sources.host.workloads import Workloads

NODE_EXPORTER = "http://127.0.0.1:9100"
LOOK_AGAIN = 60.0
"""Seconds between two looks for workloads: to look costs ten times what their numbers do."""


class Host(WithThresholds):
    """The machine that the exporter runs on."""

    source: Literal["host"] = "host"
    url: Url = Field(default="", description="Not for the host: it is the one that the exporter runs on.")
    workloads: tuple[Text, ...] = Field(
        default=(),
        description="Units, containers or processes to show beside the servers that are known or watched: "
        "`search.service`, `worker*`.",
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
        self._look = float("-inf")
        self._reading: Future[list[Row]] | None = None

    @staticmethod
    def at(_: str, __: Mapping[str, str]) -> Host:
        return Host()

    @staticmethod
    def candidates(_: Mapping[str, str]) -> Sequence[Host]:
        return [Host()]

    @staticmethod
    async def recognise(upstream: Upstream, target: TargetConfig) -> bool:
        """Where a node_exporter tells of this machine already, it is left to that."""
        if not isinstance(target, Host):
            return False
        try:
            async with upstream.elsewhere(NODE_EXPORTER).get("/") as answer:
                there = b"node exporter" in (await answer.start(1 << 16)).lower()
        except ReadError:
            there = False
        if there:
            what = f"a node_exporter answers at {NODE_EXPORTER} and tells of this machine"
            raise ReadError("content", f"{what} (write a target with source: host to have llm_host_* as well)")
        return True

    async def read(self) -> Result:
        if self._reading is not None and not self._reading.done():
            raise ReadError("timeout", "this machine: what was asked before hangs (is there a disk that is gone?)")
        self._reading = _in_thread(lambda: list(self._rows(self._context.ports())))
        rows = await asyncio.wrap_future(self._reading)
        self._context.tell(rows)
        return Result()

    def _rows(self, ports: frozenset[int]) -> Iterator[Row]:
        yield from machine.rows()
        for mode, seconds in machine.cpu_times().items():
            # the kernel sets idle and iowait back by a hair at times, which is no restart
            self._cpu[mode] = max(seconds, self._cpu.get(mode, 0.0))
            yield "cpu_times", {"mode": mode}, self._cpu[mode]
        if self._context.clock() >= self._look:
            self._workloads.look(ports)
            self._look = self._context.clock() + LOOK_AGAIN
        yield from self._workloads.rows()


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
