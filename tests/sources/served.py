"""A server whose answers are given, and a watch on it as the exporter makes it: for tests of sources."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from aiohttp import web

from exporter.config.model import Config, TargetConfig
from exporter.core.board import Board
from exporter.core.fetch import session
from exporter.core.poll import Watch
from exporter.core.types import Reading
from exporter.sources import sources
from exporter.text.negotiate import Format
from exporter.text.render import Sheet, page
from exporter.wiring import assemble

Routes = dict[str, bytes | tuple[int, str, bytes]]
"""By path: a body, in a type that its beginning tells; or status, type and body."""


class Serving:
    """The server: its answers can be changed, and what was asked is kept."""

    def __init__(self, routes: Routes) -> None:
        self.routes = routes
        self.asked: list[str] = []
        self.url = ""

    async def answer(self, request: web.BaseRequest) -> web.Response:
        self.asked.append(request.path)
        told = self.routes.get(request.path, (404, "application/json", b'{"detail":"Not Found"}'))
        if isinstance(told, bytes):
            told = (200, "application/json" if told[:1] in (b"{", b"[") else "text/plain", told)
        status, kind, body = told
        return web.Response(body=body, status=status, content_type=kind)


@asynccontextmanager
async def serving(routes: Routes) -> AsyncIterator[Serving]:
    made = Serving(routes)
    runner = web.ServerRunner(web.Server(made.answer), access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield made
    finally:
        await runner.cleanup()


@asynccontextmanager
async def watching(kind: str, url: str, **options: object) -> AsyncIterator[Watch]:
    """A watch on the server, as the exporter makes it, named as its kind."""
    target: TargetConfig = sources()[kind].Config(url=url, name=kind, **options)  # type: ignore[arg-type]
    async with session() as client:
        yield assemble(Config(), target, client, Board(), None)


async def read(kind: str, routes: Routes, **options: object) -> Reading:
    """One read of a server with these answers."""
    async with serving(routes) as server, watching(kind, server.url, **options) as watch:
        return await watch.read()


def exposition(reading: Reading) -> bytes:
    """What a reading is on the page, in text 0.0.4."""
    return page([Sheet(reading.samples)], Format.TEXT)


def values(reading: Reading, name: str, *labels: str) -> Mapping[tuple[str | None, ...], float]:
    """The values of a family (or of one part of it, `NAME_sum`) by these labels."""
    return {
        tuple(series.get(label) for label in labels): value
        for series, value in reading.samples
        if series.family.name + series.suffix == name
    }
