"""A dead, hanging, dripping, lying, huge or hostile upstream costs its own target's values, and nothing else."""

import asyncio
import gzip
import shutil
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from exporter.config.model import Config, Tls
from exporter.core.board import Board
from exporter.core.fetch import Asked, Client, Response, Upstream, session
from exporter.core.https import Session
from exporter.core.poll import Watch
from exporter.core.types import Reading
from exporter.demo.certificate import served
from exporter.sources.http import Service
from exporter.sources.litellm import Proxy
from exporter.text.difference import TURN, Difference
from exporter.text.negotiate import Format
from exporter.wiring import assemble

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
GOOD = b"# TYPE litellm_spend_metric_total counter\n" + b'litellm_spend_metric_total{requested_model="m"} 1.5\n'
SENTINEL = b'python_info{version="3"} 1.0\n'


def answer(body: bytes, status: str = "200 OK", **headers: str) -> bytes:
    lines = {"Content-Type": "text/plain", "Content-Length": str(len(body)), "Connection": "close"}
    lines |= {name.replace("_", "-"): value for name, value in headers.items()}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items() if value)
    return f"HTTP/1.1 {status}\r\n{head}\r\n".encode() + body


class Server:
    """Answers all but the metrics as a healthy LiteLLM; the metrics as it is told."""

    def __init__(self) -> None:
        self.metrics: bytes | Serve = answer(GOOD + SENTINEL)
        self.tasks: set[asyncio.Task[None]] = set()

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.tasks.add(task)
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            if not head.startswith(b"GET /metrics/"):
                writer.write(answer(b"{}"))
            elif isinstance(self.metrics, bytes):
                writer.write(self.metrics)
            else:
                await self.metrics(reader, writer)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self.tasks.discard(task)
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()


