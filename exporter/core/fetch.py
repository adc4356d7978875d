"""Fetching from upstreams: bounded in time and size, never redirected, every failure with its reason.

An upstream may be hung, hostile or run by a stranger. Its answer is given on in pieces as it arrives and never held
whole; compressed answers are bounded after decompression; a redirect is a failure, because a key could travel with it.
"""

from __future__ import annotations

import asyncio
import json
import re
import zlib
from base64 import b64encode
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlencode

from yarl import URL

from exporter.core.errors import ReadError
from exporter.core.http import SLICE, Pool, Take, taken

if TYPE_CHECKING:
    from ssl import SSLContext

    from exporter.core.https import Session

JSON_LIMIT = 32 << 20
"""Bytes of a JSON answer at most, and of a line of a stream."""

GLANCE = 1 << 20
"""Bytes of an answer that is looked at to tell what it is: enough for the metrics of an engine with many ranks."""


class Response(Protocol):
    """An answer of either way there: `exporter.core.http` in plain, `exporter.core.https` over TLS."""

    @property
    def status(self) -> int: ...
    @property
    def content_type(self) -> str: ...
    @property
    def content_encoding(self) -> str: ...

    async def into(self, take: Take, most: int) -> None:
        """Give `take` the body piece by piece as it arrives; what it raises is raised here and ends the answer."""

    async def read(self) -> bytes:
        """The next piece, nothing at the end; no more arrives than is read."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A URL that is asked for."""

    url: URL
    place: tuple[str, int]  # host and port
    shown: str  # for messages: without user, password and query
    head: bytes  # the request line without its method, and the host
    login: str | None  # what the URL's user and password make of `Authorization`
    local: bool  # on this machine


@lru_cache(1024)
def _asked(url: str, query: tuple[tuple[str, str], ...]) -> Asked:
    """Raises ReadError where it is no URL. What is not ASCII is written percent-encoded, a name in its ASCII form."""
    if re.search(r"[\x00-\x20\x7f-\xa0]", url):
        raise ReadError("connect", "a URL with spaces or control characters (write them percent-encoded)")
    try:
        full = URL(f"{url}{'&' if '?' in url else '?'}{urlencode(query)}" if query else url)
        host, port, login = full.raw_host, full.port, None
        (host or "").encode("idna")  # as the resolver will: no part of a name may be too long
        if full.user is not None:
            login = "Basic " + b64encode(f"{full.user}:{full.password or ''}".encode()).decode()
    except ValueError:
        host = port = login = None
    if not host or not port or full.scheme not in ("http", "https"):
        raise ReadError("connect", "not an http or https URL (write http://host:port/path)")
    full = full.with_user(None).with_fragment(None)
    line = f"{full.raw_path_qs} HTTP/1.1\r\nHost: {full.host_port_subcomponent}\r\n".encode("ascii")
    local = host in ("localhost", "::1") or re.fullmatch(r"127(\.[0-9]+){3}", host) is not None
    return Asked(full, (host, port), str(full.with_query(None)), line, login, local)


class Client:
    """The one client of the exporter: connections are kept, cookies and environment proxies are not."""

    def __init__(self) -> None:
        self._plain = Pool()
        self._tls: Session | None = None

    def ask(
        self, asked: Asked, headers: Mapping[str, str], body: bytes | None, trusted: SSLContext | None
    ) -> AbstractAsyncContextManager[Response]:
        """Ask by GET, or by POST where there is a body. Raises ReadError (connect, truncated, content).

        `trusted` is for TLS: what is trusted, and who we are; None for what the machine trusts.
        """
        if asked.url.scheme == "http":
            method = b"GET " if body is None else b"POST "
            lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
            request = b"%b%b%b\r\n%b" % (method, asked.head, lines.encode("ascii"), body or b"")
            return self._plain.get(asked.place, request, asked.shown)
        if self._tls is None:
            from exporter.core.https import Session

            self._tls = Session()
        return self._tls.ask(asked.url, headers, body, asked.shown, trusted)

    async def close(self) -> None:
        self._plain.close()
        if self._tls is not None:
            await self._tls.close()
        await asyncio.sleep(0)  # in which the connections end


