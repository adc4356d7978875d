"""TCP connections for protocols of a source's own, in plain or over TLS, every failure with its reason."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from exporter.config.model import Tls
from exporter.core.errors import ReadError
from exporter.core.http import unreachable

NO_CHECK_TIME = ssl.VerifyFlags(0x200000)
"""OpenSSL's X509_V_FLAG_NO_CHECK_TIME, which Python does not name: all is checked but whether it has expired."""


class Trust:
    """What is trusted over TLS, and who we are there: made when it is first asked for, and anew when a file changed.

    With `expired` also what has expired is trusted.
    """

    def __init__(self, tls: Tls | None, *, expired: bool = False) -> None:
        self._tls = tls
        self._expired = expired
        self._seen: list[tuple[int, ...]] = []
        self._context: ssl.SSLContext | None = None

    def __call__(self) -> ssl.SSLContext:
        """Raises ReadError where a file cannot be used."""
        try:
            told = [Path(file).stat() for file in (self._tls.files if self._tls is not None else ())]
            seen: list[tuple[int, ...]] = [(file.st_mtime_ns, file.st_size, file.st_ino) for file in told]
            if self._context is None or seen != self._seen:
                context = ssl.create_default_context() if self._tls is None else self._tls.context()
                if self._expired:
                    context.verify_flags |= NO_CHECK_TIME
                self._seen, self._context = seen, context
        except OSError as error:
            raise ReadError("connect", f"the files of tls cannot be used: {error}") from None
        return self._context


@asynccontextmanager
async def connected(
    host: str, port: int, trusted: ssl.SSLContext | None
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection, over TLS where it says what is `trusted`. Raises ReadError (connect, truncated)."""
    try:
        reader, writer = await asyncio.open_connection(host, port, ssl=trusted)
    except ssl.SSLCertVerificationError as error:
        why = f"its TLS certificate is refused: {error.verify_message}"
        raise ReadError("connect", f"{host}:{port}: {why}") from None
    except (OSError, UnicodeError) as error:  # a name of parts that are too long is no Unicode
        raise unreachable(host, port, error) from None
    try:
        yield reader, writer
    except (OSError, EOFError) as error:
        raise ReadError("truncated", f"{host}:{port}: the connection broke: {error}") from None
    finally:
        writer.transport.abort()


async def certificate_expiry(host: str, port: int, trusted: ssl.SSLContext) -> float:
    """When the certificate that is shown there expires, in Unix seconds. Raises ReadError where it is not trusted."""
    async with connected(host, port, trusted) as (_, writer):
        return float(ssl.cert_time_to_seconds(writer.get_extra_info("peercert")["notAfter"]))
