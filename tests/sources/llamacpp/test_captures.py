"""What a real llama-server answered becomes exactly the exposition expected of it."""

import sys
from pathlib import Path

import pytest

from exporter.sources.llamacpp import LlamaCpp

sys.path.insert(0, str(Path(__file__).parents[1]))

from pretend import CAPTURES, Pretended, Said, pretending, states, text, value, watch_of

HERE = CAPTURES / "llamacpp"
PLAIN, KEYED, ROUTER, ROUTER_KEYED = "b10434", "b10434-apikey", "b10434-router", "b10434-router-apikey"

SINGLE = {  # the metrics → health and props beside them
    **{
        f"{PLAIN}/{name}_metrics": (f"{PLAIN}/ready_health", f"{PLAIN}/ready_props")
        for name in ("idle", "load1", "load2", "after", "after2")
    },
    **{
        f"{KEYED}/{name}": (f"{KEYED}/key_health", f"{KEYED}/key_props") for name in ("key_metrics", "metrics_over_1e6")
    },
    **{  # as a router's processes answer
        f"{ROUTER}/{name}": (f"{ROUTER}/00_health", f"{ROUTER}/12_props_{model}")
        for name, model in (
            ("12_load_metrics_big-slow", "big-slow"),
            ("12_load_metrics_tiny-a", "tiny-a"),
            ("16b_metrics_sleeping", "big-slow"),
        )
    },
}
ROUTED = {  # the list → the models that are awake, with their metrics
    f"{ROUTER}/01_models_unloaded": {},
    **{f"{ROUTER}/11_models_loading_{number}": {} for number in (1, 2, 3)},
    f"{ROUTER}/15b_models_after_unload": {"big-slow": f"{ROUTER}/12_load_metrics_big-slow"},
    f"{ROUTER}/16_models_sleeping": {},
    f"{ROUTER_KEYED}/models_nokey": {},
    f"{ROUTER_KEYED}/models_key_after": {"tiny-a": f"{ROUTER_KEYED}/metrics_key"},
}


def body(name: str) -> bytes:
    return (HERE / f"{name}.body").read_bytes()


def single(metrics: str) -> dict[str, Said]:
    health, props = SINGLE[metrics]
    return {"/health": body(health), "/props": body(props), "/metrics": body(metrics)}


def routed(models: str) -> dict[str, Said]:
    answers: dict[str, Said] = {
        "/health": body(f"{ROUTER}/00_health"),
        "/props": body(f"{ROUTER}/05_props"),
        "/models": body(models),
    }
    for model, metrics in ROUTED[models].items():
        answers[f"/metrics?model={model}&autoload=false"] = body(metrics)
        answers[f"/props?model={model}&autoload=false"] = body(f"{ROUTER}/12_props_{model}")
    return answers


@pytest.mark.parametrize("name", [*SINGLE, *ROUTED])
async def test_a_capture_becomes_exactly_the_exposition_expected_of_it(name: str, accept: bool) -> None:
    answers = single(name) if name in SINGLE else routed(name)
    async with pretending(**answers) as server, watch_of("llamacpp", server.url) as watch:
        reading = await watch.read()
    assert reading.ok, reading.error
    assert set(server.asked) == set(answers)  # and nothing else
    expected = HERE / f"{name}.prom"
    if accept:
        expected.write_bytes(text(reading))
    assert text(reading) == expected.read_bytes()
    shown = b"\n".join(line for line in text(reading).split(b"\n") if not line.startswith(b"#"))
    for private in (b"/", b"--", b"gguf", b"llama-server"):
        assert private not in shown


async def test_a_server_that_loads_its_model_says_so_and_nothing_else(accept: bool) -> None:
    async with pretending() as server, watch_of("llamacpp", server.url) as watch:
        server.answers = {"/health": (503, body(f"{PLAIN}/loading_health"))}
        reading = await watch.read()
        assert (reading.reason, "is loading its model" in reading.error) == ("status", True)
        expected = HERE / PLAIN / "loading.prom"
        if accept:
            expected.write_bytes(text(reading))
        assert text(reading) == expected.read_bytes()
        server.answers = single(f"{PLAIN}/idle_metrics")
        reading = await watch.read()
        assert reading.ok
        assert states(reading) == {"big-slow": "loaded"}
        assert value(reading, "llm_model_loads_total", model="big-slow") == 1.0
        server.answers = {"/health": (503, body(f"{PLAIN}/loading_metrics"))}
        reading = await watch.read()
        assert states(reading) == {"big-slow": "loading"}
        assert value(reading, "llm_requests_running") is None


