"""Redis: what a server says of itself in INFO.

The protocol is spoken here: of redis-py, one command would be used, for 110 ms at start and 7 MB of memory.
"""

from __future__ import annotations

import asyncio
import re
from asyncio import StreamReader, StreamWriter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from itertools import islice
from ssl import SSLContext
from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import unquote, urlsplit

from pydantic import AfterValidator, Field, SecretStr, field_validator

from exporter.catalogue import families
from exporter.config.model import TargetConfig
from exporter.config.secret import SecretError, WithPassword
from exporter.config.values import Text, Url, shown
from exporter.core.errors import ReadError
from exporter.core.fetch import Upstream
from exporter.core.source import Context, Result, Row, source_map
from exporter.core.tcp import Trust, connected

DEFAULT_SERVER = "redis://127.0.0.1:6379"
DEFAULT_USER = "default"
"""Redis's own name for the user of a server that has a password alone."""
SHARE = 0.8
"""What a server may take of the time for a read: the rest is for telling that it hangs."""
Connection = AbstractAsyncContextManager[tuple[StreamReader, StreamWriter]]

DATABASES = 1000
"""Databases whose keys are told at most: a server has 16 unless it is told otherwise."""
LARGEST = 1 << 20
"""Bytes of INFO at most; it has 6 KB, and a line for each database."""


def _server(value: str) -> str:
    """With its port, so that two ways to write one place are one."""
    found = re.fullmatch(r"(rediss?)://([\w.-]+|\[[0-9a-fA-F:.]+\])(?::([0-9]{1,5}))?(/[0-9]{0,4})?", value)
    if found is None or not 0 < int(found[3] or 6379) < 65536:
        raise ValueError(f"not a Redis server: {shown(value)} (write redis://host:6379 or rediss://host:6379/0)")
    return f"{found[1]}://{found[2]}:{found[3] or 6379}{(found[4] or '').rstrip('/')}"


class Server(WithPassword):
    """A Redis server, or one database of it."""

    source: Literal["redis"] = "redis"
    url: Url = Field(default="", description="Not for Redis: write `server`.")
    server: Annotated[str, AfterValidator(_server)] = Field(
        description="Where it listens: `redis://host:6379`, over TLS `rediss://host:6379`. With `/2` at its end, the "
        "keys of that database alone are told."
    )
    user: Text | None = Field(default=DEFAULT_USER, description="The user to log in as.")

    @field_validator("url", mode="before")
    @classmethod
    def _not_over_http(cls, _: object) -> str:
        raise ValueError("Redis is not asked over HTTP (write server: redis://host:6379)")

    @property
    def target_name(self) -> str:
        return self.name or urlsplit(self.server).netloc

    @property
    def place(self) -> str:
        return self.server