@asynccontextmanager
async def session() -> AsyncIterator[Client]:
    """The client, closed at the end."""
    client = Client()
    try:
        yield client
    finally:
        await client.close()


@dataclass(frozen=True, slots=True)
class Answer:
    """The head of an answer, and its body as it arrives."""

    url: str
    status: int
    content_type: str
    _response: Response

    @property
    def openmetrics(self) -> bool:
        return self.content_type.startswith("application/openmetrics-text")

    async def into(self, take: Take, most: int = SLICE) -> None:
        """Give `take` the body piece by piece, of `most` bytes at most, decompressed, as it arrives.

        Raises ReadError (truncated, content, malformed), and what `take` raises, which ends the answer.
        """
        encoding = self._response.content_encoding.lower() or "identity"
        if encoding not in ("identity", "gzip", "deflate"):
            raise ReadError("content", f"{self.url} answers in {encoding!r}, which was not asked for")
        if encoding == "identity":
            await self._response.into(take, most)
            return
        unpack = zlib.decompressobj(wbits=47)
        while rest := await self._response.read():
            while rest:
                if unpack.eof:
                    unpack = zlib.decompressobj(wbits=47)  # gzip may have several members
                try:
                    piece = unpack.decompress(rest, SLICE)
                except zlib.error as error:
                    raise ReadError("malformed", f"{self.url} answers with broken {encoding}: {error}") from None
                rest = unpack.unconsumed_tail or unpack.unused_data
                if piece:
                    await taken(take, piece)
                await asyncio.sleep(0)
        if not unpack.eof:
            raise ReadError("truncated", f"{self.url}: the compressed body was cut on its way")

    async def start(self, limit: int) -> bytes:
        """The whole body where it has `limit` bytes at most, else what it begins with: more bytes than that."""
        body = bytearray()

        def take(piece: bytes) -> None:
            body.extend(piece)
            if len(body) > limit:
                raise _Enough

        with suppress(_Enough):
            await self.into(take)
        return bytes(body)

    async def lines(self) -> AsyncIterator[bytes]:
        """Each line of a stream as it arrives, of JSON_LIMIT bytes at most. Not of compressed answers."""
        rest: list[bytes] = []
        size = 0
        while piece := await self._response.read():
            *whole, last = piece.split(b"\n")
            for line in whole:
                yield b"".join([*rest, line])
                rest, size = [], 0
            rest.append(last)
            size += len(last)
            if size > JSON_LIMIT:
                raise ReadError("too_large", f"{self.url} answers with a line of more than {JSON_LIMIT} bytes")

    async def json(self) -> Any:
        """The body as JSON, of JSON_LIMIT bytes at most."""
        body = await self.start(JSON_LIMIT)
        if len(body) > JSON_LIMIT:
            raise ReadError("too_large", f"{self.url} answers with more than {JSON_LIMIT} bytes of JSON")
        try:
            return json.loads(body)
        except (ValueError, RecursionError):
            raise ReadError("content", f"{self.url} answers with something that is not JSON") from None


class _Enough(Exception):  # noqa: N818 - no error: the rest of a body is not wanted
    """Ends an answer."""


@dataclass(frozen=True, slots=True)
class Glance:
    """What an endpoint answers, as far as it takes to tell what it is: GLANCE bytes of the body at most."""

    status: int
    content_type: str
    start: bytes


