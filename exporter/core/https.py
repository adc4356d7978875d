"""HTTP over TLS, by aiohttp: beneath the same interface as `exporter.core.http`, loaded where a target needs it."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiohttp
from yarl import URL

from exporter.core.errors import ReadError
from exporter.core.http import Take, taken, unreachable


@dataclass(frozen=True, slots=True)
class Response:
    """An answer whose head is there."""

    status: int
    content_type: str
    content_encoding: str
    _content: aiohttp.StreamReader

    async def into(self, take: Take, most: int) -> None:
        while chunk := await self.read():
            for start in range(0, len(chunk), most):
                await taken(take, chunk[start : start + most])
                await asyncio.sleep(0)

    async def read(self) -> bytes:
        return await self._content.readany()


class Session:
    """aiohttp's client: connections are kept, cookies and environment proxies are not."""

    def __init__(self) -> None:
        self._client = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),  # targets that hang keep no others waiting
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None),
            max_line_size=32 << 10,
            max_field_size=32 << 10,
        )

    @asynccontextmanager
    async def ask(
        self, asked: URL, headers: Mapping[str, str], body: bytes | None, url: str, trusted: ssl.SSLContext | None
    ) -> AsyncIterator[Response]:
        """Ask by GET, or by POST where there is a body; `url` is for messages. Raises ReadError.

        A connection that was made under other files of `tls` is not used again.
        """
        method = "GET" if body is None else "POST"
        try:
            async with self._client.request(
                method, asked, headers=headers, data=body, allow_redirects=False, ssl=trusted or True
            ) as answer:
                kind, encoding = (answer.headers.get(name, "") for name in ("Content-Type", "Content-Encoding"))
                yield Response(answer.status, kind, encoding, answer.content)
        except aiohttp.ClientConnectorCertificateError as error:
            raise ReadError("connect", f"{url}: its TLS certificate is refused: {error.certificate_error}") from None
        except aiohttp.ClientConnectorError as error:
            why = socket.gaierror() if isinstance(error, aiohttp.ClientConnectorDNSError) else error.os_error
            raise unreachable(asked.raw_host or "", asked.port or 443, why) from None
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientPayloadError, aiohttp.ClientOSError) as error:
            raise ReadError("truncated", f"{url}: the connection broke: {_plain(error)}") from None
        except aiohttp.ClientError as error:
            raise ReadError("content", f"{url} does not answer in HTTP: {_plain(error)}") from None

    async def close(self) -> None:
        await self._client.close()


def _plain(error: Exception) -> str:
    return str(error) or type(error).__name__
