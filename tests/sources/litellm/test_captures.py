"""What real LiteLLM proxies answered, served again, becomes exactly the exposition expected of it."""

import asyncio
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from exporter.config.model import Config
from exporter.core.board import Board
from exporter.core.fetch import session
from exporter.core.poll import Watch
from exporter.core.types import Reading
from exporter.sources.litellm import Proxy
from exporter.text.negotiate import Format
from exporter.text.render import Sheet, page
from exporter.wiring import assemble

HERE = Path(__file__).parents[2] / "captures" / "litellm"
VERSION = HERE / "1.106.2"
GOOD = ("metrics_fresh_no_traffic", "metrics_t1", "metrics_t2", "metrics_after_restart", "mw_main_1", "mw_dedicated")
REFUSED = {
    "metrics_noslash_auth": (307, "redirect"),
    "metrics_noslash_noauth": (401, "auth"),
    "metrics_slash_noauth": (401, "auth"),
    "metrics_slash_badkey": (401, "auth"),
    "mw_main_filtered": (200, "content"),
}
TIMES = ("llm_probe_duration_seconds", "llm_provider_window_seconds")

Answer = Callable[[web.Request], web.Response]


def captured(name: str, status: int = 200) -> Answer:
    body = (VERSION / f"{name}.body").read_bytes()
    kind = "application/json" if body[:1] in (b"{", b'"') else "text/plain"
    return lambda _: web.Response(body=body, status=status, content_type=kind)


@asynccontextmanager
async def proxy(metrics: Answer, *, everything: bool = True) -> AsyncIterator[str]:
    """A server that answers as the captured proxy did; without `everything`, as its separate metrics port did."""

    async def answer(request: web.Request) -> web.Response:
        return routes.get(request.path, lambda _: web.Response(status=404))(request)

    routes: dict[str, Answer] = {"/metrics/": metrics}
    if everything:
        routes |= {
            "/health/liveliness": captured("health_liveliness_noauth"),
            "/health/readiness": captured("health_readiness"),
            "/health/readiness/details": captured("health_readiness_details"),
            "/model/info": captured("model_info"),
        }
    runner = web.ServerRunner(web.Server(answer), access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def watching(url: str, **options: object) -> AsyncIterator[Watch]:
    """A watch on the proxy at the URL, as the exporter makes it, named `litellm`."""
    async with session() as client:
        yield assemble(Config(), Proxy(url=url, name="litellm", **options), client, Board(), None)


async def read(name: str, status: int = 200, *, everything: bool = True) -> Reading:
    async with proxy(captured(name, status), everything=everything) as url, watching(url) as watch:
        return await watch.read()


def without_times(reading: Reading, form: Format = Format.TEXT) -> bytes:
    return page([Sheet(sample for sample in reading.samples if sample[0].family.name not in TIMES)], form)


@pytest.mark.parametrize("name", GOOD)
async def test_a_capture_becomes_exactly_the_exposition_expected_of_it(name: str, accept: bool) -> None:
    reading = await read(name, everything=name != "mw_dedicated")
    assert reading.ok, reading.error
    expected = VERSION / f"{name}.prom"
    if accept:
        expected.write_bytes(without_times(reading))
    assert without_times(reading) == expected.read_bytes()


def promtool(text: bytes) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, check=False)


@pytest.mark.parametrize("name", GOOD)
async def test_promtool_finds_nothing_in_an_exposition_and_prometheus_client_reads_it(name: str) -> None:
    reading = await read(name)
    found = await asyncio.to_thread(promtool, page([Sheet(reading.samples)], Format.TEXT))
    assert (found.returncode, found.stdout, found.stderr) == (0, b"", b"")
    families = list(text_string_to_metric_families(page([Sheet(reading.samples)], Format.OPENMETRICS).decode()))
    assert sum(len(family.samples) for family in families) == len(reading.samples)


@pytest.mark.parametrize(("name", "status", "reason"), [(name, *how) for name, how in REFUSED.items()])
async def test_a_refusal_shows_nothing_and_says_what_to_do(name: str, status: int, reason: str) -> None:
    reading = await read(name, status)
    assert not len(reading.samples)
    assert reading.reason == reason
    if reason == "auth":
        assert "LITELLM_API_KEY" in reading.error


async def test_where_the_filter_answers_nothing_the_whole_is_asked_for_and_the_filter_not_tried_again() -> None:
    asked: list[str] = []

    def metrics(request: web.Request) -> web.Response:
        asked.append(request.query_string)
        return captured("mw_main_filtered" if request.query_string else "mw_main_1")(request)

    async with proxy(metrics) as url, watching(url) as watch:
        reads = [await watch.read() for _ in range(4)]
    first, second = reads[:2]
    assert all(reading.ok for reading in reads)
    # tried anew when the models were listed, after the first read; then for ten minutes no more
    assert [bool(query) for query in asked] == [True, False, True, False, False, False]
    assert len(first.samples) == len(second.samples)


async def test_unchanged_answers_give_the_same_bytes() -> None:
    async with proxy(captured("metrics_t2")) as url, watching(url) as watch:
        await watch.read()
        first, second = await watch.read(), await watch.read()
    assert without_times(first) == without_times(second)


async def test_no_private_label_reaches_the_page() -> None:
    text = without_times(await read("metrics_t2")).decode()
    for private in ("alice", "bob", "default_user_id", "litellm_proxy_master_key", "127.0.0.1:18001", "my-sdk", "sk-"):
        assert private not in text