class Upstream:
    """One target's way to its upstream. `key` gives the bearer token anew for each request, or None.

    The key goes to the target's own host alone, also where an endpoint is a URL of its own. With `compression` gzip is
    asked for, but not of this machine.
    """

    def __init__(
        self,
        client: Client,
        url: str,
        key: Callable[[], str | None] = lambda: None,
        *,
        compression: bool = False,
        tls: Callable[[], SSLContext | None] = lambda: None,
    ) -> None:
        self._client = client
        self.url = url
        self._key = key
        self._compression = compression
        self._tls = tls
        self._glances: dict[str, Glance | ReadError] = {}

    def at(self, endpoint: str) -> str:
        """The URL of an endpoint: a path beneath the target's URL, or a URL of its own."""
        return endpoint if "://" in endpoint else f"{self.url}/{endpoint.lstrip('/')}"

    def elsewhere(self, url: str) -> Upstream:
        """The same way to another URL, with the same TLS and without the key, which belongs to this one."""
        return Upstream(self._client, url, compression=self._compression, tls=self._tls)

    def get(self, endpoint: str, query: Sequence[tuple[str, str]] = ()) -> AbstractAsyncContextManager[Answer]:
        """Ask, and give the answer whatever its status. Raises ReadError (connect, auth, truncated, content)."""
        return self._ask(endpoint, tuple(query), {}, None)

    def post(
        self, endpoint: str, body: object, headers: Mapping[str, str] | None = None
    ) -> AbstractAsyncContextManager[Answer]:
        """Ask by POST, with a body that is written as JSON, or is JSON. For reads that are made so; else as `get`."""
        written = body if isinstance(body, bytes) else json.dumps(body).encode()
        more = {"Content-Type": "application/json", "Content-Length": str(len(written)), **(headers or {})}
        return self._ask(endpoint, (), more, written)

    @asynccontextmanager
    async def _ask(
        self, endpoint: str, query: tuple[tuple[str, str], ...], headers: Mapping[str, str], body: bytes | None
    ) -> AsyncIterator[Answer]:
        asked = _asked(self.at(endpoint), query)
        encoding = "gzip" if self._compression and not asked.local else "identity"
        sent = {"User-Agent": "llm-exporter", "Accept": "*/*", "Accept-Encoding": encoding}
        if asked.login is not None:
            sent["Authorization"] = asked.login
        elif asked.place[0] == _asked(self.url, ()).place[0] and (key := self._key()) is not None:
            if not re.fullmatch(r"[\x20-\x7e]+", key):
                raise ReadError("auth", f"{asked.shown}: the key has letters that a header cannot carry (see api_key)")
            sent["Authorization"] = f"Bearer {key}"
        trusted = self._tls() if asked.url.scheme == "https" else None
        async with self._client.ask(asked, {**sent, **headers}, body, trusted) as response:
            yield Answer(asked.shown, response.status, response.content_type, response)

    async def glance(self, endpoint: str) -> Glance:
        """What the endpoint answers: asked once, and then known, so that each kind of source may look at it.

        Raises ReadError, each time, where it gave no answer.
        """
        known = self._glances.get(endpoint)
        if known is None:
            shown = _asked(self.at(endpoint), ()).shown
            self._glances[endpoint] = ReadError("timeout", f"{shown} gives no answer")  # if what waits for it gives up
            try:
                async with self.get(endpoint) as answer:
                    known = Glance(answer.status, answer.content_type, await answer.start(GLANCE))
            except ReadError as error:
                known = error
            self._glances[endpoint] = known
        if isinstance(known, ReadError):
            raise ReadError(known.reason, str(known))
        return known

    async def status(self, endpoint: str) -> int:
        """The status of an endpoint; the body is read and thrown away. Raises ReadError."""
        size = 0

        def take(piece: bytes) -> None:
            nonlocal size
            size += len(piece)
            if size > JSON_LIMIT:
                raise ReadError("too_large", f"{answer.url} answers with more than {JSON_LIMIT} bytes")

        async with self.get(endpoint) as answer:
            await answer.into(take)
            return answer.status


def refuse(answer: Answer) -> None:
    """Raises ReadError (auth, redirect, status) unless the answer is a 200."""
    if answer.status == 200:
        return
    if answer.status in (401, 403):
        raise ReadError("auth", f"{answer.url} answers {answer.status}: a key is missing or wrong")
    if 300 <= answer.status < 400:
        raise ReadError("redirect", f"{answer.url} answers {answer.status}: redirects are not followed, write its end")
    raise ReadError("status", f"{answer.url} answers {answer.status}")


def refuse_markup(answer: Answer) -> None:
    """Raises ReadError (content) where the answer says itself that it is no exposition."""
    if answer.content_type.startswith(("text/html", "application/json")):
        raise ReadError("content", f"{answer.url} answers with {answer.content_type}, not with metrics")
