"""The exporter's own connection to a NATS server: its state, how often it came back, how long a round trip takes.

nats-py speaks the protocol; keeping the connection is done here, with a new client for each: nats-py's own reconnecting
keeps the secrets it was given first, and a PONG that comes after its PING was given up ends its reading without a word.
"""

from __future__ import annotations

import asyncio
import logging
import re
import ssl
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from exporter.catalogue import families
from exporter.config.secret import SecretError
from exporter.core.errors import ReadError
from exporter.core.tcp import connected
from exporter.core.types import Sample, SeriesTable

if TYPE_CHECKING:
    from nats.aio.client import Client

    from exporter.sources.nats import Server

CONNECT = 2
"""Seconds that connecting and logging in may take."""
PING = 1
"""Seconds within which a PONG must come."""
PINGS = 20
"""Seconds between nats-py's own pings, which notice a lost connection where reads are rare."""
CLOSE = 1.0
"""Seconds for a connection to end in good order."""
RETRY = 1.0
"""Seconds between a failed attempt and the next."""
REFUSED = 60.0
"""Seconds between two attempts with a login that was refused; a changed one is tried at once."""

# with tracebacks, what its callbacks say as well, or a PONG that comes when its PING was given up
logging.getLogger("nats").setLevel(logging.CRITICAL)

State = Literal["connected", "connecting", "reconnecting", "disconnected"]
Login = dict[str, str]
"""What is logged in with: user and password, token, or creds."""


class Link:
    """One connection, kept for as long as `keep` runs."""

    def __init__(self, config: Server) -> None:
        assert config.server is not None  # noqa: S101 - who calls has looked
        self._config = config
        self.server = config.server
        self.state: State = "connecting"
        self.reconnects = 0
        self.round_trip: float | None = None
        self.failure: ReadError | None = None  # why there is no connection
        self.kept = False
        self._tried = asyncio.Event()  # the first attempt has ended
        self._client: Client | None = None
        self._lost = asyncio.Event()
        self._refused: Login | None = None

    def samples(self, table: SeriesTable) -> Iterator[Sample]:
        """What is known of the connection now."""
        known = families()
        family = known["llm_nats_connection_state"]
        for state in family.closed["state"]:
            yield table(family, [("state", state)]), float(state == self.state)
        yield table(known["llm_nats_reconnects_total"]), float(self.reconnects)
        if self.round_trip is not None:
            yield table(known["llm_nats_round_trip_seconds"]), self.round_trip

    @property
    def wants_login(self) -> bool:
        """Whether the server refuses for want of a login, and none is configured."""
        return self._refused == {}

    # -- keeping it ----------------------------------------------------------------------------------------------

    async def keep(self) -> AsyncIterator[None]:
        """Connect, and connect again whenever the connection is lost. Yields whenever something has changed."""
        self.kept, was_there = True, False
        try:
            while True:
                await self._open()
                self.reconnects += self._client is not None and was_there
                yield
                if self._client is not None:
                    was_there = True
                    await self._lost.wait()
                    await self._close("reconnecting")
                    yield
                await self._wait()
        finally:
            self.kept = False
            await self._close("disconnected")

    @asynccontextmanager
    async def visit(self) -> AsyncIterator[None]:
        """A connection for one read, where nobody keeps one."""
        await self._open()
        try:
            yield
        finally:
            await self._close("disconnected")

    async def ping(self) -> None:
        """Measure a round trip; where no PONG comes, the connection counts as lost."""
        from nats.errors import Error

        await self._tried.wait()
        client, answered = self._client, False
        if client is None:
            return
        began = time.perf_counter()
        try:
            with suppress(Error, OSError):
                await client.flush(timeout=PING)
                answered = client.is_connected
        finally:  # cancelled, too: a PONG that comes later would find nobody
            if self._client is client:
                self.round_trip = time.perf_counter() - began if answered else None
                if not answered:
                    self._lose(ReadError("timeout", f"{self.server} gave no PONG within {PING} s"))

    def _lose(self, why: ReadError) -> None:
        self.failure = self.failure or why
        self._lost.set()

    async def _open(self) -> None:
        """One attempt; afterwards there is a client, or a failure that says why there is none."""
        self._lost.clear()
        self._refused = login = None
        try:
            login = self._login()
            self._client = await self._connected(login)
            self.state, self.failure = "connected", None
        except ReadError as error:
            self.state, self.failure = "disconnected", error
            if error.reason == "auth":
                self._refused = login
        self._tried.set()

    async def _close(self, state: State) -> None:
        client, self._client = self._client, None
        self.round_trip = None
        if client is not None:
            self.state = state
            await _end(client)

    async def _wait(self) -> None:
        """Until the next attempt."""
        until = time.monotonic() + (RETRY if self._refused is None else REFUSED)
        while True:
            await asyncio.sleep(RETRY)
            if time.monotonic() >= until:
                return
            with suppress(ReadError):
                if self._login() != self._refused:
                    return

    # -- one client ----------------------------------------------------------------------------------------------

    async def _connected(self, login: Login) -> Client:
        """A client that is connected and logged in. Raises ReadError (connect, timeout, auth)."""
        from nats.aio.client import Client
        from nats.errors import Error

        client, heard = Client(), list[Exception]()

        async def hear(error: Exception) -> None:
            heard[:] = [error]

        async def closed() -> None:
            if self._client is client:
                self._lose(self._why(client.last_error, login))

        try:
            async with asyncio.timeout(CONNECT):
                await client.connect(
                    self.server,
                    name="llm-exporter",
                    verbose=True,  # the login is answered: without, a PING can cross its refusal and hide it
                    error_cb=hear,
                    closed_cb=closed,
                    allow_reconnect=False,
                    max_reconnect_attempts=1,
                    reconnect_time_wait=0,
                    connect_timeout=CONNECT,
                    ping_interval=PINGS,
                    tls=self._trusted(),
                    **self._given(client, login),
                )
            self._verify(client)
        except BaseException as error:
            await _end(client)
            if not isinstance(error, (Error, OSError, TimeoutError, ValueError, TypeError, AttributeError)):
                raise
            # the last three: what answers is no NATS server, and nats-py trips over it
            raise self._why(heard[-1] if heard else error, login) from None
        return client

    def _given(self, client: Client, login: Login) -> dict[str, Any]:
        """The login as nats-py takes it. Secrets are given once it is certain that nobody else can read them."""

        def guarded(secret: str) -> Callable[[], str]:
            def give() -> str:
                self._verify_tls(client)
                return secret

            return give

        if "creds" not in login:
            return {name: guarded(secret) for name, secret in login.items()}
        from nats.aio.client import RawCredentials

        return {"user_credentials": RawCredentials(login["creds"])}  # they sign, and are not sent

    def _verify(self, client: Client) -> None:
        """Raises ReadError where nats-py takes a connection for good that is not."""
        if not client.is_connected:
            raise ReadError("connect", f"{self.server} ended the connection at the login ({_SEE_TLS})")
        self._verify_tls(client)

    def _verify_tls(self, client: Client) -> None:
        # nats-py begins TLS where the server's first line asks for it, whatever the URL says, and tells nobody
        asked = client._server_info.get("tls_required")  # noqa: SLF001
        if not asked and (self.server.startswith("tls://") or self._config.tls is not None):
            raise ReadError(
                "connect", f"{self.server} does not speak TLS, so no login is sent (write nats://, no tls:)"
            )

    def _trusted(self) -> ssl.SSLContext | None:
        try:
            return None if self._config.tls is None else self._config.tls.context()
        except OSError as error:
            raise ReadError("connect", f"{self.server}: the files of tls cannot be used: {error}") from None

    def _login(self) -> Login:
        """What is logged in with, as it is now. Raises ReadError (auth)."""
        config = self._config
        try:
            if (login := config.login()) is not None:
                return {"user": login[0], "password": login[1]}
            if (token := config.secret_token()) is not None:
                return {"token": token}
        except SecretError as error:
            raise ReadError("auth", f"{self.server}: {error}") from None
        return {} if config.creds_file is None else {"creds": _credentials(config.creds_file)}

    def _why(self, error: BaseException | None, login: Login) -> ReadError:
        """What an error of nats-py means, and what to do."""
        if isinstance(error, ReadError):
            return error
        said = "".join(filter(str.isprintable, str(error or "the connection was lost")))[:200]
        said = said.removeprefix("nats: ").strip("'")
        if isinstance(error, TimeoutError):
            return ReadError("timeout", f"{self.server} did not take a connection within {CONNECT} s")
        if isinstance(error, ssl.SSLError):
            return ReadError("connect", f"{self.server}: TLS failed: {said} ({_SEE_TLS})")
        if re.search("authori[sz]ation|authentication", said, re.IGNORECASE):
            what = "refuses the login" if login else "wants a login"
            return ReadError("auth", f"{self.server} {what} ({_SEE_LOGIN})")
        if isinstance(error, ConnectionRefusedError):
            said = "nothing listens there"
        return ReadError("connect", f"{self.server}: {said}")


