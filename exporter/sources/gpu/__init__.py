"""The GPUs of this machine: NVIDIA's by their library, AMD's by sysfs, asked by a child process."""

from __future__ import annotations

import asyncio
import ctypes
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal

import structlog
from pydantic import Field, field_validator

from exporter.catalogue import families
from exporter.config.model import TargetConfig
from exporter.config.values import AbsolutePath
from exporter.core.errors import ReadError
from exporter.core.fetch import Upstream
from exporter.core.source import Context, Result, written
from exporter.core.types import Advice, Series
from exporter.core.workload import workload_of
from exporter.sources.dcgm import USUAL, is_dcgm
from exporter.sources.gpu import child
from exporter.sources.gpu.process import Answer, Asker

LOOK_AGAIN = 60.0
"""Seconds between two looks for a dcgm-exporter on this machine."""

ALWAYS = ("llm_gpu_up", "llm_gpu_xid_errors_total", "llm_gpu_xid_last_timestamp_seconds")
"""What is shown of a GPU that is down, too."""

log = structlog.get_logger(__name__)


class Gpus(TargetConfig):
    """The GPUs of the machine that the exporter runs on."""

    source: Literal["gpu"] = "gpu"
    url: str = Field(default="", description="Not for GPUs of this machine. Others: a dcgm-exporter, source `dcgm`.")
    sysfs: AbsolutePath = Field(
        default="/sys", description="Where sysfs is: AMD's GPUs are read there. In a container: where the host's is."
    )
    step_back: bool = Field(
        default=False,
        description="Show nothing while a dcgm-exporter answers on this machine, which tells the same. So it is for "
        "GPUs that were found, not configured.",
    )

    @field_validator("url")
    @classmethod
    def _here(cls, url: str) -> str:
        if url:
            raise ValueError("GPUs of this machine have no url (leave it out; for a dcgm-exporter write source: dcgm)")
        return url

    @property
    def place(self) -> str:
        return "this machine's GPUs"


