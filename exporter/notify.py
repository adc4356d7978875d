"""What systemd is told of the exporter, and the sockets that it gives: sd_notify(3) and sd_listen_fds(3), by hand."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress

FIRST_SOCKET = 3
SOON = 0.1
"""Seconds between two looks whether it is ready now."""
PACE = 10.0
"""Seconds between two words on how it does, where no watchdog sets the pace."""


class Notifier:
    """Tells systemd when the exporter is ready, that its event loop is alive, when it reloads and when it stops.

    `ready` and `status` are asked from within the event loop. Without `$NOTIFY_SOCKET` nothing is told.
    """

    def __init__(
        self, ready: Callable[[], bool], status: Callable[[], str], environ: Mapping[str, str] = os.environ
    ) -> None:
        path = environ.get("NOTIFY_SOCKET", "")
        self._path = path.replace("@", "\0", 1) if path.startswith(("/", "@")) else ""
        self._ready = ready
        self._status = status
        self._awaited = True  # systemd waits to hear that it is ready
        self._wake = asyncio.Event()
        self._pace = PACE
        if environ.get("WATCHDOG_USEC", "").isdecimal() and environ.get("WATCHDOG_PID", _own()) == _own():
            self._pace = min(PACE, int(environ["WATCHDOG_USEC"]) / 2e6)

    async def run(self) -> None:
        """Tell until cancelled. Where the event loop is blocked, the watchdog hears nothing."""
        while self._path:
            words = [f"STATUS={self._status()}", "WATCHDOG=1"]
            if self._awaited and self._ready() and self._tell("READY=1", *words):
                self._awaited = False
            else:
                self._tell(*words)
            with suppress(TimeoutError):
                async with asyncio.timeout(min(SOON, self._pace) if self._awaited else self._pace):
                    await self._wake.wait()
            self._wake.clear()

    def reloading(self) -> None:
        """The configuration is about to be read again; `run` says when all of it is in force."""
        if not self._awaited:
            self._tell("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
            self._awaited = True
            self._wake.set()

    def stopping(self) -> None:
        self._tell("STOPPING=1", "STATUS=stopping")

    def _tell(self, *words: str) -> bool:
        """Whether systemd has heard it."""
        if not self._path:
            return False
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
            try:
                sock.connect(self._path)
                sock.sendall("\n".join(words).encode())
            except OSError:  # a systemd that is busy, or gone, must not hold up the exporter
                return False
        return True


def given_sockets(environ: Mapping[str, str] = os.environ) -> list[socket.socket]:
    """The sockets that systemd listens on for the exporter; none where a socket unit has not started it."""
    if environ.get("LISTEN_PID") != _own():
        return []
    sockets = [socket.socket(fileno=FIRST_SOCKET + number) for number in range(int(environ.get("LISTEN_FDS", "0")))]
    for sock in sockets:
        sock.set_inheritable(False)
    return sockets


def _own() -> str:
    return str(os.getpid())