class Redis:
    """Reads one server, over a connection that is made for each read: so it also tells that clients get in."""

    kind: ClassVar[str] = "redis"
    Config: ClassVar[type[TargetConfig]] = Server

    def __init__(self, config: Server, context: Context) -> None:
        self._config = config
        self._context = context
        self._trust = _trust_of(config)
        database = urlsplit(config.server).path.removeprefix("/")
        self._only = database or None
        self._databases = {database or "0"}  # those without keys are not in INFO

    @staticmethod
    def at(url: str, environ: Mapping[str, str]) -> Server:
        """By `redis://host:port`, a login in it included; the password is also LiteLLM's `REDIS_PASSWORD`."""
        scheme, _, rest = url.rpartition("://")
        login, _, place = rest.rpartition("@")
        user, _, password = login.partition(":")
        given: dict[str, Any] = {"server": f"{scheme or 'redis'}://{place}"}
        if user or environ.get("REDIS_USERNAME"):
            given["user"] = unquote(user) or environ["REDIS_USERNAME"]
        if password:
            given["password"] = SecretStr(unquote(password))
        elif environ.get("REDIS_PASSWORD"):
            given["password_env"] = "REDIS_PASSWORD"  # noqa: S105 - the variable's name
        return Server(**given)

    @staticmethod
    def candidates(environ: Mapping[str, str]) -> Sequence[Server]:
        """The server that `REDIS_URL`, or `REDIS_HOST` and `REDIS_PORT`, name, as LiteLLM reads them, else one here."""
        url = environ.get("REDIS_URL", "").partition("?")[0]
        if not url.startswith(("redis://", "rediss://")):  # others mean other things by that name
            host, port = environ.get("REDIS_HOST"), environ.get("REDIS_PORT") or "6379"
            url = f"redis://{host}:{port}" if host else DEFAULT_SERVER
        return [Redis.at(url, environ).model_copy(update={"name": "redis"})]

    @staticmethod
    async def recognise(_: Upstream, target: TargetConfig) -> bool:
        if not isinstance(target, Server):
            return False
        async with _connected(target, _trust_of(target)()) as (reader, writer):
            try:
                return await _ask(reader, writer, "PING") == b"PONG"
            except ReadError as error:
                return error.reason == "auth"

    async def read(self) -> Result:
        version, failure = None, None
        try:
            async with asyncio.timeout(self._context.timeout * SHARE):
                said = await self._info()
            self._context.tell(self._rows(said))
            version = _version(said)
        except TimeoutError:
            failure = ReadError("timeout", f"{self._config.server} did not answer INFO in time")
        except ReadError as error:
            failure = error
        up = self._context.table(families()["llm_redis_up"]), float(failure is None)
        return Result([up], version=version, failure=failure)

    async def _info(self) -> dict[str, str]:
        """The fields of INFO. Raises ReadError."""
        config = self._config
        trusted = self._trust()
        try:
            user, password = config.login() or (DEFAULT_USER, "")
        except SecretError as error:
            raise ReadError("auth", str(error)) from None
        async with _connected(config, trusted) as (reader, writer):
            if password or user != DEFAULT_USER:
                await _ask(reader, writer, "AUTH", user, password)
            text = (await _ask(reader, writer, "INFO")).decode(errors="replace")
        said = dict(line.split(":", 1) for line in text.split("\r\n") if ":" in line)
        if "redis_version" not in said or "run_id" not in said:
            raise ReadError("content", f"{config.server} answers INFO, but not as Redis does")
        return said

    def _rows(self, said: Mapping[str, str]) -> Iterator[Row]:
        yield "process", {"run_id": said["run_id"]}, 1.0
        yield "server", {"version": _version(said), "role": said.get("role", "")}, 1.0
        for field in source_map(self.kind).sample_names:
            value = _number(said.get(field, ""))
            if value is not None and not (field == "maxmemory" and value == 0.0):
                yield field, {}, value
        keys = {name: re.match(r"keys=([0-9]+)", value) for name, value in said.items() if re.match("db[0-9]+$", name)}
        if self._only is None:
            more = {name.removeprefix("db") for name in keys} - self._databases
            self._databases |= set(islice(sorted(more), DATABASES - len(self._databases)))
        for database in sorted(self._databases):
            found = keys.get(f"db{database}")
            yield "keys", {"db": database}, float(found[1]) if found else 0.0


def _version(said: Mapping[str, str]) -> str:
    return said.get("valkey_version", said["redis_version"])[:64]


def _number(text: str) -> float | None:
    return float(text) if re.fullmatch("[0-9]{1,20}", text) else None


def _trust_of(config: Server) -> Callable[[], SSLContext | None]:
    return Trust(config.tls) if config.server.startswith("rediss:") else lambda: None


def _connected(config: Server, trusted: SSLContext | None) -> Connection:
    place = urlsplit(config.server)
    return connected(place.hostname or "", place.port or 0, trusted)


async def _ask(reader: StreamReader, writer: StreamWriter, *command: str) -> bytes:
    """What the server answers to a command, in RESP2. Raises ReadError (auth, content, too_large)."""
    parts = [part.encode() for part in command]
    writer.write(b"*%d\r\n" % len(parts) + b"".join([b"$%d\r\n%b\r\n" % (len(part), part) for part in parts]))
    try:
        head = (await reader.readuntil(b"\r\n")).decode(errors="replace").strip()
    except asyncio.LimitOverrunError:
        head = ""
    if head.startswith("+"):
        return head[1:].encode()
    if head.startswith("-"):
        word = head[1:].split(" ")[0]
        if command[0] == "AUTH":  # who does not know the command repeats it with what stands behind
            raise ReadError("auth", f"Redis refuses AUTH: {word[:50]} (see user and password_file)")
        if word in ("NOAUTH", "WRONGPASS", "NOPERM", "DENIED"):
            raise ReadError("auth", f"Redis refuses {command[0]}: {head[1:200]} (see user and password_file)")
        raise ReadError("content", f"Redis refuses {command[0]}: {head[1:200]}")
    size = _number(head[1:]) if head.startswith("$") else None
    if size is None:
        raise ReadError("content", "something else than Redis answers there")
    if size > LARGEST:
        raise ReadError("too_large", f"an answer of {size:.0f} bytes to {command[0]}")
    return (await reader.readexactly(int(size) + 2))[:-2]


SOURCE = Redis