async def test_prompt_tokens_include_the_cached_ones_and_the_mean_time_of_a_token_is_what_was_gained() -> None:
    async with pretending() as server, watch_of("llamacpp", server.url) as watch:
        server.answers = single(f"{PLAIN}/idle_metrics")
        await watch.read()
        watch.health.carried += 1  # a page has shown the first values
        server.answers = single(f"{PLAIN}/after_metrics")
        reading = await watch.read()
    assert value(reading, "llm_prompt_tokens_total") == 415.0 + 175.0
    assert value(reading, "llm_cached_prompt_tokens_total") == 175.0
    assert value(reading, "llm_output_tokens_total") == 20.0
    assert value(reading, "llm_time_per_output_token_mean_seconds", "_sum") == pytest.approx(3.63175)
    assert value(reading, "llm_time_per_output_token_mean_seconds", "_count") == 20.0
    assert value(reading, "llm_model_last_request_timestamp_seconds") is not None


async def test_before_cached_tokens_were_told_nothing_is_made_of_them() -> None:
    old = b"\n".join(line for line in body(f"{PLAIN}/after_metrics").split(b"\n") if b"cached_total" not in line)
    async with pretending() as server, watch_of("llamacpp", server.url) as watch:
        server.answers = single(f"{PLAIN}/after_metrics") | {"/metrics": old}
        reading = await watch.read()
    assert value(reading, "llm_prompt_tokens_total") == 415.0
    for name in ("cached_prompt_tokens", "prefix_cache_hit_tokens", "prefix_cache_query_tokens"):
        assert value(reading, f"llm_{name}_total") is None, name


async def test_a_restarted_server_adds_all_that_it_has_counted() -> None:
    props = body(f"{PLAIN}/ready_props")
    async with pretending() as server, watch_of("llamacpp", server.url) as watch:
        server.answers = single(f"{PLAIN}/load2_metrics")
        before = await watch.read()
        # it has counted more by now than the one before had
        server.answers = single(f"{PLAIN}/after_metrics") | {"/props": props.replace(b"<__media_1I", b"<__media_XX")}
        after = await watch.read()
    gained = [value(reading, "llm_output_tokens_total") or 0.0 for reading in (before, after)]
    assert gained[1] - gained[0] == 20.0
    assert value(after, "llm_model_loads_total") == value(after, "llm_model_unloads_total") == 1.0


async def test_a_model_without_an_alias_is_not_named_by_its_path() -> None:
    async with pretending(**single(f"{KEYED}/key_metrics")) as server, watch_of("llamacpp", server.url) as watch:
        assert states(await watch.read()) == {"tiny-a": "loaded"}


async def test_without_the_key_the_target_is_down_and_with_it_up() -> None:
    async with pretending(**single(f"{KEYED}/key_metrics")) as server:
        server.key = "sk-test-1"
        for key, reason in ((None, "auth"), ("wrong", "auth"), ("sk-test-1", None)):
            async with watch_of("llamacpp", server.url, api_key=key) as watch:
                assert (await watch.read()).reason == reason
        answered = {"/health": body(f"{KEYED}/key_health"), "/props": (401, body(f"{KEYED}/nokey_props"))}
        server.key, server.answers = "", answered
        async with watch_of("llamacpp", server.url) as watch:
            assert (await watch.read()).reason == "auth"
        server.answers = single(f"{KEYED}/key_metrics") | {"/metrics": (401, body(f"{KEYED}/badkey_metrics"))}
        async with watch_of("llamacpp", server.url) as watch:
            assert (await watch.read()).reason == "auth"


async def test_a_router_that_wants_a_key_tells_states_all_the_same() -> None:
    models = f"{ROUTER_KEYED}/models_key_after"
    answers = routed(models)
    answers["/metrics?model=tiny-a&autoload=false"] = (401, body(f"{ROUTER_KEYED}/metrics_nokey"))
    async with pretending(**answers) as server, watch_of("llamacpp", server.url) as watch:
        reading = await watch.read()
    assert reading.reason == "auth"
    assert "(model tiny-a)" in reading.error
    assert states(reading) == {"big-slow": "unloaded", "tiny-a": "loaded", "tiny-b": "unloaded"}


