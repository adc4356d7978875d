"""The journal by systemd's own library, where systemd-python is installed: at a quarter of journalctl's CPU time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from functools import cache
from importlib import import_module
from typing import Any

from exporter.core.errors import ReadError
from exporter.sources.journal.entry import Batch, Wanted, between, priority_of, unit_of

SLICE = 2000
"""Entries that are read in one piece, a few milliseconds' worth."""
LOOK = 0.5
"""Seconds after which is looked for entries again: to be woken by each one would cost more."""
LOCAL_ONLY = 1
"""Of this machine, not those that others have sent here."""
INVALIDATE = 2
"""What systemd says where files have come or gone."""


@cache
def installed() -> Any | None:
    """systemd-python's module, None where it is not installed."""
    try:
        return import_module("systemd._reader")
    except ImportError:
        return None


class Library:
    """Reads on from a cursor, or, without one, from the end. Its methods block; one is called at a time."""

    def __init__(self, module: Any, directory: str | None, wanted: Wanted, cursor: str) -> None:
        self._wanted = wanted
        self._cursor = cursor
        self._seeking = False  # the next entry tells whether the cursor's is still there
        self._more = False  # what is open has not been read to its end
        self._gaps = 0
        where = {"flags": LOCAL_ONLY} if directory is None else {"flags": 0, "path": directory}
        self._reader = module._Reader(**where)  # noqa: SLF001 - theirs: what is without an underscore is slow
        self._reader.fileno()  # from now on the kernel tells of files that come and go
        self._seek()

    def _seek(self) -> None:
        """Go to the entry that was read last, or to the end."""
        reader = self._reader
        if self._cursor:
            try:
                reader.seek_cursor(self._cursor)
            except OSError:
                self._cursor = ""
                self._gaps += 1
            else:
                self._seeking = True
                return
        reader.seek_tail()
        if reader._previous():  # noqa: SLF001 - theirs; without it what follows may be old
            self._cursor = reader._get_cursor()  # noqa: SLF001 - theirs
        else:
            reader.seek_head()

    def read(self) -> tuple[Batch, bool]:
        """The next entries, and whether there may be more."""
        reader, batch = self._reader, Batch()
        if not self._more and reader.process() == INVALIDATE and self._cursor:
            self._seek()  # a file that has gone may have had entries that were not read
        get, forward, wanted, counts = reader._get, reader._next, self._wanted, batch.counts  # noqa: SLF001 - theirs

        def told(name: str) -> str | None:
            try:
                value = get(name)
            except KeyError:
                return None
            return value.decode(errors="replace") if isinstance(value, bytes) else str(value)

        read = 0
        while read < SLICE and forward():
            read += 1
            if self._seeking:
                self._seeking = False
                if reader.test_cursor(self._cursor):
                    continue
                self._gaps += between(self._cursor, reader._get_cursor()) != 0  # noqa: SLF001 - theirs
            of = unit_of(told)
            if of is not None and wanted(of[0]):
                counts[(*of, priority_of(told("PRIORITY")))] += 1
        if read:
            self._cursor = reader._get_cursor()  # noqa: SLF001 - theirs
        batch.cursor, batch.gaps, self._gaps = self._cursor, self._gaps, 0
        self._more = read == SLICE
        return batch, self._more


async def follow(module: Any, directory: str | None, wanted: Wanted, cursor: str) -> AsyncIterator[Batch]:
    """All entries after the cursor, or, without one, from now on. Raises ReadError.

    What blocks is done in a thread, for two thirds of the time at most: what is not read yet waits in the journal.
    """
    try:
        library = await asyncio.to_thread(Library, module, directory, wanted, cursor)
        while True:
            began = time.monotonic()
            batch, more = await asyncio.to_thread(library.read)
            took = time.monotonic() - began
            yield batch
            await asyncio.sleep(took / 2 if more else LOOK)
    except OSError as error:
        raise ReadError("content", f"the journal cannot be read: {error.strerror or error}") from None
