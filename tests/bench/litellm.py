"""What reading LiteLLM costs: CPU of the whole process, HTTP included, beside prometheus-client in the same run.

`python tests/bench/litellm.py` serves a captured answer from a process of its own, unchanged or with a tenth of its
numbers changed at each request, reads it as the exporter does, and prints CPU milliseconds (least of several rounds).
"""

from __future__ import annotations

import asyncio
import multiprocessing
import re
import resource
import time
from collections.abc import Awaitable, Callable
from multiprocessing.connection import Connection
from pathlib import Path

import aiohttp
import structlog
from aiohttp import web
from prometheus_client.parser import text_string_to_metric_families

from exporter.app import assemble
from exporter.config.model import Config
from exporter.core.board import Board
from exporter.core.fetch import session
from exporter.core.poll import Watch
from exporter.sources.litellm import Proxy
from exporter.text.negotiate import Format

CAPTURE = Path(__file__).parents[1] / "captures" / "litellm" / "1.106.2" / "metrics_t2.body"
ROUNDS, READS = 5, 20


def changed(body: bytes, share: int, read: int) -> bytes:
    """The body with the values of one sample line in `share` grown by `read`."""
    lines = body.split(b"\n")
    samples = [at for at, line in enumerate(lines) if line and line[:1] != b"#" and b"_created" not in line]
    for at in samples[::share]:
        identity, _, value = lines[at].rpartition(b" ")
        if identity != b"process_start_time_seconds":
            lines[at] = identity + b" " + repr(float(value) + read).encode()
    return b"\n".join(lines)


def serve(port: Connection) -> None:
    """A process that answers as LiteLLM did: `/same/…` always alike, `/tenth/…` with a tenth of the lines grown."""
    body = CAPTURE.read_bytes()
    bodies = [changed(body, 10, read) for read in range(ROUNDS * READS + 50)]
    count = 0

    async def answer(request: web.BaseRequest) -> web.Response:
        nonlocal count
        if not request.path.endswith("/metrics/"):
            return web.Response(status=404 if "model" in request.path or "details" in request.path else 200)
        if request.path.startswith("/same/"):
            return web.Response(body=body, content_type="text/plain")
        count += 1
        return web.Response(body=bodies[min(count, len(bodies) - 1)], content_type="text/plain")

    async def run() -> None:
        runner = web.ServerRunner(web.Server(answer), access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        port.send(runner.addresses[0][1])
        await asyncio.Event().wait()

    asyncio.run(run())


async def least(step: Callable[[], Awaitable[object]]) -> float:
    """CPU milliseconds of one step: the least of several rounds."""
    await step()
    rounds = []
    for _ in range(ROUNDS):
        began = time.process_time()
        for _ in range(READS):
            await step()
        rounds.append((time.process_time() - began) / READS * 1000)
    return min(rounds)


def watch(url: str, client: aiohttp.ClientSession, board: Board) -> Watch:
    """The watch that the exporter would make of this URL."""
    target = Proxy(url=url, name=url.rsplit("/", 1)[1], timeout="30s")
    return assemble(Config(), target, client, board, None)


async def measure(port: int) -> dict[str, float]:
    """The figures by name."""
    body = CAPTURE.read_text()
    figures = {}
    board = Board()
    async with session() as client:
        same, tenth = (watch(f"http://127.0.0.1:{port}/{way}", client, board) for way in ("same", "tenth"))
        began = time.process_time()
        await same.read()
        figures["first read"] = (time.process_time() - began) * 1000
        figures["read, unchanged"] = await least(same.read)
        figures["read, a tenth of the lines changed"] = await least(tenth.read)

        async def render() -> None:
            board.refresh()
            board.page(Format.TEXT)

        board.drop("tenth")
        figures["render"] = await least(render)

        async def peer() -> None:
            for family in text_string_to_metric_families(body):
                for _ in family.samples:
                    pass

        figures["prometheus-client: parse the same body"] = await least(peer)
    return figures


def main() -> None:
    """Print the table."""
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    server = context.Process(target=serve, args=(theirs,), daemon=True)
    server.start()
    try:
        figures = asyncio.run(measure(ours.recv()))
    finally:
        server.terminate()
    samples = len(re.findall(rb"^[^#\n]", CAPTURE.read_bytes(), re.MULTILINE))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    peer = figures["prometheus-client: parse the same body"]
    print(f"{samples} samples, {CAPTURE.stat().st_size / 1e6:.2f} MB; CPU ms, least of {ROUNDS} rounds of {READS}\n")
    print("| | CPU ms | to prometheus-client's parser |\n| --- | --- | --- |")
    for name, milliseconds in figures.items():
        print(f"| {name} | {milliseconds:.2f} | {milliseconds / peer:.3f} |")
    print(f"\nresident memory of this process at most: {memory:.0f} MB")


if __name__ == "__main__":
    main()
