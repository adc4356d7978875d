"""What systemd is told, on a socket as systemd's own."""

import asyncio
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from exporter.notify import Notifier, given_sockets


class Heard:
    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.socket.setblocking(False)
        self.environ = {"NOTIFY_SOCKET": str(path)}

    async def next(self) -> list[str]:
        return (await asyncio.get_running_loop().sock_recv(self.socket, 4096)).decode().split("\n")

    async def until(self, word: str) -> list[str]:
        async with asyncio.timeout(60):
            while word not in (said := await self.next()):
                pass
        return said

    def pending(self) -> list[str]:
        """The words that have been said and not been heard."""
        words: list[str] = []
        while True:
            try:
                words += self.socket.recv(4096).decode().split("\n")
            except BlockingIOError:
                return words


@pytest.fixture
def heard(tmp_path: Path) -> Iterator[Heard]:
    made = Heard(tmp_path / "notify")
    yield made
    made.socket.close()


async def test_it_is_ready_only_when_it_is(heard: Heard) -> None:
    ready = False
    notifier = Notifier(lambda: ready, lambda: "1 of 2 targets are up", heard.environ)
    task = asyncio.create_task(notifier.run())
    before = await heard.until("WATCHDOG=1")
    await asyncio.sleep(0.3)
    assert "READY=1" not in [*before, *heard.pending()]
    ready = True
    assert "STATUS=1 of 2 targets are up" in await heard.until("READY=1")
    await asyncio.sleep(0.3)
    assert "READY=1" not in heard.pending(), "once is enough"
    notifier.stopping()
    assert "STOPPING=1" in heard.pending()
    task.cancel()


async def test_a_reload_is_over_when_it_is_ready_again(heard: Heard) -> None:
    ready = True
    notifier = Notifier(lambda: ready, str, heard.environ)
    notifier.reloading()
    assert heard.pending() == [], "it has not even started"
    task = asyncio.create_task(notifier.run())
    await heard.until("READY=1")
    ready = False
    notifier.reloading()
    began = await heard.next()
    assert began[0] == "RELOADING=1"
    assert began[1].startswith("MONOTONIC_USEC=")
    await asyncio.sleep(0.3)
    assert "READY=1" not in heard.pending()
    ready = True
    await heard.until("READY=1")
    task.cancel()


async def test_the_watchdog_s_time_sets_the_pace_and_a_blocked_loop_is_silent(heard: Heard) -> None:
    environ = {**heard.environ, "WATCHDOG_USEC": "400000", "WATCHDOG_PID": str(os.getpid())}
    task = asyncio.create_task(Notifier(lambda: True, str, environ).run())
    for _ in range(5):
        await heard.until("WATCHDOG=1")
    heard.pending()
    time.sleep(1)  # noqa: ASYNC251 - blocks the loop
    assert heard.pending() == []
    await heard.until("WATCHDOG=1")
    task.cancel()


async def test_another_process_s_watchdog_is_not_ours(heard: Heard) -> None:
    environ = {**heard.environ, "WATCHDOG_USEC": "100000", "WATCHDOG_PID": "1"}
    task = asyncio.create_task(Notifier(lambda: True, str, environ).run())
    await asyncio.sleep(1)
    assert heard.pending().count("WATCHDOG=1") == 1
    task.cancel()


@pytest.mark.parametrize("path", ["", "vsock:2:1234", "/nowhere/at/all"])
async def test_without_a_systemd_nothing_fails(path: str) -> None:
    notifier = Notifier(lambda: True, str, {"NOTIFY_SOCKET": path} if path else {})
    task = asyncio.create_task(notifier.run())
    await asyncio.sleep(0.2)
    notifier.reloading()
    notifier.stopping()
    assert not task.done() or task.exception() is None
    task.cancel()


def test_sockets_given_to_another_process_are_not_ours() -> None:
    assert given_sockets({}) == []
    assert given_sockets({"LISTEN_PID": "1", "LISTEN_FDS": "1"}) == []
