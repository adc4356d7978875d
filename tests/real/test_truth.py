"""In a real Prometheus, over restarts and kills, counters add up to what happened."""

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
import stack
from aiohttp import web
from stack import Exporter, LiteLLM, Prometheus, Server, drive, gained

REQUESTS = 'llm_requests_total{model="good"}'
TOKENS = 'llm_output_tokens_total{model="good"}'


@contextlib.asynccontextmanager
async def stacked(
    tmp_path: Path, providers: Server, redis: Server, workers: int = 1
) -> AsyncIterator[tuple[LiteLLM, Exporter, Prometheus]]:
    """A proxy that has answered once, an exporter that has seen it, and a Prometheus that has scraped that."""
    server = stack.litellm(tmp_path, stack.litellm_config(providers.url, redis.port), workers)
    exporter = stack.exporter(tmp_path, server.url)
    prometheus = stack.prometheus(tmp_path, exporter.url)
    try:
        await asyncio.to_thread(server.start)
        await drive(server.url, "good", 2)
        await asyncio.to_thread(exporter.start)
        await exporter.until("llm_requests_total", 2, model="good")
        await asyncio.to_thread(prometheus.start)
        await scraped(prometheus, 2)
        await asyncio.sleep(5.0)
        yield server, exporter, prometheus
    finally:
        for process in (prometheus, exporter, server):
            if process.process is not None:
                process.stop()


async def scraped(prometheus: Prometheus, requests: int) -> None:
    """Wait until Prometheus has what the exporter shows: so many requests, and ten tokens for each."""
    end = time.monotonic() + stack.PATIENCE
    for selector, value in ((REQUESTS, requests), (TOKENS, 10 * requests)):
        while [value] != [*(found := await asyncio.to_thread(prometheus.query, selector)).values()]:
            assert time.monotonic() < end, (selector, value, found)
            await asyncio.sleep(0.2)


async def agrees(prometheus: Prometheus, requests: int, shown: int) -> None:
    """Both the raw samples by the reset rule, exactly, and increase(), within 5 %, say what happened.

    So many `requests` since the first scrape, of which the exporter shows those `shown`.
    """
    await scraped(prometheus, shown)
    await asyncio.sleep(5.0)  # increase() adds a part of a second to the time that it has seen: that must be small
    for selector, true in ((REQUESTS, requests), (TOKENS, 10 * requests)):
        raw = await asyncio.to_thread(prometheus.raw, selector)
        assert len(raw) == 1, raw
        values = next(iter(raw.values()))
        assert gained(values) == true, (selector, sorted(set(values)))
        increase = await asyncio.to_thread(prometheus.query, f"increase({selector}[1h])")
        assert abs(next(iter(increase.values())) - true) <= 0.05 * true, (selector, increase)


async def test_over_a_restart_of_litellm(tmp_path: Path, providers: Server, redis: Server) -> None:
    async with stacked(tmp_path, providers, redis) as (server, exporter, prometheus):
        await drive(server.url, "good", 5)
        await exporter.until("llm_requests_total", 7, model="good")
        await scraped(prometheus, 7)
        server.stop()
        await asyncio.to_thread(server.start)
        await drive(server.url, "good", 11)  # more than before: a restart already overtaken
        await exporter.until("llm_requests_total", 18, model="good")
        await agrees(prometheus, 16, 18)


async def test_over_a_restart_of_the_exporter_with_its_state(tmp_path: Path, providers: Server, redis: Server) -> None:
    async with stacked(tmp_path, providers, redis) as (server, exporter, prometheus):
        await drive(server.url, "good", 5)
        await exporter.until("llm_requests_total", 7, model="good")
        await scraped(prometheus, 7)
        assert exporter.stop() == 0
        await drive(server.url, "good", 4)  # while nobody looks
        await asyncio.to_thread(exporter.start)
        await exporter.until("llm_requests_total", 11, model="good")
        exporter.stop(signal.SIGKILL)
        await drive(server.url, "good", 3)
        await asyncio.to_thread(exporter.start)
        await exporter.until("llm_requests_total", 14, model="good")
        await agrees(prometheus, 12, 14)


