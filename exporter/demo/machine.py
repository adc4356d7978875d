"""Eight GPUs that get warm with the work of their engines, as NVIDIA's library tells of them; and a plain service."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web

from exporter.demo import pynvml
from exporter.demo.engine import Engine
from exporter.demo.world import World

IDLE, FULL = 75.0, 690.0
"""Watts of an H100 at rest and at full work."""
ROOM, RISE, HOT = 27.0, 45.0, 36.0
"""Degrees: of the air; that full work adds; that a cooling that has failed adds."""
INERTIA = 20.0
"""Seconds in which a temperature makes two thirds of its way."""
THROTTLED = 84.0
"""Degrees from which on a GPU clocks down."""
MIB = 2**20
MEMORY, RESERVED = 81_559 * MIB, 577 * MIB
TOP, SLOW, REST, MEMORY_CLOCK = 1980, 1100, 345, 2619
"""Megahertz: at work, where it clocks down, at rest; and of its memory."""
PCIE, NVLINK = 1.5e9, 9e9
"""Bytes a second in each direction at full work; over NVLink where an engine is spread over several GPUs."""
PAGE_FAULT = 31
"""The XID of a program that reads what is not there."""

Held = Callable[[], float]
"""MiB that a process has on a GPU."""


@dataclass(slots=True, eq=False)
class Gpu:
    """`held` by the processes that use it, by their names. With a `trouble` its cooling fails."""

    engines: Sequence[Engine]
    held: Mapping[str, Held]
    trouble: str = ""
    spread: bool = False
    work: float = 0.0
    temperature: float = 40.0
    clock: int = TOP
    total: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(("millijoules", "hot", "pcie", "nvlink"), 0.0)
    )

    @property
    def watts(self) -> float:
        return IDLE + (FULL - IDLE) * self.work * self.clock / TOP

    def step(self, world: World, seconds: float) -> None:
        """Live through some seconds."""
        busy = sum(engine.busy for engine in self.engines)
        wanted = min(1.0, 1.3 * busy) * (0.95 + 0.05 * world.random.random())
        self.work += (wanted - self.work) * min(1.0, seconds / 3.0)
        hot = HOT if self.trouble and world.troubled(self.trouble) else 0.0
        aim = ROOM + 8.0 + RISE * self.watts / FULL + hot
        self.temperature += (aim - self.temperature) * min(1.0, seconds / INERTIA)
        self.clock = TOP if self.temperature < THROTTLED else SLOW
        if self.trouble:
            for engine in self.engines:
                engine.slow = TOP / self.clock
        for what, amount in (
            ("millijoules", self.watts * 1000.0),
            ("hot", 1e9 * (self.clock == SLOW)),
            ("pcie", PCIE * self.work),
            ("nvlink", NVLINK * self.work * self.spread / 1024.0),
        ):
            self.total[what] += amount * seconds


class Gpus:
    """All of them. `processes` are the ids of those that run, by their names."""

    def __init__(self, world: World, gpus: Sequence[Gpu], processes: Callable[[], Mapping[str, int]]) -> None:
        self.all = gpus
        self._world = world
        self._processes = processes
        self._xids: list[tuple[int, int]] = []
        world.steppers.append(self._step)

    def _step(self, seconds: float) -> None:
        for gpu in self.all:
            gpu.step(self._world, seconds)

    def fail(self, name: str) -> None:
        """A process does on its GPU what it may not."""
        self._xids += [(index, PAGE_FAULT) for index, gpu in enumerate(self.all) if name in gpu.held]

    def hottest(self) -> float:
        """Degrees of the hottest one."""
        return max(gpu.temperature for gpu in self.all)

    def place(self, folder: Path) -> None:
        """Make `folder` one from which Python imports what stands for NVIDIA's library here."""
        shutil.copy(pynvml.__file__, folder / "pynvml.py")
        self.write(folder)

    def write(self, folder: Path) -> None:
        """Write down what the library would say now."""
        fresh = folder / "gpus.new"
        fresh.write_text(json.dumps(self.said()))
        fresh.replace(folder / "gpus.json")

    def said(self) -> dict[str, Any]:
        """What NVIDIA's library would say now, by its functions."""
        running = self._processes()
        return {
            "nvmlSystemGetCudaDriverVersion": 12080,
            "nvmlSystemGetDriverVersion": "570.124.06",
            "nvmlDeviceGetCount": len(self.all),
            "nvmlEventSetCreate": 0,
            "xids": self._xids,
            "gpus": [self._one(index, gpu, running) for index, gpu in enumerate(self.all)],
        }

    @staticmethod
    def _one(index: int, gpu: Gpu, running: Mapping[str, int]) -> dict[str, Any]:
        held = {pid: int(held() * MIB) for name, held in gpu.held.items() if (pid := running.get(name)) is not None}
        used = sum(held.values())
        clock = gpu.clock if gpu.work > 0.02 else REST
        total = gpu.total
        return {
            "nvmlDeviceGetUUID": f"GPU-de300000-0000-4000-8000-{index:012d}",
            "nvmlDeviceGetName": "NVIDIA H100 80GB HBM3",
            "nvmlDeviceGetPciInfo": {"busId": f"00000000:{0x18 + index:02X}:00.0"},
            "nvmlDeviceGetMemoryInfo": {
                "total": MEMORY,
                "used": used,
                "free": MEMORY - used - RESERVED,
                "reserved": RESERVED,
            },
            "nvmlDeviceGetUtilizationRates": {"gpu": round(100.0 * gpu.work), "memory": round(60.0 * gpu.work)},
            "nvmlDeviceGetEncoderUtilization": (0, 0),
            "nvmlDeviceGetDecoderUtilization": (0, 0),
            "nvmlDeviceGetTemperature": round(gpu.temperature),
            "nvmlDeviceGetPowerUsage": gpu.watts * 1000.0,
            "nvmlDeviceGetEnforcedPowerLimit": 700_000,
            "nvmlDeviceGetPerformanceState": 0,
            "nvmlDeviceGetCurrentClocksEventReasons": 0x20 if gpu.clock == SLOW else 0x1 if gpu.work < 0.02 else 0,
            "nvmlDeviceGetNumFans": 0,
            "nvmlDeviceGetClockInfo": (clock, clock, MEMORY_CLOCK, clock),
            "nvmlDeviceGetMaxClockInfo": (TOP, TOP, MEMORY_CLOCK, TOP),
            "nvmlDeviceGetMigMode": (0, 0),
            "nvmlDeviceGetComputeRunningProcesses_v3": [
                {"pid": pid, "usedGpuMemory": size} for pid, size in held.items()
            ],
            "nvmlDeviceGetGraphicsRunningProcesses_v3": (),
            "fields": {
                **dict.fromkeys((3, 4, 74, 76, 94, 142, 143, 144, 145, 230, 270, 271), 0),
                82: round(gpu.temperature + 6.0),
                83: total["millijoules"],
                138: total["nvlink"],
                139: total["nvlink"],
                197: total["pcie"] * 0.4,
                198: total["pcie"],
                269: total["hot"],
            },
        }


class Service:
    """Something that answers when it is asked how it is, except while there is `trouble` with it."""

    def __init__(self, world: World, trouble: str = "") -> None:
        self._world, self._trouble = world, trouble

    def application(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/health", self._health)
        return app

    async def _health(self, _: web.Request) -> web.Response:
        ill = bool(self._trouble) and self._world.troubled(self._trouble)
        return web.json_response({"status": "unavailable" if ill else "available"}, status=503 if ill else 200)
