"""What is made of entries and cursors that a real journal does not have on demand."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from exporter.config.load import ConfigError, load
from exporter.core.errors import ReadError
from exporter.sources.journal import Journal, Reader, _may_read
from exporter.sources.journal.entry import Kind, between, is_same, priority_of, unit_of
from exporter.sources.journal.journalctl import _Lines, follow

BOOT, OTHER = "b" * 32, "c" * 32


def cursor(number: int, boot: str = BOOT, content: str = "1") -> str:
    return f"s={'a' * 32};i={number:x};b={boot};m={number:x}f;t={number:x}ff;x={content}"


def line(number: int, boot: str = BOOT, **fields: Any) -> bytes:
    told = {"__CURSOR": cursor(number, boot), "_SYSTEMD_UNIT": "vllm.service", "PRIORITY": "3", **fields}
    return json.dumps({name: value for name, value in told.items() if value is not None}).encode()


def lines(before: str = "", *, whole: bool = True) -> _Lines:
    return _Lines(lambda unit: unit == "vllm.service", before, whole=whole)


@pytest.mark.parametrize(
    ("fields", "of"),
    [
        ({"_SYSTEMD_UNIT": "vllm.service"}, ("vllm.service", "system")),
        ({"_SYSTEMD_UNIT": "init.scope", "UNIT": "vllm.service"}, ("vllm.service", "system")),
        ({"_SYSTEMD_UNIT": "init.scope"}, ("init.scope", "system")),
        ({"_SYSTEMD_UNIT": "user@1.service", "_SYSTEMD_USER_UNIT": "ollama.service"}, ("ollama.service", "user")),
        (
            {"_SYSTEMD_UNIT": "user@1.service", "_SYSTEMD_USER_UNIT": "init.scope", "USER_UNIT": "ollama.service"},
            ("ollama.service", "user"),
        ),
        ({"_SYSTEMD_UNIT": "evil.service", "UNIT": "vllm.service"}, ("evil.service", "system")),
        ({"UNIT": "vllm.service"}, None),
        ({"_SYSTEMD_UNIT": [1, 2]}, None),
        ({}, None),
    ],
    ids=[
        "its own",
        "pid 1 of it",
        "pid 1",
        "a user's",
        "a user's manager of it",
        "pretended",
        "unsigned",
        "bytes",
        "none",
    ],
)
def test_an_entry_is_its_units_and_what_the_manager_says_is_that_of_whom_it_speaks(
    fields: dict[str, Any], of: tuple[str, str] | None
) -> None:
    assert unit_of(fields.get) == of


def test_a_priority_that_is_none_is_systemds_default() -> None:
    assert [priority_of(told) for told in ("0", "7", "8", None, [1])] == ["emerg", "debug", "info", "info", "info"]


def test_cursors_tell_what_was_between_them() -> None:
    assert [between(cursor(9), cursor(number)) for number in (10, 11, 300)] == [0, 1, 290]
    assert between(cursor(9), cursor(10, OTHER)) is None
    assert between("nonsense", cursor(10)) is None
    assert is_same(cursor(9), cursor(9))
    assert not is_same(cursor(9), cursor(9, content="2"))
    assert not is_same("", "")


def test_the_entry_that_was_counted_before_is_not_counted_again() -> None:
    batch = lines(cursor(9)).take([line(9), line(10), b"-- no entry --", line(11, PRIORITY=None)])
    assert batch.counts == {("vllm.service", "system", "err"): 1, ("vllm.service", "system", "info"): 1}
    assert (batch.cursor, batch.gaps) == (cursor(11), 0)


@pytest.mark.parametrize(("first", "gaps"), [((10, BOOT), 0), ((11, BOOT), 1), ((10, OTHER), 1)])
def test_an_entry_that_is_gone_is_a_gap_where_more_may_be_gone_with_it(first: tuple[int, str], gaps: int) -> None:
    batch = lines(cursor(9)).take([line(*first)])
    assert sum(batch.counts.values()) == 1
    assert batch.gaps == gaps


@pytest.mark.parametrize(("whole", "gaps"), [(True, 2), (False, 0)])
def test_numbers_that_are_passed_over_are_a_gap_only_where_all_may_be_read(whole: bool, gaps: int) -> None:
    """Another user's entries are numbered, too. A number that falls is of another row."""
    reader = lines(whole=whole)
    assert reader.take([line(9), line(10)]).gaps == 0
    batch = reader.take([line(12, _SYSTEMD_UNIT="other.service"), line(13), line(20), line(1), line(1, OTHER)])
    assert sum(batch.counts.values()) == 4
    assert batch.gaps == gaps


def test_where_no_journal_is_kept_is_said(tmp_path: Path) -> None:
    with pytest.raises(ReadError, match=r"no journal is kept in .* running here"):
        _may_read(str(tmp_path))
    (tmp_path / ("f" * 32)).mkdir()
    (tmp_path / ("f" * 32) / "system.journal").touch()
    assert _may_read(str(tmp_path))


async def test_what_is_run_in_place_of_journalctl_gets_its_options_and_its_entries_are_counted(tmp_path: Path) -> None:
    (tmp_path / "entries").write_bytes(b"\n".join([line(9), line(10, PRIORITY="6"), b""]))
    command = ("/bin/sh", "-c", 'cat "$0"; echo "$*" >&2', str(tmp_path / "entries"))
    counts: Counter[Kind] = Counter()

    async def read() -> None:
        async for batch in follow(None, lambda _: True, "", whole=True, command=command):
            counts.update(batch.counts)

    with pytest.raises(ReadError, match=r"ended: --follow --quiet --output=json .*--no-tail --since=@"):
        await read()
    assert counts == {("vllm.service", "system", "err"): 1, ("vllm.service", "system", "info"): 1}


async def test_what_cannot_be_run_in_place_of_journalctl_is_named(tmp_path: Path) -> None:
    with pytest.raises(ReadError, match="nowhere/journalctl cannot be run: No such file"):
        await anext(follow(None, lambda _: True, "", whole=True, command=(f"{tmp_path}/nowhere/journalctl",)))


def test_a_journal_is_this_machines_or_a_folder() -> None:
    assert Reader.at("system", {}) == Journal()
    assert Reader.at("/var/log/remote", {}).place == "/var/log/remote"


def test_mistakes_are_said(tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(
        "targets:\n  - {source: journal, directory: var/log}\n  - {source: journal, url: 'http://a:1'}\n"
        "  - {source: journal, units: [a b]}\n  - {source: journal, command: []}\n"
    )
    with pytest.raises(ConfigError) as error:
        load(file)
    said = str(error.value)
    assert "bad.yaml:2: targets.0.directory: " in said
    assert "bad.yaml:3: targets.1.url: " in said
    assert "bad.yaml:4: targets.2.units.0: no name of a unit" in said
    assert "bad.yaml:5: targets.3.command: " in said
