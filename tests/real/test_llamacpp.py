"""A real llama-server, alone, as a router, as Ollama's: counts, states, and that being read changes nothing."""

import asyncio
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from brokers import SECRET, SELDOM, Watched, found, watched
from llama import Llama, Usage, llama, models
from stack import PATIENCE, Page, free_port, running

sys.path.insert(0, str(Path(__file__).parents[1] / "sources"))

from pretend import pretending

UP, STATE = "llm_target_up", "llm_model_state"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models(tmp_path_factory.mktemp("models"), "tiny-a", "tiny-b", "slow")


@pytest.fixture
def router(tmp_path: Path, store: Path) -> Iterator[Llama]:
    """At its limit with two models, which fall asleep after eight idle seconds."""
    options = ("--models-dir", str(store), "--models-max", "2", "--sleep-idle-seconds", "8", "--metrics")
    server = llama(tmp_path, *options, "--api-key", SECRET)
    with running(server):
        yield server


def target(port: int, /, **more: Any) -> dict[str, Any]:
    return {"source": "llamacpp", "name": "llama", "url": f"http://127.0.0.1:{port}", "api_key": SECRET, **more}


async def counted(exporter: Watched, usage: Usage, model: str) -> None:
    """Wait until the page says what the client was told, and nothing else."""
    expected = {"prompt": usage.prompt, "cached_prompt": usage.cached, "output": usage.output}
    for name, tokens in expected.items():
        await exporter.until_value(f"llm_{name}_tokens_total", float(tokens), model=model)


def states(page: Page) -> dict[str, str]:
    """The state that a page shows of each model, by the target of that name."""
    told = [dict(labels) for (name, labels), value in page.items() if name == STATE and value]
    return {labels["model"]: labels["state"] for labels in told if "model" in labels and labels["target"] == "llama"}


async def test_a_single_server_is_counted_from_its_loading_on_and_over_a_restart(tmp_path: Path, store: Path) -> None:
    port = free_port()
    options = ("--model", str(store / "slow.gguf"), "--alias", "slow", "--metrics", "--api-key", SECRET)
    usage = Usage()

    def is_at_work(page: Page) -> bool:
        return (found(page, "llm_requests_running"), found(page, "llm_requests_waiting")) == (2.0, 1.0)

    async def work(server: Llama, seen: asyncio.Event) -> None:
        while not seen.is_set():
            await server.complete(usage, 3, 12)

    async with watched(tmp_path, target(port, interval="100ms")) as exporter:
        for attempt in (1.0, 2.0):
            server = llama(tmp_path, *options, port=port)
            starting = asyncio.create_task(asyncio.to_thread(server.start))
            await exporter.until_value("llm_models", 1.0, state="loading")
            assert exporter.value("llm_output_tokens_total") is None
            await starting
            try:
                await exporter.until_value(STATE, 1.0, model="slow", state="loaded")
                assert exporter.value(UP) == 1.0
                await exporter.until_value("llm_model_loads_total", attempt)
                assert exporter.value("llm_model_context_tokens") == 1024.0  # that of one slot
                assert exporter.value("llm_model_slots") == 2.0
                seen = asyncio.Event()
                working = asyncio.create_task(work(server, seen))
                await exporter.until(is_at_work, "two requests that run and one that waits")
                seen.set()
                await working
                await counted(exporter, usage, "slow")
                mean = "llm_time_per_output_token_mean_seconds"
                assert exporter.value(f"{mean}_count") == float(usage.output)
                assert exporter.value(f"{mean}_sum") == pytest.approx(usage.seconds, rel=0.01)
            finally:
                await asyncio.to_thread(server.stop)
            await exporter.until_value(UP, 0.0)
        assert exporter.falls() == []


async def test_without_metrics_or_without_the_key_it_is_said_what_to_do(tmp_path: Path, store: Path) -> None:
    server = llama(tmp_path, "--model", str(store / "tiny-a.gguf"), "--api-key", SECRET)
    with running(server):
        stranger = target(server.port, name="stranger", api_key="wrong")
        async with watched(tmp_path, target(server.port), stranger) as exporter:
            await exporter.until_value(UP, 1.0, target="llama")
            assert exporter.value(STATE, target="llama", model="tiny-a", state="loaded") == 1.0  # and no path
            assert "llama-server --metrics" in exporter.why()
            await exporter.until_value("llm_target_read_failures_total", 1.0, target="stranger", reason="auth")


