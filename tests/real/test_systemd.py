"""A real systemd, watched: states as they change, and every start and failure, against what systemd and units say."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from brokers import SELDOM, Watched, exporter, found, watched
from namespace import USER, Systemd, booted
from stack import PATIENCE, Exporter

STATE, STARTS, FAILURES = "llm_unit_state", "llm_unit_activations_total", "llm_unit_failures_total"
RESTARTS, UP = "llm_unit_restarts_total", "llm_target_up"


@pytest.fixture(scope="module")
def systemd() -> Iterator[Systemd]:
    with booted() as running:
        yield running


def target(*units: str, **more: Any) -> dict[str, Any]:
    return {"source": "systemd", **({"units": list(units)} if units else {}), **more}


def states(exporter: Watched) -> dict[str, str]:
    """The state of each unit; a unit is in one alone."""
    found: dict[str, str] = {}
    for (name, labels), value in exporter.look().items():
        if name == STATE and value:
            told = dict(labels)
            assert told["unit"] not in found
            found[told["unit"]] = told["state"]
    return found


async def is_in(exporter: Watched, unit: str, state: str) -> None:
    await exporter.until_value(STATE, 1.0, unit=f"{unit}.service", state=state)


def cgroup(systemd: Systemd, unit: str, *files: str) -> str:
    """The first of these files that the cgroup of a unit has, of whichever version and controller."""
    group = systemd.show(unit, "ControlGroup")
    places = " ".join(
        f"/sys/fs/cgroup{controller}{group}/{file}"
        for file in files
        for controller in ("", "/memory", "/cpuacct", "/pids")
    )
    return systemd.run("sh", "-c", f"for file in {places}; do if [ -e $file ]; then cat $file; exit; fi; done; exit 1")


async def test_what_a_unit_uses_is_what_its_cgroup_says(tmp_path: Path, systemd: Systemd) -> None:
    work = "x = bytearray(40_000_000); sum(range(5_000_000)); import time; time.sleep(1000)"
    systemd.write(busy=f'Type=exec\nExecStart=/usr/bin/python3 -c "{work}"')
    async with watched(tmp_path, target("busy"), environ=systemd.environ) as exporter:
        systemd.systemctl("start", "busy")
        await is_in(exporter, "busy", "active")

        def used() -> tuple[float, int]:
            cpu = cgroup(systemd, "busy", "cpuacct.usage", "cpu.stat")
            seconds = int(cpu.split()[1]) / 1e6 if cpu.startswith("usage_usec") else int(cpu) / 1e9
            return seconds, int(cgroup(systemd, "busy", "memory.current", "memory.usage_in_bytes"))

        before = None
        while (now := used()) != before or now[1] < 40_000_000:  # until it sleeps
            before = now
            await asyncio.sleep(1)
        seconds, _ = used()
        await exporter.until(lambda page: found(page, "llm_unit_memory_bytes") == used()[1], "the memory")
        await exporter.until(lambda page: _cpu(page) == pytest.approx(seconds), "the CPU time")
        assert exporter.value("llm_unit_tasks") == float(cgroup(systemd, "busy", "pids.current"))
        assert exporter.value("llm_unit_exit_status") is None
        assert exporter.value("llm_unit_result", result="success") == 1.0
        began = float(systemd.run("sh", "-c", 'date +%s -d "$(systemctl show --value -p ActiveEnterTimestamp busy)"'))
        assert began <= (exporter.value("llm_unit_start_timestamp_seconds") or 0.0) < began + 1

        systemd.systemctl("restart", "busy")
        await exporter.until_value(STARTS, 2.0)
        assert exporter.value(FAILURES) == 0.0
        systemd.systemctl("stop", "busy")
        await is_in(exporter, "busy", "inactive")
        assert exporter.value("llm_unit_memory_bytes") is None
        assert exporter.value("llm_unit_start_timestamp_seconds") is None
        await exporter.until(lambda page: _cpu(page) > seconds, "the second run's time on top of the first's")
        assert exporter.falls() == []


def _cpu(page: Any) -> float:
    return sum(value for (name, _), value in page.items() if name == "llm_unit_cpu_seconds_total")


@pytest.mark.parametrize(
    ("service", "status", "result"),
    [
        ("Type=exec\nExecStart=/bin/sh -c 'exit 7'", 7.0, "exit-code"),
        ("Type=exec\nExecStart=/bin/sh -c 'kill -TERM $$$$; sleep 9'\nSuccessExitStatus=0", None, "success"),
        ("Type=exec\nExecStart=/bin/sh -c 'kill -ABRT $$$$; sleep 9'\nLimitCORE=0", 134.0, "signal"),
        ("Type=notify\nTimeoutStartSec=200ms\nExecStart=/bin/sleep 9", 143.0, "timeout"),
        ("ExecStart=/does/not/exist", 203.0, "exit-code"),
    ],
    ids=["exit status", "terminated", "aborted", "no notice in time", "no such program"],
)
async def test_an_end_is_told_by_state_result_and_exit_status(
    tmp_path: Path, systemd: Systemd, service: str, status: float | None, result: str
) -> None:
    systemd.write(ends=service)
    async with watched(tmp_path, target("ends"), environ=systemd.environ) as exporter:
        systemd.systemctl("start", "--no-block", "ends")
        failed = result != "success"
        await exporter.until_value(STARTS, 1.0)
        await is_in(exporter, "ends", "failed" if failed else "inactive")
        await exporter.until_value(FAILURES, float(failed))
        await exporter.until_value("llm_unit_result", 1.0, result=result)
        assert sum(value for (name, _), value in exporter.look().items() if name == "llm_unit_result") == 1.0
        if status is not None:
            await exporter.until_value("llm_unit_exit_status", status)
        if failed:
            systemd.systemctl("reset-failed", "ends")


async def test_a_restart_loop_is_counted_start_by_start_between_reads_that_are_far_apart(
    tmp_path: Path, systemd: Systemd
) -> None:
    starts = systemd.folder / "starts"
    systemd.write(
        loop=f"ExecStart=/bin/sh -c 'echo >> {starts}; test $$(wc -l < {starts}) -ge 12'\nRestart=on-failure\n"
        "RestartSec=50ms\n[Unit]\nStartLimitIntervalSec=0"
    )
    async with watched(tmp_path, target("loop", interval="3s"), environ=systemd.environ) as exporter:
        await is_in(exporter, "loop", "inactive")
        assert (exporter.value(STARTS), exporter.value(FAILURES), exporter.value(RESTARTS)) == (0.0, 0.0, 0.0)
        for times in (1, 2):  # systemd's own count begins at 0 again
            starts.write_text("")
            systemd.systemctl("start", "loop")
            for name, count in ((STARTS, 12.0), (FAILURES, 11.0), (RESTARTS, 11.0)):
                await exporter.until_value(name, count * times)
            await is_in(exporter, "loop", "inactive")
        assert exporter.falls() == []


def _sum(page: Any, name: str) -> float:
    return float(sum(value for (sample, _), value in page.items() if sample == name))


async def test_a_start_limit_ends_in_failed_and_counts_each_run_once(tmp_path: Path, systemd: Systemd) -> None:
    systemd.write(
        limit="ExecStart=/bin/sh -c 'exit 3'\nRestart=on-failure\nRestartSec=50ms\n"
        "[Unit]\nStartLimitIntervalSec=60\nStartLimitBurst=3"
    )
    async with watched(tmp_path, target("limit"), environ=systemd.environ) as exporter:
        await is_in(exporter, "limit", "inactive")
        systemd.systemctl("start", "limit")
        await exporter.until_value(RESTARTS, 3.0)
        await is_in(exporter, "limit", "failed")
        await exporter.until_value(STARTS, 3.0)
        await exporter.until_value(FAILURES, 3.0)
        await exporter.until_value("llm_unit_result", 1.0, result="exit-code")
        await exporter.until_value("llm_unit_exit_status", 3.0)


async def test_a_change_is_shown_at_once_though_the_next_read_is_far(tmp_path: Path, systemd: Systemd) -> None:
    systemd.write(quick="ExecStart=/bin/sleep 1000")
    async with watched(tmp_path, target("quick", **SELDOM), environ=systemd.environ) as exporter:
        end = time.monotonic() + PATIENCE
        while states(exporter)["quick.service"] != "active":  # until signals are listened to
            assert time.monotonic() < end, exporter.exporter.tail()
            systemd.systemctl("restart", "quick")
            await asyncio.sleep(0.2)
        for _ in range(3):
            systemd.systemctl("stop", "quick")
            await is_in(exporter, "quick", "inactive")
            systemd.systemctl("start", "quick")
            await is_in(exporter, "quick", "active")
        systemd.systemctl("stop", "quick")


async def test_a_unit_that_is_named_is_shown_before_it_appears_and_after_it_has_gone(
    tmp_path: Path, systemd: Systemd
) -> None:
    async with watched(tmp_path, target("guest"), environ=systemd.environ) as exporter:
        await is_in(exporter, "guest", "not_found")
        assert exporter.value(STARTS) == 0.0
        systemd.write(guest="ExecStart=/bin/sleep 1000")
        await is_in(exporter, "guest", "inactive")
        systemd.systemctl("start", "guest")
        await is_in(exporter, "guest", "active")
        await exporter.until_value(STARTS, 1.0)
        (systemd.folder / "units" / "guest.service").unlink()
        systemd.systemctl("daemon-reload")
        await exporter.read_again(2, "systemd")
        assert states(exporter) == {"guest.service": "active"}  # it runs on without its file
        systemd.systemctl("stop", "guest")
        await is_in(exporter, "guest", "not_found")
        assert exporter.value(STARTS) == 1.0


async def test_a_pattern_finds_what_is_loaded_and_shows_it_until_it_is_gone(tmp_path: Path, systemd: Systemd) -> None:
    systemd.write(**{"vllm@": "ExecStart=/bin/sleep 1000"})
    async with watched(tmp_path, target("vllm@*", interval="1s"), environ=systemd.environ) as exporter:
        await exporter.until_value(UP, 1.0)
        assert states(exporter) == {}
        systemd.systemctl("start", "vllm@a", "vllm@b")
        await is_in(exporter, "vllm@a", "active")
        await is_in(exporter, "vllm@b", "active")
        await exporter.until_value(STARTS, 1.0, unit="vllm@a.service")
        systemd.systemctl("stop", "vllm@a")
        left = {"vllm@a.service": "inactive", "vllm@b.service": "active"}
        await exporter.until(lambda _: states(exporter) == left, "one that ended and one that runs")
        await exporter.read_again(2, "systemd")
        assert states(exporter) == left
        systemd.systemctl("stop", "vllm@b")
        (systemd.folder / "units" / "vllm@.service").unlink()
        systemd.systemctl("daemon-reload")
        await exporter.until(lambda page: not any(name == STATE for name, _ in page), "no unit any more")


async def test_what_serves_models_is_found_by_its_name_and_nothing_else_is_shown(
    tmp_path: Path, systemd: Systemd
) -> None:
    sleeps = "ExecStart=/bin/sleep 1000"
    systemd.write(**{"litellm": sleeps, "ollama": sleeps, "vllm-llama": sleeps, "other": sleeps})
    systemd.systemctl("start", "litellm", "vllm-llama", "other")
    wanted = {"litellm.service": "active", "ollama.service": "inactive", "vllm-llama.service": "active"}
    try:
        async with watched(tmp_path, target(), environ=systemd.environ) as exporter:
            await exporter.until(lambda _: states(exporter) == wanted, "the three")
        async with watched(tmp_path, environ=systemd.environ) as exporter:  # without a configuration
            await exporter.until(lambda _: states(exporter) == wanted, "the three, found")
            assert exporter.value(UP, target="systemd") == 1.0
    finally:
        systemd.systemctl("stop", "litellm", "vllm-llama", "other")


async def test_of_250_units_none_is_lost(tmp_path: Path, systemd: Systemd) -> None:
    systemd.write(**{"many@": "ExecStart=/bin/sleep 1000"})
    units = [f"many@{number}.service" for number in range(250)]
    systemd.systemctl("start", *units)
    try:
        async with watched(tmp_path, target(*units, interval="2s"), environ=systemd.environ) as exporter:
            await exporter.until(lambda _: states(exporter) == dict.fromkeys(units, "active"), "all are active")
            page = exporter.look()
            for name in ("llm_unit_memory_bytes", "llm_unit_tasks", "llm_unit_cpu_seconds_total", STARTS):
                assert sum(sample == name for sample, _ in page) == 250, name
            systemd.systemctl("restart", *units)
            await exporter.until(lambda page: _sum(page, STARTS) == 250.0, "each was started once")
            await exporter.until(lambda _: states(exporter) == dict.fromkeys(units, "active"), "all are active")
            systemd.systemctl("stop", *units[100:])
            stopped = dict.fromkeys(units[:100], "active") | dict.fromkeys(units[100:], "inactive")
            await exporter.until(lambda _: states(exporter) == stopped, "150 are stopped")
            assert exporter.falls() == []
    finally:
        systemd.systemctl("stop", *units)


def as_user(server: Exporter) -> Exporter:
    """The exporter as the user, who may enter the folders that its program lies in."""
    rights = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    server.arguments[:0] = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", *rights]
    return server


async def test_a_users_units_are_told_with_their_scope(systemd: Systemd) -> None:
    sleeps = "ExecStart=/bin/sleep 1000"
    systemd.write(user=True, litellm=sleeps, ollama="Type=exec\nExecStart=/bin/false")
    server = as_user(exporter(systemd.home(), target(scope="user"), environ=systemd.environ | systemd.user_environ))
    await asyncio.to_thread(server.start)
    try:
        seen = Watched(server)
        systemd.systemctl("start", "litellm", user=True)
        systemd.systemctl("start", "ollama", "--no-block", user=True)
        await seen.until_value(STATE, 1.0, unit="litellm.service", scope="user", state="active")
        await seen.until_value(STATE, 1.0, unit="ollama.service", scope="user", state="failed")
        await seen.until_value(FAILURES, 1.0, unit="ollama.service", scope="user", target="systemd-user")
    finally:
        assert await asyncio.to_thread(server.stop) == 0
        systemd.systemctl("stop", "litellm", user=True)
    assert "Traceback" not in server.tail()


async def test_counts_go_on_over_a_restart_of_the_exporter(tmp_path: Path, systemd: Systemd) -> None:
    fails = systemd.folder / "fails"
    systemd.write(
        keeps=f"ExecStart=/bin/sh -c '! test -e {fails}'\nRestart=on-failure\nRestartSec=100ms\n"
        "[Unit]\nStartLimitIntervalSec=0"
    )
    async with watched(tmp_path, target("keeps"), environ=systemd.environ) as first:
        await is_in(first, "keeps", "inactive")
        fails.touch()
        systemd.systemctl("start", "keeps")
        await first.until(lambda page: _sum(page, STARTS) > 5, "starts")
        fails.unlink()
        await is_in(first, "keeps", "inactive")
        await first.read_again(2, "systemd")
        told = {name: first.value(name) for name in (STARTS, FAILURES, RESTARTS)}
        assert told[STARTS] == (told[FAILURES] or 0) + 1
    async with watched(tmp_path, target("keeps"), environ=systemd.environ) as second:
        await second.until_value(STARTS, told[STARTS])
        assert {name: second.value(name) for name in told} == told
        fails.touch()
        systemd.systemctl("start", "keeps")
        await second.until(lambda page: _sum(page, STARTS) > (told[STARTS] or 0) + 3, "more starts")
        fails.unlink()
        await is_in(second, "keeps", "inactive")


async def test_where_there_is_no_bus_systemctl_tells_the_same(tmp_path: Path, systemd: Systemd) -> None:
    systemd.write(plain="ExecStart=/bin/sleep 1000", ends="ExecStart=/bin/sh -c 'exit 7'")
    within = tmp_path / "bin" / "systemctl"
    within.parent.mkdir()
    within.write_text(
        f'#!/bin/sh\nexec {Path(__file__).parent / "namespace.sh"} exec {systemd.folder} systemctl "$@"\n'
    )
    within.chmod(0o755)
    environ = {"DBUS_SYSTEM_BUS_ADDRESS": f"unix:path={tmp_path}/none", "PATH": f"{within.parent}:/usr/bin:/bin"}
    systemd.systemctl("start", "plain")
    began = float(systemd.run("sh", "-c", 'date +%s -d "$(systemctl show --value -p ActiveEnterTimestamp plain)"'))
    async with watched(tmp_path, target("plain", "ends", "none"), environ=environ) as exporter:
        await exporter.until_value(UP, 1.0)
        assert states(exporter) == {
            "plain.service": "active",
            "ends.service": "inactive",
            "none.service": "not_found",
        }
        assert exporter.value("llm_unit_tasks", unit="plain.service") == 1.0
        assert exporter.value("llm_unit_memory_bytes", unit="plain.service")
        assert abs((exporter.value("llm_unit_start_timestamp_seconds") or 0.0) - began) < 2
        assert "the exporter cannot use D-Bus" in exporter.why()
        systemd.systemctl("start", "ends", "--no-block")
        await is_in(exporter, "ends", "failed")
        await exporter.until_value(FAILURES, 1.0, unit="ends.service")
        await exporter.until_value("llm_unit_exit_status", 7.0, unit="ends.service")
        systemd.systemctl("stop", "plain")
        await is_in(exporter, "plain", "inactive")


async def test_where_there_is_no_systemd_the_target_is_down_and_says_so(tmp_path: Path) -> None:
    environ = {"DBUS_SYSTEM_BUS_ADDRESS": f"unix:path={tmp_path}/none", "PATH": str(tmp_path)}
    server = exporter(tmp_path, target("litellm"), environ=environ)
    await asyncio.to_thread(server.start)
    try:
        seen = Watched(server)
        await seen.until_value(UP, 0.0)
        assert seen.value("llm_target_read_failures_total", reason="connect")
        assert "take the target out" in seen.why()
    finally:
        assert await asyncio.to_thread(server.stop) == 0


def start_and_stop(systemd: Systemd) -> None:
    """Too soon for a read to tell."""
    systemd.systemctl("start", "one")
    systemd.systemctl("stop", "one")


async def test_systemd_executed_anew_and_a_bus_started_anew_are_survived(tmp_path: Path) -> None:
    with booted() as systemd:
        systemd.write(one="ExecStart=/bin/sleep 1000")
        async with watched(tmp_path, target("one"), environ=systemd.environ) as exporter:
            await is_in(exporter, "one", "inactive")
            for calamity in (("daemon-reload",), ("daemon-reexec",), ("restart", "dbus")):
                before, end = exporter.value(STARTS) or 0.0, time.monotonic() + PATIENCE
                systemd.systemctl(*calamity)
                while (times := exporter.value(STARTS) or 0.0) <= before:  # it is told by a read, or tries every 5 s
                    assert time.monotonic() < end, exporter.exporter.tail()
                    start_and_stop(systemd)
                    await exporter.read_again(2, "systemd")
                start_and_stop(systemd)
                await exporter.until_value(STARTS, times + 1)
            assert exporter.falls() == []
