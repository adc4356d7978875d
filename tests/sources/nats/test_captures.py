"""What real NATS servers answered under each version of Dynamo becomes exactly the exposition expected of it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from exporter.config.model import Config
from exporter.core.board import Board
from exporter.core.fetch import session
from exporter.core.poll import Watch
from exporter.core.types import Reading
from exporter.sources.nats import Server
from exporter.text.negotiate import Format
from exporter.text.render import Sheet, page
from exporter.wiring import assemble

HERE = Path(__file__).parents[2] / "captures" / "nats"
CAPTURES = sorted(str(file.parent.relative_to(HERE)) for file in HERE.rglob("varz.json"))
TIMES = "llm_probe_duration_seconds"


@asynccontextmanager
async def watching(*names: str) -> AsyncIterator[list[str]]:
    """A monitoring port that answers as captured; the first of the list, which can be changed, says which capture."""
    current = list(names)

    async def answer(request: web.Request) -> web.StreamResponse:
        file = HERE / current[0] / f"{request.path.strip('/')}.json"
        return web.Response(body=file.read_bytes(), content_type="application/json")

    runner = web.ServerRunner(web.Server(answer), access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        current.append(f"http://127.0.0.1:{runner.addresses[0][1]}")
        yield current
    finally:
        await runner.cleanup()


@asynccontextmanager
async def watch_of(url: str) -> AsyncIterator[Watch]:
    async with session() as client:
        yield assemble(Config(), Server(url=url, name="nats"), client, Board(), None)


def text(reading: Reading) -> bytes:
    return page([Sheet(sample for sample in reading.samples if sample[0].family.name != TIMES)], Format.TEXT)


def value(reading: Reading, name: str, **labels: str) -> float:
    (found,) = (
        number
        for series, number in reading.samples
        if series.family.name == name and labels.items() <= dict(series.labels).items()
    )
    return found


@pytest.mark.parametrize("name", CAPTURES)
async def test_a_capture_becomes_exactly_the_exposition_expected_of_it(name: str, accept: bool) -> None:
    async with watching(name) as (_, url), watch_of(url) as watch:
        reading = await watch.read()
    assert reading.ok, reading.error
    expected = HERE / name / "expected.prom"
    if accept:
        expected.write_bytes(text(reading))
    assert text(reading) == expected.read_bytes()


async def test_no_address_no_subject_and_no_identifier_reaches_the_page() -> None:
    async with watching("1.6.1/B_nats-3_load_t5") as (_, url), watch_of(url) as watch:
        said = text(await watch.read()).decode()
    for private in ("127.0.0.1", "backend", "generate", "2040a1", "NDGZN", "/srv"):
        assert private not in said


async def test_a_server_that_dynamo_does_not_use_is_up_and_says_so() -> None:
    async with watching("1.6.1/A_default-3_load_t5") as (_, url), watch_of(url) as watch:
        reading = await watch.read()
    assert reading.ok
    assert [value(reading, "llm_nats_dynamo_subjects", plane=plane) for plane in ("request", "event")] == [0.0, 0.0]
    assert "does not use this server" in reading.advice[0].missing


async def test_a_worker_that_was_killed_takes_its_subjects_with_it() -> None:
    async with watching("1.6.1/B_nats-3_load_t5") as captures, watch_of(captures[1]) as watch:
        before = await watch.read()
        captures[0] = "1.6.1/B_nats-5_killed_after_expiry"
        after = await watch.read()
    assert not before.advice
    assert value(before, "llm_nats_dynamo_subjects", plane="request") == 4.0  # two workers of two endpoints
    assert value(after, "llm_nats_dynamo_subjects", plane="request") == 2.0
    assert value(after, "llm_nats_in_messages_total") > value(before, "llm_nats_in_messages_total")


async def test_another_server_behind_the_url_adds_all_that_it_has_counted() -> None:
    async with watching("1.6.1/B_nats-3_load_t5") as captures, watch_of(captures[1]) as watch:
        before = await watch.read()
        captures[0] = "0.4.1"  # began later, and has counted less
        after = await watch.read()
    gained = value(after, "llm_nats_in_bytes_total") - value(before, "llm_nats_in_bytes_total")
    assert gained == 94_635.0
