"""Eight GPUs that get warm with the work of their engines, as a dcgm-exporter tells of them; and a plain service."""

from __future__ import annotations

from dataclasses import dataclass

from aiohttp import web

from exporter.demo.book import Book
from exporter.demo.engine import Engine
from exporter.demo.world import World

IDLE, FULL = 75.0, 690.0
"""Watts of an H100 at rest and at full work."""
ROOM, RISE, HOT = 27.0, 45.0, 32.0
"""Degrees: of the air; that full work adds; that a cooling that has failed adds."""
INERTIA = 20.0
"""Seconds in which a temperature makes two thirds of its way."""
THROTTLED = 84.0
"""Degrees from which on a GPU clocks down."""
MEMORY = 81_559.0
"""MiB."""
REMAPPED = ("CORRECTABLE_REMAPPED_ROWS", "UNCORRECTABLE_REMAPPED_ROWS", "ROW_REMAP_PENDING")


@dataclass(slots=True, eq=False)
class Gpu:
    """`held` are MiB: weights, and the cache that the engine took at its start. With a `trouble` its cooling fails."""

    engine: Engine | None
    held: float
    trouble: str = ""
    work: float = 0.0
    temperature: float = 40.0
    millijoules: float = 0.0
    clock: float = 1980.0

    @property
    def watts(self) -> float:
        return IDLE + (FULL - IDLE) * self.work * self.clock / 1980.0

    def step(self, world: World, seconds: float) -> None:
        """Live through some seconds."""
        busy = 0.0 if self.engine is None else self.engine.busy
        wanted = min(1.0, 1.3 * busy) * (0.95 + 0.05 * world.random.random())
        self.work += (wanted - self.work) * min(1.0, seconds / 3.0)
        hot = HOT if self.trouble and world.troubled(self.trouble) else 0.0
        aim = ROOM + 8.0 + RISE * self.watts / FULL + hot
        self.temperature += (aim - self.temperature) * min(1.0, seconds / INERTIA)
        self.clock = 1980.0 if self.temperature < THROTTLED else 1100.0
        if self.engine is not None and self.trouble:
            self.engine.slow = 1980.0 / self.clock
        self.millijoules += self.watts * seconds * 1000.0


class Gpus:
    """What a dcgm-exporter says of them."""

    def __init__(self, world: World, gpus: list[Gpu]) -> None:
        self._world = world
        self._gpus = gpus
        world.steppers.append(self._step)

    def _step(self, seconds: float) -> None:
        for gpu in self._gpus:
            gpu.step(self._world, seconds)

    def application(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/", self._page)
        app.router.add_get("/metrics", self._metrics)
        return app

    async def _page(self, _: web.Request) -> web.Response:
        return web.Response(text="<title>GPU Exporter</title>")

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(text=self.text())

    def hottest(self) -> float:
        """Degrees of the hottest one."""
        return max(gpu.temperature for gpu in self._gpus)

    def text(self) -> str:
        book = Book(Hostname="gpu-1", modelName="NVIDIA H100 80GB HBM3", DCGM_FI_DRIVER_VERSION="570.124.06")
        for index, gpu in enumerate(self._gpus):
            labels = {
                "gpu": str(index),
                "UUID": f"GPU-de300000-0000-4000-8000-{index:012d}",
                "device": f"nvidia{index}",
                "pci_bus_id": f"00000000:{0x18 + index:02X}:00.0",
            }
            for name, value in (
                ("SM_CLOCK", gpu.clock if gpu.work > 0.02 else 345.0),
                ("MEM_CLOCK", 2619.0),
                ("MAX_SM_CLOCK", 1980.0),
                ("GPU_TEMP", float(round(gpu.temperature))),
                ("MEMORY_TEMP", float(round(gpu.temperature + 6.0))),
                ("POWER_USAGE", gpu.watts),
                ("ENFORCED_POWER_LIMIT", 700.0),
                ("GPU_UTIL", float(round(100.0 * gpu.work))),
                ("MEM_COPY_UTIL", float(round(60.0 * gpu.work))),
                ("ENC_UTIL", 0.0),
                ("DEC_UTIL", 0.0),
                ("FB_TOTAL", MEMORY),
                ("FB_USED", gpu.held),
                ("FB_FREE", MEMORY - gpu.held - 577.0),
                ("FB_RESERVED", 577.0),
                ("PSTATE", 0.0),
                ("ROW_REMAP_FAILURE", 0.0),
            ):
                book.set(f"DCGM_FI_DEV_{name}", value, **labels)
            book.add("DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", gpu.millijoules, **labels)
            for name in ("PCIE_REPLAY_COUNTER", "ECC_SBE_VOL_TOTAL", "ECC_DBE_VOL_TOTAL", *REMAPPED):
                book.add(f"DCGM_FI_DEV_{name}", 0.0, **labels)
        return book.text()


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