@asynccontextmanager
async def watched() -> AsyncIterator[tuple[Server, Watch, Board]]:
    server = Server()
    listening = await asyncio.start_server(server.handle, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    board = Board()
    async with session() as client:
        targets = (Proxy(url=url, name=name, timeout="60s") for name in ("bad", "good"))
        watches = [assemble(Config(), target, client, board, None) for target in targets]
        await watches[1].read()
        yield server, watches[0], board
    for task in list(server.tasks):
        task.cancel()
    listening.close()


def lines_of(board: Board, target: str) -> list[bytes]:
    needle = f'target="{target}"'.encode()
    return [line for line in board.page(Format.TEXT).splitlines() if needle in line]


async def hang(_: asyncio.StreamReader, __: asyncio.StreamWriter) -> None:
    await asyncio.sleep(60)


async def drip(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n")
    while True:
        writer.write(b"# a\n")
        await writer.drain()
        await asyncio.sleep(0.05)


async def flood(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n")
    while True:
        writer.write(b"x" * 65536)
        await writer.drain()


async def endless(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n")
    for number in range(10**9):
        writer.write(b"".join(b'a{b="%d"} 1\n' % (number * 5000 + count) for count in range(5000)))
        await writer.drain()


async def reset(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(answer(GOOD)[:-20])
    await writer.drain()
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


BOMB = gzip.compress(b"#" * (64 << 20))
BAD: dict[str, tuple[bytes | Serve, str]] = {
    "hangs": (hang, "timeout"),
    "drips": (drip, "timeout"),
    "never ends a line": (flood, "too_large"),
    "says nothing": (answer(b""), "content"),
    "resets": (reset, "truncated"),
    "closes without an answer": (b"", "truncated"),
    "lies about its length": (answer(GOOD, Content_Length=str(len(GOOD) + 100)), "truncated"),
    "is cut under HTTP/1.0": (answer(GOOD[:-3], Content_Length="").replace(b"HTTP/1.1", b"HTTP/1.0"), "truncated"),
    "answers HTML": (answer(b"<html>sign in</html>\n", Content_Type="text/html"), "content"),
    "answers JSON": (answer(b"{}\n", Content_Type="application/json"), "content"),
    "redirects": (answer(b"", "307 Temporary Redirect", Location="http://127.0.0.1:1/"), "redirect"),
    "wants a key": (answer(b"", "401 Unauthorized"), "auth"),
    "has no metrics": (answer(b"", "404 Not Found"), "status"),
    "fails": (answer(b"", "500 Internal Server Error"), "status"),
    "is malformed": (answer(GOOD + b"litellm{ 1\n"), "malformed"),
    "has a bad number": (answer(GOOD + b"litellm_teams 1_000\n"), "malformed"),
    "is a compressed bomb": (answer(BOMB, Content_Encoding="gzip"), "too_large"),
    "is broken gzip": (answer(b"nonsense", Content_Encoding="gzip"), "malformed"),
    "is cut gzip": (answer(gzip.compress(GOOD)[:-12], Content_Encoding="gzip"), "truncated"),
    "is compressed unasked": (answer(GOOD, Content_Encoding="br"), "content"),
    "speaks no HTTP": (b"SSH-2.0-OpenSSH_9.2\r\n", "content"),
    "has endless headers": (b"HTTP/1.1 200 OK\r\nX: " + b"a" * (1 << 20), "content"),
}


@pytest.fixture(params=["plain", "tls"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Our own protocol, and the client that is used over TLS: here without it, so that it can be misled."""
    if request.param == "tls":

        def ask(
            client: Client, asked: Asked, headers: dict[str, str], body: bytes | None, _: None
        ) -> AbstractAsyncContextManager[Response]:
            client._tls = client._tls or Session()
            return client._tls.ask(asked.url, headers, body, asked.shown, None)

        monkeypatch.setattr(Client, "ask", ask)
    return str(request.param)


@pytest.mark.parametrize("how", BAD)
async def test_an_upstream_that_misbehaves_is_down_with_its_reason_and_back_at_the_next_read(
    how: str, way: str
) -> None:
    bad, reason = BAD[how]
    async with watched() as (server, watch, board):
        good = server.metrics
        assert (await watch.read()).ok
        others = lines_of(board, "good")
        server.metrics = bad
        if reason == "timeout":
            watch._timeout = 1.0
        failed = await watch.read()
        watch._timeout = 60.0
        assert (failed.reason, len(failed.samples)) == (reason, 0)
        assert failed.error
        page = lines_of(board, "bad")
        assert b'llm_target_up{source="litellm",target="bad"} 0.0' in page
        assert f'llm_target_read_failures_total{{source="litellm",target="bad",reason="{reason}"}} 1.0'.encode() in page
        assert not [line for line in page if not line.startswith(b"llm_target_")]
        assert lines_of(board, "good") == others
        server.metrics = good
        again = await watch.read()
        assert again.ok, again.error
        assert lines_of(board, "bad")


async def test_too_many_series_and_too_long_labels_are_left_out_without_growing() -> None:
    many = b"".join(b'litellm_spend_metric_total{requested_model="m%d"} 1\n' % number for number in range(5000))
    long = b'litellm_spend_metric_total{requested_model="' + b"x" * 5000 + b'"} 1\n'
    async with watched() as (server, watch, _):
        server.metrics = answer(many + long + SENTINEL)
        reading: Reading = await watch.read()
    assert reading.ok
    assert watch.health.dropped["limit"] == 1
    assert not [series for series, _ in reading.samples if len(series.prefix) > 1000]


async def test_an_endless_body_ends_at_the_limit(way: str) -> None:
    async with watched() as (server, watch, _):
        watch.reader._limits = type(watch.reader._limits)(body=4 << 20, lines=50_000)  # type: ignore[misc]
        server.metrics = endless
        assert (await watch.read()).reason == "too_large"


async def test_new_lines_without_end_leave_others_their_turn(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = most = 0

    def counted(reader: Difference, *given: Any, **options: Any) -> int:
        nonlocal taken
        taken += 1
        return take_line(reader, *given, **options)

    async def note_the_most_between_two_turns() -> None:
        nonlocal taken, most
        while True:
            most, taken = max(most, taken), 0
            await asyncio.sleep(0)

    take_line = Difference._take_line
    monkeypatch.setattr(Difference, "_take_line", counted)
    async with watched() as (server, watch, _):
        for known in (False, True):
            noting = asyncio.create_task(note_the_most_between_two_turns())
            watch.reader._limits = type(watch.reader._limits)(body=1 << 18)  # type: ignore[misc]
            server.metrics, good = endless, server.metrics
            assert (await watch.read()).reason == "too_large"
            noting.cancel()
            assert 0 < most <= 2 * TURN, known  # a piece that ends, and the next one
            server.metrics = good
            assert (await watch.read()).ok


async def test_many_targets_that_hang_keep_no_other_waiting(way: str) -> None:
    many = asyncio.Event()

    async def hang_all(_: asyncio.StreamReader, __: asyncio.StreamWriter) -> None:
        if len(server.tasks) == 101:  # more than aiohttp has connections where it is not told otherwise
            many.set()
        await asyncio.sleep(60)

    async with watched() as (server, watch, _):
        good, server.metrics = server.metrics, hang_all
        async with asyncio.timeout(30), session() as client, asyncio.TaskGroup() as group:
            upstream = Upstream(client, watch._url)
            hanging = [group.create_task(upstream.status("/metrics/")) for _ in range(101)]
            await many.wait()
            server.metrics = good
            assert (await upstream.status("/metrics/")) == 200
            for task in hanging:
                task.cancel()


async def test_a_dead_upstream_is_told_apart_from_a_slow_one(way: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    async with session() as client:
        watch = assemble(Config(), Proxy(url=url), client, Board(), None)
        reading = await watch.read()
    assert reading.reason == "connect"
    assert "nothing listens there" in reading.error


async def test_a_key_goes_to_its_targets_own_host_alone(way: str) -> None:
    heads: list[bytes] = []

    async def note(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(answer(GOOD + SENTINEL))
        writer.close()

    server = await asyncio.start_server(note, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with session() as client:
        for host, sent in (("127.0.0.1", True), ("localhost", False)):
            target = Proxy(
                url=f"http://127.0.0.1:{port}", api_key="sk-invented", metrics_endpoint=f"http://{host}:{port}/metrics/"
            )
            heads.clear()
            assert (await assemble(Config(), target, client, Board(), None).read()).ok
            asked = next(head for head in heads if head.startswith(b"GET /metrics/"))
            assert (b"sk-invented" in asked) == sent
    server.close()


async def test_a_key_that_is_renewed_in_its_file_is_sent_with_the_next_read(way: str, tmp_path: Path) -> None:
    sent: list[bytes] = []

    async def note(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        sent.extend(line for line in head.split(b"\r\n") if line.startswith(b"Authorization:"))
        writer.write(answer(GOOD + SENTINEL))
        writer.close()

    server = await asyncio.start_server(note, "127.0.0.1", 0)
    url, file = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", tmp_path / "key"
    file.write_text("sk-old")
    async with session() as client:
        watch = assemble(Config(), Proxy(url=url, api_key_file=str(file)), client, Board(), None)
        for key in ("sk-old", "sk-new"):
            file.write_text(key)
            sent.clear()
            assert (await watch.read()).ok
            assert set(sent) == {f"Authorization: Bearer {key}".encode()}
    server.close()


async def test_no_key_is_sent_to_where_a_redirect_points(way: str) -> None:
    asked: list[bytes] = []

    async def elsewhere(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        writer.close()

    other = await asyncio.start_server(elsewhere, "127.0.0.1", 0)
    place = f"http://127.0.0.1:{other.sockets[0].getsockname()[1]}/"
    async with watched() as (server, watch, _):
        server.metrics = answer(b"", "302 Found", Location=place)
        assert (await watch.read()).reason == "redirect"
    other.close()
    assert asked == []


SELF_SIGNED = """\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgxsmp1+TIXuEEMSmO
KY60m3h/1FoNA4L32FqgeWhCkcGhRANCAASjdtOhMFiamDl84HPTZgfHPp6+nbHh
eoE6SCCH07pA/BwCqkDgKuGtR9ffBWaXxJQB3AKOjvSodE1H4JKF+rMn
-----END PRIVATE KEY-----
-----BEGIN CERTIFICATE-----
MIIBmzCCAUGgAwIBAgIUHNYzP4EGV+ADBSZgV2jdIFl7UowwCgYIKoZIzj0EAwIw
FDESMBAGA1UEAwwJbG9jYWxob3N0MCAXDTI2MTEyMTA4MTExM1oYDzIxMjYxMDI4
MDgxMTEzWjAUMRIwEAYDVQQDDAlsb2NhbGhvc3QwWTATBgcqhkjOPQIBBggqhkjO
PQMBBwNCAASjdtOhMFiamDl84HPTZgfHPp6+nbHheoE6SCCH07pA/BwCqkDgKuGt
R9ffBWaXxJQB3AKOjvSodE1H4JKF+rMno28wbTAdBgNVHQ4EFgQUQ3Hel8sDkPMr
F8+ZW+uQzLkrP5swHwYDVR0jBBgwFoAUQ3Hel8sDkPMrF8+ZW+uQzLkrP5swDwYD
VR0TAQH/BAUwAwEB/zAaBgNVHREEEzARgglsb2NhbGhvc3SHBH8AAAEwCgYIKoZI
zj0EAwIDSAAwRQIhAN+o9iDyifSVg9oj0lQwh4OwI1aCDyCP59ClBA2ABPtxAiB7
ge+igQukMp57IPDhqq6xwsqd3pZdXCfdbRJ1uxSCxQ==
-----END CERTIFICATE-----
"""
"""A key made for this test alone, and its certificate for `localhost`, which nobody has signed."""


async def test_over_tls_a_target_is_read_where_its_certificate_is_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pem = tmp_path / "server.pem"
    pem.write_text(SELF_SIGNED)
    serving = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    serving.load_cert_chain(pem)
    server = Server()
    listening = await asyncio.start_server(server.handle, "127.0.0.1", 0, ssl=serving)
    target = Proxy(url=f"https://127.0.0.1:{listening.sockets[0].getsockname()[1]}")
    async with session() as client:
        refused = await assemble(Config(), target, client, Board(), None).read()
        assert refused.reason == "connect"
        assert "its TLS certificate is refused" in refused.error
        trusting = target.model_copy(update={"tls": Tls(ca_file=str(pem))})
        trusted = await assemble(Config(), trusting, client, Board(), None).read()
        assert trusted.ok, trusted.error
    listening.close()


def renew(file: Path, by: Path) -> None:
    """As certificates are renewed: another file takes the name at once."""
    new = file.with_suffix(".new")
    shutil.copy(by, new)
    new.replace(file)


@pytest.mark.parametrize("what", ["https", "tcp"])
async def test_certificates_that_are_renewed_are_used_with_the_next_read(what: str, tmp_path: Path) -> None:
    server, port = Server(), 0
    ca, own, key = (tmp_path / name for name in ("ca.pem", "own.pem", "own.key"))
    ours = Tls(ca_file=str(ca), cert_file=str(own), key_file=str(key))

    @asynccontextmanager
    async def listening(name: str) -> AsyncIterator[int]:
        """With a new certificate that stands for both sides: the server shows it, and wants it of its clients."""
        context = served(tmp_path / f"{name}.pem")
        assert context is not None
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(tmp_path / f"{name}.pem")
        context.maximum_version = ssl.TLSVersion.TLSv1_2  # in which a client's certificate is refused before it asks
        serving = await asyncio.start_server(server.handle, "127.0.0.1", port, ssl=context)
        try:
            yield serving.sockets[0].getsockname()[1]
        finally:
            serving.close()

    async def is_well() -> bool:
        reading = await watch.read()
        probes = [value for series, value in reading.samples if series.family.name == "llm_probe_up"]
        return reading.ok if what == "https" else probes == [1.0]

    async with session() as client:
        async with listening("old") as port:
            for file, by in ((ca, "old.pem"), (own, "old.pem"), (key, "old.key")):
                renew(file, tmp_path / by)
            target = (
                Proxy(url=f"https://127.0.0.1:{port}", tls=ours)
                if what == "https"
                else Service(host="127.0.0.1", port=port, tls=ours)
            )
            watch = assemble(Config(), target, client, Board(), None)
            assert await is_well()
        async with listening("new") as port:
            assert not await is_well()  # who is there is not trusted
            renew(ca, tmp_path / "new.pem")
            assert not await is_well()  # and does not trust us
            renew(own, tmp_path / "new.pem")
            assert not await is_well()  # half of the renewal: no key of this certificate
            renew(key, tmp_path / "new.key")
            assert await is_well()
