import asyncio
import contextlib
import errno
import gzip
import itertools
import logging
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import aiohttp
import pytest
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter.text.negotiate import Format
from exporter.web import server
from exporter.web.server import AddressTaken, TargetView, application, serve

OPENMETRICS = {"Accept": "application/openmetrics-text;version=1.0.0"}
LOCAL = "127.0.0.1"


def of(name: str, state: str = "up") -> TargetView:
    return TargetView(name, "litellm", "http://127.0.0.1:4000", state, "", 5.0, 0.1, 1.0, 3, None, ())  # type: ignore[arg-type] # any of the three words


@dataclass
class Fake:
    """A view whose answers a test sets."""

    pages: dict[Format, bytes] = field(
        default_factory=lambda: {Format.TEXT: b"up 1.0\n" * 500, Format.OPENMETRICS: b"up 1.0\n# EOF\n"}
    )
    is_ready: bool = True
    seen: Sequence[TargetView] = ()
    problems: str | None = None
    reloads: int = 0

    def page(self, format: Format) -> bytes:  # noqa: A002
        return self.pages[format]

    def ready(self) -> bool:
        return self.is_ready

    def targets(self) -> Sequence[TargetView]:
        return self.seen

    def looked_for(self) -> Sequence[str]:
        return ()

    async def reload(self) -> str | None:
        self.reloads += 1
        return self.problems


def port_of(runner: web.AppRunner) -> int:
    port: int = runner.addresses[0][1]
    return port


Started = Callable[..., Awaitable[int]]


@pytest.fixture
async def start() -> AsyncIterator[Started]:
    """Starts a server over a view and gives its port."""
    runners: list[web.AppRunner] = []

    async def started(view: Fake, *, reload: bool = False) -> int:
        runners.append(await serve(application(view, reload=reload, version="0.1.0"), (LOCAL, 0)))
        return port_of(runners[-1])

    yield started
    for runner in runners:
        await runner.cleanup()


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(auto_decompress=False, skip_auto_headers=["Accept-Encoding"]) as session:
        yield session


async def raw(port: int, request: bytes) -> bytes:
    """All bytes of the answers to what is sent, until the server closes."""
    reader, writer = await asyncio.open_connection(LOCAL, port)
    try:
        writer.write(request)
        return await asyncio.wait_for(reader.read(), 60)
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def test_metrics_come_in_the_format_asked_for(start: Started, client: aiohttp.ClientSession) -> None:
    view = Fake()
    url = f"http://{LOCAL}:{await start(view)}/metrics"
    async with client.get(url) as answer:
        assert answer.status == 200
        assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
        assert answer.headers["Vary"] == "Accept, Accept-Encoding"
        assert answer.headers["Content-Length"] == str(len(view.pages[Format.TEXT]))
        assert await answer.read() == view.pages[Format.TEXT]
    async with client.get(url, headers=OPENMETRICS) as answer:
        assert answer.headers["Content-Type"] == "application/openmetrics-text; version=1.0.0; charset=utf-8"
        assert await answer.read() == view.pages[Format.OPENMETRICS]


async def test_gzip_decodes_to_the_identity_page(start: Started, client: aiohttp.ClientSession) -> None:
    view = Fake()
    url = f"http://{LOCAL}:{await start(view)}/metrics"
    async with client.get(url, headers={"Accept-Encoding": "gzip"}) as answer:
        body = await answer.read()
        assert answer.headers["Content-Encoding"] == "gzip"
        assert answer.headers["Content-Length"] == str(len(body))
        assert len(body) < len(view.pages[Format.TEXT])
        assert gzip.decompress(body) == view.pages[Format.TEXT]


