"""The exporter's own unit under a real systemd: ready when it is, ended when it hangs, given a socket, confined."""

import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import stack
from namespace import Systemd, booted
from stack import Exporter

REPOSITORY = Path(__file__).parents[2]
DEPLOY = REPOSITORY / "deploy" / "systemd"
UNIT = "llm-exporter.service"
SECRET = "invented-secret"


class Slow:
    """A service that answers when it is let, and keeps what it was asked."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self.asked: list[str] = []
        self.answer = threading.Event()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            connection, _ = self._socket.accept()
            threading.Thread(target=self._one, args=(connection,), daemon=True).start()

    def _one(self, connection: socket.socket) -> None:
        with connection:
            self.asked.append(connection.recv(4096).decode())
            self.answer.wait(60)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")


@pytest.fixture(scope="module")
def systemd() -> Iterator[Systemd]:
    with booted() as made:
        made.run("systemd-sysusers", str(copied(made, "llm-exporter.sysusers")))
        yield made


def copied(systemd: Systemd, name: str) -> Path:
    """A file of ours where it is seen inside, too."""
    file = systemd.folder / name
    file.write_bytes((DEPLOY / name).read_bytes())
    return file


@contextmanager
def installed(systemd: Systemd, port: int, config: str, *more: str) -> Iterator[Exporter]:
    """The unit as it is deployed, but for where Python and the exporter lie; `more` stands in [Service], too."""
    (systemd.folder / "key").write_text(SECRET)
    file = systemd.folder / "llm-exporter.yaml"
    file.write_text(config)
    units = systemd.folder / "units"
    (units / UNIT).write_bytes((DEPLOY / UNIT).read_bytes())
    seen = " ".join(dict.fromkeys([sys.base_prefix, sys.prefix, str(REPOSITORY)]))
    (units / f"{UNIT}.d").mkdir(exist_ok=True)
    (units / f"{UNIT}.d" / "test.conf").write_text(
        "\n".join(
            [
                "[Service]",
                "ExecStart=",
                f"ExecStart={sys.executable} -m exporter --config {file} --listen 127.0.0.1:{port}",
                f"Environment=PYTHONPATH={REPOSITORY} PYTHONDONTWRITEBYTECODE=1",
                "ProtectHome=tmpfs",
                f"BindReadOnlyPaths={seen} {systemd.folder}",
                f"LoadCredential=litellm-key:{systemd.folder / 'key'}",
                "RestartSec=200ms",
                *more,
            ]
        )
    )
    systemd.systemctl("daemon-reload")
    try:
        yield Exporter([], port, systemd.folder / "none.log")
    finally:
        systemd.systemctl("stop", UNIT)
        systemd.systemctl("reset-failed")


def log(systemd: Systemd) -> str:
    return systemd.run("journalctl", "-u", UNIT, "--no-pager", "-o", "cat")


def until(systemd: Systemd, holds: Callable[[], bool]) -> None:
    end = time.monotonic() + stack.PATIENCE
    while not holds():
        assert time.monotonic() < end, log(systemd)
        time.sleep(0.1)


def config_of(*ports: int) -> str:
    targets = [
        f"  - {{source: http, name: s{port}, url: http://127.0.0.1:{port}/health, api_key_file: litellm-key, "
        f"timeout: 60s}}\n"
        for port in ports
    ]
    return f"interval: 500ms\ntargets:\n{''.join(targets)}"


def test_it_is_ready_only_when_its_targets_have_been_read_and_reads_its_credentials(systemd: Systemd) -> None:
    slow, port = Slow(), stack.free_port()
    with installed(systemd, port, config_of(slow.port)) as exporter:
        systemd.systemctl("start", "--no-block", UNIT)
        until(systemd, lambda: bool(slow.asked))
        time.sleep(1)
        assert systemd.show(UNIT, "ActiveState") == "activating"
        assert systemd.show(UNIT, "StatusText") == "0 of 1 targets are up"
        assert not exporter.text("/metrics").count("llm_target_up"), "it serves, but is not ready"
        slow.answer.set()
        until(systemd, lambda: systemd.show(UNIT, "ActiveState") == "active")
        assert f"Bearer {SECRET}" in slow.asked[0]
        assert exporter.text("/-/ready").startswith("llm-exporter is ready")
        assert exporter.sum("llm_probe_up") == 1.0
        until(systemd, lambda: systemd.show(UNIT, "StatusText") == "1 of 1 targets are up")
        assert SECRET not in log(systemd)


def test_a_reload_is_over_when_what_is_new_has_been_read(systemd: Systemd) -> None:
    old, new, port = Slow(), Slow(), stack.free_port()
    old.answer.set()
    with installed(systemd, port, config_of(old.port)) as exporter:
        systemd.systemctl("start", UNIT)
        before = systemd.show(UNIT, "MainPID")
        (systemd.folder / "llm-exporter.yaml").write_text(config_of(old.port, new.port))
        systemd.systemctl("reload", "--no-block", UNIT)
        until(systemd, lambda: systemd.show(UNIT, "ActiveState") == "reloading")
        until(systemd, lambda: bool(new.asked))
        time.sleep(0.5)
        assert systemd.show(UNIT, "ActiveState") == "reloading"
        new.answer.set()
        until(systemd, lambda: systemd.show(UNIT, "ActiveState") == "active")
        assert exporter.sum("llm_probe_up") == 2.0
        assert systemd.show(UNIT, "MainPID") == before


def test_a_process_that_hangs_is_ended_and_started_again(systemd: Systemd) -> None:
    slow, port = Slow(), stack.free_port()
    slow.answer.set()
    with installed(systemd, port, config_of(slow.port), "WatchdogSec=4") as exporter:
        systemd.systemctl("start", UNIT)
        time.sleep(5)
        before = systemd.show(UNIT, "MainPID")
        assert systemd.show(UNIT, "NRestarts") == "0", "for longer than the watchdog waits, it was heard"
        systemd.run("kill", "-STOP", before)
        until(systemd, lambda: systemd.show(UNIT, "NRestarts") == "1")
        until(systemd, lambda: systemd.show(UNIT, "ActiveState") == "active")
        assert systemd.show(UNIT, "MainPID") not in (before, "0")
        assert "Watchdog timeout" in log(systemd)
        assert exporter.sum("llm_probe_up") == 1.0


def test_it_ends_in_good_order_and_keeps_its_state(systemd: Systemd) -> None:
    slow, port = Slow(), stack.free_port()
    slow.answer.set()
    with installed(systemd, port, config_of(slow.port)):
        systemd.systemctl("start", UNIT)
        systemd.systemctl("stop", UNIT)
        assert systemd.show(UNIT, "Result") == "success"
        assert systemd.show(UNIT, "ExecMainStatus") == "0"
        assert "no state is kept" not in log(systemd)
        owner = systemd.run("stat", "-c", "%U %a", "/var/lib/llm-exporter", "/var/lib/llm-exporter/lock")
    assert owner.splitlines() == ["llm-exporter 700", "llm-exporter 600"]


def test_it_takes_the_socket_that_systemd_gives_it(systemd: Systemd) -> None:
    slow, port, other = Slow(), stack.free_port(), stack.free_port()
    slow.answer.set()
    units = systemd.folder / "units"
    (units / "llm-exporter.socket").write_bytes((DEPLOY / "llm-exporter.socket").read_bytes())
    (units / "llm-exporter.socket.d").mkdir()
    listen = f"[Socket]\nListenStream=\nListenStream=127.0.0.1:{port}\n"
    (units / "llm-exporter.socket.d" / "test.conf").write_text(listen)
    with installed(systemd, other, config_of(slow.port)):
        systemd.systemctl("start", "llm-exporter.socket")
        assert systemd.show(UNIT, "ActiveState") == "inactive"
        scraped = Exporter([], port, systemd.folder / "none.log")
        assert "llm_exporter_build_info" in scraped.text("/metrics"), "the scrape that starts it waits for its answer"
        assert systemd.show(UNIT, "ActiveState") in ("activating", "active")
        until(systemd, lambda: systemd.show(UNIT, "ActiveState") == "active")
        assert not Exporter([], other, systemd.folder / "none.log").answers(), "its own `listen` does not count"
        systemd.systemctl("restart", UNIT)
        assert "llm_probe_up" in scraped.text("/metrics")
        systemd.systemctl("stop", "llm-exporter.socket")


def test_confined_it_reads_units_and_the_journal(systemd: Systemd) -> None:
    port = stack.free_port()
    systemd.write(vllm="Type=exec\nExecStart=/bin/sh -c 'while sleep 0.2; do echo one; done'")
    systemd.systemctl("start", "vllm")
    targets = f"targets: [{{source: systemd, units: [vllm, {UNIT}]}}, {{source: journal, units: [vllm]}}]\n"
    with installed(systemd, port, f"interval: 500ms\n{targets}") as exporter:
        systemd.systemctl("start", UNIT)
        until(systemd, lambda: exporter.sum("llm_unit_state", state="active") == 2.0)
        until(systemd, lambda: exporter.sum("llm_log_entries_total", unit="vllm.service", priority="info") > 5.0)
        assert "may not read" not in exporter.text("/")
        memory = exporter.sum("llm_unit_memory_bytes", unit=UNIT)
        assert 1e7 < memory < 256e6, "what it costs itself is told as any unit's"
    with installed(
        systemd, port, f"interval: 500ms\n{targets}", "User=nobody", "Group=nogroup", "SupplementaryGroups="
    ):
        systemd.systemctl("start", UNIT)
        until(systemd, lambda: exporter.sum("llm_unit_state", state="active") == 2.0)
        assert "usermod -aG systemd-journal" in exporter.text("/"), "what is missing is said"
    systemd.systemctl("stop", "vllm")


def test_it_is_confined_to_an_exposure_of_two_at_most(systemd: Systemd) -> None:
    with installed(systemd, 1, config_of(1)):
        (systemd.folder / "units" / f"{UNIT}.d" / "test.conf").unlink()
        systemd.systemctl("daemon-reload")
        said = systemd.run("systemd-analyze", "security", "--threshold=20", "--no-pager", UNIT)
    assert "Overall exposure level" in said


def test_the_rule_lets_it_restart_what_is_listed_and_nothing_else(systemd: Systemd) -> None:
    rules = copied(systemd, "50-llm-exporter.rules")
    systemd.run("install", "-D", "-m", "0644", str(rules), "/etc/polkit-1/rules.d/50-llm-exporter.rules")
    systemd.write(vllm="ExecStart=/bin/sleep 600", other="ExecStart=/bin/sleep 600")

    def may(verb: str, unit: str) -> bool:
        ids = "setpriv --reuid=llm-exporter --regid=llm-exporter --clear-groups"
        said = systemd.run("sh", "-c", f"{ids} systemctl --no-ask-password {verb} {unit} 2>&1 || true")
        assert not said or "authentication" in said.lower() or "Access denied" in said, said
        return not said

    assert may("restart", "vllm.service")
    assert systemd.show("vllm.service", "ActiveState") == "active"
    assert not may("kill", "vllm.service")
    assert may("stop", "vllm.service")
    assert systemd.show("vllm.service", "ActiveState") == "inactive"
    assert not may("start", "vllm.service")
    assert not may("restart", "other.service")
