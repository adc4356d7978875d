"""The server that a benchmark reads: `python tests/bench/upstream.py PORT`, on the loopback interface only.

- `GET /SIZE/PERCENT/INSTANCE/metrics` is the next body of that instance (see bodies.py). An instance begins with its
  first read; after each the next body is made at once, so that making it is not part of the next answer's time.
  What stands before a `~` in INSTANCE decides what the bodies are: `1~a` and `1~b` are two that answer alike.
- `GET /SIZE/PERCENT/INSTANCE/count` is three numbers: bodies read so far, series in one, bytes of the last one.
- `POST /sink` takes what remote write brings, and forgets it.
"""

from __future__ import annotations

import argparse
import asyncio
import zlib

from aiohttp import web
from bodies import SHAPES, Bodies


class Instance:
    """One upstream: its bodies, the next of them ready, and what was read of it."""

    def __init__(self, size: str, percent: float, seed: int) -> None:
        self._bodies = Bodies(size, percent, seed=seed)
        self._next: bytes | None = self._bodies.next()
        self.reads = 0
        self.series = self._bodies.series
        self.bytes = 0

    def take(self) -> bytes:
        """The next body."""
        body = self._next if self._next is not None else self._bodies.next()
        self._next = None
        self.reads += 1
        self.bytes = len(body)
        return body

    def prepare(self) -> None:
        """Make the body after the one that was taken."""
        if self._next is None:
            self._next = self._bodies.next()


class Upstream:
    """All instances, by path."""

    def __init__(self) -> None:
        self._instances: dict[str, Instance] = {}

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.path == "/sink":
            async for _ in request.content.iter_any():
                pass
            return web.Response(status=204)
        path, _, what = request.path.rpartition("/")
        if what == "count" and path in self._instances:
            known = self._instances[path]
            return web.Response(text=f"{known.reads} {known.series} {known.bytes}\n")
        if what == "count" and self._wanted(path):
            return web.Response(text="0 0 0\n")
        if what != "metrics" or not self._wanted(path):
            return web.Response(status=404, text="/SIZE/PERCENT/INSTANCE/metrics, …/count or /sink\n")
        return await self._metrics(request, path)

    @staticmethod
    def _wanted(path: str) -> bool:
        """Whether a path is /SIZE/PERCENT/INSTANCE."""
        parts = path.split("/")
        return len(parts) == 4 and parts[1] in SHAPES and parts[2].replace(".", "", 1).isdigit()

    async def _metrics(self, request: web.BaseRequest, path: str) -> web.StreamResponse:
        instance = self._instances.get(path)
        if instance is None:
            _, size, percent, name = path.split("/")
            instance = self._instances[path] = Instance(
                size, float(percent), zlib.crc32(name.partition("~")[0].encode())
            )
        body = instance.take()
        response = web.StreamResponse(headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})
        response.content_length = len(body)
        if request.transport is not None:
            request.transport.set_write_buffer_limits(high=0)  # write() below is over when the kernel has it all
        await response.prepare(request)
        await response.write(body)
        await response.write_eof()
        asyncio.get_running_loop().call_soon(instance.prepare)
        return response


async def serve(port: int) -> None:
    """Serve until cancelled."""
    runner = web.ServerRunner(web.Server(Upstream().answer, access_log=None))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    await asyncio.Event().wait()


def main() -> None:
    """Serve on the port that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("port", type=int)
    asyncio.run(serve(parser.parse_args().port))


if __name__ == "__main__":
    main()
