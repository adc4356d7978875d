"""TCP connections for protocols of a source's own, in plain or over TLS, every failure with its reason."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from exporter.config.model import Tls
from exporter.core.errors import ReadError
from exporter.core.http import unreachable

NO_CHECK_TIME = ssl.VerifyFlags(0x200000)
"""OpenSSL's X509_V_FLAG_NO_CHECK_TIME, which Python does not name: all is checked but whether it has expired."""


def trust(tls: Tls | None, *, expired: bool = False) -> ssl.SSLContext:
    """What is trusted over TLS; with `expired`, also what has expired. Raises ReadError where a file cannot be used."""
    try:
        context = ssl.create_default_context() if tls is None else tls.context()
    except OSError as error:
        raise ReadError("connect", f"the files of tls cannot be used: {error}") from None
    if expired:
        context.verify_flags |= NO_CHECK_TIME
    return context


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
