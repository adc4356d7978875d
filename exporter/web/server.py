"""The HTTP server: metrics, health, reload and the landing page, bounded so that no client can hold memory."""

from __future__ import annotations

import asyncio
import errno
import gzip
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from socket import gaierror, socket

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from exporter.text.negotiate import Format, accepts_gzip, choose
from exporter.web.landing import POLICY, landing, not_found
from exporter.web.view import TargetView, View

__all__ = ["AddressTaken", "TargetView", "View", "application", "serve"]

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

DEFAULT_PORT = 9400
SCRAPES = 40
"""So many scrapes are in work at once; what comes beyond is asked to come again."""
LANDINGS = 4
SEND_SECONDS = 10.0
"""Prometheus' own default limit for a scrape: who has not read the answer by then is not waiting for it."""
KEEPALIVE_SECONDS = 20.0
"""Longer than the usual scrape interval of 15 s, so that a scraper keeps its connection; also the time for a request's
first line and headers on a new one."""
BODY_BYTES = 1024
"""Nothing here takes a body."""

_GZIP_LEVEL = 3  # 5,000 series: 1.7 ms for a twelfth of the size; level 6 takes 5 ms for a fourteenth
_TEXT = "text/plain; charset=utf-8"
_HEADERS = {
    "Server": "llm-exporter",  # aiohttp would tell its version and Python's
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class AddressTaken(Exception):  # noqa: N818 - the name says what happened; "error" would add nothing
    """The address cannot be listened on; the message says why, where to look and what to write instead."""


def application(view: View, *, reload: bool, version: str) -> web.Application:
    """The whole web room over `view`; `reload` switches POST /-/reload on, `version` is shown to people."""
    app = web.Application(middlewares=[_nothing_here], client_max_size=BODY_BYTES)
    app.on_response_prepare.append(_dress)
    app.router.add_get("/metrics", _bounded(SCRAPES, _Metrics(view)))
    app.router.add_get("/", _bounded(LANDINGS, _landing(view, version)))
    app.router.add_get("/-/healthy", _healthy)
    app.router.add_get("/-/ready", _ready(view))
    app.router.add_post("/-/reload", _bounded(1, _reload(view)) if reload else _no_reload)
    return app


async def serve(app: web.Application, address: tuple[str | None, int], given: Sequence[socket] = ()) -> web.AppRunner:
    """Listen on `address` (host, or None for all; port, or 0 for any free one) until the runner's `cleanup()`.

    Where sockets that listen already are `given`, on these instead. Raises AddressTaken where it cannot.
    """
    log = logging.getLogger(__name__)
    log.addFilter(_nothing_private)
    runner = web.AppRunner(
        app,
        access_log=None,
        logger=log,
        keepalive_timeout=KEEPALIVE_SECONDS,
        lingering_time=1.0,
        shutdown_timeout=2.0,
    )
    await runner.setup()
    assert runner.server is not None  # noqa: S101 - setup() made it
    runner.server.request_factory = partial(_Request, loop=asyncio.get_running_loop(), client_max_size=BODY_BYTES)
    try:
        sites: list[web.BaseSite] = [web.SockSite(runner, one) for one in given]
        for site in sites or [web.TCPSite(runner, *address)]:
            await site.start()
    except OSError as error:
        await runner.cleanup()
        raise AddressTaken(_cannot_listen(*address, error)) from error
    return runner


class _Metrics:
    """GET /metrics. Keeps the compressed page of each format for as long as the page stays the same."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._compressed: dict[Format, tuple[bytes, bytes]] = {}
        self._compressing = asyncio.Lock()

    async def __call__(self, request: web.Request) -> web.Response:
        form = choose(_header(request, "Accept"))
        headers = {"Content-Type": form.content_type, "Vary": "Accept, Accept-Encoding"}
        if accepts_gzip(_header(request, "Accept-Encoding")):
            headers["Content-Encoding"] = "gzip"
            return web.Response(body=await self._gzip(form), headers=headers)
        return web.Response(body=self._view.page(form), headers=headers)

    async def _gzip(self, form: Format) -> bytes:
        async with self._compressing:  # whoever waits here gets the newest page, compressed once for all
            page = self._view.page(form)
            kept, compressed = self._compressed.get(form, (b"", b""))
            if not compressed or kept != page:
                compressed = await asyncio.to_thread(gzip.compress, page, _GZIP_LEVEL, mtime=0)
                self._compressed[form] = page, compressed
            return compressed


def _landing(view: View, version: str) -> Handler:
    async def handle(_: web.Request) -> web.Response:
        body = landing(view.targets(), view.looked_for(), version=version, now=time.time())
        return web.Response(body=body, headers={"Content-Type": "text/html; charset=utf-8"})

    return handle


async def _healthy(_: web.Request) -> web.Response:
    return _say(200, "llm-exporter is healthy.")


def _ready(view: View) -> Handler:
    async def handle(_: web.Request) -> web.Response:
        if view.ready():
            return _say(200, "llm-exporter is ready.")
        waiting = [target.name for target in view.targets() if target.state == "waiting"]
        which = f" of {', '.join(waiting[:5])}{' and others' if len(waiting) > 5 else ''}" if waiting else ""
        return _say(503, f"llm-exporter is not ready: the first read{which} has not ended yet.")

    return handle


def _reload(view: View) -> Handler:
    async def handle(_: web.Request) -> web.Response:
        problems = await view.reload()
        if problems is None:
            return _say(200, "The configuration was read again and is in force.")
        return _say(500, f"The configuration was not taken; the one before stays in force.\n{problems}")

    return handle


async def _no_reload(_: web.Request) -> web.Response:
    return _say(
        403,
        "Reload by HTTP is off. Switch it on with `reload: true` in the configuration or with --enable-reload; "
        "SIGHUP works without it.",
    )


def _say(status: int, text: str) -> web.Response:
    body = f"{text}\n".encode(errors="replace")
    return web.Response(status=status, body=body, headers={"Content-Type": _TEXT})


def _header(request: web.Request, name: str) -> str:
    return ",".join(request.headers.getall(name, ()))  # a list may be spread over several lines


def _bounded(limit: int, handler: Handler) -> Handler:
    """`handler` with at most `limit` requests in work; one is in work until its answer has left for the client.

    A client that does not take its answer within SEND_SECONDS is cut off.
    """
    in_work = 0

    async def handle(request: web.Request) -> web.StreamResponse:
        nonlocal in_work
        if in_work >= limit:
            busy = _say(503, f"{limit} requests for this are in work already; come again.")
            busy.headers["Retry-After"] = "1"
            return busy
        in_work += 1
        try:
            response = await handler(request)
            await _send(request, response)
        finally:
            in_work -= 1
        return response

    return handle


async def _send(request: web.Request, response: web.StreamResponse) -> None:
    """Send the answer here, not after the handler, where nothing would bound it."""
    transport = request.transport
    if transport is None:  # gone meanwhile: aiohttp sees to the rest
        return
    transport.set_write_buffer_limits(high=0)  # so that the write ends when all of it is in the kernel's hands
    try:
        async with asyncio.timeout(SEND_SECONDS):
            await response.prepare(request)
            await response.write_eof()
    except TimeoutError:
        transport.abort()


@web.middleware
async def _nothing_here(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except web.HTTPNotFound:
        return web.Response(status=404, body=not_found(), headers={"Content-Type": "text/html; charset=utf-8"})


async def _dress(_: web.BaseRequest, response: web.StreamResponse) -> None:
    response.headers.update(_HEADERS)


class _Request(web.Request):
    """A request that dresses its answer also where it never reached the application: a malformed one."""

    async def _prepare_hook(self, response: web.StreamResponse) -> None:
        await _dress(self, response)
        await super()._prepare_hook(response)


def _nothing_private(record: logging.LogRecord) -> bool:
    """Keep what strangers send out of the log, and their addresses out of what a defect of ours leaves there."""
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, HttpProcessingError):
        return False
    if record.args:
        record.msg, record.args = "a request could not be answered", ()
    return True


def _cannot_listen(host: str | None, port: int, error: OSError) -> str:
    """The sentence for a failed listen: what, why, and what to write instead."""

    def address(number: int) -> str:
        return f"{f'[{host}]' if host and ':' in host else host or ''}:{number}"

    what = f"cannot listen on {address(port)}"
    if error.errno == errno.EADDRINUSE:
        other = port + 1 if port < 65535 else port - 1
        by = (
            ", often by dcgm-exporter, whose default it is too, or by another llm-exporter"
            if port == DEFAULT_PORT
            else " by another process"
        )
        look = f"look with: ss -ltnp 'sport = :{port}'"
        return f"{what}: the port is taken{by} ({look}); choose another with --listen {address(other)}"
    if error.errno in (errno.EACCES, errno.EPERM):
        return (
            f"{what}: permission denied; a port below 1024 needs CAP_NET_BIND_SERVICE. "
            f"Choose another with --listen {address(DEFAULT_PORT)}"
        )
    everywhere = f"listen on every address with --listen :{port}"
    if isinstance(error, gaierror):
        return f"{what}: the name {host!r} does not resolve; {everywhere}"
    # Newer Pythons pass over an address that is not this machine's, and then say without a number that none was left.
    if error.errno in (errno.EADDRNOTAVAIL, None):
        return f"{what}: this machine has no such address (look with: ip -brief address); {everywhere}"
    return f"{what}: {error.strerror}"
