"""Fetching from upstreams: bounded in time and size, never redirected, every failure with its reason.

An upstream may be hung, hostile or run by a stranger. Its answer is taken in slices as it arrives and never held
whole; compressed answers are bounded after decompression; a redirect is a failure, because a key could travel with it.
"""

from __future__ import annotations

import asyncio
import json
import zlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode, urlsplit

import aiohttp

from exporter.core.errors import ReadError

SLICE = 64 << 10
"""Bytes of a body that are worked on before other tasks get their turn."""
JSON_LIMIT = 32 << 20
"""Bytes of a JSON answer at most."""


def session() -> aiohttp.ClientSession:
    """The one client of the exporter: connections are kept, cookies and environment proxies are not."""
    return aiohttp.ClientSession(
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None),
        headers={"User-Agent": "llm-exporter", "Accept-Encoding": "identity"},
        max_line_size=32 << 10,
        max_field_size=32 << 10,
    )


@dataclass(frozen=True, slots=True)
class Answer:
    """The head of an answer, and its body as it arrives."""

    url: str
    status: int
    content_type: str
    _response: aiohttp.ClientResponse

    @property
    def openmetrics(self) -> bool:
        return self.content_type.startswith("application/openmetrics-text")

    async def slices(self) -> AsyncIterator[bytes]:
        """The body in slices of at most SLICE bytes, decompressed."""
        encoding = self._response.headers.get("Content-Encoding", "identity").lower()
        if encoding not in ("identity", "gzip", "deflate"):
            raise ReadError("content", f"{self.url} answers in {encoding!r}, which was not asked for")
        unpack = zlib.decompressobj(wbits=47) if encoding != "identity" else None
        async for chunk in self._response.content.iter_any():
            if unpack is None:
                for start in range(0, len(chunk), SLICE):
                    yield chunk[start : start + SLICE]
                    await asyncio.sleep(0)
                continue
            rest = chunk
            while rest and not unpack.eof:
                try:
                    piece = unpack.decompress(rest, SLICE)
                except zlib.error as error:
                    raise ReadError("malformed", f"{self.url} answers with broken {encoding}: {error}") from None
                rest = unpack.unconsumed_tail
                if piece:
                    yield piece
                    await asyncio.sleep(0)
        if unpack is not None and not unpack.eof:
            raise ReadError("truncated", f"{self.url}: the compressed body was cut on its way")

    async def json(self) -> Any:
        """The body as JSON, of JSON_LIMIT bytes at most."""
        body = bytearray()
        async for piece in self.slices():
            body += piece
            if len(body) > JSON_LIMIT:
                raise ReadError("too_large", f"{self.url} answers with more than {JSON_LIMIT} bytes of JSON")
        try:
            return json.loads(body)
        except (ValueError, RecursionError):
            raise ReadError("content", f"{self.url} answers with something that is not JSON") from None


class Upstream:
    """One target's way to its upstream. `key` gives the bearer token anew for each request, or None.

    The key goes to the target's own host alone, also where an endpoint is a URL of its own.
    """

    def __init__(self, client: aiohttp.ClientSession, url: str, key: Callable[[], str | None] = lambda: None) -> None:
        self._client = client
        self.url = url
        self._key = key

    def at(self, endpoint: str) -> str:
        """The URL of an endpoint: a path beneath the target's URL, or a URL of its own."""
        return endpoint if "://" in endpoint else f"{self.url}/{endpoint.lstrip('/')}"

    @asynccontextmanager
    async def get(self, endpoint: str, query: Sequence[tuple[str, str]] = ()) -> AsyncIterator[Answer]:
        """Ask, and give the answer whatever its status. Raises ReadError (connect, truncated, content)."""
        url = self.at(endpoint)
        sent = {}
        if urlsplit(url).hostname == urlsplit(self.url).hostname and (key := self._key()) is not None:
            sent["Authorization"] = f"Bearer {key}"
        asked = f"{url}?{urlencode(query)}" if query else url
        try:
            async with self._client.get(asked, headers=sent, allow_redirects=False) as response:
                yield Answer(url, response.status, response.headers.get("Content-Type", ""), response)
        except aiohttp.ClientConnectorCertificateError as error:
            raise ReadError("connect", f"{url}: its TLS certificate is refused: {error.certificate_error}") from None
        except aiohttp.ClientConnectorError as error:
            raise ReadError("connect", f"{_place(url)}: {_plain(error)}") from None
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientPayloadError, aiohttp.ClientOSError) as error:
            raise ReadError("truncated", f"{url}: the connection broke: {_plain(error)}") from None
        except aiohttp.ClientError as error:
            raise ReadError("content", f"{url} does not answer in HTTP: {_plain(error)}") from None

    async def status(self, endpoint: str) -> int:
        """The status of an endpoint; the body is read and thrown away. Raises ReadError."""
        async with self.get(endpoint) as answer:
            size = 0
            async for piece in answer.slices():
                size += len(piece)
                if size > JSON_LIMIT:
                    raise ReadError("too_large", f"{answer.url} answers with more than {JSON_LIMIT} bytes")
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


def _place(url: str) -> str:
    return f"{urlsplit(url).hostname}:{urlsplit(url).port or (443 if url.startswith('https') else 80)}"


def _plain(error: Exception) -> str:
    """What went wrong in few words, without the exception's own decoration."""
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return "the name does not resolve"
    if isinstance(error, aiohttp.ClientConnectorError) and isinstance(error.os_error, ConnectionRefusedError):
        return "nothing listens there"
    return str(error) or type(error).__name__
