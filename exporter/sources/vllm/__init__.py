"""vLLM: its metrics, and the models and LoRA adapters that it lists."""

from __future__ import annotations

from typing import Literal

from exporter.sources import engine


class Server(engine.Server):
    """A vLLM server, or a Ray Serve that has vLLM's metrics."""

    source: Literal["vllm"] = "vllm"


class Vllm(engine.Engine):
    """Reads one vLLM server."""

    kind = "vllm"
    Config = Server
    ports = (8000,)
    speaks = ("vllm:", "vllm_", "ray_vllm:", "ray_vllm_")
    versions = "/version"
    switch = "its metrics are on unless it was started with --disable-log-stats"


SOURCE = Vllm
