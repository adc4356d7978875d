"""A simulated stack on this machine, read through the real sources: every dashboard is alive with one command."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from exporter.app import App
from exporter.config.model import Config
from exporter.core.state import Store
from exporter.demo.stack import running


def serve(flags: dict[str, object], seed: int, speed: float, hour: float) -> None:
    """Simulate and serve until SIGTERM or SIGINT. `flags` are keys of the configuration that the caller has checked."""
    asyncio.run(_serve(flags, seed, speed, hour))


async def _serve(flags: dict[str, object], seed: int, speed: float, hour: float) -> None:
    with tempfile.TemporaryDirectory(prefix="llm-exporter-demo-") as directory:
        async with running(seed, speed, hour) as stack:
            config: Config = stack.configuration().model_copy(update=flags)
            await App(config, lambda: config, Store(Path(directory))).run()
