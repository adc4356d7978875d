"""A server that answers what is set, by path and query, and remembers what it was asked."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

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

CAPTURES = Path(__file__).parents[1] / "captures"
TIMES = ("llm_probe_duration_seconds", "llm_model_last_request_timestamp_seconds")

Said = bytes | tuple[int, bytes]
"""A body, of a 200 unless its status is said."""


@dataclass
class Pretended:
    """What it answers, by path with query; what it was asked; and the events that it tells."""

    answers: dict[str, Said] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    events: asyncio.Queue[bytes] = field(default_factory=asyncio.Queue)
    hang: set[str] = field(default_factory=set)
    key: str = ""
    url: str = ""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(request.path_qs)
        allowed = not self.key or request.headers.get("Authorization") == f"Bearer {self.key}"
        if request.path in ("/props", "/metrics") and not allowed:
            return web.Response(status=401, body=b'{"error":{"code":401}}', content_type="application/json")
        if request.path_qs in self.hang:
            await asyncio.sleep(60)
        if request.path == "/models/sse":
            stream = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            await stream.prepare(request)
            while event := await self.events.get():
                await stream.write(event)
            return stream
        said = self.answers.get(request.path_qs, (404, b'{"error":{"code":404}}'))
        status, body = said if isinstance(said, tuple) else (200, said)
        kind = "application/json" if body.lstrip()[:1] in (b"{", b"[") else "text/plain"
        return web.Response(status=status, body=body, content_type=kind)


@asynccontextmanager
async def pretending(**answers: Said) -> AsyncIterator[Pretended]:
    server = Pretended(dict(answers))
    runner = web.ServerRunner(web.Server(server.answer), access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield server
    finally:
        await runner.cleanup()


@asynccontextmanager
async def watch_of(kind: str, url: str, **more: object) -> AsyncIterator[Watch]:
    target: TargetConfig = sources()[kind].Config(url=url, name=kind, **more)
    async with session() as client:
        yield assemble(Config(), target, client, Board(), None)


def text(reading: Reading) -> bytes:
    return page([Sheet(sample for sample in reading.samples if sample[0].family.name not in TIMES)], Format.TEXT)


def value(reading: Reading, name: str, suffix: str = "", **labels: str) -> float | None:
    """The only sample that has these labels; None where there is none."""
    found = [
        number
        for series, number in reading.samples
        if (series.family.name, series.suffix) == (name, suffix) and labels.items() <= dict(series.labels).items()
    ]
    assert len(found) < 2, (name, labels)
    return found[0] if found else None


def states(reading: Reading) -> dict[str, str]:
    """The state of each model."""
    return {
        series.get("model") or "": series.get("state") or ""
        for series, number in reading.samples
        if series.family.name == "llm_model_state" and number
    }
