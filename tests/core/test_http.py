"""Plain HTTP by our own protocol: every framing, every fault, connections kept, memory bounded."""

import asyncio
import gzip
import tracemalloc
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.core import fetch, http
from exporter.core.errors import ReadError
from exporter.core.fetch import Client, Upstream, session
from exporter.core.http import SLICE, Connection
from exporter.core.https import Session

Step = bytes | float | None
"""What a server does: send, wait, or close."""


class Server:
    """Answers each request with the next steps, the last ones again and again; notes what was asked."""

    def __init__(self, *answers: list[Step]) -> None:
        self.answers = list(answers)
        self.connections = 0
        self.ended = 0
        self.heads: list[bytes] = []
        self.url = ""
        self.tasks: set[asyncio.Task[Any]] = set()

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.tasks.add(task := asyncio.current_task() or asyncio.Task(asyncio.sleep(0)))
        try:
            while True:
                self.heads.append(await reader.readuntil(b"\r\n\r\n"))
                for step in self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]:
                    if step is None:
                        return
                    if isinstance(step, float):
                        await asyncio.sleep(step)
                    else:
                        writer.write(step)
                        await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            self.ended += 1
        finally:
            self.tasks.discard(task)
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()


@asynccontextmanager
async def serving(*answers: list[Step], host: str = "127.0.0.1") -> AsyncIterator[tuple[Server, Upstream]]:
    server = Server(*answers)
    listening = await asyncio.start_server(server.handle, host, 0)
    server.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    try:
        async with asyncio.timeout(120), session() as client:
            yield server, Upstream(client, server.url)
    finally:
        for task in list(server.tasks):
            task.cancel()
        listening.close()


async def body(upstream: Upstream, endpoint: str = "/metrics") -> bytes:
    pieces: list[bytes] = []
    async with upstream.get(endpoint) as answer:
        await answer.into(pieces.append)
    return b"".join(pieces)


def sized(content: bytes, *lines: bytes) -> bytes:
    head = b"".join(line + b"\r\n" for line in (b"Content-Length: %d" % len(content), *lines))
    return b"HTTP/1.1 200 OK\r\n" + head + b"\r\n" + content


def chunked(*chunks: bytes, extension: bytes = b"", trailers: bytes = b"") -> bytes:
    told = b"".join(b"%x%b\r\n%b\r\n" % (len(chunk), extension, chunk) for chunk in chunks)
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + told + b"0\r\n" + trailers + b"\r\n"


def by_aiohttp(client: Client, asked: fetch.Asked, headers: dict[str, str], body: bytes | None, _: None) -> Any:
    """Stands for `Client.ask`: the way of https, also where it is not asked for."""
    client._tls = client._tls or Session()
    return client._tls.ask(asked.url, headers, body, asked.shown, None)


# -- every framing -----------------------------------------------------------------------------------------------------

