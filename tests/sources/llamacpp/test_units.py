"""What is asked of a llama-server and when, answers that are odd, and what the environment says."""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from exporter.core.source import source_map
from exporter.core.total import Totals
from exporter.core.types import SeriesTable
from exporter.sources.llamacpp import LlamaCpp
from exporter.sources.llamacpp.listing import listed, served_as
from exporter.sources.llamacpp.models import Models
from exporter.sources.llamacpp.turns import MARGIN, Turn

sys.path.insert(0, str(Path(__file__).parents[1]))

from pretend import Pretended, Said, pretending, states, text, value, watch_of

HEALTHY = b'{"status":"ok"}'


def entry(name: str, state: str = "loaded", port: int = 5001, sleep: int | None = None, **more: Any) -> dict[str, Any]:
    arguments = ["/opt/llama-server", "--api-key", "sk-secret", "--port", str(port)]
    arguments += [] if sleep is None else ["--sleep-idle-seconds", str(sleep)]
    return {"id": name, "status": {"value": state, "args": arguments, **more}, "meta": {"n_ctx": 1024}}


def metrics(tokens: float = 0.0, running: float = 0.0) -> bytes:
    lines = {
        "prompt_tokens_total": 2 * tokens,
        "tokens_predicted_total": tokens,
        "tokens_predicted_seconds_total": tokens / 10,
        "requests_processing": running,
        "n_tokens_max": 77.0,
        "predicted_tokens_seconds": 99.0,
    }
    return "".join(f"llamacpp:{name} {number}\n" for name, number in lines.items()).encode()


def router(*entries: object, **bodies: Said) -> dict[str, Said]:
    answers: dict[str, Said] = {
        "/health": HEALTHY,
        "/props": b'{"role":"router","build_info":"b1-x"}',
        "/models": json.dumps({"data": entries}).encode(),
    }
    for name, said in bodies.items():
        answers[f"/metrics?model={name}&autoload=false"] = said
        answers[f"/props?model={name}&autoload=false"] = b'{"total_slots":2}'
    return answers


def single(said: Said, **props: Any) -> dict[str, Said]:
    given = {"model_alias": "m", "total_slots": 2, "default_generation_settings": {"n_ctx": 512}, **props}
    return {"/health": HEALTHY, "/props": json.dumps(given).encode(), "/metrics": said}


async def test_only_models_that_are_awake_are_asked_and_never_so_that_one_is_loaded() -> None:
    states_ = ("unloaded", "loading", "sleeping", "downloading", "loaded")
    entries = [entry(f"m-{state}", state) for state in states_] + [entry("m-failed", "unloaded", failed=True)]
    async with pretending(**router(*entries)) as server, watch_of("llamacpp", server.url) as watch:
        server.answers |= router(*entries, **{"m-loaded": metrics(5)})
        for _ in range(3):
            reading = await watch.read()
    assert reading.ok, reading.error
    assert states(reading) == {f"m-{state}": state for state in (*states_, "failed")}
    about = [asked for asked in server.asked if "?" in asked]
    assert set(about) == {"/metrics?model=m-loaded&autoload=false", "/props?model=m-loaded&autoload=false"}
    assert len(about) == 4  # the slots are asked for once
    assert value(reading, "llm_model_slots", model="m-loaded") == 2.0
    assert b"secret" not in text(reading)
    assert b"77.0" not in text(reading)
    assert b"99.0" not in text(reading)


@pytest.mark.parametrize(
    ("busy", "since", "due"),
    [
        (True, 5.0, True),  # at work: it cannot fall asleep before the timer has run out
        (True, 29.0, False),  # it may be about to: a read would wake it
        (True, 31.0, False),
        (False, 5.0, False),
        (False, 30.0 + MARGIN - 0.1, False),
        (False, 30.0 + MARGIN + 0.1, True),  # it would sleep, had nobody asked for it
    ],
)
def test_a_model_that_may_fall_asleep_is_read_while_it_works_then_left_alone(
    busy: bool, since: float, due: bool
) -> None:
    turn = Turn("m", "5001", 30.0, asked=100.0, busy=busy)
    assert turn.is_due(100.0 + since) is due


def test_a_model_that_never_sleeps_or_was_never_read_is_read() -> None:
    assert Turn("m", "5001", None, asked=100.0).is_due(100.0)
    assert Turn("m", "5001", 30.0).is_due(100.0)


async def test_an_idle_model_with_a_timer_is_left_alone_and_its_counters_stay() -> None:
    async with pretending() as server, watch_of("llamacpp", server.url) as watch:
        server.answers = router(entry("m", sleep=300), m=metrics(5))
        readings = [await watch.read() for _ in range(6)]
    asked = server.asked.count("/metrics?model=m&autoload=false")
    assert asked == 2  # the first, which had counted something, and one more
    assert [value(reading, "llm_output_tokens_total") for reading in readings] == [5.0] * 6
    assert [value(reading, "llm_requests_running") for reading in readings] == [0.0, 0.0, *[None] * 4]


