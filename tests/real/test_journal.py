"""A real journald, and real files of a journal, watched: each entry is counted once, and what is lost is said."""

import asyncio
import json
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from brokers import Watched, exporter, watched
from namespace import Systemd, booted
from stack import PATIENCE

ENTRIES, GAPS, UP = "llm_log_entries_total", "llm_log_gaps_total", "llm_target_up"
FIELDS = "PRIORITY,_SYSTEMD_UNIT,_SYSTEMD_USER_UNIT,UNIT,USER_UNIT"
PRIORITIES = ("emerg", "alert", "crit", "err", "warning", "notice", "info", "debug")
TALK = 'i=0; while [ $i -lt 400 ]; do echo "<$((i % 8))>entry $i"; i=$((i + 1)); done\n'
IMPORT = "/lib/systemd/systemd-journal-remote"
FLOOD = 200_000
"""Entries that appear at once."""


@pytest.fixture(scope="module")
def systemd() -> Iterator[Systemd]:
    with booted() as running:
        (running.folder / "talk").write_text(TALK)
        service = f"Type=oneshot\nExecStart=/bin/sh {running.folder}/talk"
        running.write(talk=service, other=service)
        running.write(user=True, talk=service)
        yield running


@pytest.fixture(params=["systemd-python", "journalctl"])
def environ(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, str]:
    """With systemd-python, and as if it were not installed."""
    return {} if request.param == "systemd-python" else without_library(tmp_path)


def without_library(folder: Path) -> dict[str, str]:
    hidden = folder / "hidden" / "systemd"
    hidden.mkdir(parents=True)
    (hidden / "__init__.py").write_text("raise ImportError('as if it were not installed')")
    return {"PYTHONPATH": f"{hidden.parent}:{Path(__file__).parents[2]}"}


def target(directory: Path, *units: str) -> dict[str, Any]:
    return {"source": "journal", "directory": str(directory), "units": list(units)}


Counts = Counter[tuple[str, str, str]]
"""Entries by unit, scope and priority."""


class Written:
    """What is in the journal since then, told by journalctl when it is asked."""

    def __init__(self, systemd: Systemd) -> None:
        self._systemd = systemd
        self.counts: Counts = Counter()
        self._cursor = ""
        self.skip()

    def skip(self) -> None:
        """What was written until now is not expected to be counted."""
        self._systemd.run("journalctl", "--sync")
        self._cursor = json.loads(self._systemd.run("journalctl", "--output=json", "--lines=1"))["__CURSOR"]

    def add(self) -> Counts:
        self._systemd.run("journalctl", "--sync")
        lines = self._systemd.run(
            "journalctl", "--output=json", f"--output-fields={FIELDS}", f"--after-cursor={self._cursor}"
        )
        for line in lines.splitlines():
            entry = json.loads(line)
            self._cursor = entry["__CURSOR"]
            unit, scope = entry.get("_SYSTEMD_UNIT"), "system"
            if unit == "init.scope":
                unit = entry.get("UNIT")
            if "_SYSTEMD_USER_UNIT" in entry:
                unit, scope = entry["_SYSTEMD_USER_UNIT"], "user"
                if unit == "init.scope":
                    unit = entry.get("USER_UNIT")
            if unit == "talk.service":
                self.counts[unit, scope, PRIORITIES[int(entry["PRIORITY"])]] += 1
        return self.counts


def counted(page: Any) -> Counts:
    found: Counts = Counter()
    for (name, labels), value in page.items():
        if name == ENTRIES and value:
            told = dict(labels)
            found[told["unit"], told["scope"], told["priority"]] = int(value)
    return found


async def until_counted(exporter: Watched, counts: Counts) -> None:
    await exporter.until(lambda page: counted(page) == counts, f"exactly {counts}")


async def test_each_entry_is_counted_once_over_restarts_and_rotation_and_a_gap_where_some_were_lost(
    tmp_path: Path, systemd: Systemd, environ: dict[str, str]
) -> None:
    def talk() -> None:
        systemd.systemctl("start", "talk", "other")
        systemd.systemctl("start", "talk", user=True)

    talk()  # before the exporter's first start: not counted
    written = Written(systemd)
    source = target(systemd.journal, "talk", "vllm@*")
    async with watched(tmp_path, source, environ=environ) as exporter:
        await exporter.until_value(UP, 1.0)
        talk()
        assert written.add()["talk.service", "system", "alert"] == 50
        await until_counted(exporter, written.counts)
        systemd.run("journalctl", "--rotate")
        talk()
        await until_counted(exporter, written.add())
        systemd.systemctl("restart", "systemd-journald")
        talk()
        await until_counted(exporter, written.add())
        assert exporter.falls() == []
    talk()  # while no exporter runs
    systemd.run("journalctl", "--rotate")
    talk()
    async with watched(tmp_path, source, environ=environ) as exporter:
        await until_counted(exporter, written.add())
        assert exporter.value(GAPS) == 0.0
        systemd.run("journalctl", "--rotate", "--vacuum-time=1us")  # nothing that was not counted
        talk()
        await until_counted(exporter, written.add())
        assert exporter.value(GAPS) == 0.0
        assert exporter.falls() == []
    talk()  # while no exporter runs, and nobody will know
    systemd.run("journalctl", "--rotate", "--vacuum-time=1us")
    written.skip()
    talk()
    async with watched(tmp_path, source, environ=environ) as exporter:
        await exporter.until_value(GAPS, 1.0)
        await until_counted(exporter, written.add())
        os.killpg(pid_of(exporter), signal.SIGSTOP)  # with journalctl
        talk()  # while it is held up, and nobody will know
        systemd.run("journalctl", "--rotate", "--vacuum-time=1us")
        written.skip()
        talk()
        os.killpg(pid_of(exporter), signal.SIGCONT)
        await until_counted(exporter, written.add())
        assert exporter.value(GAPS) == 2.0
        assert exporter.falls() == []


