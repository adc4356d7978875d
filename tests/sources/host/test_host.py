"""The host's source, where it can be held against what is set: times that go back, a disk that hangs, workloads."""

import asyncio
import gc
import shutil
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from aiohttp import web

from exporter.config.load import ConfigError, load
from exporter.config.model import Config
from exporter.core.board import Board
from exporter.core.errors import ReadError
from exporter.core.fetch import Upstream, session
from exporter.core.poll import Watch
from exporter.core.source import Row
from exporter.core.types import Reading
from exporter.sources import host
from exporter.sources.host import Host, Machine, machine
from exporter.sources.host.workloads import Workloads
from exporter.wiring import assemble


@asynccontextmanager
async def watching(**options: Any) -> AsyncIterator[Watch]:
    async with session() as client:
        yield assemble(Config(), Host(**{"timeout": "1s", **options}), client, Board(), None)


def shown(reading: Reading, family: str) -> dict[str, float]:
    """The values of a family, by the values of its own labels."""
    return {
        ",".join(value for _, value in series.own): value
        for series, value in reading.samples
        if series.family.name == family
    }


@contextmanager
def process(folder: Path, name: str, seconds: float = 60) -> Iterator[subprocess.Popen[bytes]]:
    """A process of this short name."""
    folder.mkdir(exist_ok=True)
    executable = folder / name
    shutil.copy("/bin/sleep", executable)
    started = subprocess.Popen([executable, str(seconds)])
    try:
        yield started
    finally:
        started.kill()
        started.wait()


async def test_idle_that_goes_back_by_a_hair_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    told = iter([100.0, 99.99, 99.99, 101.0])
    monkeypatch.setattr(machine, "cpu_times", lambda: {"idle": next(told)})
    async with watching() as watch:
        values = [shown(await watch.read(), "llm_host_cpu_seconds_total")["idle"] for _ in range(4)]
    assert values == [100.0, 100.0, 100.0, 101.0]


async def test_a_disk_that_hangs_holds_up_its_own_target_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    back = threading.Event()
    whole = machine.rows

    def hanging() -> Iterator[Row]:
        back.wait(30)
        return whole()

    monkeypatch.setattr(machine, "rows", hanging)
    async with watching(timeout="200ms") as watch:
        first, second = await watch.read(), await watch.read()
        assert (first.reason, second.reason) == ("timeout", "timeout")
        assert "hangs" in second.error
        assert sum(thread.name == "host" for thread in threading.enumerate()) == 1, "no second one is sent after it"
        back.set()
        for thread in threading.enumerate():
            if thread.name == "host":
                await asyncio.to_thread(thread.join)
        watch._timeout = 60.0
        assert (await watch.read()).ok


async def test_which_ports_are_watched_is_asked_where_targets_come_and_go_and_not_in_the_thread() -> None:
    asked: list[threading.Thread] = []

    def ports() -> dict[int, str]:
        asked.append(threading.current_thread())
        return {}

    async with session() as client:
        watch = assemble(Config(), Host(), client, Board(), None, ports=ports)
        assert (await watch.read()).ok
    assert asked == [threading.main_thread()]


async def test_a_machine_that_is_no_linux_is_not_found_and_no_defect(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "BOOT", tmp_path / "boot_id")
    async with session() as client:
        with pytest.raises(ReadError, match="Linux alone is read"):
            await Machine.recognise(Upstream(client, ""), Host())
    async with watching() as watch:
        assert (await watch.read()).reason == "connect"


async def test_a_mount_point_whose_name_is_no_utf_8_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_filesystems", lambda: [("filesystem_size", {"mountpoint": "/caf\udce9"}, 1.0)])
    async with watching() as watch:
        assert shown(await watch.read(), "llm_host_filesystem_size_bytes") == {"/caf\N{REPLACEMENT CHARACTER}": 1.0}