FRAMED: dict[str, tuple[bytes, bytes]] = {
    "a length": (sized(b"a 1\n"), b"a 1\n"),
    "a length of nothing": (sized(b""), b""),
    "headers of all kinds": (
        sized(b"a 1\n", b"X-Empty:", b"x-y:\t z \xe4 ", b"Set-Cookie: a", b"Set-Cookie: b"),
        b"a 1\n",
    ),
    "chunks": (chunked(b"a 1\n", b"b", b" 2\n"), b"a 1\nb 2\n"),
    "no chunk but the last": (chunked(), b""),
    "chunks with extensions": (chunked(b"a 1\n", extension=b';a="b"; c'), b"a 1\n"),
    "chunks with trailers": (chunked(b"a 1\n", trailers=b"X-Sum: 1\r\nX: 2\r\n"), b"a 1\n"),
    "chunks with long sizes": (chunked(b"a 1\n").replace(b"\r\n4", b"\r\n0000004"), b"a 1\n"),
    "the connection's end": (b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\na 1\n", b"a 1\n"),
    "the connection's end, HTTP/1.0": (b"HTTP/1.0 200 OK\r\n\r\na 1\n", b"a 1\n"),
    "a status alone": (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
    "a status alone, with a length": (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n", b""),
    "no reason": (sized(b"a 1\n").replace(b" OK", b""), b"a 1\n"),
    "what comes before": (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nLink: x\r\n\r\n" + sized(b"a"), b"a"),
    "gzip": (sized(gzip.compress(b"a 1\n"), b"Content-Encoding: GZIP"), b"a 1\n"),
    "gzip in chunks": (
        chunked(*(bytes([at]) for at in gzip.compress(b"a 1\n"))).replace(
            b"\r\n", b"\r\nContent-Encoding: gzip\r\n", 1
        ),
        b"a 1\n",
    ),
    "gzip of two members": (sized(gzip.compress(b"a 1\n") + gzip.compress(b"b"), b"Content-Encoding: gzip"), b"a 1\nb"),
    "deflate": (sized(zlib.compress(b"a 1\n"), b"Content-Encoding: deflate"), b"a 1\n"),
    "named as it is": (sized(b"a 1\n", b"Content-Encoding: identity"), b"a 1\n"),
}


@pytest.mark.parametrize("pace", ["whole", "byte by byte"])
@pytest.mark.parametrize("how", FRAMED)
async def test_a_body_is_told_by(how: str, pace: str) -> None:
    answer, wanted = FRAMED[how]
    steps: list[Step] = [answer] if pace == "whole" else [step for at in answer for step in (bytes([at]), 0.0)]
    async with serving([*steps, None]) as (_, upstream):
        assert await body(upstream) == wanted
        assert await body(upstream) == wanted


# -- every fault -------------------------------------------------------------------------------------------------------

OK = b"HTTP/1.1 200 OK\r\n"
FAULTS: dict[str, tuple[bytes, str]] = {
    "both a length and chunks": (chunked(b"a").replace(b"\r\n", b"\r\nContent-Length: 1\r\n", 1), "content"),
    "two lengths": (sized(b"a", b"Content-Length: 2"), "content"),
    "one length twice": (sized(b"a", b"Content-Length: 1"), "content"),
    "a negative length": (OK + b"Content-Length: -1\r\n\r\na", "content"),
    "a signed length": (OK + b"Content-Length: +1\r\n\r\na", "content"),
    "an endless length": (OK + b"Content-Length: " + b"9" * 19 + b"\r\n\r\na", "content"),
    "no length": (OK + b"Content-Length:\r\n\r\na", "content"),
    "an unknown coding": (OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", "content"),
    "chunks twice": (OK + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "content"),
    "chunks under HTTP/1.0": (chunked(b"a").replace(b"HTTP/1.1", b"HTTP/1.0"), "content"),
    "a folded header": (sized(b"a", b"X: 1", b" 2"), "content"),
    "a space before the colon": (sized(b"a", b"X : 1"), "content"),
    "a header without a name": (sized(b"a", b": 1"), "content"),
    "a header without a colon": (sized(b"a", b"X"), "content"),
    "a null in a header": (sized(b"a", b"X: \0"), "content"),
    "a bare carriage return": (sized(b"a", b"X: 1\rY: 2"), "content"),
    "bare line feeds": (sized(b"a").replace(b"\r\n", b"\n"), "truncated"),
    "one bare line feed": (sized(b"a", b"X: 1\nY: 2"), "content"),
    "a line too long": (sized(b"a", b"X: " + b"x" * (33 << 10)), "content"),
    "too many headers": (sized(b"a", *(b"X: 1" for _ in range(100))), "content"),
    "a head too large": (sized(b"a", *(b"X: " + b"x" * 1000 for _ in range(70))), "content"),
    "a head without an end": (OK + b"X: " + b"x" * (70 << 10), "content"),
    "another HTTP": (b"HTTP/2 200 OK\r\n\r\n", "content"),
    "a status of two digits": (b"HTTP/1.1 20 OK\r\n\r\n", "content"),
    "another protocol": (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n", "content"),
    "TLS": (b"\x15\x03\x01\x00\x02\x02\x46", "content"),
    "a chunk's size that is no number": (chunked(b"a").replace(b"\r\n1\r\n", b"\r\n0x1\r\n"), "content"),
    "a chunk's size below nothing": (chunked(b"a").replace(b"\r\n1\r\n", b"\r\n-1\r\n"), "content"),
    "a chunk longer than told": (chunked(b"ab").replace(b"\r\n2\r\n", b"\r\n1\r\n"), "content"),
    "a chunk shorter than told": (chunked(b"a").replace(b"\r\n1\r\n", b"\r\n2\r\n"), "content"),
    "chunks apart by line feeds": (chunked(b"a").replace(b"a\r\n", b"a\n"), "content"),
    "an endless extension": (chunked(b"a", extension=b";" + b"x" * (9 << 10)), "content"),
    "endless trailers": (chunked(b"a", trailers=b"X: " + b"x" * (70 << 10)), "content"),
    "malformed trailers": (chunked(b"a", trailers=b"X\r\n"), "content"),
    "bytes beyond a length": (sized(b"a") + b"b", "content"),
    "bytes beyond the chunks": (chunked(b"a") + b"b", "content"),
    "bytes beyond a status alone": (b"HTTP/1.1 204 No Content\r\n\r\nb", "content"),
    "a second answer": (sized(b"a") + sized(b"b"), "content"),
    "nothing": (b"", "truncated"),
    "a cut status": (b"HTTP/1.", "truncated"),
    "a cut head": (sized(b"a")[:-3], "truncated"),
    "a cut body": (sized(b"abc")[:-1], "truncated"),
    "a cut chunk": (chunked(b"abc")[:-9], "truncated"),
    "a cut size": (chunked(b"abc")[:-4], "truncated"),
    "no last chunk": (chunked(b"abc")[:-5], "truncated"),
    "cut trailers": (chunked(b"abc", trailers=b"X: 1\r\n")[:-2], "truncated"),
}
CODED: dict[str, tuple[bytes, str]] = {
    "garbage for gzip": (sized(b"garbage", b"Content-Encoding: gzip"), "malformed"),
    "garbage after gzip": (sized(gzip.compress(b"a") + b"garbage", b"Content-Encoding: gzip"), "malformed"),
    "cut gzip": (sized(gzip.compress(b"a")[:-1], b"Content-Encoding: gzip"), "truncated"),
    "a coding not asked for": (sized(b"a", b"Content-Encoding: br"), "content"),
    "gzip twice": (sized(b"a", b"Content-Encoding: gzip, gzip"), "content"),
}


@pytest.mark.parametrize("how", [*FAULTS, *CODED])
async def test_an_answer_is_refused_with(how: str) -> None:
    answer, reason = FAULTS.get(how) or CODED[how]
    end: list[Step] = [None] if reason == "truncated" else [0.1]
    async with serving([answer, *end], [sized(b"good")]) as (server, upstream):
        with pytest.raises(ReadError) as raised:
            await body(upstream)
        assert raised.value.reason == reason, raised.value
        assert f"{server.url}/metrics" in str(raised.value)
        assert await body(upstream) == b"good"
        assert server.connections == 2 or how in CODED, "what failed is not used again"


async def test_what_a_cut_body_told_is_given() -> None:
    pieces: list[bytes] = []
    for cut in (sized(b"a 1\nb 2\n")[:-2], chunked(b"a 1\n", b"b 2\n")[:-9], sized(b"a 1\nb 2\n" * 9000)[:-2]):
        pieces.clear()
        async with serving([cut, 0.01, None]) as (_, upstream):
            with pytest.raises(ReadError, match="the connection broke"):
                async with upstream.get("/metrics") as answer:
                    await answer.into(pieces.append)
        assert b"".join(pieces).startswith(b"a 1\nb ")


# -- connections -------------------------------------------------------------------------------------------------------


async def test_a_connection_is_kept_over_endpoints_and_framings() -> None:
    answers: list[list[Step]] = [
        [sized(b"a")],
        [chunked(b"b")],
        [b"HTTP/1.1 204 None\r\n\r\n"],
        [sized(b"c" * 300_000)],
    ]
    async with serving(*answers) as (server, upstream):
        assert [await body(upstream, endpoint) for endpoint in ("/a", "b", "/c?d=e")] == [b"a", b"b", b""]
        assert await upstream.status("/probe") == 200
        assert server.connections == 1
        asked = [head.split(b"\r\n")[0] for head in server.heads]
        assert asked == [b"GET /a HTTP/1.1", b"GET /b HTTP/1.1", b"GET /c?d=e HTTP/1.1", b"GET /probe HTTP/1.1"]


@pytest.mark.parametrize("how", ["plain", "chunked", "tls", "gzip"])
@pytest.mark.parametrize("pause", [0.0, 0.05])
async def test_who_takes_a_body_slowly_is_given_no_more_meanwhile_and_the_next_answer_is_whole(
    how: str, pause: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    if how == "tls":
        monkeypatch.setattr(Client, "ask", by_aiohttp)
    parts = [bytes([letter]) * 100_000 for letter in b"abc"]
    whole, turns, given = b"".join(parts), 0, [b""]

    def slowly(piece: bytes) -> bool:
        nonlocal turns
        if piece:
            assert turns == 0, "the piece before is not taken yet"
            given.append(piece)
            turns = 3
        turns -= 1
        return turns > 0

    answer = sized(gzip.compress(whole), b"Content-Encoding: gzip") if how == "gzip" else sized(whole)
    if how == "chunked":
        answer = chunked(*parts)
    async with serving([answer[:150_000], pause, answer[150_000:]]) as (server, upstream):
        for _ in range(3):
            given.clear()
            async with upstream.get("/metrics") as said:
                await said.into(slowly)
            assert (b"".join(given), turns) == (whole, 0)
        assert server.connections == 1


@pytest.mark.parametrize("taken", ["whole", "in pieces"])
async def test_a_connection_whose_answer_came_at_once_in_several_chunks_is_asked_again(taken: str) -> None:
    chunks = [bytes([letter]) * 8192 for letter in b"abc"]
    async with serving([chunked(*chunks)]) as (server, upstream):
        for _ in range(3):
            if taken == "whole":
                assert await body(upstream) == b"".join(chunks)
            else:
                async with upstream.get("/stream") as answer:
                    assert [len(line) async for line in answer.lines()] == []
        assert server.connections == 1


@pytest.mark.parametrize(
    "end", [b"HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\na", sized(b"a", b"Connection: x, Close")]
)
async def test_a_connection_is_not_kept_where_the_answer_says_so(end: bytes) -> None:
    async with serving([end]) as (server, upstream):
        assert [await body(upstream), await body(upstream)] == [b"a", b"a"]
        assert server.connections == 2


@pytest.mark.parametrize("wait", [0.0, 0.05], ids=["at once", "later"])
async def test_a_kept_connection_that_the_server_closed_is_replaced_without_a_word(wait: float) -> None:
    async with serving([sized(b"a"), None]) as (server, upstream):
        assert await body(upstream) == b"a"
        await asyncio.sleep(wait)
        assert await body(upstream) == b"a"
        assert server.connections == 2


async def test_a_kept_connection_that_is_closed_instead_of_an_answer_is_tried_once_more() -> None:
    async with serving([sized(b"a")], [None], [sized(b"b")]) as (server, upstream):
        assert [await body(upstream), await body(upstream)] == [b"a", b"b"]
        assert (server.connections, len(server.heads)) == (2, 3)


async def test_it_is_tried_once_more_only() -> None:
    async with serving([sized(b"a")], [None]) as (server, upstream):
        assert await body(upstream) == b"a"
        with pytest.raises(ReadError, match="the connection broke"):
            await body(upstream)
        assert (server.connections, len(server.heads)) == (2, 3)


async def test_an_answer_that_has_begun_is_not_asked_for_again() -> None:
    async with serving([sized(b"a")], [b"HTTP/1.1 2", None]) as (server, upstream):
        assert await body(upstream) == b"a"
        with pytest.raises(ReadError, match="the connection broke"):
            await body(upstream)
        assert (server.connections, len(server.heads)) == (1, 2)


async def test_a_connection_idle_for_long_is_not_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving([sized(b"a")]) as (server, upstream):
        await body(upstream)
        monkeypatch.setattr(http, "KEPT", 0.0)
        await body(upstream)
        assert server.connections == 2


async def test_of_many_servers_the_longest_idle_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "KEPT", 0.01)
    async with serving([sized(b"a")]) as (one, upstream), serving([sized(b"b")]) as (other, _):
        await body(upstream)
        await asyncio.sleep(0.02)
        assert await body(upstream, f"{other.url}/metrics") == b"b"
        while not one.ended:  # noqa: ASYNC110 - none tells
            await asyncio.sleep(0.01)
        assert other.ended == 0


async def test_bytes_that_nobody_asked_for_are_no_answer_to_the_next_request() -> None:
    async with serving([sized(b"a"), 0.02, sized(b"smuggled"), 0.2], [sized(b"b")]) as (server, upstream):
        assert await body(upstream) == b"a"
        while not server.ended:  # noqa: ASYNC110 - none tells
            await asyncio.sleep(0.01)
        assert await body(upstream) == b"b"
        assert server.connections == 2


async def test_reads_at_the_same_time_have_connections_of_their_own() -> None:
    async with serving([sized(b"a")[:-1], 0.05, b"a"]) as (server, upstream):
        for _ in range(2):
            assert await asyncio.gather(body(upstream), body(upstream), body(upstream)) == [b"a"] * 3
            assert server.connections == 3, "and they are kept"


async def test_a_cancelled_read_closes_its_connection() -> None:
    for steps in ([60.0], [sized(b"a" * 100)[:-1], 60.0]):
        async with serving(steps) as (server, upstream):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await body(upstream)
            server.answers = [[sized(b"b")]]
            assert await body(upstream) == b"b"
            assert server.connections == 2


async def test_a_body_that_is_not_taken_closes_its_connection_unless_it_is_there() -> None:
    async with serving([sized(b"a" * 10**7)], [sized(b"b", b"X: 1")]) as (server, upstream):
        for connections in (1, 2, 2, 2):
            async with upstream.get("/metrics") as answer:
                assert answer.status == 200
                await asyncio.sleep(0.02)
            assert server.connections == connections


@pytest.mark.parametrize("late", [0.0, 0.05])
async def test_what_the_taker_raises_ends_the_read(late: float) -> None:
    def take(_: bytes) -> None:
        raise ZeroDivisionError

    answer = sized(b"a" * 100)
    async with serving([answer[:-50], late, answer[-50:]], [sized(b"good")]) as (server, upstream):
        async with upstream.get("/metrics") as got:
            with pytest.raises(ZeroDivisionError):
                await got.into(take)
        assert await body(upstream) == b"good"
        assert server.connections <= 2


# -- memory and turns --------------------------------------------------------------------------------------------------


async def peak(read: Callable[[], Any]) -> int:
    tracemalloc.start()
    try:
        await read()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


SIZE = 64 << 20
LARGE: dict[str, tuple[bytes, bytes]] = {
    "a length": (OK + b"Content-Length: %d\r\n\r\n" % SIZE, b"x" * (1 << 20)),
    "chunks": (OK + b"Transfer-Encoding: chunked\r\n\r\n", b"100000\r\n" + b"x" * (1 << 20) + b"\r\n"),
    "small chunks": (OK + b"Transfer-Encoding: chunked\r\n\r\n", b"400\r\n%b\r\n" % (b"x" * 1024) * 1024),
}


@pytest.mark.parametrize("how", LARGE)
async def test_a_large_body_takes_little_memory(how: str) -> None:
    head, piece = LARGE[how]
    size = longest = 0

    def take(part: bytes) -> None:
        nonlocal size, longest
        size, longest = size + len(part), max(longest, len(part))

    end = b"" if how == "a length" else b"0\r\n\r\n"
    async with serving([head, *[piece] * 64, end]) as (_, upstream):

        async def read() -> None:
            async with upstream.get("/metrics") as answer:
                await answer.into(take)

        assert await peak(read) < 8 << 20
    assert size == SIZE
    assert longest <= SLICE


async def test_a_body_that_nobody_takes_is_not_received() -> None:
    async with serving([OK + b"\r\n", *[b"x" * (1 << 20)] * 64]) as (_, upstream):

        async def read() -> None:
            async with upstream.get("/metrics"):
                await asyncio.sleep(0.2)

        assert await peak(read) < 8 << 20


async def test_a_compressed_bomb_is_taken_in_slices_and_others_have_their_turn() -> None:
    bomb = gzip.compress(b"#" * SIZE)
    turns = size = longest = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    def take(part: bytes) -> None:
        nonlocal size, longest
        size, longest = size + len(part), max(longest, len(part))

    async with serving([sized(bomb, b"Content-Encoding: gzip")]) as (_, upstream):
        task = asyncio.create_task(others())

        async def read() -> None:
            async with upstream.get("/metrics") as answer:
                await answer.into(take)

        assert await peak(read) < 4 << 20
        task.cancel()
    assert (size, longest) == (SIZE, fetch.SLICE)
    assert turns > SIZE // fetch.SLICE


async def test_json_and_other_small_bodies_have_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "JSON_LIMIT", 10)
    async with serving([sized(b'{"a": 1}')], [sized(b'{"a": "1234"}')], [sized(b"a" * 11)], [sized(b"{")]) as (
        _,
        upstream,
    ):
        async with upstream.get("/") as answer:
            assert await answer.json() == {"a": 1}
        with pytest.raises(ReadError, match="more than 10 bytes of JSON"):
            async with upstream.get("/") as answer:
                await answer.json()
        with pytest.raises(ReadError, match="more than 10 bytes"):
            await upstream.status("/")
        with pytest.raises(ReadError, match="not JSON"):
            async with upstream.get("/") as answer:
                await answer.json()


# -- what is asked -----------------------------------------------------------------------------------------------------

ASKED = [
    "/metrics",
    "",
    "/a b".replace(" ", "%20"),
    "/ü?ö=ä",
    "/a%2Fb/../c%61?q=a%20b+c&d=%zz",
    "http://user:pa%20ss@127.0.0.1:{port}/x",
    "http://127.0.0.1:{port}",
    "http://localhost:{port}/x#y",
]


@pytest.mark.parametrize("query", [(), [("name[]", "a:b"), ("x", "ü &=")]], ids=["plain", "query"])
@pytest.mark.parametrize("endpoint", ASKED)
async def test_the_same_is_asked_as_by_aiohttp(
    endpoint: str, query: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving([sized(b"a")]) as (server, upstream):
        endpoint = endpoint.format(port=server.url.rpartition(":")[2])
        for _ in range(2):
            async with upstream.get(endpoint, query) as answer:
                await answer.into(lambda _: None)
            monkeypatch.setattr(Client, "ask", by_aiohttp)
        ours, theirs = ([line.lower() for line in head.split(b"\r\n")] for head in server.heads)
        assert ours[0] == theirs[0]
        assert sorted(ours) == sorted(theirs)
        assert "pa%20ss" not in answer.url


@pytest.mark.parametrize("way", ["plain", "aiohttp"])
async def test_a_body_is_posted_as_json_and_a_stream_is_read_line_by_line(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [b'{"a": 1}', b"", b"x" * 200_000, b"last, and without its end"]
    told = b"\n".join(lines)
    steps: list[Step] = [b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(told)]
    for start in range(0, len(told), 30_000):
        steps += [told[start : start + 30_000], 0.001]
    if way == "aiohttp":
        monkeypatch.setattr(Client, "ask", by_aiohttp)
    async with serving(steps) as (server, upstream):
        async with upstream.post("/v3/watch", {"ü": [1]}, {"Authorization": "word"}) as answer:
            assert [line async for line in answer.lines()] == lines[:3]
        head = server.heads[0].lower().split(b"\r\n")
        assert head[0] == b"post /v3/watch http/1.1"
        assert {b"content-length: 15", b"content-type: application/json", b"authorization: word"} <= set(head)


async def test_a_line_of_a_stream_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "JSON_LIMIT", 1000)
    long = sized(b"x" * 999 + b"\n" + b"y" * 1001)
    async with serving([long]) as (_, upstream), upstream.post("/", b"{}") as answer:
        with pytest.raises(ReadError, match="a line of more than 1000 bytes"):
            _ = [line async for line in answer.lines()]


async def test_a_key_goes_with_the_request_or_is_refused() -> None:
    key: list[str | None] = ["sk-1 2"]
    async with serving([sized(b"a")]) as (server, upstream):
        keyed = Upstream(upstream._client, server.url, lambda: key[0])
        await body(keyed)
        await body(keyed, server.url.replace("127.0.0.1", "localhost") + "/elsewhere")
        assert [b"authorization: bearer sk-1 2\r\n" in head.lower() for head in server.heads] == [True, False]
        for bad in ("sk\r\nX: 1", "sk-ü", "sk\n", "\t", ""):
            key[0] = bad
            with pytest.raises(ReadError, match="the key") as raised:
                await body(keyed)
            assert raised.value.reason == "auth"
            assert not bad.strip() or bad not in str(raised.value)
        assert len(server.heads) == 2


@pytest.mark.parametrize(
    "url",
    [
        "/a b",
        "/a\r\nX: 1",
        "/\n",
        "/\x7f",
        "http://h:0x1/",
        "http://h:99999/",
        "http:///x",
        "ftp://h/",
        "http://[/",
        f"http://{'x' * 70}.invalid/",
    ],
)
async def test_what_is_no_url_is_refused(url: str) -> None:
    async with serving([sized(b"a")]) as (server, upstream):
        with pytest.raises(ReadError, match="URL") as raised:
            await body(upstream, url)
        assert raised.value.reason == "connect"
        assert server.heads == []


@pytest.mark.parametrize(
    ("host", "compression", "encoding"),
    [
        ("127.0.0.1", True, b"identity"),
        ("localhost", True, b"identity"),
        ("0.0.0.0", False, b"identity"),
        ("0.0.0.0", True, b"gzip"),  # this machine, but not by its name
    ],
)
async def test_gzip_is_asked_for_where_it_is_configured_and_never_of_this_machine(
    host: str, compression: bool, encoding: bytes
) -> None:
    async with serving([sized(b"a")]) as (server, upstream):
        url = server.url.replace("127.0.0.1", host)
        await body(Upstream(upstream._client, url, compression=compression))
        assert b"accept-encoding: " + encoding in server.heads[0].lower()


async def test_an_ipv6_address_is_asked() -> None:
    server = Server([sized(b"a")])
    try:
        listening = await asyncio.start_server(server.handle, "::1", 0)
    except OSError:
        pytest.skip("no IPv6 here")
    port = listening.sockets[0].getsockname()[1]
    async with session() as client:
        assert await body(Upstream(client, f"http://[::1]:{port}")) == b"a"
    assert b"Host: [::1]:%d\r\n" % port in server.heads[0]
    listening.close()


@pytest.mark.parametrize("way", ["ours", "aiohttp"])
async def test_why_nothing_can_be_reached_is_said_in_few_words(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if way == "aiohttp":
        monkeypatch.setattr(Client, "ask", by_aiohttp)
    async with session() as client:
        for url, said in (
            ("http://127.0.0.1:1", "127.0.0.1:1: nothing listens there"),
            ("http://localhost:1", "localhost:1: nothing listens there"),
            ("http://nowhere.invalid", "nowhere.invalid:80: the name does not resolve"),
        ):
            with pytest.raises(ReadError) as raised:
                await Upstream(client, url).status("/")
            assert raised.value.reason == "connect"
            assert str(raised.value).endswith(said)


# -- cut anywhere ------------------------------------------------------------------------------------------------------


class Transport:
    """What a connection does to its socket."""

    def __init__(self) -> None:
        self.closed = False

    def write(self, _: bytes) -> None: ...
    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...

    def is_closing(self) -> bool:
        return self.closed

    def abort(self) -> None:
        self.closed = True


async def received(pieces: list[bytes], waits: bool) -> tuple[int, bytes] | str:
    """What a connection makes of these pieces and the end: status and body, or the reason why not."""
    transport, connection = Transport(), Connection()
    connection.connection_made(transport)  # type: ignore[arg-type]  # as much of a transport as is needed
    got: list[bytes] = []

    async def read() -> None:
        await connection.ask("http://here/", b"")
        await connection.into(got.append, SLICE)

    task = asyncio.create_task(read())
    await asyncio.sleep(0)
    for piece in pieces:
        if not transport.closed:
            connection.data_received(piece)
        if waits:
            await asyncio.sleep(0)
    connection.connection_lost(None)
    [outcome] = await asyncio.gather(task, return_exceptions=True)
    outcome = outcome or connection._error  # which may come later than the body: what follows it is not waited for
    if isinstance(outcome, ReadError):
        assert transport.closed or outcome.reason == "truncated"
        return outcome.reason
    assert outcome is None, outcome
    return connection.status, b"".join(got)


def cut(whole: bytes, at: list[int]) -> list[bytes]:
    places = sorted({place % (len(whole) + 1) for place in at} | {0, len(whole)})
    return [whole[start:end] for start, end in pairwise(places)]


CUTS = st.lists(st.integers(0, 10**6), max_size=30)
CHUNKS = st.lists(st.binary(min_size=1, max_size=300), max_size=12)


@st.composite
def answers(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """An answer and its body."""
    chunks = draw(CHUNKS)
    whole = b"".join(chunks)
    before = draw(
        st.sampled_from([b"", b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Hints\r\nLink: a\r\n\r\n" * 2])
    )
    framed = draw(st.sampled_from(["length", "chunks", "end"]))
    if framed == "length":
        return before + sized(whole, b"X: 1"), whole
    if framed == "chunks":
        extension = draw(st.sampled_from([b"", b";a", b' ; a="b"']))
        trailers = draw(st.sampled_from([b"", b"X: 1\r\n", b"X: 1\r\nY:\r\n"]))
        return before + chunked(*chunks, extension=extension, trailers=trailers), whole
    return before + b"HTTP/1.1 200 OK\r\n\r\n" + whole, whole


@given(answer=answers(), at=CUTS, waits=st.booleans())
def test_an_answer_cut_anywhere_gives_the_same_body(answer: tuple[bytes, bytes], at: list[int], waits: bool) -> None:
    told, whole = answer
    assert asyncio.run(received(cut(told, at), waits)) == (200, whole)


@given(answer=answers(), at=CUTS, place=st.integers(0, 10**6), other=st.binary(max_size=3), length=st.integers(0, 3))
def test_a_damaged_answer_is_taken_or_refused_alike_however_it_is_cut(
    answer: tuple[bytes, bytes], at: list[int], place: int, other: bytes, length: int
) -> None:
    told, _ = answer
    place %= len(told)
    told = told[:place] + other + told[place + length :]
    at_once, in_pieces = (asyncio.run(received(pieces, True)) for pieces in ([told], cut(told, at)))
    if "truncated" in (at_once, in_pieces):  # by chance before it was malformed
        assert {at_once, in_pieces} <= {"content", "truncated"}
    else:
        assert at_once == in_pieces
