"""TensorRT-LLM's own server, trtllm-serve.

Its `/metrics` is JSON, and what is read there is gone for others: it is asked to recognise a server, and never again.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from exporter.config.model import TargetConfig
from exporter.core.fetch import Upstream
from exporter.sources import engine

METRICS = "/prometheus/metrics"


class Server(engine.Server):
    """A server of TensorRT-LLM (trtllm-serve). Experimental: made from its sources."""

    source: Literal["trtllm"] = "trtllm"
    metrics_endpoint: str = Field(METRICS, description="Path, or URL, of the metrics.")


class Trtllm(engine.Engine):
    """Reads one trtllm-serve."""

    kind = "trtllm"
    Config = Server
    ports = (8000,)
    speaks = ("trtllm_",)
    versions = "/version"
    switch = "start it with return_perf_metrics: true in the file of --extra_llm_api_options"

    @classmethod
    async def recognise(cls, upstream: Upstream, _: TargetConfig) -> bool:
        """JSON at `/metrics`, and its words at the path for Prometheus."""
        glance = await upstream.glance("/metrics")
        if glance.status != 200 or not glance.content_type.startswith("application/json"):
            return False
        return engine.speakers(engine.names(await upstream.glance(METRICS))) == [cls.kind]


SOURCE = Trtllm
