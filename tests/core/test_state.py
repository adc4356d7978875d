"""State over restarts: exact where it is good, never guessed where it is not."""

import gc
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from exporter.core.saved import Dump, as_json
from exporter.core.state import Store, default_directory

ROWS = [
    ["k", "s", [["a", "é"]], "", None, 1.0, 2.5],
    ["k", "s", [], "_bucket", "inf", 0.0, 1e-9],
    ["k", "t", [], "", None, 0.0, 0.0],
]
STATE = {"identity": 1.0, "kept": {}, "forgotten": [], "slots": ROWS}
URL = "http://a:4000"


def save(store: Store, target: str, url: str, state: dict[str, Any]) -> None:
    head = {key: value for key, value in state.items() if key != "slots"}
    first, *more = map(as_json, state["slots"])
    for _ in store.save(target, url, Dump(head, iter([first, "", ",".join(more)]))):
        pass


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.load("a/b:c", URL) == (None, False)
    save(store, "a/b:c", URL, STATE)
    assert store.load("a/b:c", URL) == (STATE, False)
    assert [file.name for file in tmp_path.glob("*.json")] == ["a%2Fb%3Ac.json"]


def test_a_save_is_written_as_it_goes_and_one_that_was_given_up_harms_no_other(tmp_path: Path) -> None:
    store = Store(tmp_path)
    rows = [as_json(["key", "name", [["model", "m" * 400]], "", None, 1.0, float(number)]) for number in range(100)]
    given_up = store.save("t", URL, Dump({}, iter(rows)))
    for _ in range(90):
        next(given_up)
    assert (tmp_path / "t.new").stat().st_size > 30_000
    save(store, "t", URL, STATE)
    del given_up  # which writes what it still had
    gc.collect()
    assert store.load("t", URL) == (STATE, False)
    assert (tmp_path / "t.json").stat().st_mode & 0o777 == 0o600
    assert not (tmp_path / "t.new").exists()


def test_each_state_is_written_every_ten_seconds_and_those_of_many_targets_more_rarely(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with ExitStack() as targets:
        for _ in range(50):
            targets.enter_context(store.keeping())
        assert store.interval == 10.0
        for _ in range(150):
            targets.enter_context(store.keeping())
        assert store.interval == 40.0
    assert store.interval == 10.0


@pytest.mark.parametrize("damage", ["", "{", '{"format":1}', "[]", "\x00"])
def test_damaged_state_makes_totals_begin_at_0(tmp_path: Path, damage: str) -> None:
    store = Store(tmp_path)
    save(store, "t", URL, STATE)
    (tmp_path / "t.json").write_text(damage)
    assert store.load("t", URL) == (None, True)


def test_state_cut_at_any_byte_or_with_any_byte_changed_is_told(tmp_path: Path) -> None:
    store = Store(tmp_path)
    save(store, "t", URL, STATE)
    file = tmp_path / "t.json"
    whole = file.read_bytes()
    for at in range(len(whole)):
        file.write_bytes(whole[:at])
        assert store.load("t", URL) == (None, True)
    for at in range(whole.index(b'"state"'), len(whole) - 1):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert store.load("t", URL) == (None, True)


def test_state_of_another_url_is_not_taken(tmp_path: Path) -> None:
    store = Store(tmp_path)
    save(store, "t", URL, STATE)
    assert store.load("t", "http://b:4000") == (None, True)


def test_without_a_folder_nothing_is_kept(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = Store(tmp_path / "file" / "state")
    assert not store.kept
    save(store, "t", URL, STATE)
    assert store.load("t", URL) == (None, True)


def test_a_second_exporter_does_not_take_the_folder_of_the_first(tmp_path: Path) -> None:
    first = Store(tmp_path)
    second = Store(tmp_path)
    assert (first.kept, second.kept) == (True, False)
    first.close()
    assert Store(tmp_path).kept


def test_a_long_name_makes_a_file_of_its_own(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for last in "xy":
        save(store, "é" * 300 + last, URL, {**STATE, "identity": last})
    assert [store.load("é" * 300 + last, URL)[0] for last in "xy"] == [{**STATE, "identity": last} for last in "xy"]


def test_the_folder_is_the_service_managers_else_the_users() -> None:
    assert default_directory({"STATE_DIRECTORY": "/var/lib/a:/var/lib/b"}) == Path("/var/lib/a")
    assert default_directory({"XDG_STATE_HOME": "/x", "HOME": "/h"}) == Path("/x/llm-exporter")
    assert default_directory({"HOME": "/h"}) == Path("/h/.local/state/llm-exporter")
