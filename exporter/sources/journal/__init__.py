"""systemd's journal: how many entries each unit writes, by priority. Nothing of what they say is kept."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from exporter.catalogue import families
from exporter.config.model import TargetConfig
from exporter.config.values import AbsolutePath, Text
from exporter.core.errors import ReadError
from exporter.core.fetch import Upstream
from exporter.core.source import Context, Result
from exporter.core.types import Advice
from exporter.sources.journal import journalctl, library
from exporter.sources.journal.entry import PRIORITIES, Batch, Kind
from exporter.sources.systemd import Systemd, Units, WithUnits

PLACES = ("/var/log/journal", "/run/log/journal")
TRY_AGAIN = 5.0
"""Seconds after which a reader that broke is started again, from where it was."""

NO_READER = (
    "the journal cannot be read here: neither systemd-python nor journalctl is there (pip install "
    "'llm-exporter[journal]', or apt install systemd)"
)
SLOW = Advice("the journal at a quarter of the CPU time", "pip install 'llm-exporter[journal]'")
NO_RIGHT = Advice(
    "entries of other users' units and of the system's: the exporter may not read their files",
    "usermod -aG systemd-journal llm-exporter   # or SupplementaryGroups=systemd-journal in its unit",
)


class Journal(WithUnits):
    """The journal of this machine."""

    source: Literal["journal"] = "journal"
    directory: AbsolutePath | None = Field(
        default=None, description="Folder of the journal's files, where it is not this machine's own."
    )
    command: Annotated[tuple[Text, ...], Field(min_length=1)] | None = Field(
        default=None,
        description="What is run in place of `journalctl` and gets its options, such as `[nsenter, -t, '1', -m, "
        "journalctl]` in a container whose own is too old for the host's files. systemd-python is not used then.",
    )

    @property
    def place(self) -> str:
        return self.directory or "the journal"


class Reader:
    """Counts what is written to one journal."""

    kind: ClassVar[str] = "journal"
    Config: ClassVar[type[TargetConfig]] = Journal

    def __init__(self, config: Journal, context: Context) -> None:
        self._config = config
        self._context = context
        self._counts: Counter[Kind] = Counter()  # what was counted since the last read
        self._gaps = 0
        self._cursor = context.totals.note
        self._placed: asyncio.Event | None = None  # where `follow` runs: from then on nothing is missed
        self._failure: ReadError | None = None
        self._wanted = lru_cache(1000)(self._is_wanted)

    @staticmethod
    def at(url: str, _: Mapping[str, str]) -> Journal:
        """By its folder; `system` for this machine's own."""
        return Journal(directory=None if url == "system" else url)

    @staticmethod
    def candidates(_: Mapping[str, str]) -> Sequence[Journal]:
        return [Journal()]

    @staticmethod
    async def recognise(upstream: Upstream, target: TargetConfig) -> bool:
        """Where units that serve models are, and a journal can be read."""
        if not isinstance(target, Journal):
            return False
        _is_library_there()
        _may_read(target.directory)
        try:
            return await Systemd.recognise(upstream, Units())
        except ReadError:
            return await Systemd.recognise(upstream, Units(scope="user"))

    async def read(self) -> Result:
        """Show what was counted meanwhile. Raises ReadError where nothing can be."""
        await asyncio.sleep(0)  # so that `follow`, where it runs, is ahead
        if self._placed is not None:
            await self._placed.wait()
        if self._failure is not None:
            raise self._failure
        advice = []
        if self._config.command is None:
            advice += [] if _is_library_there() else [SLOW]
            advice += [] if await asyncio.to_thread(_may_read, self._config.directory) else [NO_RIGHT]
        totals, known = self._context.totals, families()
        self._context.tell([])
        counts, self._counts = self._counts, Counter()
        for (unit, scope, priority), count in counts.items():
            for each in PRIORITIES:
                labels = (("unit", unit), ("scope", scope), ("priority", each))
                totals.add(known["llm_log_entries_total"], labels, float(count) if each == priority else 0.0)
        totals.add(known["llm_log_gaps_total"], (), float(self._gaps))
        self._gaps = 0
        totals.note = self._cursor
        return Result(advice=advice)

    async def follow(self) -> AsyncIterator[Result]:
        """Count entries as they are written; that no reader is there, or one that was lost is back, is told."""
        self._placed = asyncio.Event()
        while True:
            try:
                async for batch in await self._entries():
                    self._take(batch)
                    self._placed.set()
                    if self._failure is not None:
                        self._failure = None
                        yield Result()
            except ReadError as error:
                self._failure = error
                self._placed.set()
                yield Result(failure=error)
            await asyncio.sleep(TRY_AGAIN)

    async def _entries(self) -> AsyncIterator[Batch]:
        """Those of all units: only where none is passed over do their numbers tell whether any is missing."""
        directory, command = self._config.directory, self._config.command
        if command is not None:
            return journalctl.follow(directory, self._wanted, self._cursor, whole=True, command=command)
        library_there = _is_library_there()
        whole = await asyncio.to_thread(_may_read, directory)
        if library_there:
            return library.follow(library.installed(), directory, self._wanted, self._cursor)
        return journalctl.follow(directory, self._wanted, self._cursor, whole=whole)

    def _take(self, batch: Batch) -> None:
        self._counts.update(batch.counts)
        self._gaps += batch.gaps
        self._cursor = batch.cursor

    def _is_wanted(self, unit: str) -> bool:
        config = self._config
        return unit in config.names or any(fnmatchcase(unit, pattern) for pattern in config.patterns)


def _is_library_there() -> bool:
    """Whether systemd's library is there, else journalctl. Raises ReadError where neither is."""
    if library.installed() is not None:
        return True
    if journalctl.installed():
        return False
    raise ReadError("connect", NO_READER)


def _may_read(directory: str | None) -> bool:
    """Whether the system's own entries can be read. Raises ReadError where no journal is kept."""
    places = PLACES if directory is None else (directory,)
    files = [file for place in places for depth in ("*", "*/*") for file in Path(place).glob(f"{depth}.journal")]
    if not files:
        raise ReadError("connect", f"no journal is kept in {' or '.join(places)} (is systemd-journald running here?)")
    return all(os.access(file, os.R_OK) for file in files if file.name == "system.journal")


SOURCE = Reader
