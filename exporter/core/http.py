"""HTTP/1.1 over plain connections: one GET at a time, the body handed on as the socket gives it, connections kept.

Own code, because a read through aiohttp costs twice the CPU. The head is one strict regular expression: llhttp (by
`httptools`) would save 2 µs of the 70 that a small request costs, and a body needs no parser.
"""

from __future__ import annotations

import asyncio
import errno
import re
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import cast

from exporter.core.errors import ReadError

Take = Callable[[bytes], bool | None]
"""Takes the next piece of a body; what it raises ends the answer.

Where it answers True it is called again, with nothing, once others had their turn, and until it does not: before that
no more is received.
"""

HEAD = 64 << 10
"""Bytes of a head at most, and of trailers."""
SIZE = 4 << 10
"""Bytes of a chunk's size line at most, with its extensions."""
SLICE, RECEIVE = 64 << 10, 192 << 10
"""Bytes of a body given at once: by default, and at most. Where a piece costs little to take, larger ones cost less in
all: a known body of 7.9 MB is read in 7.5 ms in pieces of 256 KiB, in 10 in those of 64."""
FEW = 4 << 10
"""Bytes of a chunk, on average, beneath which those received together are given together."""
KEPT = 50.0
"""Seconds that a connection is kept idle: what stands between may forget it after a minute, without a word."""
EYEBALLS = 0.25
"""Seconds after which a name's next address is tried beside the one before (RFC 8305)."""

_TEXT = rb"[\t\x20-\x7e\x80-\xff]"
_FIELDS = rb"(?:[!#$%&'*+.^_`|~0-9A-Za-z-]++:" + _TEXT + rb"{0,32768}+\r\n){0,100}+"
_HEAD = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9]{2})(?: " + _TEXT + rb"{0,32768}+)?\r\n(" + _FIELDS + rb")\r\n")
_FIELD = re.compile(rb"([^:\r\n]+):([^\r\n]*)\r\n")
_CLOSE = re.compile(rb"(?i)(?:^|,)[ \t]*close[ \t]*(?:,|$)")
_TRAILERS = re.compile(_FIELDS + rb"\r\n")
_CHUNK = re.compile(rb"\r\n([0-9A-Fa-f]{1,16})(?:[ \t]*;" + _TEXT + rb"{0,2048}+)?\r\n")
"""The end of what stands before (the head, or a chunk), and the size of the next chunk."""


async def taken(take: Take, piece: bytes) -> None:
    """Give a piece, and others their turn for as long as there is more to do with it."""
    while take(piece):
        piece = b""
        await asyncio.sleep(0)