class Gpu:
    """Reads all GPUs of this machine; one that is lost or hangs costs its own series."""

    kind: ClassVar[str] = "gpu"
    Config: ClassVar[type[TargetConfig]] = Gpus

    def __init__(self, config: Gpus, context: Context) -> None:
        self._config = config
        self._context = context
        self._asker = Asker(config.sysfs, self._count_xid)
        self._kept = False  # the child lives on after a read
        self._numbers: dict[str, str] = {}  # of each GPU that was seen, by its UUID
        self._failures: dict[
            str, tuple[str, str]
        ] = {}  # number and reason, by UUID where that is known, else by number
        self._xids: dict[str, tuple[str, float]] = {}  # number and time of the last one, by UUID
        self._other: str | None = None
        self._look_again = float("-inf")

    @staticmethod
    def at(url: str, _: Mapping[str, str]) -> Gpus:
        """Whatever stands for this machine; a path is where sysfs is."""
        return Gpus(sysfs=url) if url.startswith("/") else Gpus()

    @staticmethod
    def candidates(_: Mapping[str, str]) -> Sequence[Gpus]:
        return [Gpus(step_back=True)]

    @staticmethod
    async def recognise(upstream: Upstream, target: TargetConfig) -> bool:
        """Whether there is a GPU. Where nothing of a driver is there, that costs a tenth of a millisecond."""
        if not isinstance(target, Gpus):
            return False
        if not (_driver() or child.amd(Path(target.sysfs))):  # sysfs tells a card's vendor without asking the card
            raise ReadError("connect", f"no GPU here: neither {child.LIBRARY} nor an amdgpu below {target.sysfs}")
        if target.step_back and (other := await _dcgm(upstream)):
            raise ReadError("connect", f"left to the dcgm-exporter at {other}, which tells the same")
        asker = Asker(target.sysfs, lambda _: None)
        try:
            return await asker.count() > 0
        finally:
            await asker.close()

    async def read(self) -> Result:
        await asyncio.sleep(0)  # so that `follow`, where it runs, is ahead
        if await self._steps_back():
            await self._asker.close()
            self._context.tell(())
            told = Advice(f"the GPUs: the dcgm-exporter at {self._other} tells them", "step_back: false")
            return Result(advice=(told,), shows=lambda _: False)
        try:
            answers = await self._asker.ask()
        finally:
            if not self._kept:
                await self._asker.close()
        self._context.hear(self._lines(answers))
        hangs = any(answer is None or answer.get("error") == child.HANGS for answer in answers.values())
        if self._failures and not hangs:
            self._asker.renew()
        advice = [
            Advice(
                f"GPU {number}: {why}",
                f"nvidia-smi --query-gpu=gpu_recovery_action --format=csv -i {number}   # and see the kernel's log",
            )
            for number, why in self._failures.values()
        ]
        return Result(advice=advice, seconds=self._asker.seconds, shows=self._shows if self._failures else None)

    async def follow(self) -> AsyncIterator[Result]:
        """Keep the child from one read to the next; XIDs are heard in between."""
        self._kept = True
        try:
            await asyncio.Event().wait()
            yield Result()
        finally:
            self._kept = False
            await self._asker.close()

    async def _steps_back(self) -> bool:
        if self._config.step_back and self._context.clock() >= self._look_again:
            self._look_again = self._context.clock() + LOOK_AGAIN
            self._other = await _dcgm(self._context.upstream)
        return self._other is not None

    def _shows(self, series: Series) -> bool:
        """Nothing of a GPU that is down, but that it is, and why."""
        return (series.get("uuid") or series.get("gpu")) not in self._failures or series.family.name in ALWAYS

    def _count_xid(self, said: Answer) -> None:
        gpu, uuid = str(said["gpu"]), said["uuid"]
        labels = [("gpu", gpu), ("uuid", uuid), ("xid", str(said["xid"]))]
        self._context.totals.add(families()["llm_gpu_xid_errors_total"], labels, 1.0)
        self._xids[uuid] = gpu, said["at"]
        log.warning("a GPU reports an XID", gpu=gpu, xid=said["xid"])

    def _lines(self, answers: Mapping[int, Answer | None]) -> Iterator[bytes]:
        """What is told of each GPU; of one that does not answer, that it is not up."""
        uuids = {number: uuid for uuid, number in self._numbers.items()}
        missing = dict(self._numbers)
        failures: dict[str, tuple[str, str]] = {}
        for index, answer in answers.items():
            number = str(index)
            uuid = (answer or {}).get("uuid") or uuids.get(number)
            labels = {"gpu": number, "uuid": uuid} if uuid else {"gpu": number}
            if uuid:
                self._numbers[uuid] = number
                missing.pop(uuid, None)
            if answer is None or "text" not in answer:
                failures[uuid or number] = number, child.HANGS if answer is None else answer["error"]
                yield written("gpu_up", labels, 0.0)
                continue
            yield answer["text"].encode()
            for workload, size in _shares(answer["processes"]).items():
                yield written("gpu_process_memory_bytes", {**labels, "workload": workload}, size)
        for uuid, number in missing.items():  # the library does not even count it any more
            failures[uuid] = number, "gone"
            yield written("gpu_up", {"gpu": number, "uuid": uuid}, 0.0)
        for uuid, (number, at) in self._xids.items():
            yield written("gpu_xid_last_timestamp_seconds", {"gpu": number, "uuid": uuid}, at)
        for key in failures.keys() - self._failures.keys():
            log.warning("a GPU is down", gpu=failures[key][0], reason=failures[key][1])
        for key in self._failures.keys() - failures.keys():
            log.info("a GPU is back", gpu=self._failures[key][0])
        self._failures = failures


def _shares(processes: Sequence[tuple[int, int | None]]) -> dict[str, float]:
    """Bytes by workload. `other` is what is nobody's: the process is gone, or in another namespace."""
    shares: dict[str, float] = {}
    for pid, size in processes:
        if size is not None:
            workload = workload_of(pid) or "other"
            shares[workload] = shares.get(workload, 0.0) + size
    return shares


def _driver() -> bool:
    """Whether NVIDIA's library can be loaded; nothing of it is called."""
    try:
        ctypes.CDLL(child.LIBRARY)
    except OSError:
        return False
    return True


async def _dcgm(upstream: Upstream) -> str | None:
    """The URL of a dcgm-exporter on this machine."""
    for url in USUAL:
        try:
            if await is_dcgm(upstream.elsewhere(url)):
                return url
        except ReadError:
            continue
    return None


SOURCE = Gpu
