"""The ports of this machine at which the simulated stack answers over HTTP, and processes that hold them."""

from __future__ import annotations

import socket
import ssl
import subprocess
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


_STANDS = 'echo "$0" 2>/dev/null >/proc/$$/comm; read -r _'
"""Takes a name, where there is such a thing, and waits for the end of its input, which comes with the demo's own."""


class Process:
    """A small process with a server's name, which holds its port and does nothing.

    Of two that hold a socket the machine names the younger: so a GPU's memory is seen to be a server's, as where each
    is a process of its own.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._running: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        return None if self._running is None else self._running.pid

    def start(self, listening: socket.socket) -> None:
        self._running = subprocess.Popen(  # noqa: S603 - a line of ours
            ["/bin/sh", "-c", _STANDS, self.name],
            stdin=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            pass_fds=(listening.fileno(),),
        )

    def end(self) -> None:
        if self._running is not None:
            running, self._running = self._running, None
            running.kill()
            running.communicate()


class Port:
    """Answers while what stands behind it is `there`; else nobody listens, and who was connected is cut off."""

    def __init__(
        self,
        made: Made,
        there: There,
        listening: socket.socket,
        process: Process | None = None,
        secure: ssl.SSLContext | None = None,
    ) -> None:
        self._made, self._there, self._process, self._secure = made, there, process, secure
        self._number = listening.getsockname()[1]
        self._listening: socket.socket | None = listening
        self._runner: web.AppRunner | None = None

    async def follow(self) -> None:
        """Open or close, where that is due."""
        if self._there() and self._runner is None:
            self._runner = web.AppRunner(self._made(), access_log=None, shutdown_timeout=0.1)
            await self._runner.setup()
            given, self._listening = self._listening or socket.create_server(("127.0.0.1", self._number)), None
            if self._process is not None:
                self._process.start(given)
            await web.SockSite(self._runner, given, ssl_context=self._secure).start()
        elif self._runner is not None and not self._there():
            await self.close()

    async def close(self) -> None:
        """Listen no longer."""
        if self._runner is not None:
            if self._process is not None:
                self._process.end()
            runner, self._runner = self._runner, None
            await runner.cleanup()
