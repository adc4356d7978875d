"""dcgm-exporter: NVIDIA's GPUs as its own exporter tells them, here or on another machine, in our words.

It labels each sample with what it knows of the GPU's user (pod, MIG instance), so that one counter of the hardware
comes in several lines, which come and go. Such counters are gauges to the map; what they gained is counted here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, Literal

from exporter.catalogue import families
from exporter.config.model import TargetConfig
from exporter.core.fetch import Upstream, refuse
from exporter.core.source import Context, Result
from exporter.core.types import Labels, Sample

USUAL = ("http://127.0.0.1:9400", "http://127.0.0.1:9401")
"""Where a dcgm-exporter is on this machine: its own port, and the next where that is taken, as by this exporter."""

METRICS = "/metrics"

COUNTERS: dict[str, tuple[str, Labels]] = {
    "energy": ("llm_gpu_energy_joules_total", ()),
    "pcie_replays": ("llm_gpu_pcie_replays_total", ()),
    "ecc_corrected": ("llm_gpu_ecc_errors_total", (("severity", "corrected"),)),
    "ecc_uncorrected": ("llm_gpu_ecc_errors_total", (("severity", "uncorrected"),)),
}
"""Our counters, with a label more, by the gauge of the map that each is the gain of."""


class Exporter(TargetConfig):
    """A dcgm-exporter."""

    source: Literal["dcgm"] = "dcgm"


class Dcgm:
    """Reads one dcgm-exporter."""

    kind: ClassVar[str] = "dcgm"
    Config: ClassVar[type[TargetConfig]] = Exporter

    def __init__(self, _: Exporter, context: Context) -> None:
        self._context = context
        self._last: dict[tuple[str, Labels], float] = {}

    @staticmethod
    def at(url: str, _: Mapping[str, str]) -> Exporter:
        return Exporter(url=url)

    @staticmethod
    def candidates(_: Mapping[str, str]) -> Sequence[Exporter]:
        return [Exporter(url=url, name="dcgm") for url in USUAL]

    @staticmethod
    async def recognise(upstream: Upstream, _: object) -> bool:
        return await is_dcgm(upstream)

    async def read(self) -> Result:
        async with self._context.upstream.get(METRICS) as answer:
            refuse(answer)
            await self._context.take(answer)
        self._count()
        there = {dict(labels).get("gpu") for labels in self._context.totals.internal("known")}
        return Result([*self._samples()], shows=lambda series: series.get("gpu") in there)

    def _count(self) -> None:
        """Add what the hardware's counters gained. One that fell began anew with its driver."""
        for gauge, (counter, more) in COUNTERS.items():
            for labels, value in self._context.totals.internal(gauge).items():
                last = self._last.get((gauge, labels), value)
                self._last[gauge, labels] = value
                gained = value - last if value >= last else value
                self._context.totals.add(families()[counter], (*labels, *more), gained)

    def _samples(self) -> Iterator[Sample]:
        """The GPUs that it tells of."""
        table, known = self._context.table, families()
        for labels in self._context.totals.internal("known"):
            yield table(known["llm_gpu_info"], labels), 1.0
            yield table(known["llm_gpu_up"], [pair for pair in labels if pair[0] in ("gpu", "uuid")]), 1.0
        for labels in self._context.totals.internal("mig"):
            yield table(known["llm_gpu_mig_info"], labels), 1.0


async def is_dcgm(upstream: Upstream) -> bool:
    """Whether a dcgm-exporter answers there. Raises ReadError where nothing does.

    An exporter of ours is known by its first page: to ask it for its metrics would count as a scrape.
    """
    if b"llm-exporter" in (await upstream.glance("/")).start:
        return False
    metrics = await upstream.glance(METRICS)
    return metrics.status == 200 and b"\nDCGM_FI_" in b"\n" + metrics.start


SOURCE = Dcgm
