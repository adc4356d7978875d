"""NATS: the server's own numbers from its monitoring port, and how a connection to it fares.

A server tells its counters at its monitoring port alone: a client sees its own traffic, and an ordinary account may not
ask for more. Whether clients can connect, and how long an answer takes, is told by a connection of the exporter's own.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, SecretStr, field_validator
from pydantic_core.core_schema import ValidationInfo

from exporter.catalogue import families
from exporter.config.model import PemFile, TargetConfig, host_and_port
from exporter.config.secret import WithPassword, WithToken
from exporter.config.values import Url, shown
from exporter.core.errors import ReadError
from exporter.core.fetch import Upstream
from exporter.core.source import Context, Result
from exporter.core.types import Advice, Sample
from exporter.sources.nats import monitor
from exporter.sources.nats.link import Link, greets

MONITORING_PORT = 8222
DEFAULT_SERVER = "nats://127.0.0.1:4222"
SHARE = 0.8
"""What the monitoring port may take of the time for a read: the rest is for telling how the connection fares."""

NOT_USED = Advice(
    "Dynamo's traffic: it does not use this server, none of its subjects is subscribed here (since 1.0 its requests go "
    "over TCP unless it is told otherwise)",
    "--request-plane nats  # Dynamo's frontends and workers, where it is wanted",
)
NOT_MONITORED = Advice("the server's own numbers", "http_port: 8222  # nats-server; and url: http://HOST:8222 here")


def _server(value: str) -> str:
    """With its port, so that two ways to write one place are one."""
    if not re.fullmatch(r"(nats|tls)://[^\s/@?#]+", value):
        raise ValueError(
            f"not a NATS server: {shown(value)} (write nats://host:4222 or tls://host:4222, without a login)"
        )
    try:
        parts = urlsplit(value)
        port = parts.port
    except ValueError:
        port = 0
    if port == 0 or not parts.hostname:
        raise ValueError(f"not a NATS server: {shown(value)} (write nats://host:4222)")
    return value if port else f"{value}:4222"


class Server(WithPassword, WithToken):
    """A NATS server, by its monitoring port, by the port of its clients, or better by both."""

    usual_interval: ClassVar[float | None] = 2.0

    source: Literal["nats"] = "nats"
    url: Url = Field(default="", description="The monitoring port: `http://host:8222`. May be left out.")
    server: Annotated[str, AfterValidator(_server)] | None = Field(
        default=None,
        validate_default=True,
        description="Where clients connect: `nats://host:4222`, or `tls://host:4222`, which never goes without TLS. "
        "Left out: no connection is made.",
    )
    creds_file: PemFile | None = Field(
        default=None, description="File of credentials, as `nsc` makes them, read again each time."
    )

    @field_validator("url", mode="before")
    @classmethod
    def _monitored(cls, url: object) -> object:
        if isinstance(url, str) and url.startswith(("nats://", "tls://")):
            raise ValueError("the port of clients (write it as server; url is http://host:8222)")
        return url

    @field_validator("server")
    @classmethod
    def _somewhere(cls, server: str | None, info: ValidationInfo) -> str | None:
        if server is None and not info.data.get("url", "?"):
            raise ValueError("neither url nor server (write one of them, or both)")
        return server

    @field_validator("creds_file")
    @classmethod
    def _one_login(cls, creds_file: str | None, info: ValidationInfo) -> str | None:
        other = next((key for key in ("user", "token", "token_file", "token_env") if info.data.get(key)), None)
        if other is not None:
            raise ValueError(f"a second login beside {other} (leave one of them out)")
        return creds_file

    @property
    def target_name(self) -> str:
        """The label `target`: the name, else host:port of the monitoring port, else of the server."""
        return self.name or host_and_port(self.place)

    @property
    def place(self) -> str:
        return self.url or self.server or ""

    @property
    def speaks_tls(self) -> bool:
        """A server is asked for TLS where `tls` is written, whatever its URL begins with."""
        return self.server is not None or super().speaks_tls


@dataclass(frozen=True, slots=True)
class Heard:
    """What the last read of the monitoring port gave, beside the totals."""

    samples: Sequence[Sample] = ()
    advice: Sequence[Advice] = field(default=())
    version: str | None = None
    failure: ReadError | None = None


class Nats:
    """Reads one server."""

    kind: ClassVar[str] = "nats"
    Config: ClassVar[type[Server]] = Server

    def __init__(self, config: Server, context: Context) -> None:
        self._config = config
        self._context = context
        self._link = Link(config) if config.server is not None else None
        self._heard = Heard()

    @staticmethod
    def at(url: str, environ: Mapping[str, str]) -> Server:
        """By the URL of the monitoring port, or by that of the server: `nats://` or `tls://`."""
        given: dict[str, Any] = {}
        server = environ.get("NATS_SERVER", "")
        if url.startswith(("nats://", "tls://")):
            server = url
        else:
            given["url"] = url
        if server:
            parts = urlsplit(_with_scheme(server))
            login, _, place = parts.netloc.rpartition("@")
            given["server"] = f"{parts.scheme}://{place}"
            given |= _login(login, environ)
        return Server(**given)

    @staticmethod
    def candidates(environ: Mapping[str, str]) -> Sequence[Server]:
        """The server that `NATS_SERVER` names, as Dynamo reads it, else the one on NATS's port here.

        By its monitoring port first, where that is on its usual port, too.
        """
        whole = Nats.at(_with_scheme(environ.get("NATS_SERVER") or DEFAULT_SERVER), environ)
        host = host_and_port(whole.place).rpartition(":")[0]
        monitored = f"http://{host}:{MONITORING_PORT}"
        return [whole.model_copy(update={"url": url, "name": "nats"}) for url in (monitored, "")]

    @staticmethod
    async def recognise(upstream: Upstream, target: TargetConfig) -> bool:
        if not target.url:
            return isinstance(target, Server) and target.server is not None and await greets(target.server)
        try:
            return bool(await monitor.server(upstream))
        except ReadError as error:
            if error.reason in ("content", "status", "redirect", "auth"):
                return False
            raise

    async def read(self) -> Result:
        await asyncio.sleep(0)  # so that `follow`, where it runs, is ahead
        link = self._link
        async with AsyncExitStack() as visit:
            if link is not None and not link.kept:
                await visit.enter_async_context(link.visit())
            async with (
                asyncio.TaskGroup() as group
            ):  # at once: where the monitoring port hangs, the PING tells it first
                if link is not None:
                    group.create_task(link.ping())
                self._heard = await self._monitor() if self._config.url else Heard(advice=(NOT_MONITORED,))
            return self._result()

    async def follow(self) -> AsyncIterator[Result]:
        """Tell of each change of the connection."""
        if self._link is not None:
            async for _ in self._link.keep():
                yield self._result()

    async def _monitor(self) -> Heard:
        """Read the monitoring port into the totals; what fails there is no reason not to tell of the connection."""
        upstream, known, table = self._context.upstream, families(), self._context.table
        samples: list[Sample] = []
        try:
            async with asyncio.timeout(self._context.timeout * SHARE):
                if (health := await monitor.health(upstream)) is not None:
                    labels = [("probe", "health")]
                    samples.append((table(known["llm_probe_up"], labels), float(health[0])))
                    samples.append((table(known["llm_probe_duration_seconds"], labels), health[1]))
                varz = await monitor.server(upstream)
                used = monitor.subjects(await monitor.connections(upstream))
                self._context.tell(monitor.rows(varz, used, await monitor.jetstream(upstream)))
        except ReadError as error:
            return Heard(failure=error)
        except TimeoutError:
            return Heard(failure=ReadError("timeout", f"{self._config.url} gave no whole answer in time"))
        advice = () if any(used.values()) else (NOT_USED,)
        return Heard(samples, advice, str(varz["version"])[:64])

    def _result(self) -> Result:
        """What is known now of both: the monitoring port as it was last read, the connection as it is."""
        heard, link = self._heard, self._link
        if link is None:
            return Result(heard.samples, heard.advice, heard.version, heard.failure)
        failure, advice = heard.failure, [*heard.advice]
        if link.failure is not None and not self._config.url:
            failure = link.failure
        elif link.failure is not None and failure is not None:
            failure = ReadError(failure.reason, f"{failure}; nor can be connected to: {link.failure}")
        elif link.failure is not None and link.wants_login:
            advice.append(Advice("the connection's state and round trip", str(link.failure)))
        elif link.failure is not None:
            failure = ReadError(link.failure.reason, f"{link.failure}; its monitoring port answered")
        elif failure is not None and link.state == "connected":
            failure = ReadError(failure.reason, f"{failure}; clients can connect to {link.server}")
        return Result([*heard.samples, *link.samples(self._context.table)], advice, heard.version, failure)


def _with_scheme(server: str) -> str:
    return server if "://" in server else f"nats://{server}"


def _login(given: str, environ: Mapping[str, str]) -> dict[str, Any]:
    """How to log in: what the URL says, else Dynamo's own variables in Dynamo's order."""
    user, colon, password = given.partition(":")
    if colon:
        return {"user": user, "password": SecretStr(password)}
    if user:
        return {"token": SecretStr(user)}
    if environ.get("NATS_AUTH_USERNAME") and environ.get("NATS_AUTH_PASSWORD"):
        return {"user": environ["NATS_AUTH_USERNAME"], "password_env": "NATS_AUTH_PASSWORD"}
    if environ.get("NATS_AUTH_TOKEN"):
        return {"token_env": "NATS_AUTH_TOKEN"}
    if environ.get("NATS_AUTH_CREDENTIALS_FILE"):
        return {"creds_file": environ["NATS_AUTH_CREDENTIALS_FILE"]}
    return {}


SOURCE = Nats