async def test_a_model_that_was_unloaded_since_the_list_was_read_is_no_failure() -> None:
    answers = routed(f"{ROUTER}/15b_models_after_unload")
    gone = (400, body(f"{ROUTER}/07_metrics_unloaded_autoload_false"))
    answers["/metrics?model=big-slow&autoload=false"] = answers["/props?model=big-slow&autoload=false"] = gone
    async with pretending(**answers) as server, watch_of("llamacpp", server.url) as watch:
        reading = await watch.read()
    assert reading.ok
    assert value(reading, "llm_requests_running") is None


async def test_counters_of_a_model_that_sleeps_stay_and_what_is_so_now_does_not() -> None:
    async with pretending() as server, watch_of("llamacpp", server.url) as watch:
        server.answers = routed(f"{ROUTER}/15b_models_after_unload")
        awake = await watch.read()
        server.answers = routed(f"{ROUTER}/16_models_sleeping")
        asleep = await watch.read()
    tokens = value(awake, "llm_output_tokens_total", model="big-slow")
    assert tokens is not None
    assert tokens == value(asleep, "llm_output_tokens_total", model="big-slow")
    assert value(awake, "llm_requests_running", model="big-slow") is not None
    assert value(asleep, "llm_requests_running", model="big-slow") is None
    assert value(asleep, "llm_model_loads_total", model="tiny-b") == 1.0  # it came meanwhile
    assert value(asleep, "llm_model_loads_total", model="big-slow") == 0.0


async def told(server: Pretended, watch_url: str) -> list[dict[str, str]]:
    """The states after each event of the capture that was news."""
    seen = []
    async with watch_of("llamacpp", watch_url) as watch:
        await watch.read()
        source = watch._source
        assert isinstance(source, LlamaCpp)
        server.events.put_nowait(body(f"{ROUTER}/sse"))
        server.events.put_nowait(b"")
        stream = source.follow()
        while len(seen) < 11:
            result = await anext(stream)
            seen.append(
                {
                    series.get("model") or "": series.get("state") or ""
                    for series, number in result.samples
                    if series.family.name == "llm_model_state" and number
                }
            )
        await stream.aclose()  # type: ignore[attr-defined]  # it is a generator
        counts = await watch.read()
        for model, loads, unloads in (("big-slow", 1.0, 1.0), ("tiny-a", 1.0, 1.0), ("tiny-b", 2.0, 2.0)):
            assert value(counts, "llm_model_loads_total", model=model) == loads, model
            assert value(counts, "llm_model_unloads_total", model=model) == unloads, model
    return seen


async def test_events_tell_states_at_once_and_count_what_polls_would_miss() -> None:
    async with pretending(**routed(f"{ROUTER}/01_models_unloaded")) as server:
        seen = await told(server, server.url)
    assert [entry["big-slow"] for entry in seen][:2] == ["loading", "loaded"]
    assert [entry["tiny-a"] for entry in seen][2:5] == ["loading", "loaded", "unloaded"]
    assert seen[-1] == {"big-slow": "sleeping", "tiny-a": "unloaded", "tiny-b": "loaded"}


@pytest.mark.parametrize(
    ("answers", "known"),
    [
        ({"/v1/models": body(f"{PLAIN}/ready_v1_models")}, True),
        ({"/v1/models": body(f"{KEYED}/key_v1_models")}, True),
        ({"/v1/models": (503, body(f"{PLAIN}/loading_v1_models"))}, True),
        ({"/v1/models": body(f"{ROUTER}/01_models_unloaded")}, True),
        ({"/v1/models": b'{"data":[],"object":"list"}', "/props": body(f"{ROUTER}/05_props")}, True),
        ({"/v1/models": b'{"data":[],"object":"list"}'}, False),
        ({"/v1/models": b'{"data":[{"id":"m","owned_by":"vllm"}]}'}, False),
        ({"/v1/models": b'{"data":["m"]}'}, False),
        ({"/v1/models": b"[]"}, False),
        ({"/v1/models": (503, b'{"error":"overloaded"}')}, False),
        ({"/v1/models": b"<html>"}, False),
        ({}, False),
    ],
)
async def test_a_server_is_recognised_by_what_it_answers_without_a_key(answers: dict[str, Said], known: bool) -> None:
    async with pretending(**answers) as server, watch_of("llamacpp", server.url) as watch:
        upstream = watch._source._context.upstream  # type: ignore[attr-defined]
        assert await LlamaCpp.recognise(upstream, None) is known