async def test_a_router_at_its_limit_is_read_and_nothing_is_loaded_evicted_woken_or_kept_awake(
    tmp_path: Path, router: Llama
) -> None:
    first, second, third = Usage(), Usage(), Usage()
    async with watched(tmp_path, target(router.port, interval="1s")) as exporter:
        await exporter.until_value("llm_models", 3.0, state="unloaded")
        # one request alone loads a model: while several do, the router counts it more than once and evicts another
        for usage, name, count in ((first, "tiny-a", 1), (second, "tiny-b", 2)):
            await router.complete(usage, 1, model=name)
            await router.complete(usage, count, model=name)
        await counted(exporter, first, "tiny-a")
        await counted(exporter, second, "tiny-b")
        assert exporter.value("llm_models", state="loaded") == 2.0

        # both fall asleep, though they are watched every second
        await exporter.until_value("llm_models", 2.0, state="sleeping")
        asleep = {"slow": "unloaded", "tiny-a": "sleeping", "tiny-b": "sleeping"}
        reads = len(exporter.pages)
        await exporter.until(lambda _: len(exporter.pages) > reads + 60, "pages of more than some reads")
        assert router.states() == asleep
        assert all(states(page) == asleep for _, page in exporter.pages[reads:])
        log = router.log.read_text()
        assert log.count("spawning server instance with name=") == 2
        assert "exiting sleeping state" not in log
        assert "stopping model instance" not in log

        # who wakes one is a client, and what it had counted is still there
        await router.complete(second, 2, model="tiny-b")
        await exporter.until_value(STATE, 1.0, model="tiny-b", state="loaded")
        await counted(exporter, second, "tiny-b")

        # a third model evicts the one that clients have left alone for longest, not the one that was read last
        await router.complete(third, 1, model="slow")
        await exporter.until_value(STATE, 1.0, model="tiny-a", state="unloaded")
        await counted(exporter, third, "slow")
        loads = {"tiny-a": (1.0, 1.0), "tiny-b": (1.0, 0.0), "slow": (1.0, 0.0)}
        for model, (came, went) in loads.items():
            await exporter.until_value("llm_model_loads_total", came, model=model)
            await exporter.until_value("llm_model_unloads_total", went, model=model)
        assert states(exporter.look()) == router.states()
        assert exporter.falls() == []


async def test_a_model_that_comes_and_goes_between_reads_is_counted_by_events(tmp_path: Path, router: Llama) -> None:
    async def load(model: str) -> None:
        await asyncio.to_thread(router.post, "/models/load", model=model)

    seldom = target(router.port, **SELDOM)
    async with watched(tmp_path, seldom, target(router.port, name="counts", interval="5s")) as exporter:
        await exporter.until_value("llm_models", 3.0, target="llama", state="unloaded")
        end = time.monotonic() + PATIENCE
        while states(exporter.look())["tiny-b"] != "loaded":  # until events are listened to
            assert time.monotonic() < end
            if router.states()["tiny-b"] == "unloaded":
                await load("tiny-b")
            if router.states()["tiny-b"] == "loaded":
                await asyncio.to_thread(router.post, "/models/unload", model="tiny-b")
            await asyncio.sleep(0.5)
        for _ in range(2):
            await load("tiny-a")
            await exporter.until(lambda page: states(page)["tiny-a"] == "loaded", "a state without a read")
            await asyncio.to_thread(router.post, "/models/unload", model="tiny-a")
            await exporter.until(lambda page: states(page)["tiny-a"] == "unloaded", "a state without a read")
        await exporter.until_value("llm_model_loads_total", 2.0, target="counts", model="tiny-a")
        await exporter.until_value("llm_model_unloads_total", 2.0, target="counts", model="tiny-a")


async def test_a_process_that_ollama_runs_a_model_in_is_counted(tmp_path: Path, store: Path) -> None:
    blob = tmp_path / f"sha256-{'0' * 64}"
    blob.symlink_to(store / "tiny-a.gguf")
    ollama = tmp_path / "ollama"  # what starts it, with its environment, and waits
    ollama.write_text('#!/bin/sh\n"$@" &\nwait\n')
    ollama.chmod(0o755)
    server = llama(tmp_path, "--model", str(blob))
    server.arguments.insert(0, str(ollama))
    server.environ = {"LLAMA_ARG_ENDPOINT_METRICS": "1"}
    tags = json.dumps({"models": [{"name": "tiny-a:latest"}]}).encode()
    lists = {"/api/version": b'{"version":"0.33.0"}', "/api/tags": tags, "/api/ps": tags}
    show = json.dumps({"modelfile": f"# Modelfile\nFROM {blob}\nTEMPLATE {{{{ .Prompt }}}}\n"}).encode()
    usage = Usage()
    with running(server):
        async with pretending(**lists, **{"/api/show": show}) as api:
            read = {"source": "ollama", "url": api.url, "runners": True, "interval": "500ms"}
            async with watched(tmp_path, read) as exporter:
                await exporter.until_value("llm_output_tokens_total", 0.0, model="tiny-a:latest")
                await server.complete(usage, 3)
                await counted(exporter, usage, "tiny-a:latest")
                assert usage.output == 24
                mean = "llm_time_per_output_token_mean_seconds"
                assert exporter.value(f"{mean}_sum") == pytest.approx(usage.seconds, rel=0.01)
                assert exporter.falls() == []