async def test_a_single_server_is_left_alone_where_its_timer_is_configured_and_asleep_is_never_read() -> None:
    async with pretending(**single(metrics(5))) as server:
        async with watch_of("llamacpp", server.url, sleep_after="5m") as watch:
            for _ in range(5):
                assert (await watch.read()).ok
            assert server.asked.count("/metrics") == 2
        async with watch_of("llamacpp", server.url) as watch:
            server.answers, server.asked = single(metrics(5), is_sleeping=True), []
            reading = await watch.read()
    assert "/metrics" not in server.asked
    assert states(reading) == {"m": "sleeping"}
    assert "sleep_after" in reading.advice[0].remedy


async def test_without_metrics_the_states_are_told_and_the_switch() -> None:
    async with pretending() as server, watch_of("llamacpp", server.url) as watch:
        for answers in (single((501, b'{"error":{"code":501}}')), router(entry("m"), m=(501, b'{"error":{}}'))):
            server.answers = answers
            reading = await watch.read()
            assert reading.ok
            assert states(reading) == {"m": "loaded"}
            assert reading.advice[0].remedy == "llama-server --metrics"


async def test_a_model_that_fails_costs_only_its_own_series() -> None:
    bad: dict[str, Said] = {
        "cut": b"llamacpp:prompt_tokens_total 5",
        "wrong": b"llamacpp:prompt_tokens_total five\n",
        "huge": b"# x\n" * 300_000,
        "ill": (500, b'{"error":{}}'),
    }
    entries = [entry(name) for name in (*bad, "well", "hung")]
    async with pretending(**router(*entries, well=metrics(5), **bad)) as server:
        server.hang.add("/metrics?model=hung&autoload=false")
        async with watch_of("llamacpp", server.url, timeout="3s") as watch:
            reading = await watch.read()
    assert reading.reason in ("truncated", "malformed", "too_large", "status")
    assert "(model " in reading.error
    assert value(reading, "llm_output_tokens_total", model="well") == 5.0
    assert states(reading) == dict.fromkeys((*bad, "well", "hung"), "loaded")


async def test_each_life_of_a_model_counts_whole() -> None:
    async with pretending() as server, watch_of("llamacpp", server.url) as watch:
        for port, tokens in ((5001, 5), (5001, 8), (5002, 20), (5003, 1)):
            server.answers = router(entry("m", port=port), m=metrics(tokens))
            reading = await watch.read()
            watch.health.carried += 1
    assert value(reading, "llm_output_tokens_total") == 8.0 + 20.0 + 1.0
    assert value(reading, "llm_model_loads_total") == value(reading, "llm_model_unloads_total") == 2.0


@pytest.mark.parametrize(
    "said",
    [b"[]", b"7", b"{", b'{"data":{}}', b'{"data":null}', b"[" * 100_000],
)
async def test_a_list_that_is_none_fails_the_read_and_the_next_is_taken(said: bytes) -> None:
    async with pretending() as server, watch_of("llamacpp", server.url) as watch:
        server.answers = router(entry("m"), m=metrics(5)) | {"/models": said}
        assert (await watch.read()).reason == "content"
        server.answers = router(entry("m"), m=metrics(5))
        assert (await watch.read()).ok


@pytest.mark.parametrize("said", [b"[]", b"7", b'"router"'])
async def test_props_that_are_none_fail_the_read(said: bytes) -> None:
    answers = single(metrics()) | {"/props": said}
    async with pretending(**answers) as server, watch_of("llamacpp", server.url) as watch:
        assert (await watch.read()).reason == "content"


async def test_names_are_escaped_and_odd_entries_left_out() -> None:
    odd = 'a"b\\c\nd&model=e'
    entries = [7, {}, {"id": 7}, {"id": ""}, {"id": "x" * 600}, {"id": "s", "status": "loaded"}, entry("z", "dreaming")]
    entries += [{"id": "l", "status": {"value": "loaded", "args": {"--port": 7}}, "meta": []}, entry(odd)]
    async with pretending(**router(*entries)) as server, watch_of("llamacpp", server.url) as watch:
        query = "model=a%22b%5Cc%0Ad%26model%3De&autoload=false"
        server.answers |= {f"/metrics?{query}": metrics(5), f"/props?{query}": b"[]"}
        server.answers |= {"/metrics?model=l&autoload=false": metrics(1), "/props?model=l&autoload=false": b"{}"}
        reading = await watch.read()
    assert reading.ok, (reading.error, server.asked)
    assert states(reading) == {"l": "loaded", odd: "loaded"}
    assert rb'model="a\"b\\c\nd&model=e"' in text(reading)
    assert value(reading, "llm_output_tokens_total", model=odd) == 5.0


async def test_hundreds_of_models_are_shown_and_more_than_a_thousand_are_not() -> None:
    entries = [entry(f"m{number}", "unloaded") for number in range(1500)]
    async with pretending(**router(*entries)) as server, watch_of("llamacpp", server.url) as watch:
        reading = await watch.read()
        assert watch.totals.dropped["limit"] == 500
    assert reading.ok
    assert value(reading, "llm_models", state="unloaded") == 1000.0


def heard(server: Pretended, *events: object) -> None:
    for event in events:
        server.events.put_nowait(event if isinstance(event, bytes) else b"data: %b\n\n" % json.dumps(event).encode())