_SEE_TLS = "see tls: ca_file, and cert_file where the server wants a certificate"
_SEE_LOGIN = (
    "set user and password_file, token_file or creds_file; or NATS_AUTH_USERNAME and NATS_AUTH_PASSWORD, "
    "NATS_AUTH_TOKEN or NATS_AUTH_CREDENTIALS_FILE"
)


def _credentials(name: str) -> str:
    """What a creds file holds. Raises ReadError (auth) where it is none: nats-py would look for its end for ever."""
    import nkeys  # type: ignore[import-untyped]  # it has none

    try:
        text = Path(name).read_text("ascii")
        lines = [line.strip() for line in text.splitlines()]
        jwt, seed = (lines[lines.index(mark) + 1] for mark in _MARKS)
        nkeys.from_seed(bytearray(seed, "ascii")).wipe()
    except (OSError, ValueError, IndexError, nkeys.NkeysError) as error:
        what = error.strerror if isinstance(error, OSError) else "not a file of credentials"
        raise ReadError("auth", f"{name}: {what} (write the path of a file that `nsc generate creds` made)") from None
    return f"{_MARKS[0]}\n{jwt}\n{_MARKS[1]}\n{seed}\n"


_MARKS = ("-----BEGIN NATS USER JWT-----", "-----BEGIN USER NKEY SEED-----")


async def _end(client: Client) -> None:
    """Close a client, whatever has become of it."""
    from nats.errors import Error

    with suppress(Error, OSError, TimeoutError):
        async with asyncio.timeout(CLOSE):
            await client.close()


async def greets(server: str) -> bool:
    """Whether a NATS server listens there: it speaks first, and says INFO.

    Raises ReadError (connect, truncated, timeout).
    """
    place = urlsplit(server)
    try:
        async with asyncio.timeout(CONNECT), connected(place.hostname or "", place.port or 0, None) as (reader, _):
            return (await reader.read(64)).startswith(b"INFO {")
    except TimeoutError:
        raise ReadError("timeout", f"{server}: nobody spoke within {CONNECT} s") from None
