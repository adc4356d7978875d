"""What is made of what systemd says of a unit, where a real systemd does not say it on demand."""

from pathlib import Path
from typing import Any

import pytest

from exporter.catalogue import families
from exporter.config.load import ConfigError, load
from exporter.config.model import Config
from exporter.core.board import Board
from exporter.core.fetch import session
from exporter.core.types import SeriesTable
from exporter.sources.systemd import Systemd, Units
from exporter.sources.systemd.bus import path_of, unit_of
from exporter.sources.systemd.unit import NOT_SET, Unit
from exporter.wiring import assemble

RUN, OTHER = "a" * 32, "b" * 32


@pytest.mark.parametrize(
    ("unit", "escaped"),
    [
        ("litellm.service", "litellm_2eservice"),
        ("vllm@a-b.service", "vllm_40a_2db_2eservice"),
        ("7z_x.service", "_37z_5fx_2eservice"),
        (r"dev-disk-by\x2dlabel.device", "dev_2ddisk_2dby_5cx2dlabel_2edevice"),
    ],
)
def test_a_units_path_is_escaped_as_systemd_does(unit: str, escaped: str) -> None:
    assert path_of(unit) == f"/org/freedesktop/systemd1/unit/{escaped}"
    assert unit_of(path_of(unit)) == unit


def test_a_path_that_is_no_units_names_none() -> None:
    assert unit_of("/org/freedesktop/systemd1/unit/a_zz") == ""
    assert unit_of("/org/freedesktop/systemd1/unit/a_ff") == ""


def test_what_is_known_of_a_unit_at_first_is_not_counted() -> None:
    unit = Unit("a.service")
    assert unit.take({"InvocationID": RUN, "Result": "exit-code"}) == (0, 0)
    unit.watched = True
    assert unit.take({"Result": "exit-code", "ActiveState": "activating"}) == (0, 0)
    assert unit.take({"Result": "success"}) == (0, 0)
    assert unit.take({"InvocationID": OTHER}) == (1, 0)
    assert unit.take({"Result": "oom-kill"}) == (0, 1)
    assert unit.take({"Result": "oom-kill", "ActiveState": "failed"}) == (0, 0)


def test_a_condition_that_does_not_hold_is_no_failure() -> None:
    unit = Unit("a.service", watched=True)
    assert unit.take({"InvocationID": RUN, "Result": "exec-condition"}) == (1, 0)


def test_what_a_run_used_is_not_shown_of_the_next_one() -> None:
    unit = Unit("a.service", watched=True)
    used = {"CPUUsageNSec": 7, "MemoryCurrent": 8, "TasksCurrent": 9}
    unit.take({"LoadState": "loaded", "ActiveState": "active", "InvocationID": RUN, **used})
    assert [name for name, _, _ in unit.rows("system")] == ["NRestarts", "CPUUsageNSec"]
    unit.take({"InvocationID": OTHER})
    assert [name for name, _, _ in unit.rows("system")] == ["NRestarts"]
    assert not {"llm_unit_memory_bytes", "llm_unit_tasks"} & {name for name, _, _ in unit.samples("system")}


def test_restarts_heard_before_systemd_forgot_them_are_told_once() -> None:
    unit = Unit("a.service")
    for restarts in (1, 2, 0, 1):
        unit.take({"NRestarts": restarts})
    assert [(labels["counted"], value) for _, labels, value in unit.rows("system")] == [(0, 2.0), (1, 1.0)]
    assert [(labels["counted"], value) for _, labels, value in unit.rows("system")] == [(1, 1.0)]


@pytest.mark.parametrize(
    ("said", "state"),
    [
        ({"LoadState": "loaded", "ActiveState": "active"}, "active"),
        ({"LoadState": "not-found", "ActiveState": "active"}, "active"),
        ({"LoadState": "not-found", "ActiveState": "inactive"}, "not_found"),
        ({"LoadState": "masked", "ActiveState": "inactive"}, "inactive"),
        ({"LoadState": "loaded", "ActiveState": "refreshing"}, "reloading"),
        ({"LoadState": "loaded", "ActiveState": "maintenance"}, "inactive"),
    ],
)
def test_each_state_of_systemds_is_one_of_ours(said: dict[str, Any], state: str) -> None:
    unit = Unit("a.service")
    unit.take({**said, "Result": "of a later systemd", "MemoryCurrent": NOT_SET})
    known, table = families(), SeriesTable({})
    shown = {table(known[name], labels).prefix.decode(): value for name, labels, value in unit.samples("system")}
    assert sum(value for name, value in shown.items() if name.startswith("llm_unit_state")) == 1.0
    assert shown[f'llm_unit_state{{unit="a.service",scope="system",state="{state}"}} '] == 1.0
    assert not any(name.startswith("llm_unit_memory") for name in shown)
    if state != "not_found":
        assert shown['llm_unit_result{unit="a.service",scope="system",result="other"} '] == 1.0


def test_names_and_patterns_are_told_apart_and_have_a_type() -> None:
    units = Units(units=("litellm", "vllm@*", "docker.socket", "*.timer", "python3.11"))
    assert units.names == ("litellm.service", "docker.socket", "python3.11.service")
    assert units.patterns == ("vllm@*.service", "*.timer")


@pytest.mark.parametrize(
    ("entry", "wrong"),
    [
        ("{source: systemd, units: ['a b']}", "no name of a unit: 'a b' (write litellm.service, or vllm@*.service)"),
        ("{source: systemd, units: [../etc]}", "no name of a unit: '../etc'"),
        ("{source: systemd, url: 'http://a'}", "a URL, and units have none"),
        ("{source: systemd, scope: users}", "targets.0.scope"),
        ("{source: systemd, bus: /run/dbus/system_bus_socket}", "no address of a bus: '/run/dbus/system_bus_socket'"),
    ],
)
def test_what_is_written_wrong_is_said(tmp_path: Path, entry: str, wrong: str) -> None:
    file = tmp_path / "llm.yaml"
    file.write_text(f"targets: [{entry}]")
    with pytest.raises(ConfigError) as error:
        load(file)
    assert wrong in str(error.value)


async def test_where_another_bus_does_not_answer_this_machines_units_are_not_told_in_place_of_its(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "systemctl").write_text("#!/bin/sh\necho Id=a.service\n")
    (tmp_path / "systemctl").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    target = Units(units=("a.service",), bus=f"unix:path={tmp_path}/bus")
    async with session() as client:
        reading = await assemble(Config(), target, client, Board(), None).read()
    assert "no D-Bus of the system" in reading.error
    assert not reading.samples


def test_the_users_own_units_are_looked_for_where_there_is_a_bus_of_theirs() -> None:
    assert [target.target_name for target in Systemd.candidates({})] == ["systemd"]
    assert [target.scope for target in Systemd.candidates({"XDG_RUNTIME_DIR": "/run/user/1"})] == ["system", "user"]
