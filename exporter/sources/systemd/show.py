"""The same without D-Bus: one `systemctl show` for all units."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

from exporter.core.errors import ReadError
from exporter.sources.systemd.unit import TYPE, UNIT

LARGEST = 4 * 2**20
"""Bytes that systemctl may print."""

_WORDS = frozenset(["LoadState", "ActiveState", "InvocationID", "Result"])
"""Properties that are text; the others are numbers."""


async def show(scope: str, units: Sequence[str]) -> list[tuple[str, dict[str, Any]]]:
    """Of each unit its name and properties, as D-Bus has them. Raises ReadError."""
    names = [
        "Id",
        *(name for name in (*UNIT, *TYPE) if not name.endswith("Timestamp")),
        "ActiveEnterTimestampMonotonic",
    ]
    command = ["systemctl", f"--{scope}", "show", "--no-pager", f"--property={','.join(names)}", "--", *units]
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
    except OSError as error:
        raise ReadError("connect", f"systemctl cannot be run: {error.strerror}") from None
    assert process.stdout is not None  # noqa: S101 - it is a pipe
    try:
        printed = b""
        while piece := await process.stdout.read(65536):
            printed += piece
            if len(printed) > LARGEST:
                raise ReadError("too_large", f"systemctl show prints more than {LARGEST} bytes (name fewer units)")
        status = await process.wait()
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    if status:
        raise ReadError("connect", f"systemctl --{scope} show failed with status {status}")
    return list(_read(printed.decode(errors="replace")))


def _read(printed: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for block in printed.split("\n\n"):
        told = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        if "Id" not in told:
            continue
        said: dict[str, Any] = {name: value for name, value in told.items() if name in _WORDS}
        said |= {name: int(value) for name, value in told.items() if name not in _WORDS and value.isdecimal()}
        if active := said.pop("ActiveEnterTimestampMonotonic", 0):  # the other one depends on the locale
            said["ActiveEnterTimestamp"] = round(time.time() - time.monotonic() + active / 1e6) * 1_000_000
        yield told["Id"], said
