"""What a real Ollama answered becomes exactly the exposition expected of it; odd answers give what is sound."""

import json
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from exporter.sources.ollama import Ollama
from exporter.text.negotiate import Format

sys.path.insert(0, str(Path(__file__).parents[1]))

from pretend import CAPTURES, Said, pretending, states, text, value, watch_of

HERE = CAPTURES / "ollama" / "0.33.0-rc2"
RUNNING = sorted(file.stem for file in HERE.glob("ps_*.body"))


def body(name: str) -> bytes:
    return (HERE / f"{name}.body").read_bytes()


def answers(running: str, stored: str = "tags") -> dict[str, Said]:
    return {"/api/version": body("version"), "/api/tags": body(stored), "/api/ps": body(running)}


def entry(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "model": name, "size": 300, "size_vram": 200, "context_length": 4096, **more}


def lists(*running: object, stored: tuple[object, ...] = ()) -> dict[str, Said]:
    return {
        "/api/version": b'{"version":"0.33.0"}',
        "/api/tags": json.dumps({"models": stored}).encode(),
        "/api/ps": json.dumps({"models": running}).encode(),
    }


def at(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()


@pytest.mark.parametrize("name", RUNNING)
async def test_a_capture_becomes_exactly_the_exposition_expected_of_it(name: str, accept: bool) -> None:
    stored = "tags_empty" if name == "ps_empty" else "tags"
    async with pretending(**answers(name, stored)) as server, watch_of("ollama", server.url) as watch:
        reading = await watch.read()
    assert reading.ok, reading.error
    assert reading.version == "0.33.0-rc2"
    expected = HERE / f"{name}.prom"
    if accept:
        expected.write_bytes(text(reading))
    assert text(reading) == expected.read_bytes()


async def test_what_was_counted_of_a_model_that_was_removed_leaves_the_page_in_time() -> None:
    both = lists(entry("a"), stored=(entry("a"), entry("b")))
    async with pretending(**both) as server, watch_of("ollama", server.url) as watch:
        await watch.read()
        server.answers |= lists(stored=(entry("b"),))
        watch._source._listed = float("-inf")  # type: ignore[attr-defined]
        assert value(await watch.read(), "llm_model_unloads_total", model="a") == 1.0
        watch.totals._clock = lambda: time.monotonic() + 4000.0
        reading = await watch.read()
        assert value(reading, "llm_model_unloads_total", model="a") is None
        assert value(reading, "llm_model_loads_total", model="b") == 0.0


async def test_half_a_character_in_json_is_shown_as_none_and_never_breaks_the_page() -> None:
    half = {"details": {"family": "\ud800"}}
    async with pretending(**lists(entry("a\udfff"), stored=(entry("b", **half),))) as server:
        server.answers["/api/version"] = b'{"version":"0.33\\ud800"}'
        async with watch_of("ollama", server.url) as watch:
            reading = await watch.read()
            assert reading.ok, reading.error
            shown = watch._board.page(Format.TEXT).decode()
    assert 'version="0.33\N{REPLACEMENT CHARACTER}"' in shown
    assert 'llm_model_loads_total{source="ollama",target="ollama",model="a\N{REPLACEMENT CHARACTER}"}' in shown
    assert 'family="\N{REPLACEMENT CHARACTER}"' in shown


async def test_loads_and_unloads_are_counted_from_read_to_read() -> None:
    async with pretending() as server, watch_of("ollama", server.url) as watch:
        for name in ("ps_1", "ps_2models", "ps_after_unload", "ps_forever"):
            server.answers = answers(name)
            reading = await watch.read()
            watch.health.carried += 1
    assert states(reading) == {
        "big-slow:latest": "loaded",
        "tiny-a:latest": "unloaded",
        "tiny-b:latest": "loaded",
    }
    counts = {
        model: [value(reading, f"llm_model_{what}s_total", model=f"{model}:latest") for what in ("load", "unload")]
        for model in ("tiny-a", "big-slow", "tiny-b")
    }
    assert counts == {"tiny-a": [0.0, 1.0], "big-slow": [1.0, 0.0], "tiny-b": [1.0, 0.0]}
    assert server.asked.count("/api/tags") == 1  # it costs Ollama a file for each model


async def test_a_model_that_never_expires_says_so_and_memory_is_what_is_not_on_a_gpu() -> None:
    soon = time.time() + 60.0
    running = (
        entry("ever", expires_at="2319-03-03T02:47:02.55798375Z"),
        entry("soon", expires_at=at(soon), size=100, size_vram=100),
        entry("cpu", expires_at="0001-01-01T00:00:00Z", size_vram=0),
        entry("unknown", size=0, size_vram=0),
    )
    async with pretending(**lists(*running)) as server, watch_of("ollama", server.url) as watch:
        reading = await watch.read()

    def of(name: str, **labels: str) -> list[float | None]:
        return [value(reading, name, model=model, **labels) for model in ("ever", "soon", "cpu", "unknown")]

    assert of("llm_model_expires_timestamp_seconds") == [float("inf"), pytest.approx(soon), None, None]
    assert of("llm_model_memory_bytes", device="vram") == [200.0, 100.0, 0.0, None]
    assert of("llm_model_memory_bytes", device="ram") == [100.0, 0.0, 300.0, None]


async def test_the_last_request_is_when_the_expiry_moved() -> None:
    async with pretending() as server, watch_of("ollama", server.url) as watch:
        seen = []
        for seconds in (100.0, 100.0, 160.0, 160.0):
            server.answers = lists(entry("m", expires_at=at(2e9 + seconds)))
            seen.append(value(await watch.read(), "llm_model_last_request_timestamp_seconds"))
        server.answers = lists(entry("m", expires_at=at(2e9 + 160.0)), entry("new", expires_at=at(2e9)))
        loaded = value(await watch.read(), "llm_model_last_request_timestamp_seconds", model="new")
    assert seen[:2] == [None, None]
    assert seen[2] is not None
    assert seen[2] == seen[3]
    assert loaded is not None  # it was loaded because somebody asked for it


@pytest.mark.parametrize(
    "said",
    [b"[]", b"{", b'{"models":7}', b"<html>", b"[" * 100_000],
)
async def test_an_answer_that_is_none_leaves_nothing_and_the_next_is_taken(said: bytes) -> None:
    async with pretending() as server, watch_of("ollama", server.url) as watch:
        server.answers = answers("ps_1") | {"/api/ps": said}
        reading = await watch.read()
        assert (reading.reason, len(reading.samples)) == ("content", 0)
        server.answers = answers("ps_1")
        assert (await watch.read()).ok


async def test_odd_entries_give_what_is_sound() -> None:
    odd = (
        7,
        {},
        {"name": ""},
        {"name": "x" * 600},
        entry('a"b\\c\nd', size="big", size_vram=None, expires_at=5, context_length=-1, details=[]),
        entry("huge", size=10**30, context_length=True, expires_at="tomorrow"),
        entry("told", details={"family": "unknown", "parameter_size": {}, "quantization_level": "Q4"}),
    )
    async with pretending(**lists(*odd)) as server, watch_of("ollama", server.url) as watch:
        reading = await watch.read()
    assert states(reading) == {'a"b\\c\nd': "loaded", "huge": "loaded", "told": "loaded"}
    assert rb'model="a\"b\\c\nd"' in text(reading)
    assert value(reading, "llm_model_info", model="told", quantization="Q4") == 1.0
    assert value(reading, "llm_model_context_tokens", model="huge") is None
    assert b"unknown" not in text(reading)


async def test_hundreds_of_models_are_shown_and_more_than_a_thousand_are_not() -> None:
    stored = tuple(entry(f"m{number}") for number in range(1500))
    async with pretending(**lists(stored=stored)) as server, watch_of("ollama", server.url) as watch:
        reading = await watch.read()
    assert reading.ok
    assert value(reading, "llm_models", state="unloaded") == 1000.0


async def test_only_lists_are_asked_for() -> None:
    async with pretending(**answers("ps_2models")) as server, watch_of("ollama", server.url) as watch:
        for _ in range(3):
            await watch.read()
    assert set(server.asked) == {"/api/ps", "/api/tags", "/api/version"}


@pytest.mark.parametrize(
    ("said", "known"),
    [
        (answers("ps_empty"), True),
        ({"/api/version": b'{"version":"0.6.5"}'}, False),  # Open WebUI has a version there, too
        ({"/api/version": b'{"version":"0.6.5"}', "/api/ps": b"<!doctype html>"}, False),
        ({"/api/version": b'{"version":7}', "/api/ps": b'{"models":[]}'}, False),
        ({"/api/version": (200, body("metrics_404"))}, False),
        ({}, False),
    ],
)
async def test_a_server_is_recognised_by_two_answers(said: dict[str, Said], known: bool) -> None:
    async with pretending(**said) as server, watch_of("ollama", server.url) as watch:
        upstream = watch._source._context.upstream  # type: ignore[attr-defined]
        assert await Ollama.recognise(upstream, None) is known


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("", "http://127.0.0.1:11434"),
        ("0.0.0.0", "http://127.0.0.1:11434"),
        ("0.0.0.0:8000", "http://127.0.0.1:8000"),
        (":8000", "http://127.0.0.1:8000"),
        ("gpu-1", "http://gpu-1:11434"),
        ('"gpu-1:8000"', "http://gpu-1:8000"),
        ("http://gpu-1", "http://gpu-1:80"),
        ("https://gpu-1", "https://gpu-1:443"),
        ("https://gpu-1:8000/ollama/", "https://gpu-1:8000/ollama"),
        ("[::]", "http://127.0.0.1:11434"),
        ("[::1]:8000", "http://[::1]:8000"),
        ("gpu-1:eight", "http://127.0.0.1:11434"),
    ],
)
def test_the_environment_says_where_it_listens_as_ollama_reads_it(host: str, url: str) -> None:
    (target,) = Ollama.candidates({"OLLAMA_HOST": host})
    assert (target.url, target.target_name) == (url, "ollama")