async def test_a_page_is_compressed_once_for_as_long_as_it_stays_the_same(
    start: Started, client: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    compressed: list[bytes] = []

    def counting(page: bytes, level: int, *, mtime: int) -> bytes:
        compressed.append(page)
        return zipped(page, level, mtime=mtime)

    zipped = gzip.compress
    monkeypatch.setattr(gzip, "compress", counting)
    view = Fake()
    url = f"http://{LOCAL}:{await start(view)}/metrics"

    async def scraped(**headers: str) -> bytes:
        async with client.get(url, headers={"Accept-Encoding": "gzip", **headers}) as answer:
            return gzip.decompress(await answer.read())

    first = view.pages[Format.TEXT]
    for _ in range(3):
        assert await scraped() == first
        assert await scraped(**OPENMETRICS) == view.pages[Format.OPENMETRICS]
    view.pages[Format.TEXT] = bytes(bytearray(first))
    assert await scraped() == first
    assert len(compressed) == 2
    view.pages[Format.TEXT] = b"up 0.0\n"
    assert await scraped() == b"up 0.0\n"
    assert len(compressed) == 3


async def test_head_says_what_get_would_and_has_no_body(start: Started) -> None:
    view = Fake()
    port = await start(view)
    for encoding in ("identity", "gzip"):
        request = f"/metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAccept-Encoding: {encoding}\r\n\r\n"
        got, _, body = (await raw(port, f"GET {request}".encode())).partition(b"\r\n\r\n")
        head, _, nothing = (await raw(port, f"HEAD {request}".encode())).partition(b"\r\n\r\n")
        assert body
        assert nothing == b""

        def without_date(headers: bytes) -> list[bytes]:
            return [line for line in headers.split(b"\r\n") if not line.startswith(b"Date:")]

        assert without_date(got) == without_date(head)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"])
async def test_other_methods_are_not_allowed(start: Started, client: aiohttp.ClientSession, method: str) -> None:
    port = await start(Fake())
    for path in ("/metrics", "/", "/-/healthy", "/-/ready"):
        async with client.request(method, f"http://{LOCAL}:{port}{path}") as answer:
            assert answer.status == 405
            assert answer.headers["Allow"] == "GET,HEAD"


async def test_http_1_0_gets_a_whole_page_and_the_end_of_the_connection(start: Started) -> None:
    view = Fake()
    answer = await raw(await start(view), b"GET /metrics HTTP/1.0\r\n\r\n")
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b" 200 OK" in head.splitlines()[0]
    assert body == view.pages[Format.TEXT]


@settings(max_examples=50)
@given(st.binary(max_size=60).map(lambda value: bytes(byte for byte in value if byte >= 32 and byte != 127)))
def test_no_accept_header_breaks_the_page(garbage: bytes) -> None:
    async def scrape() -> bytes:
        runner = await serve(application(Fake(), reload=False, version="0"), (LOCAL, 0))
        try:
            headers = b"Accept: " + garbage + b"\r\nAccept-Encoding: " + garbage
            return await raw(port_of(runner), b"GET /metrics HTTP/1.0\r\n" + headers + b"\r\n\r\n")
        finally:
            await runner.cleanup()

    assert asyncio.run(scrape()).split(b"\r\n", 1)[0].endswith(b" 200 OK")


async def test_an_accept_header_over_several_lines_is_one_list(start: Started) -> None:
    lines = b"Accept: text/plain;q=0.1\r\nAccept: application/openmetrics-text\r\n"
    answer = await raw(await start(Fake()), b"GET /metrics HTTP/1.0\r\n" + lines + b"\r\n")
    assert b"application/openmetrics-text" in answer


async def test_of_fifty_scrapes_at_once_forty_are_served_and_the_rest_are_told_to_come_again(
    start: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    def held(page: bytes, _level: int, *, mtime: int) -> bytes:
        go.wait(60)
        return zipped(page, 1, mtime=mtime)

    go, zipped = threading.Event(), gzip.compress
    monkeypatch.setattr(gzip, "compress", held)
    port = await start(Fake())
    request = b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAccept-Encoding: gzip\r\n\r\n"
    asking = [asyncio.create_task(raw(port, request)) for _ in range(50)]
    refused = [await answer for answer in itertools.islice(asyncio.as_completed(asking), 10)]
    go.set()
    assert all(b" 503 " in answer and b"Retry-After: 1\r\n" in answer for answer in refused)
    assert sum(b" 200 OK" in answer for answer in await asyncio.gather(*asking)) == 40
    assert b" 200 OK" in await raw(port, request)


async def test_who_does_not_read_is_cut_off_and_makes_room(start: Started, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "SCRAPES", 2)
    monkeypatch.setattr(server, "SEND_SECONDS", 2.0)
    view = Fake(pages={Format.TEXT: b"x" * 20_000_000})
    port = await start(view)
    deaf = []
    for _ in range(2):
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect((LOCAL, port))
        sock.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        deaf.append(sock)
    async with asyncio.timeout(60):
        while b" 503 " not in await raw(port, b"GET /metrics HTTP/1.0\r\n\r\n"):
            pass
        assert b" 200 OK" in await raw(port, b"GET /-/healthy HTTP/1.0\r\n\r\n")
        view.pages[Format.TEXT] = b"small 1.0\n"
        while b"small 1.0" not in await raw(port, b"GET /metrics HTTP/1.0\r\n\r\n"):
            pass
    for sock in deaf:
        sock.close()


async def test_a_connection_that_says_nothing_is_closed(start: Started, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "KEEPALIVE_SECONDS", 0.2)
    port = await start(Fake())
    assert await raw(port, b"") == b""
    assert await raw(port, b"GET /metrics HTTP/1.1\r\nX: ") == b""


async def test_healthy_is_always_healthy(start: Started, client: aiohttp.ClientSession) -> None:
    async with client.get(f"http://{LOCAL}:{await start(Fake(is_ready=False))}/-/healthy") as answer:
        assert (answer.status, await answer.text()) == (200, "llm-exporter is healthy.\n")


async def test_ready_says_which_first_reads_it_waits_for(start: Started, client: aiohttp.ClientSession) -> None:
    view = Fake(is_ready=False, seen=[of("a"), of("b", "waiting")])
    url = f"http://{LOCAL}:{await start(view)}/-/ready"
    async with client.get(url) as answer:
        assert answer.status == 503
        assert await answer.text() == "llm-exporter is not ready: the first read of b has not ended yet.\n"
    view.is_ready = True
    async with client.get(url) as answer:
        assert (answer.status, await answer.text()) == (200, "llm-exporter is ready.\n")


async def test_reload_is_refused_with_how_to_switch_it_on(start: Started, client: aiohttp.ClientSession) -> None:
    view = Fake()
    async with client.post(f"http://{LOCAL}:{await start(view)}/-/reload") as answer:
        text = await answer.text()
        assert answer.status == 403
        assert "`reload: true`" in text
        assert "--enable-reload" in text
    assert view.reloads == 0


async def test_reload_answers_with_the_problems_where_it_fails(start: Started, client: aiohttp.ClientSession) -> None:
    view = Fake()
    url = f"http://{LOCAL}:{await start(view, reload=True)}/-/reload"
    async with client.post(url) as answer:
        assert answer.status == 200
    view.problems = "llm.yaml:7: targets.0.timeout: not a duration: '2sec'"
    async with client.post(url) as answer:
        assert answer.status == 500
        assert view.problems in await answer.text()
    for method in ("GET", "HEAD"):
        async with client.request(method, url) as answer:
            assert (answer.status, answer.headers["Allow"]) == (405, "POST")
    assert view.reloads == 2


async def test_a_large_body_is_not_waited_for(start: Started) -> None:
    request = b"POST /-/reload HTTP/1.1\r\nHost: x\r\nContent-Length: 999999999\r\n\r\n"
    assert b" 403 " in await raw(await start(Fake()), request)  # and the connection ends


async def test_a_path_that_is_not_there_names_those_that_are(start: Started, client: aiohttp.ClientSession) -> None:
    port = await start(Fake())
    async with client.get(f"http://{LOCAL}:{port}/metric%3Cscript%3E") as answer:
        text = await answer.text()
        assert answer.status == 404
        assert "script" not in text
        for path in ("/metrics", "/-/healthy", "/-/ready"):
            assert f'href="{path}"' in text


@pytest.mark.parametrize(
    "request_line",
    [
        "GET / HTTP/1.0",
        "GET /metrics HTTP/1.0",
        "GET /nothing HTTP/1.0",
        "POST /metrics HTTP/1.0",
        "POST /-/reload HTTP/1.0",
        "GARBAGE",
        "GET /metrics HTTP/1.1\r\nbad header",
    ],
)
async def test_every_answer_has_the_security_headers_and_no_versions(
    start: Started, request_line: str, caplog: pytest.LogCaptureFixture
) -> None:
    answer = (await raw(await start(Fake()), f"{request_line}\r\n\r\n".encode())).decode()
    assert "Server: llm-exporter\r\n" in answer
    assert "Content-Security-Policy: default-src 'none'; style-src 'sha256-" in answer
    assert "X-Content-Type-Options: nosniff\r\n" in answer
    assert "X-Frame-Options: DENY\r\n" in answer
    assert "Cache-Control: no-store\r\n" in answer
    assert "aiohttp" not in answer
    assert "Python" not in answer
    assert caplog.records == []


async def test_a_defect_of_ours_is_logged_without_the_clients_address(
    start: Started, caplog: pytest.LogCaptureFixture
) -> None:
    answer = await raw(await start(Fake(pages={})), b"GET /metrics HTTP/1.0\r\nAccept: text/html\r\n\r\n")
    assert b" 500 " in answer
    assert b"KeyError" not in answer
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert record.getMessage() == "a request could not be answered"
    assert record.exc_info is not None


async def test_a_taken_port_says_what_to_look_for_and_what_to_write(start: Started) -> None:
    port = await start(Fake())
    with pytest.raises(AddressTaken) as raised:
        await serve(application(Fake(), reload=False, version="0"), (LOCAL, port))
    assert str(raised.value) == (
        f"cannot listen on {LOCAL}:{port}: the port is taken by another process "
        f"(look with: ss -ltnp 'sport = :{port}'); choose another with --listen {LOCAL}:{port + 1}"
    )


async def test_an_address_of_another_machine_says_so() -> None:
    with pytest.raises(AddressTaken, match=r"cannot listen on 192\.0\.2\.1:9400: this machine has no such address"):
        await serve(application(Fake(), reload=False, version="0"), ("192.0.2.1", 9400))


@pytest.mark.parametrize(
    ("host", "port", "error", "message"),
    [
        (
            None,
            9400,
            OSError(errno.EADDRINUSE, "taken"),
            (
                "cannot listen on :9400: the port is taken, often by dcgm-exporter, whose default it is too, or by "
                "another llm-exporter (look with: ss -ltnp 'sport = :9400'); choose another with --listen :9401"
            ),
        ),
        (
            "::1",
            65535,
            OSError(errno.EADDRINUSE, "taken"),
            (
                "cannot listen on [::1]:65535: the port is taken by another process "
                "(look with: ss -ltnp 'sport = :65535'); choose another with --listen [::1]:65534"
            ),
        ),
        (
            None,
            80,
            PermissionError(errno.EACCES, "denied"),
            (
                "cannot listen on :80: permission denied; a port below 1024 needs CAP_NET_BIND_SERVICE. "
                "Choose another with --listen :9400"
            ),
        ),
        (
            "10.9.9.9",
            9400,
            OSError("could not bind on any address"),
            (
                "cannot listen on 10.9.9.9:9400: this machine has no such address (look with: ip -brief address); "
                "listen on every address with --listen :9400"
            ),
        ),
        (
            "nohost",
            9400,
            socket.gaierror(-2, "Name or service not known"),
            (
                "cannot listen on nohost:9400: the name 'nohost' does not resolve; "
                "listen on every address with --listen :9400"
            ),
        ),
        (
            None,
            9400,
            OSError(errno.EMFILE, "Too many open files"),
            "cannot listen on :9400: Too many open files",
        ),
    ],
)
def test_each_reason_not_to_listen_has_its_sentence(host: str | None, port: int, error: OSError, message: str) -> None:
    assert server._cannot_listen(host, port, error) == message
