"""What dcgm-exporters answer, served again, becomes exactly the exposition expected of it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from exporter.config.model import Config
from exporter.core.board import Board
from exporter.core.errors import ReadError
from exporter.core.fetch import Upstream, session
from exporter.core.poll import Watch
from exporter.core.types import Reading
from exporter.sources.dcgm import Dcgm, Exporter
from exporter.text.negotiate import Format
from exporter.text.render import Sheet, page
from exporter.wiring import assemble

HERE = Path(__file__).parents[2] / "captures" / "dcgm"


class Server:
    """A server whose pages can be changed."""

    def __init__(self) -> None:
        self.pages: dict[str, str | bytes] = {"/": "<h1>GPU Exporter</h1>"}
        self.asked: list[str] = []
        self.url = ""

    def show(self, capture: str) -> None:
        self.pages["/metrics"] = (HERE / f"{capture}.body").read_bytes()

    async def answer(self, request: web.BaseRequest) -> web.Response:
        self.asked.append(request.path)
        if request.path not in self.pages:
            return web.Response(status=404)
        body = self.pages[request.path]
        return web.Response(body=body.encode() if isinstance(body, str) else body, content_type="text/plain")


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    made = Server()
    runner = web.ServerRunner(web.Server(made.answer), access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield made
    await runner.cleanup()


@asynccontextmanager
async def watching(server: Server) -> AsyncIterator[tuple[Watch, Board]]:
    async with session() as client:
        board = Board()
        yield assemble(Config(), Exporter(url=server.url, name="dcgm"), client, board, None), board


def values(reading: Reading, family: str) -> dict[str | None, float]:
    return {series.get("gpu"): value for series, value in reading.samples if series.family.name == family}


@pytest.mark.parametrize("name", ["plain", "pods_1", "mig"])
async def test_a_capture_becomes_exactly_the_exposition_expected_of_it(server: Server, name: str, accept: bool) -> None:
    server.show(name)
    async with watching(server) as (watch, _):
        reading = await watch.read()
    assert reading.ok, reading.error
    told = page([Sheet(reading.samples)], Format.TEXT)
    expected = HERE / f"{name}.prom"
    if accept:
        expected.write_bytes(told)
    assert told == expected.read_bytes()


async def test_a_counter_gains_what_the_hardware_counted_whatever_pods_come_and_go(server: Server) -> None:
    async with watching(server) as (watch, board):
        server.show("pods_1")
        first = await watch.read()
        assert set(values(first, "llm_gpu_energy_joules_total").values()) == {0.0}
        board.page(Format.TEXT)
        server.show("pods_2")
        second = await watch.read()
        board.page(Format.TEXT)
        assert values(second, "llm_gpu_energy_joules_total") == {"0": 9300.0, "1": 9300.0, "2": 9300.0}
        assert values(second, "llm_gpu_pcie_replays_total") == {"0": 1.0, "1": 1.0, "2": 1.0}
        server.show("pods_1")  # it fell: the driver was loaded anew
        third = await watch.read()
        assert values(third, "llm_gpu_pcie_replays_total") == {"0": 1.0, "1": 3.0, "2": 5.0}


async def test_nothing_of_pods_and_hosts_reaches_the_page(server: Server) -> None:
    server.show("pods_1")
    async with watching(server) as (watch, _):
        told = page([Sheet((await watch.read()).samples)], Format.TEXT)
    assert b"serving" not in told
    assert b"node-a" not in told
    assert b"a-1" not in told


async def recognised(url: str) -> bool:
    async with session() as client:
        return await Dcgm.recognise(Upstream(client, url), None)


async def test_it_is_recognised_by_what_it_tells(server: Server) -> None:
    server.show("plain")
    assert await recognised(server.url)
    server.pages["/metrics"] = "# HELP other From: DCGM_FI_DEV_GPU_UTIL (dcgm).\nother 1\n"
    assert not await recognised(server.url)
    del server.pages["/metrics"]
    assert not await recognised(server.url)


async def test_an_exporter_of_ours_on_its_port_is_left_alone(server: Server) -> None:
    server.show("plain")
    server.pages["/"] = "<!doctype html><title>llm-exporter</title>"
    assert not await recognised(server.url)
    assert server.asked == ["/"]  # a look at its metrics would count as a scrape


async def test_where_nothing_answers_the_error_says_so() -> None:
    with pytest.raises(ReadError):
        await recognised("http://127.0.0.1:1")