async def test_a_reader_that_is_killed_is_started_again_where_it_was(tmp_path: Path, systemd: Systemd) -> None:
    written = Written(systemd)
    async with watched(tmp_path, target(systemd.journal, "talk"), environ=without_library(tmp_path)) as exporter:
        await exporter.until_value(UP, 1.0)
        assert "llm-exporter[journal]" in exporter.why()
        systemd.systemctl("start", "talk")
        await until_counted(exporter, written.add())
        os.kill(child_of(pid_of(exporter)), signal.SIGKILL)
        await exporter.until_value(UP, 0.0)
        assert "journalctl ended" in exporter.why()
        systemd.systemctl("start", "talk")
        await exporter.until_value(UP, 1.0)
        await until_counted(exporter, written.add())
        assert exporter.value(GAPS) == 0.0
        assert exporter.falls() == []


def pid_of(exporter: Watched) -> int:
    assert exporter.exporter.process is not None
    return exporter.exporter.process.pid


def child_of(pid: int) -> int:
    (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(child)


async def test_where_nothing_reads_a_journal_or_none_is_kept_the_target_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for place, environ, words in (
        (tmp_path, {**without_library(tmp_path), "PATH": str(tmp_path)}, "neither systemd-python nor journalctl"),
        (tmp_path / "empty", {}, "no journal is kept in"),
    ):
        server = exporter(tmp_path, target(place, "talk"), environ=environ)
        await asyncio.to_thread(server.start)
        try:
            seen = Watched(server)
            await seen.until_value(UP, 0.0)
            assert seen.value("llm_target_read_failures_total", reason="connect")
            assert words in seen.why()
        finally:
            assert await asyncio.to_thread(server.stop) == 0


# -- a flood -----------------------------------------------------------------------------------------------------------


def imported(file: Path, began: float, count: int) -> None:
    """A real journal of so many entries, of which each second one is of vllm.service, a tenth of those errors."""
    entry = (
        "__REALTIME_TIMESTAMP={}\n__MONOTONIC_TIMESTAMP={}\n_BOOT_ID=0123456789abcdef0123456789abcdef\n"
        "MESSAGE=GET /health took {} ms\nPRIORITY={}\n_SYSTEMD_UNIT={}\n_TRANSPORT=stdout\n\n"
    )
    text = "".join(
        entry.format(
            int(began * 1e6) + number * 10,
            int(began * 1e6) % 10**12 + number * 10,
            number,
            3 if number % 20 == 0 else 6,
            "caddy.service" if number % 2 else "vllm.service",
        )
        for number in range(count)
    )
    file.parent.mkdir(exist_ok=True)
    subprocess.run([IMPORT, f"--output={file}", "--split-mode=none", "-"], input=text.encode(), check=True)


@pytest.fixture(scope="module")
def flood(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Files: all later than `imported` will write them."""
    folder = tmp_path_factory.mktemp("flood")
    imported(folder / "flood.journal", time.time() + 3600, FLOOD)
    return sorted(folder.iterdir(), reverse=True)  # the oldest first: what appears behind a reader is not read


def own_memory(pid: int) -> int:
    """Bytes that are not those of files."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


async def test_a_flood_is_counted_exactly_while_pages_are_served_and_memory_stays(
    tmp_path: Path, flood: list[Path], environ: dict[str, str]
) -> None:
    journal = tmp_path / "journal"
    imported(journal / "first.journal", time.time(), 100)
    async with watched(tmp_path, target(journal, "vllm"), environ=environ) as exporter:
        await exporter.until_value(UP, 1.0)
        before = own_memory(pid_of(exporter))
        await asyncio.to_thread(subprocess.run, ["cp", "--link", *flood, journal], check=True)
        waits, most, began = [], 0, time.monotonic()
        while sum(counted(exporter.pages[-1][1]).values()) < FLOOD / 2:
            assert time.monotonic() - began < PATIENCE, counted(exporter.look())
            asked = time.monotonic()
            await asyncio.to_thread(exporter.look)
            waits.append(time.monotonic() - asked)
            most = max(most, own_memory(pid_of(exporter)))
            await asyncio.sleep(0.02)
        took = time.monotonic() - began
        waits.sort()
        usual = waits[len(waits) * 9 // 10]
        print(f"{FLOOD / took:.0f}/s; p90 {usual:.4f}, {waits[-1]:.4f}; {most - before}")
        assert counted(exporter.look()) == {
            ("vllm.service", "system", "err"): FLOOD // 20,
            ("vllm.service", "system", "info"): FLOOD // 2 - FLOOD // 20,
        }
        assert usual < 1.0, "no page waits for the journal"  # one of them may, for a machine that stands still
        assert waits[-1] < took / 2
        assert most - before < 50_000_000
        assert exporter.value(GAPS) == 0.0