async def test_events_that_are_odd_are_passed_over() -> None:
    async with pretending(**router(entry("m", "unloaded"))) as server, watch_of("llamacpp", server.url) as watch:
        await watch.read()
        source = watch._source
        assert isinstance(source, LlamaCpp)
        stream = source.follow()
        heard(server, b"data: {\n\n", b"data: 7\n\n", b": comment\n\n", b"data: " + b"[" * 100_000 + b"\n\n")
        heard(server, {"model": "*", "event": "models_reload"}, {"model": 7, "event": "status_change"})
        heard(server, {"model": "m", "event": "status_change", "data": 7})
        heard(server, {"model": "m", "event": "status_change", "data": {"status": ["loaded"]}})
        heard(server, {"model": "m", "event": "status_change", "data": {"status": "unloaded"}})  # no news
        heard(server, {"model": "m", "event": "status_change", "data": {"status": "unloaded", "exit_code": 1}})
        heard(server, {"model": "n", "event": "download_progress", "data": {}}, {"model": "n", "event": "model_remove"})
        seen = []
        for _ in range(3):
            result = await asyncio.wait_for(anext(stream), 20)
            seen.append(
                {
                    series.get("model"): series.get("state")
                    for series, number in result.samples
                    if series.family.name == "llm_model_state" and number
                }
            )
        await stream.aclose()  # type: ignore[attr-defined]  # it is a generator
    assert seen == [{"m": "failed"}, {"m": "failed", "n": "downloading"}, {"m": "failed"}]


async def test_events_of_models_without_end_are_not_remembered() -> None:
    async with pretending(**router(entry("m", "unloaded"))) as server, watch_of("llamacpp", server.url) as watch:
        await watch.read()
        source = watch._source
        assert isinstance(source, LlamaCpp)
        for number in range(3000):
            event = {"model": f"m{number}", "event": "status_change", "data": {"status": "loading"}}
            source._hear(b"data: " + json.dumps(event).encode())
        assert len(source._heard) < 1000
        assert (await watch.read()).ok


def test_waking_is_no_load_and_falling_asleep_no_unload() -> None:
    totals = Totals(source_map("llamacpp"), SeriesTable({}))
    models = Models(SeriesTable({}), totals)
    models.keep([])

    def counted(*states_: str) -> list[float]:
        for state in states_:
            models.see("m", state)
        totals.samples(0)
        shown = {
            s.family.name: number for s, number in totals.current(("llm_model_loads_total", "llm_model_unloads_total"))
        }
        return [shown["llm_model_loads_total"], shown["llm_model_unloads_total"]]

    assert counted("unloaded", "loading") == [0.0, 0.0]
    assert counted("loaded", "sleeping", "loading", "loaded", "sleeping") == [1.0, 0.0]
    assert counted("unloaded") == [1.0, 1.0]
    assert counted("loading", "failed") == [1.0, 1.0]  # it never came
    assert counted("loaded", "failed") == [2.0, 2.0]


@pytest.mark.parametrize(
    ("alias", "path", "name"),
    [
        ("qwen", "/models/qwen.gguf", "qwen"),
        ("models/tiny-a.gguf", "models/tiny-a.gguf", "tiny-a"),
        ("ggml-org/gemma-3-4b-it-GGUF:Q4_K_M", "/home/ann/.cache/gemma.gguf", "ggml-org/gemma-3-4b-it-GGUF:Q4_K_M"),
        ("/models/blob", "/models/blob", "blob"),
        ("", "C:\\models\\Tiny.GGUF", "Tiny"),
        (None, None, ""),
    ],
)
def test_a_single_model_is_named_by_its_alias_and_never_by_a_path(alias: Any, path: Any, name: str) -> None:
    assert served_as(alias, path) == name


def test_of_a_command_line_only_the_port_and_the_timer_are_taken() -> None:
    (found,) = listed({"data": [entry("m", sleep=25)]})
    assert (found.life, found.timer) == ("5001", 25.0)
    assert listed({"data": [entry("m", sleep=-1)]})[0].timer is None


@pytest.mark.parametrize(
    ("environ", "url", "key"),
    [
        ({}, "http://127.0.0.1:8080", None),
        ({"LLAMA_ARG_PORT": "9000"}, "http://127.0.0.1:9000", None),
        ({"LLAMA_ARG_HOST": "0.0.0.0"}, "http://127.0.0.1:8080", None),
        ({"LLAMA_ARG_HOST": "::1"}, "http://[::1]:8080", None),
        ({"LLAMA_ARG_HOST": "/run/llama.sock"}, "http://127.0.0.1:8080", None),
        ({"LLAMA_API_KEY": "one"}, "http://127.0.0.1:8080", "one"),
        ({"LLAMA_API_KEY": "one,two"}, "http://127.0.0.1:8080", "one"),
    ],
)
def test_the_environment_says_where_it_listens_and_its_key(environ: dict[str, str], url: str, key: str | None) -> None:
    (target,) = LlamaCpp.candidates(environ)
    assert (target.url, target.target_name, target.secret(environ)) == (url, "llamacpp", key)
