"""The simulated stack over HTTP, read through the real sources."""

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from contextlib import suppress

import pytest

from exporter.cli import main
from exporter.config.model import TargetConfig
from exporter.core.board import Board
from exporter.core.fetch import session
from exporter.core.poll import Watch
from exporter.core.types import Reading
from exporter.demo.stack import running
from exporter.demo.world import MORNING, TROUBLES
from exporter.wiring import assemble

SPEED = 300.0
PATIENCE = 90.0


def value(readings: Sequence[Reading], name: str, **labels: str) -> float:
    """The sum of a family's series that have these labels; -1 where there is none."""
    found = [
        value
        for reading in readings
        for series, value in reading.samples
        if series.family.name == name and labels.items() <= dict(series.labels).items()
    ]
    return sum(found) if found else -1.0


async def test_everything_is_read_by_what_anyone_could_write() -> None:
    async with running(1, SPEED) as stack, session() as client:
        config, board = stack.configuration(), Board()
        found: dict[str, TargetConfig] = {}

        def watch(target: TargetConfig) -> Watch:
            return assemble(
                config,
                target,
                client,
                board,
                None,
                found=lambda targets: found.update({each.target_name: each for each in targets}),
            )

        watches = {target.target_name: watch(target) for target in config.targets if target.source != "host"}

        async def read() -> list[Reading]:
            return list(await asyncio.gather(*(each.read() for each in watches.values())))

        async def until(wanted: float, name: str, **labels: str) -> None:
            end = time.monotonic() + PATIENCE
            while (found := value(await read(), name, **labels)) != wanted:
                assert time.monotonic() < end, f"{name}{labels} is {found}, not {wanted}"
                await asyncio.sleep(0.2)

        await read()
        assert len(found) == 3, "the workers' system ports are found in what they registered"
        watches |= {name: watch(target) for name, target in found.items()}
        stack.world.advance(stack.world.now + 6.0)  # through half the morning's trouble with a provider
        await read()
        stack.world.advance(stack.world.now + 6.0)
        readings = await read()
        assert {reading.target: reading.error for reading in readings if not reading.ok} == {}
        assert value(readings, "llm_requests_running", layer="gateway") > 0
        assert value(readings, "llm_deployment_failures_total", reason="unavailable") >= 0
        assert value(readings, "llm_nats_connection_state", state="connected") == 1
        assert value(readings, "llm_redis_up") == 1
        assert value(readings, "llm_gpu_up") == 8
        assert value(readings, "llm_dynamo_endpoint_instances", dynamo_component="backend") == 2
        assert value(readings, "llm_dynamo_model_ready") == 1
        assert value(readings, "llm_etcd_leases") == 3
        assert value(readings, "llm_probe_up", probe="http") == 3
        assert value(readings, "llm_probe_certificate_expiry_timestamp_seconds") > time.time() + 39 * 86400
        assert value(readings, "llm_unit_state", state="active") == 10
        assert value(readings, "llm_model_memory_bytes", device="vram", model="qwen2.5-coder:7b") > 0
        assert value(readings, "llm_gpu_process_memory_bytes") == value(readings, "llm_gpu_memory_used_bytes") > 0
        assert all(each.health.dropped.get("type", 0) == 0 for each in watches.values())

        stack.world.advance((TROUBLES["worker"][0] + 0.2 - MORNING) * 3600.0 / SPEED)
        await until(1, "llm_dynamo_instance_state", state="suspect")  # killed, and etcd still remembers it
        stack.world.advance((TROUBLES["worker"][1] - 0.2 - MORNING) * 3600.0 / SPEED)
        await until(1, "llm_dynamo_endpoint_instances", dynamo_component="backend")
        await until(1, "llm_unit_state", unit="dynamo-worker@2.service", state="failed")
        await until(0, "llm_gpu_memory_used_bytes", gpu="3")
        stack.world.advance((TROUBLES["gpu"][1] - 0.2 - MORNING) * 3600.0 / SPEED)
        await until(1, "llm_gpu_throttle_active", gpu="5", reason="sw_thermal")
        await until(1, "llm_gpu_throttle_active")

        stack.world.advance((TROUBLES["service"][0] + 0.2 - MORNING) * 3600.0 / SPEED)
        await until(2, "llm_probe_up", probe="http")
        stack.world.advance((TROUBLES["cache"][0] + 0.2 - MORNING) * 3600.0 / SPEED)
        await until(0, "llm_redis_up")


@pytest.fixture
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def test_one_command_serves_all_of_it_and_ends_when_asked(port: int) -> None:
    """Also what is heard between two reads: XIDs, the journal, starts in a loop; and whose GPU memory it is."""
    hour = str(TROUBLES["unit"][0])
    command = [sys.executable, "-m", "exporter", "demo", "--listen", f"127.0.0.1:{port}", "--seed", "7", "--hour", hour]
    shown = (
        'llm_target_up{source="litellm",target="litellm"} 1.0',
        'llm_gpu_xid_errors_total{source="gpu",target="gpus",gpu="6",uuid="GPU-.*",xid="31"} [1-9]',
        'llm_unit_activations_total{source="systemd",target="units",unit="reranker.service",scope="system"} [1-9]',
        'llm_log_entries_total{.*,unit="reranker.service",scope="system",priority="crit"} [1-9]',
        'llm_gpu_process_memory_bytes{.*,workload="vllm-a"} [1-9]',
        'llm_workload_info{.*,workload="vllm-a",serves="vllm-a"} 1.0',
    )
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "HOME": "/nowhere"})
    try:
        until = time.monotonic() + PATIENCE
        page = ""
        while missing := [each for each in shown if not re.search(each, page)]:
            assert time.monotonic() < until, missing
            assert process.poll() is None
            time.sleep(0.2)
            with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
                page = answer.read().decode()
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    assert process.returncode == 0
    assert "Traceback" not in log


@pytest.mark.parametrize(
    ("option", "said"),
    [*(("--speed", each) for each in ("0", "-1", "3601", "nan", "fast")), ("--hour", "24"), ("--hour", "noon")],
)
def test_a_speed_or_an_hour_that_cannot_be_is_refused(
    option: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["demo", option, said])
    assert ended.value.code == 2
    assert option in capsys.readouterr().err
