"""Chromium by its DevTools protocol: a page at a width and in a colour scheme, and what the browser says of it."""

from __future__ import annotations

import asyncio
import itertools
import json
import shutil
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import stack

HEIGHT = 800
PROGRAMS = ("chromium-headless-shell", "chromium", "google-chrome")
"""The first that is here is taken: one engine, the first without what a window needs."""


def chromium(folder: Path) -> stack.Server:
    """A browser without a window; as root it has no sandbox of its own."""
    port = stack.free_port()
    arguments = [
        next(filter(shutil.which, PROGRAMS), PROGRAMS[0]), "--headless", "--no-sandbox", "--disable-gpu",
        "--disable-dev-shm-usage", "--disable-background-networking", "--no-first-run", "--hide-scrollbars",
        f"--user-data-dir={folder / 'profile'}", f"--remote-debugging-port={port}", "about:blank",
    ]  # fmt: skip
    return stack.Server(arguments, port, folder / "chromium.log", ready="/json/version")


class Tab:
    """A tab of the browser. `complaints` are what its console and its log said since the last `open`."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.complaints: list[str] = []
        self._socket = socket
        self._numbers = itertools.count(1)
        self._loaded = False

    async def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The result of a command; what happens meanwhile is noted."""
        number = next(self._numbers)
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        while (message := await self._next()).get("id") != number:
            pass
        assert "error" not in message, f"{method}: {message['error']}"
        return dict(message["result"])

    async def open(self, url: str, *, width: int, scheme: str) -> None:
        """Load a page as a window of `width` CSS pixels shows it to who prefers the `scheme`, light or dark."""
        self.complaints.clear()
        phone = width < 500
        await self.ask(
            "Emulation.setDeviceMetricsOverride", width=width, height=HEIGHT, deviceScaleFactor=1, mobile=phone
        )
        await self.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self._loaded = False
        await self.ask("Page.navigate", url=url)
        while not self._loaded:
            await self._next()

    async def value(self, expression: str) -> Any:
        """What an expression of JavaScript is worth in the page; its Content-Security-Policy does not bind us."""
        answer = await self.ask("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    async def _next(self) -> dict[str, Any]:
        message: dict[str, Any] = json.loads((await self._socket.receive(timeout=60)).data)
        parameters = message.get("params", {})
        match message.get("method"):
            case "Page.loadEventFired":
                self._loaded = True
            case "Log.entryAdded":
                self.complaints.append(parameters["entry"]["text"])
            case "Runtime.consoleAPICalled" | "Runtime.exceptionThrown" | "Audits.issueAdded":
                self.complaints.append(json.dumps(parameters))
        return message


@asynccontextmanager
async def tab(browser: stack.Server) -> AsyncIterator[Tab]:
    """A tab of its own, closed at the end."""
    request = urllib.request.Request(f"{browser.url}/json/new", method="PUT")
    made = json.loads(await asyncio.to_thread(lambda: urllib.request.urlopen(request, timeout=30).read()))
    async with aiohttp.ClientSession() as client, client.ws_connect(made["webSocketDebuggerUrl"], max_msg_size=0) as ws:
        opened = Tab(ws)
        for domain in ("Page", "Log", "Runtime", "Audits"):
            await opened.ask(f"{domain}.enable")
        yield opened
        await opened.ask("Page.close")