async def test_what_a_node_exporter_tells_is_left_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = "<html><head><title>Node Exporter</title></head></html>"

    async def answer(_: web.BaseRequest) -> web.Response:
        return web.Response(text=said, content_type="text/html")

    runner = web.ServerRunner(web.Server(answer), access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    monkeypatch.setattr(host, "NODE_EXPORTER", f"http://127.0.0.1:{runner.addresses[0][1]}")
    monkeypatch.setattr(host, "LOOK_AGAIN", 0.0)
    (here,) = Machine.candidates({})
    with process(tmp_path, "ollama"):
        for options, there in ((here.model_dump(exclude_unset=True), False), ({}, True)):
            async with watching(**options) as watch:
                families = {series.family.name for series, _ in (await watch.read()).samples}
                assert ("llm_host_cpus" in families) == there
                assert "llm_workload_threads" in families
        async with watching(step_back=True) as watch:
            said = "a printer"
            assert shown(await watch.read(), "llm_host_cpus")
            await runner.cleanup()
            assert shown(await watch.read(), "llm_host_cpus")


def workloads(*patterns: str) -> tuple[Workloads, Any]:
    made = Workloads(patterns)

    def told(*ports: int, look: bool = True) -> dict[tuple[str, str], float]:
        if look:
            made.look(dict.fromkeys(ports, "t"))
        return {(name, str(labels["workload"])): value for name, labels, value in made.rows()}

    return made, told


def test_known_servers_and_those_that_are_named_are_found(tmp_path: Path) -> None:
    _, told = workloads("search*")
    known = "ollama-of-ours"  # others may run here, too
    with process(tmp_path / "a", known), process(tmp_path / "b", "search-worker"), process(tmp_path / "c", "other"):
        names = {name for _, name in told()}
    assert {known, "search-worker"} <= names
    assert "other" not in names
    assert not {known, "search-worker"} & {name for _, name in told(look=False)}, "gone, and at once"


def test_what_listens_on_a_target_s_port_is_found() -> None:
    _, told = workloads()
    with psutil.Process().oneshot():
        name = psutil.Process().name()
    server = asyncio.new_event_loop()
    listening = server.run_until_complete(asyncio.start_server(lambda *_: None, "127.0.0.1", 0))
    port = listening.sockets[0].getsockname()[1]
    assert not any(name in workload for _, workload in told(1))
    gc.collect()  # what earlier tests left open
    threads, files = threading.active_count(), len([*Path("/proc/self/fd").iterdir()])
    found = told(port)
    listening.close()
    server.close()
    (ours,) = {workload for family, workload in found if family == "workload_info"}
    values = {family: value for (family, workload), value in found.items() if workload == ours}
    assert values["workload_info"] == 1.0
    assert values["workload_threads"] >= threads
    assert values["workload_fds"] == pytest.approx(files, abs=3)
    assert values["workload_memory"] == pytest.approx(psutil.Process().memory_info().rss, rel=0.2)


@contextmanager
def busy(script: Path) -> Iterator[float]:
    """A process that has used CPU, and waits; gives the seconds used."""
    with subprocess.Popen([script], stdin=subprocess.PIPE) as started:
        try:
            process = psutil.Process(started.pid)
            while process.status() != psutil.STATUS_SLEEPING or not (used := sum(process.cpu_times()[:2])):
                time.sleep(0.1)
            yield used
        finally:
            started.kill()


def test_cpu_counts_from_when_a_workload_is_first_seen_and_stays_when_a_process_goes(tmp_path: Path) -> None:
    script = tmp_path / "invented-worker"
    script.write_text("#!/bin/sh\ni=0; while [ $i -lt 200000 ]; do i=$((i+1)); done; read go\n")
    script.chmod(0o755)
    made, told = workloads("invented-*")
    cpu = "workload_cpu", "invented-worker"
    with busy(script):
        assert told()[cpu] == 0.0, "what was used before it was seen would pose as used now"
        made.look({})
        with busy(script) as used:
            assert told()[cpu] == pytest.approx(used), "of what began since the look before, all"
        assert told(look=False)[cpu] == pytest.approx(used)


def test_a_host_of_another_address_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "llm.yaml"
    file.write_text("targets: [{source: host, url: http://gpu-1}]\n")
    with pytest.raises(ConfigError, match="leave url out"):
        load(file)
