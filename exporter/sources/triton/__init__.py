"""NVIDIA Triton Inference Server, with what its TensorRT-LLM backend adds; by its metrics port."""

from __future__ import annotations

from typing import Literal

from exporter.sources import engine


class Server(engine.Server):
    """A Triton Inference Server, by the URL of its metrics port (8002). Experimental: made from its documentation."""

    source: Literal["triton"] = "triton"


class Triton(engine.Engine):
    """Reads one Triton."""

    kind = "triton"
    Config = Server
    ports = (8002,)
    speaks = ("nv_inference_", "nv_trt_llm_")
    models = ""  # another port's
    switch = "its metrics are on their own port, 8002, unless --metrics-port or --allow-metrics=false says otherwise"


SOURCE = Triton
