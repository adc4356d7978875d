"""The journal by one `journalctl` that follows it, where systemd-python is not installed."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import suppress
from shutil import which

from exporter.core.errors import ReadError
from exporter.sources.journal.entry import FIELDS, Batch, Wanted, between, is_same, priority_of, unit_of

PIECE = 65536
"""Bytes that are taken in one piece: some two hundred entries."""
LONGEST = 2**20
"""Bytes of a line at most; a longer one is no entry of those that are asked for."""
SAID = 500
"""Bytes of what it says on its end."""


def installed() -> bool:
    """Whether there is a journalctl."""
    return which("journalctl") is not None


async def follow(
    directory: str | None, wanted: Wanted, cursor: str, *, whole: bool, command: Sequence[str] = ("journalctl",)
) -> AsyncIterator[Batch]:
    """All entries after the cursor, or, without one, from now on. Raises ReadError where journalctl ends.

    What is not read yet waits in the journal: journalctl waits while nobody takes what it prints. `whole` says that all
    files of the journal can be read; `command` is what is run.
    """
    lines = _Lines(wanted, cursor, whole=whole)
    command = [*command, "--follow", "--quiet", "--output=json", f"--output-fields={','.join(FIELDS)}"]
    command += [f"--directory={directory}"] if directory is not None else []
    command += ["--no-tail", f"--cursor={cursor}" if cursor else f"--since=@{time.time():.6f}"]
    try:
        process = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
    except OSError as error:
        raise ReadError("connect", f"{command[0]} cannot be run: {error.strerror}") from None
    assert process.stdout is not None  # noqa: S101 - they are pipes
    assert process.stderr is not None  # noqa: S101 - the same
    said = asyncio.create_task(_last_of(process.stderr))
    rest = b""
    try:
        yield Batch(cursor=cursor)
        while piece := await process.stdout.read(PIECE):
            *ended, rest = (rest + piece).split(b"\n")
            if len(rest) > LONGEST:
                raise ReadError("too_large", f"journalctl printed a line of more than {LONGEST} bytes")
            began = time.monotonic()
            yield lines.take(ended)
            await asyncio.sleep(time.monotonic() - began)
        why = await said
        if "cursor" in why:  # it cannot be gone on from
            yield Batch(gaps=1)
        raise ReadError("content", f"journalctl ended: {why or 'without a word'}")
    finally:
        said.cancel()
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()


async def _last_of(stream: asyncio.StreamReader) -> str:
    """The end of what is said there, once nothing more is."""
    last = b""
    while piece := await stream.read(SAID):
        last = (last + piece)[-SAID:]
    return last.decode(errors="replace").strip()


class _Lines:
    """Entries as journalctl prints them, the one of the cursor first, where there is one."""

    def __init__(self, wanted: Wanted, cursor: str, *, whole: bool) -> None:
        self._wanted = wanted
        self._cursor = cursor
        self._whole = whole
        self._first = True

    def take(self, lines: Iterable[bytes]) -> Batch:
        batch = Batch()
        for line in lines:
            try:
                said = json.loads(line)
                cursor = str(said["__CURSOR"])
            except (ValueError, KeyError, TypeError):
                continue
            before, self._cursor = self._cursor, cursor
            if self._first:
                self._first = False
                if is_same(before, cursor):
                    continue
                batch.gaps += bool(before) and between(before, cursor) != 0
            elif self._whole:  # journalctl itself passes over files that have gone
                batch.gaps += (between(before, cursor) or 0) > 0
            of = unit_of(said.get)
            if of is not None and self._wanted(of[0]):
                batch.counts[(*of, priority_of(said.get("PRIORITY")))] += 1
        batch.cursor = self._cursor
        return batch
