"""SGLang: its metrics, and the models and LoRA adapters that it lists.

Its `/health`, which runs a generation, is never asked.
"""

from __future__ import annotations

from typing import Literal

from exporter.sources import engine


class Server(engine.Server):
    """An SGLang server."""

    source: Literal["sglang"] = "sglang"


class Sglang(engine.Engine):
    """Reads one SGLang server."""

    kind = "sglang"
    Config = Server
    ports = (30000,)
    speaks = ("sglang:", "sglang_")
    switch = "start it with --enable-metrics"


SOURCE = Sglang
