"""The ports of this machine at which the simulated stack answers over HTTP."""

from __future__ import annotations

import socket
from asyncio import StreamReader, StreamWriter
from collections.abc import Awaitable, Callable
from typing import Protocol

from aiohttp import web

Made = Callable[[], web.Application]
There = Callable[[], bool]
Speaker = Callable[[StreamReader, StreamWriter], Awaitable[None]]


def always(said: object) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    """What answers with the same JSON each time."""

    async def answer(_: web.Request) -> web.StreamResponse:
        return web.json_response(said)

    return answer


class HasPort(Protocol):
    """A part of the stack that answers over HTTP."""

    def application(self) -> web.Application: ...


class Port:
    """Answers while what stands behind it is `there`; else nobody listens, and who was connected is cut off."""

    def __init__(self, made: Made, there: There, listening: socket.socket) -> None:
        self._made, self._there = made, there
        self._number = listening.getsockname()[1]
        self._listening: socket.socket | None = listening
        self._runner: web.AppRunner | None = None

    async def follow(self) -> None:
        """Open or close, where that is due."""
        if self._there() and self._runner is None:
            self._runner = web.AppRunner(self._made(), access_log=None, shutdown_timeout=0.1)
            await self._runner.setup()
            given, self._listening = self._listening, None
            await web.SockSite(self._runner, given or socket.create_server(("127.0.0.1", self._number))).start()
        elif self._runner is not None and not self._there():
            await self.close()

    async def close(self) -> None:
        """Listen no longer."""
        if self._runner is not None:
            runner, self._runner = self._runner, None
            await runner.cleanup()
