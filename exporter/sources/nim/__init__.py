"""NVIDIA NIM for language models: its backend's metrics, under a path of NIM's."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from exporter.config.model import TargetConfig
from exporter.core.fetch import Upstream
from exporter.sources import engine

METRICS = "/v1/metrics"
BACKENDS = {"vllm", "sglang", "trtllm"}
BARE = "num_requests_running"
"""A name that NIM 1 has without a prefix. NIMs that serve no language model have `/v1/metrics`, too."""


class Server(engine.Server):
    """An NVIDIA NIM for language models. Experimental: made from its documentation."""

    source: Literal["nim"] = "nim"
    metrics_endpoint: str = Field(METRICS, description="Path, or URL, of the metrics.")


class Nim(engine.Engine):
    """Reads one NIM."""

    kind = "nim"
    Config = Server
    ports = (8000,)

    @classmethod
    async def recognise(cls, upstream: Upstream, _: TargetConfig) -> bool:
        """The words of a backend at NIM's own path."""
        told = engine.names(await upstream.glance(METRICS))
        return BARE in told or not BACKENDS.isdisjoint(engine.speakers(told))


SOURCE = Nim
