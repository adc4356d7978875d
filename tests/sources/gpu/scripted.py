"""A driver that tests script: what the double of libnvidia-ml.so.1 answers (see nvml/nvml.c)."""

import asyncio
from pathlib import Path

MOVING = {83: 123456789000, 138: 9000000, 139: 8000000, 197: 1200000000, 198: 340000000}
"""NVML's fields that count on with the time, held at values of ours."""


class Driver:
    """What the driver answers from now on (see nvml.c)."""

    def __init__(self, script: Path) -> None:
        self.script = script
        self.script.write_text("gpus = 8\n")

    def write(self, *lines: str, gpus: int = 8) -> None:
        fields = [f"field.*.{field} = {value}" for field, value in MOVING.items()]
        self.script.write_text("\n".join((f"gpus = {gpus}", *lines, *fields)) + "\n")

    async def say(self, *lines: str, gpus: int = 8) -> None:
        """The same, and wait until it is so: the double looks at its script every 20 ms."""
        self.write(*lines, gpus=gpus)
        await asyncio.sleep(0.05)