async def test_over_a_restart_of_the_exporter_and_of_litellm_at_once(
    tmp_path: Path, providers: Server, redis: Server
) -> None:
    async with stacked(tmp_path, providers, redis) as (server, exporter, prometheus):
        await drive(server.url, "good", 5)
        await exporter.until("llm_requests_total", 7, model="good")
        await scraped(prometheus, 7)
        assert exporter.stop() == 0
        server.stop()
        await asyncio.to_thread(server.start)
        await drive(server.url, "good", 9)
        await asyncio.to_thread(exporter.start)
        await exporter.until("llm_requests_total", 16, model="good")
        await agrees(prometheus, 14, 16)


async def test_over_a_restart_of_the_exporter_that_lost_its_state(
    tmp_path: Path, providers: Server, redis: Server
) -> None:
    async with stacked(tmp_path, providers, redis) as (server, exporter, prometheus):
        await drive(server.url, "good", 5)
        await exporter.until("llm_requests_total", 7, model="good")
        await scraped(prometheus, 7)
        exporter.stop()
        (tmp_path / "state" / "litellm.json").write_text("{damaged")
        await asyncio.to_thread(exporter.start)
        await exporter.until("llm_requests_total", 0, model="good")
        await scraped(prometheus, 0)
        await drive(server.url, "good", 6)
        await exporter.until("llm_requests_total", 6, model="good")
        await agrees(prometheus, 11, 6)


async def test_two_workers_and_the_end_of_one(tmp_path: Path, providers: Server, redis: Server) -> None:
    async with stacked(tmp_path, providers, redis, workers=2) as (server, exporter, prometheus):
        await drive(server.url, "good", 12)
        await exporter.until("llm_requests_total", 14, model="good")
        workers = server.workers()
        assert len(workers) == 2
        stack.os.kill(workers[0], signal.SIGKILL)
        end = time.monotonic() + 3 * stack.PATIENCE  # uvicorn may first wait for the killed one's answer, 120 s
        while workers[0] in (now := server.workers()) or len(now) < 2:  # the worker is started again
            assert time.monotonic() < end, now
            await asyncio.sleep(0.5)
        await drive(server.url, "good", 8)
        await exporter.until("llm_requests_total", 22, model="good")
        await agrees(prometheus, 20, 22)
        assert exporter.sum("llm_requests_running") == 0.0
        server.stop()  # the whole, which has no start time to tell it
        await asyncio.to_thread(server.start)
        await drive(server.url, "good", 9)
        await exporter.until("llm_requests_total", 31, model="good")
        await agrees(prometheus, 29, 31)


@pytest.mark.parametrize("openmetrics", [True, False], ids=["openmetrics", "text"])
async def test_under_labels_as_kubernetes_gives_nothing_becomes_exported(
    tmp_path: Path, exporter: Exporter, proxy: LiteLLM, openmetrics: bool
) -> None:
    formats: set[str] = set()

    async def forward(request: web.BaseRequest) -> web.Response:
        """Prometheus always prefers OpenMetrics: for the other format its wish is not passed on."""
        wish = {"Accept": request.headers["Accept"]} if openmetrics else {"Accept": "text/plain;version=0.0.4"}
        async with aiohttp.ClientSession() as client, client.get(exporter.url + "/metrics", headers=wish) as answer:
            formats.add(answer.headers["Content-Type"].partition(";")[0])
            return web.Response(body=await answer.read(), headers={"Content-Type": answer.headers["Content-Type"]})

    runner = web.ServerRunner(web.Server(forward), access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    prometheus = stack.prometheus(tmp_path, f"http://127.0.0.1:{runner.addresses[0][1]}")
    try:
        before = await asyncio.to_thread(exporter.sum, "llm_requests_total")
        await drive(proxy.url, "good", 1)
        await exporter.until("llm_requests_total", before + 1)
        await asyncio.to_thread(prometheus.start)
        end = time.monotonic() + stack.PATIENCE
        while True:  # what is worked out every 15 s may appear between a scrape and a look
            stored = await asyncio.to_thread(prometheus.query, '{job="llm"}')
            shown = {name for name, _ in await asyncio.to_thread(exporter.page)}
            names = {dict(labels)["__name__"] for labels in stored} - {"up"}
            if shown == {name for name in names if not name.startswith("scrape_")}:
                break
            assert time.monotonic() < end, (shown ^ names, prometheus.tail())
            await asyncio.sleep(0.5)
        assert len(stored) > 100
        assert not [labels for labels in stored for name, _ in labels if name.startswith("exported_")]
    finally:
        prometheus.stop()
        await runner.cleanup()
    assert formats == {"application/openmetrics-text" if openmetrics else "text/plain"}
