"""The processes that an Ollama runs its models in: found by their command lines, read as llama.cpp is."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from exporter.sources.ollama import runners
from exporter.text.negotiate import Format

sys.path.insert(0, str(Path(__file__).parents[1]))

from pretend import CAPTURES, Pretended, Said, pretending, states, text, value, watch_of

HERE = CAPTURES / "ollama" / "0.33.0-rc2"
MODEL = "tiny-a:latest"
BLOB = "sha256-f3b653ce1cced95aa05715cf29b3af899104f8d06141cd600a0f124323191df0"
TOKENS, RUNNING = "llm_output_tokens_total", "llm_requests_running"


def body(name: str) -> bytes:
    return (HERE / f"{name}.body").read_bytes()


def ollama(running: str = "ps_1") -> dict[str, Said]:
    lists = {"/api/version": body("version"), "/api/tags": body("tags"), "/api/ps": body(running)}
    return {**lists, "/api/show": body("show_tiny-a")}


METRICS: dict[str, Said] = {"/metrics": body("runner_metrics_env_enabled")}


@contextmanager
def process(folder: Path, server: Pretended, blob: str = BLOB, parent: str = "ollama") -> Iterator[None]:
    """A process as Ollama starts one for a model, in whose place the server answers."""
    script = folder / parent
    script.write_text('#!/bin/sh\n"$@" &\nwait\n')
    script.chmod(0o755)
    port = str(urlsplit(server.url).port)
    sleeps = [sys.executable, "-c", "print(flush=True); import time; time.sleep(600)"]
    more = ["--model", f"/srv/blobs/{blob}", "--port", port, "--host", "127.0.0.1"]
    begun = subprocess.Popen([script, *sleeps, *more], stdout=subprocess.PIPE, start_new_session=True)
    try:
        assert begun.stdout is not None
        begun.stdout.readline()
        yield
    finally:
        os.killpg(begun.pid, signal.SIGKILL)
        begun.communicate()


async def test_a_process_s_capture_becomes_exactly_the_exposition_expected_of_it(tmp_path: Path, accept: bool) -> None:
    async with pretending(**ollama()) as server, pretending(**METRICS) as runner:
        with process(tmp_path, runner):
            async with watch_of("ollama", server.url, runners=True) as watch:
                reading = await watch.read()
    assert reading.ok, reading.error
    assert not reading.advice
    assert runner.asked == ["/metrics"]
    assert value(reading, "llm_prompt_tokens_total", model=MODEL) == 12 + 28
    expected = HERE / "runner_metrics_env_enabled.prom"
    if accept:
        expected.write_bytes(text(reading))
    assert text(reading) == expected.read_bytes()


async def test_a_model_that_is_loaded_again_has_another_process_and_counts_on(tmp_path: Path) -> None:
    async with pretending(**ollama()) as server, watch_of("ollama", server.url, runners=True) as watch:
        for tokens in (18, 36):
            async with pretending(**METRICS) as runner:
                with process(tmp_path, runner):
                    await watch.read()  # where the process before was has nobody been found
                    reading = await watch.read()
                    watch._board.page(Format.TEXT)
                    assert value(reading, TOKENS, model=MODEL) == tokens
            reading = await watch.read()
            assert reading.ok, reading.error
            assert value(reading, TOKENS, model=MODEL) == tokens
            assert value(reading, RUNNING, model=MODEL) is None
        server.answers = ollama("ps_empty")
        assert not (await watch.read()).advice
    assert server.asked.count("/api/show") == 1


@pytest.mark.parametrize(("blob", "parent"), [(BLOB[:-1] + "1", "ollama"), (BLOB, "another")])
async def test_a_process_of_another_model_or_of_another_s_is_not_asked(tmp_path: Path, blob: str, parent: str) -> None:
    async with pretending(**ollama()) as server, pretending(**METRICS) as runner:
        with process(tmp_path, runner, blob, parent):
            async with watch_of("ollama", server.url, runners=True) as watch:
                reading = await watch.read()
    assert reading.ok, reading.error
    assert runner.asked == []
    assert value(reading, TOKENS, model=MODEL) is None
    assert list(reading.advice) == [runners.NOT_SEEN]


async def test_without_their_metrics_it_is_said_what_switches_them_on(tmp_path: Path) -> None:
    off: dict[str, Said] = {"/metrics": (501, body("runner_metrics_disabled"))}
    async with pretending(**ollama()) as server, pretending(**off) as runner:
        with process(tmp_path, runner):
            async with watch_of("ollama", server.url, runners=True) as watch:
                reading = await watch.read()
    assert reading.ok, reading.error
    assert list(reading.advice) == [runners.NO_METRICS]


async def test_a_process_that_answers_oddly_or_not_at_all_costs_its_own_numbers_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runners, "SHARE", 0.02)
    async with pretending(**ollama()) as server, pretending(**METRICS) as runner:
        with process(tmp_path, runner):
            async with watch_of("ollama", server.url, runners=True) as watch:
                for odd in (b"", b"{}", b"llamacpp:tokens_predicted_total x\n", (500, b"{}")):
                    runner.answers["/metrics"] = odd
                    reading = await watch.read()
                    assert reading.ok, reading.error
                    assert value(reading, "llm_model_state", model=MODEL, state="loaded") == 1.0
                runner.hang.add("/metrics")
                reading = await watch.read()
                assert reading.ok, reading.error
                assert value(reading, TOKENS, model=MODEL) is None
                runner.hang.clear()
                runner.answers = dict(METRICS)
                assert value(await watch.read(), TOKENS, model=MODEL) is not None


async def test_a_model_whose_process_is_loading_it_is_loading_and_loaded_once(tmp_path: Path) -> None:
    lists = ollama("ps_empty")
    async with pretending(**lists) as server, pretending(**{"/metrics": (503, b"{}")}) as runner:
        with process(tmp_path, runner):
            async with watch_of("ollama", server.url, runners=True) as watch:
                assert states(await watch.read())[MODEL] == "unloaded"
                server.answers = ollama()
                for _ in range(2):
                    reading = await watch.read()
                    assert states(reading)[MODEL] == "loading"
                    assert value(reading, "llm_model_loads_total", model=MODEL) == 0.0
                runner.answers = dict(METRICS)
                for _ in range(2):
                    reading = await watch.read()
                    assert states(reading)[MODEL] == "loaded"
                    assert value(reading, "llm_model_loads_total", model=MODEL) == 1.0


async def test_a_model_at_work_was_asked_for_now(tmp_path: Path) -> None:
    async with pretending(**ollama()) as server, pretending(**METRICS) as runner:
        with process(tmp_path, runner):
            async with watch_of("ollama", server.url, runners=True) as watch:
                first = value(await watch.read(), "llm_model_last_request_timestamp_seconds", model=MODEL)
                still = value(await watch.read(), "llm_model_last_request_timestamp_seconds", model=MODEL)
                assert first == still
                busy = body("runner_metrics_env_enabled").replace(b"requests_processing 0", b"requests_processing 1")
                runner.answers["/metrics"] = busy
                reading = await watch.read()
    assert value(reading, "llm_model_last_request_timestamp_seconds", model=MODEL) != still
    assert value(reading, RUNNING, model=MODEL) == 1.0