class Connection(asyncio.Protocol):
    """One connection. `ask` waits for the head of an answer, `into` or `read` take its body."""

    def __init__(self) -> None:
        self.status = 0
        self.heard = False  # whether anything came since it was asked
        self.since = 0.0  # when it became idle
        self._transport: asyncio.Transport
        self._url = ""
        self._fields: dict[bytes, bytes] = {}  # the headers by their names in lower case; several alike as a list
        self._parse: Take = self._beyond
        self._received = b""  # begun, but not whole: a head, trailers, a chunk's size
        self._left = 0  # bytes to come of the body, or of the chunk
        self._until_close = False
        self._keep = False
        self._over = True
        self._error: Exception | None = None
        self._ready: list[bytes] = []  # pieces of the body that are not taken yet
        self._take: Take | None = None
        self._waiter: asyncio.Future[None] | None = None

    # -- for the reader ------------------------------------------------------------------------------------------

    async def ask(self, url: str, request: bytes) -> None:
        """Send a request, and wait for the head of its answer. Raises ReadError (truncated, content)."""
        self._url = url
        self.status = 0
        self.heard = self._over = self._until_close = self._keep = False
        self._error = None
        self._received = b""
        self._ready.clear()
        self._parse = self._head
        self._transport.write(request)
        while not (self.status or self._over):
            await self._wait()
        if self._error is not None:
            raise self._error

    async def into(self, take: Take, most: int) -> None:
        """Give `take` each piece as it is received, until the body is whole. Raises ReadError, and what `take` does."""
        self._receive(most)
        if not self._over:
            self._take = take
        while self._ready or not self._over:
            if not self._ready:
                self._transport.resume_reading()
                await self._wait()
                continue
            await taken(take, self._ready[0])
            del self._ready[0]  # not before: what is received meanwhile stands behind it
        if self._error is not None:
            raise self._error

    async def read(self) -> bytes:
        """The next piece; nothing at the end. No more is received than is read. Raises ReadError."""
        while not (self._ready or self._over):
            self._transport.resume_reading()
            await self._wait()
        if self._ready:
            return self._ready.pop(0)
        if self._error is not None:
            raise self._error
        return b""

    @property
    def content_type(self) -> str:
        return self._fields.get(b"content-type", b"").decode("latin-1")

    @property
    def content_encoding(self) -> str:
        return self._fields.get(b"content-encoding", b"").decode("latin-1")

    @property
    def alive(self) -> bool:
        """Whether it can be asked again."""
        return self._keep and self._over and self._error is None and not self._transport.is_closing()

    def close(self) -> None:
        self._transport.abort()

    async def _wait(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    # -- for the loop --------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._receive(SLICE)

    def _receive(self, most: int) -> None:
        self._transport.max_size = most  # type: ignore[attr-defined]  # of asyncio's own selector transport

    def data_received(self, data: bytes) -> None:
        self.heard = True
        try:
            self._parse(data)
        except Exception as error:  # noqa: BLE001 - handed on to who waits, as it is
            self._end(error)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._over:
            return
        if self._until_close and exc is None:
            self._end()
        else:
            told = str(exc or "it was closed before the answer was whole")
            self._end(ReadError("truncated", f"{self._url}: the connection broke: {told}"))

    # -- what is received ----------------------------------------------------------------------------------------

    def _head(self, data: bytes) -> None:
        data = self._received + data
        status = at = 0
        while status < 200:  # 1xx come before the answer itself
            end = data.find(b"\r\n\r\n", at, HEAD) + 4
            if end < 4:
                if len(data) >= HEAD:
                    raise self._no_http("its head is too large")
                if not data.startswith(b"HTTP/1."[: len(data) - at], at):
                    raise self._no_http(f"it begins with {data[at : at + 20]!r}")
                self._received = data[at:]
                return
            status, at = self._understand(data[at:end]), end
        self._received = b"\r\n"  # the head's own end, for the first chunk
        self.status = status
        self._wake()
        if at < len(data) or self._parse == self._sized:
            self._parse(data[at:])

    def _understand(self, head: bytes) -> int:
        """Take a head apart, and give its status. How the body is told is decided here, and where in doubt refused."""
        parts = _HEAD.fullmatch(head)
        if parts is None:
            raise self._no_http("its head is malformed or too large")
        version, status = parts[1], int(parts[2])
        fields = self._fields = {}
        for name, value in _FIELD.findall(parts[3]):
            name, value = name.lower(), value.strip(b" \t")
            fields[name] = fields[name] + b", " + value if name in fields else value
        if status == 101:
            raise self._no_http("it changes to another protocol")
        if status < 200:
            return status
        coding, length = fields.get(b"transfer-encoding"), fields.get(b"content-length")
        self._keep = version == b"1" and not _CLOSE.search(fields.get(b"connection", b""))
        self._left, self._parse = 0, self._sized
        if coding is not None:
            if length is not None or version == b"0" or coding.lower() != b"chunked":
                raise self._no_http("its head leaves open where the body ends")
            self._parse = self._chunked
        elif length is not None:
            if not re.fullmatch(rb"[0-9]{1,18}", length):
                raise self._no_http("its Content-Length is no number")
            self._left = int(length)
        if status in (204, 304):
            self._left, self._parse = 0, self._sized
        elif coding is None and length is None:
            self._until_close, self._keep = True, False
            self._parse = self._give
        return status

    def _sized(self, data: bytes) -> None:
        self._left -= len(data)
        if self._left < 0:
            self._beyond(data)
        if data:
            self._give(data)
        if not self._left:
            self._end()

    def _chunked(self, data: bytes) -> None:
        if len(data) <= self._left:
            self._left -= len(data)
            self._give(data)
            return
        if self._received:
            data, self._received = self._received + data, b""
        pieces, at = [], 0
        while True:
            if self._left and at < len(data):
                pieces.append(data[at : at + self._left])
                at += len(pieces[-1])
                self._left -= len(pieces[-1])
            size = _CHUNK.match(data, at) if not self._left else None
            if size is None:
                break
            at = size.end()
            self._left = int(size[1], 16)
            if not self._left:
                self._parse = self._trailers
                break
        if len(pieces) * FEW > len(data):
            pieces = [b"".join(pieces)]
        for piece in pieces:
            self._give(piece)
        if self._parse == self._trailers:
            self._trailers(data[at:])
        elif not self._left:
            rest = self._received = data[at:]
            if not rest.startswith(b"\r\n"[: len(rest)]) or b"\n" in rest[2:] or len(rest) > SIZE:
                raise self._no_http("a chunk is malformed")

    def _trailers(self, data: bytes) -> None:
        self._received += data
        trailers = _TRAILERS.match(self._received)
        if trailers is not None:
            if trailers.end() < len(self._received):
                self._beyond(data)
            self._end()
        elif b"\r\n\r\n" in self._received or len(self._received) > HEAD:
            raise self._no_http("its trailers are malformed or too large")

    def _beyond(self, _: bytes) -> None:
        raise self._no_http("bytes follow that belong to no answer")

    def _give(self, data: bytes) -> None:
        if self._take is not None and not self._ready:
            if not self._take(data):
                return
            data = b""  # as it wants to be called again
        if self._ready or self._take is not None:
            self._transport.pause_reading()
        self._ready.append(data)
        self._wake()

    def _end(self, error: Exception | None = None) -> None:
        """Nothing more is expected: the body is whole, or there was an error."""
        self._over = True
        self._error = error
        self._take = None
        self._parse = self._beyond
        if error is not None:
            self._transport.abort()
        else:
            self._transport.resume_reading()  # what waits to be taken is whole; more would belong to nothing
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _no_http(self, why: str) -> ReadError:
        return ReadError("content", f"{self._url} does not answer in HTTP: {why}")


class Pool:
    """The connections of the exporter. To one host and port as many are kept as were needed at once."""

    def __init__(self) -> None:
        self._idle: dict[tuple[str, int], list[Connection]] = {}  # those used last stand last, places and connections

    @asynccontextmanager
    async def get(self, place: tuple[str, int], request: bytes, url: str) -> AsyncIterator[Connection]:
        """Send a request; the connection has the status of its answer, and gives the body. `url` is for messages.

        A kept connection that was closed meanwhile is replaced without a word. Raises ReadError.
        """
        connection = self._kept(place)
        try:
            if connection is not None:
                try:
                    await connection.ask(url, request)
                except ReadError:
                    if connection.heard:
                        raise
                    connection = None
            if connection is None:
                connection = await self._connect(*place)
                await connection.ask(url, request)
            yield connection
        finally:
            if connection is not None:
                self._keep(place, connection)

    def close(self) -> None:
        for connections in self._idle.values():
            for connection in connections:
                connection.close()
        self._idle.clear()

    async def _connect(self, host: str, port: int) -> Connection:
        loop = asyncio.get_running_loop()
        delay = None if ":" in host or host[-1].isdigit() else EYEBALLS  # an address stands alone, and costs less so
        try:
            _, made = await loop.create_connection(Connection, host, port, happy_eyeballs_delay=delay)
        except OSError as error:
            raise unreachable(host, port, error) from None
        return made

    def _kept(self, place: tuple[str, int]) -> Connection | None:
        now = asyncio.get_running_loop().time()
        connections = self._idle.pop(place, [])
        while connections:
            connection = connections.pop()
            if connection.alive and now - connection.since < KEPT:
                if connections:
                    self._idle[place] = connections
                return connection
            connection.close()
        return None

    def _keep(self, place: tuple[str, int], connection: Connection) -> None:
        """Keep a connection that may be asked again; close what has been idle for too long, here and elsewhere."""
        if not connection.alive:
            connection.close()
            return
        connection.since = asyncio.get_running_loop().time()
        self._idle[place] = [*self._idle.pop(place, []), connection]
        for known in (place, next(iter(self._idle))):
            if connection.since - self._idle[known][0].since > KEPT:
                self._idle[known].pop(0).close()
                if not self._idle[known]:
                    del self._idle[known]


def unreachable(host: str, port: int, error: Exception) -> ReadError:
    """Why no connection could be made, in few words."""
    why = str(error)
    if isinstance(error, socket.gaierror):
        why = "the name does not resolve"
    elif f"[Errno {errno.ECONNREFUSED}]" in why:  # of several addresses, also one
        why = "nothing listens there"
    return ReadError("connect", f"{host}:{port}: {why}")
