"""The host beside a real node_exporter and real processes: the same numbers, and only one of the two tells them."""

import asyncio
import re
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import stack
import yaml
from stack import Exporter, Page, Server, running

from exporter.core.workload import workload_of

CLOSE = {"llm_host_memory_available_bytes": 0.05, "llm_host_load1": 0.5}
"""What moves between two reads: by how much of it."""
SAME = {
    "llm_host_memory_total_bytes": "node_memory_MemTotal_bytes",
    "llm_host_memory_available_bytes": "node_memory_MemAvailable_bytes",
    "llm_host_swap_total_bytes": "node_memory_SwapTotal_bytes",
    "llm_host_boot_timestamp_seconds": "node_boot_time_seconds",
    "llm_host_load1": "node_load1",
}


@asynccontextmanager
async def watching(folder: Path, *targets: Mapping[str, Any], **more: Any) -> AsyncIterator[Exporter]:
    file = folder / "llm-exporter.yaml"
    file.write_text(yaml.safe_dump({"targets": [dict(target) for target in targets], **more}))
    server = stack.exporter(folder, "127.0.0.1:1", "--config", str(file))
    await asyncio.to_thread(server.start)
    try:
        yield server
    finally:
        status = await asyncio.to_thread(server.stop)
    assert status == 0, server.tail()
    assert "Traceback" not in server.tail()


def node_exporter(folder: Path, port: int) -> Server:
    arguments = ["prometheus-node-exporter", f"--web.listen-address=127.0.0.1:{port}"]
    return Server(arguments, port, folder / "node.log")


def compared(theirs: Mapping[tuple[str, str], float], ours: Page) -> Iterator[tuple[str, float, object]]:
    """What both tell: a name, our number, and what it must be, as near as two reads at about the same time can be."""

    def sum_of(name: str, **labels: str) -> float:
        return sum(value for (sample, have), value in ours.items() if sample == name and labels.items() <= have)

    for name, other in SAME.items():
        yield name, sum_of(name), pytest.approx(theirs[other, ""], rel=CLOSE.get(name, 1e-9), abs=1)
    for mode in ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal"):
        spent = sum(
            value
            for (name, labels), value in theirs.items()
            if name == "node_cpu_seconds_total" and f'mode="{mode}"' in labels
        )
        yield mode, sum_of("llm_host_cpu_seconds_total", mode=mode), pytest.approx(spent, abs=10)
    size = next(
        value
        for (name, labels), value in theirs.items()
        if "filesystem_size_bytes" in name and 'mountpoint="/"' in labels
    )
    yield "/", sum_of("llm_host_filesystem_size_bytes", mountpoint="/"), size
    for name, other, near in (
        ("llm_host_network_receive_bytes_total", "node_network_receive_bytes_total", {"rel": 0.01, "abs": 1e6}),
        ("llm_host_disk_read_bytes_total", "node_disk_read_bytes_total", {"rel": 0.01}),
    ):
        for device in {dict(labels)["device"] for sample, labels in ours if sample == name}:
            told = theirs[other, f'{{device="{device}"}}']
            yield device, sum_of(name, device=device), pytest.approx(told, **near)


async def test_the_numbers_are_a_node_exporter_s(tmp_path: Path) -> None:
    node = node_exporter(tmp_path, stack.free_port())
    with running(node):
        async with watching(tmp_path, {"source": "host"}) as exporter:
            await exporter.until("llm_target_up", 1.0)
            end = time.monotonic() + stack.PATIENCE
            while True:  # what others do on this machine meanwhile moves the numbers
                found = re.findall(r"^(node_\w+)(\{.*\})? (\S+)$", node.text("/metrics"), re.MULTILINE)
                ours = exporter.page()
                all_told = [*compared({(name, labels): float(value) for name, labels, value in found}, ours)]
                apart = [told for told in all_told if told[1] != told[2]]
                if not apart:
                    break
                assert time.monotonic() < end, apart
                await asyncio.sleep(0.3)
            cards = {dict(labels)["device"] for name, labels in ours if name == "llm_host_network_receive_bytes_total"}
            assert cards
            assert "lo" not in cards


async def test_the_host_is_found_unless_a_node_exporter_is_there(tmp_path: Path) -> None:
    async with watching(tmp_path, detect=True) as exporter:
        await exporter.until("llm_target_up", 1.0, target="host", source="host")
    node = node_exporter(tmp_path, 9100)
    with running(node):
        async with watching(tmp_path, detect=True) as exporter:
            await exporter.until("llm_target_up", 1.0, target="host", source="host")
            assert not [name for name, _ in exporter.page() if name.startswith("llm_host_")]
            assert "the node_exporter at http://127.0.0.1:9100" in exporter.text("/")


@pytest.fixture
def ollama(tmp_path: Path) -> Iterator[int]:
    """The process id of something of that name."""
    shutil.copy("/bin/sleep", tmp_path / "ollama")
    with subprocess.Popen([tmp_path / "ollama", "600"]) as started:
        yield started.pid
        started.kill()


async def test_a_server_on_a_target_s_port_and_one_of_a_known_name_are_workloads(tmp_path: Path, ollama: int) -> None:
    server = stack.redis(tmp_path)  # it is not known to serve models, but it is a target here
    with running(server):
        assert server.process is not None
        process = psutil.Process(server.process.pid)
        name, other = workload_of(process.pid) or "", workload_of(ollama) or ""
        redis = {"source": "redis", "server": f"redis://127.0.0.1:{server.port}"}
        async with watching(tmp_path, {"source": "host"}, redis) as exporter:
            await exporter.until("llm_target_up", 2.0)
            page = exporter.page()
            resident = process.memory_info().rss
            assert exporter.sum("llm_workload_memory_bytes", page, workload=name) == pytest.approx(resident, rel=0.2)
            assert exporter.sum("llm_workload_threads", page, workload=name) == process.num_threads()
            assert exporter.sum("llm_workload_threads", page, workload=other) >= 1
            served = {
                dict(labels)["serves"]: value for (name, labels), value in page.items() if "_workload_info" in name
            }
            assert served == {f"127.0.0.1:{server.port}": 1.0}
            before = exporter.sum("llm_workload_cpu_seconds_total", workload=name)
            used = sum(process.cpu_times()[:2])
            command = ["redis-cli", "-p", str(server.port), "eval", "for i = 1, 2e7 do local x = i * i end", "0"]
            await asyncio.to_thread(subprocess.run, command, check=True, capture_output=True)
            used = sum(process.cpu_times()[:2]) - used
            assert used > 0.05
            end = time.monotonic() + stack.PATIENCE  # a first read that took long is followed by the next one later
            while (gained := exporter.sum("llm_workload_cpu_seconds_total", workload=name) - before) < used - 0.1:
                assert time.monotonic() < end, (gained, used)
                await asyncio.sleep(0.3)
            assert gained <= used + 0.1
