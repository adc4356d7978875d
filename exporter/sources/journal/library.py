"""The journal by systemd's own library, where systemd-python is installed: three times as fast as journalctl."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from importlib import import_module
from typing import Any

from exporter.core.errors import ReadError
from exporter.sources.journal.entry import Batch, Wanted, follows, matches, priority_of, unit_of

SLICE = 2000
"""Entries that are read in one piece, a few milliseconds' worth."""
GATHER = 0.2
"""Seconds in which entries are gathered: a journal is written to all the time."""
IDLE = 5.0
"""Seconds after which is looked for entries though nothing was heard."""
LOCAL_ONLY = 1
"""Of this machine, not those that others have sent here."""
INVALIDATE = 2
"""What systemd says where files have come or gone."""


def installed() -> Any | None:
    """systemd-python's module, None where it is not installed."""
    try:
        return import_module("systemd._reader")
    except ImportError:
        return None


class Library:
    """Reads on from a cursor, or, without one, from the end. Its methods block; one is called at a time."""

    def __init__(self, module: Any, directory: str | None, wanted: Wanted, units: tuple[str, ...], cursor: str) -> None:
        self._wanted = wanted
        self._cursor = cursor
        self._seeking = False  # the next entry tells whether the cursor's is still there
        self._gaps = 0
        where = {"flags": LOCAL_ONLY} if directory is None else {"flags": 0, "path": directory}
        self._reader = module._Reader(**where)  # noqa: SLF001 - theirs: what is without an underscore is slow
        for some in matches(units) if units else ():
            for match in some:
                self._reader.add_match(match)
            self._reader.add_disjunction()
        self._seek()

    def _seek(self) -> None:
        """Go to the entry that was counted last, or to the end."""
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

    @property
    def descriptor(self) -> int:
        return int(self._reader.fileno())

    def heard(self) -> None:
        """Take what the kernel has told of the files; where some have come or gone, find the place again."""
        if self._reader.process() == INVALIDATE and self._cursor:
            self._seek()

    def read(self) -> tuple[Batch, bool]:
        """The next entries, and whether there may be more."""
        reader, batch = self._reader, Batch()
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
                self._gaps += not follows(self._cursor, reader._get_cursor())  # noqa: SLF001 - theirs
            of = unit_of(told)
            if of is not None and wanted(of[0]):
                counts[(*of, priority_of(told("PRIORITY")))] += 1
        if read:
            self._cursor = reader._get_cursor()  # noqa: SLF001 - theirs
        batch.cursor, batch.gaps, self._gaps = self._cursor, self._gaps, 0
        return batch, read == SLICE


async def follow(
    module: Any, directory: str | None, wanted: Wanted, units: tuple[str, ...], cursor: str
) -> AsyncIterator[Batch]:
    """All entries after the cursor, or, without one, from now on. Raises ReadError.

    What blocks is done in a thread, for half of the time at most: what is not read yet waits in the journal.
    """
    loop = asyncio.get_running_loop()
    news = asyncio.Event()
    try:
        library = await asyncio.to_thread(Library, module, directory, wanted, units, cursor)
        descriptor = library.descriptor
        loop.add_reader(descriptor, news.set)
        try:
            while True:
                news.clear()
                await asyncio.to_thread(library.heard)
                more = True
                while more:
                    began = time.monotonic()
                    batch, more = await asyncio.to_thread(library.read)
                    took = time.monotonic() - began
                    yield batch
                    await asyncio.sleep(took)
                await asyncio.sleep(GATHER)
                with suppress(TimeoutError):
                    async with asyncio.timeout(IDLE):
                        await news.wait()
        finally:
            loop.remove_reader(descriptor)
    except OSError as error:
        raise ReadError("content", f"the journal cannot be read: {error}") from None
