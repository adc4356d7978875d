"""Configured services: whether each is up, by its answer over HTTP or by a TCP connection.

A service that is down is what is to be told, and no failure of the read: the target is up, its probe is not.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from ssl import SSLContext
from typing import Annotated, Any, ClassVar, Literal, Self
from urllib.parse import urlsplit

import structlog
from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from exporter.catalogue import families
from exporter.config.model import TargetConfig, WithThresholds, host_and_port
from exporter.config.secret import WithKey
from exporter.config.values import Text, Url, shown
from exporter.core.errors import ReadError
from exporter.core.source import Context, Result
from exporter.core.tcp import Trust, certificate_expiry, connected
from exporter.core.types import Advice, Sample

BODY = 1 << 20
"""Bytes of an answer in which the text is looked for."""
SHARE, CERTIFICATE_SHARE = 0.8, 0.15
"""What the probe, and a look at the certificate, may take of the time for a read."""
LOOK_AGAIN, FAILED = 600.0, 60.0
"""Seconds between two looks at the certificate: after one that told, and after one that did not."""

log = structlog.get_logger(__name__)


def _listed(value: Any) -> Any:
    if isinstance(value, str):
        raise ValueError(f"not a status: {shown(value)} (write 200, or [200, 204])")  # noqa: TRY004 - pydantic's way
    return (value,) if isinstance(value, int) else value


_STATUS = {"type": "integer", "minimum": 100, "maximum": 599}

Statuses = Annotated[
    tuple[Annotated[int, Field(ge=100, le=599)], ...],
    BeforeValidator(_listed),
    WithJsonSchema({"anyOf": [_STATUS, {"type": "array", "items": _STATUS}]}),
]
"""One HTTP status, or several."""


class Service(WithKey, WithThresholds):
    """A service that should be up: by a URL, or by host and port of whatever takes TCP connections."""

    source: Literal["http"] = "http"
    url: Url = Field(default="", description="What is asked for by GET. Redirects are not followed.")
    host: Text | None = Field(default=None, description="Instead of `url`: where a TCP connection is made.")
    port: int | None = Field(default=None, ge=1, le=65535, description="The port of `host`. With `tls`, TLS is spoken.")
    status: Statuses = Field(default=(), description="The statuses that are well. Left out: 200 to 299.")
    text: Text | None = Field(default=None, description="Text that the answer must hold, within its first MiB.")

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if bool(self.url) == bool(self.host or self.port):
            raise ValueError("write url, or host and port")
        if not self.url and not (self.host and self.port):
            raise ValueError("host without port, or port without host (write both)")
        if not self.url and (self.status or self.text):
            raise ValueError("status or text of a TCP connection (write them with a url)")
        return self

    @property
    def target_name(self) -> str:
        return self.name or host_and_port(self.place)

    @property
    def place(self) -> str:
        host = f"[{self.host}]" if ":" in (self.host or "") else self.host
        return self.url or f"tcp://{host}:{self.port}"

    @property
    def speaks_tls(self) -> bool:
        return not self.url or super().speaks_tls


class Http:
    """Asks one service."""

    kind: ClassVar[str] = "http"
    Config: ClassVar[type[TargetConfig]] = Service

    def __init__(self, config: Service, context: Context, wall: Callable[[], float] = time.time) -> None:
        self._config = config
        self._context = context
        self._wall = wall
        host, _, port = host_and_port(config.place).rpartition(":")
        self._at = config.host or host.strip("[]"), int(port)
        self._secure = config.url.startswith("https:") or (not config.url and config.tls is not None)
        self._trust, self._trust_expired = Trust(config.tls), Trust(config.tls, expired=True)
        self._since: float | None = None
        self._wrong: str | None = ""  # unlike anything that is found
        self._expiry: float | None = None
        self._look = 0.0

    @staticmethod
    def at(url: str, _: Mapping[str, str]) -> Service:
        if not url.startswith("tcp://"):
            return Service(url=url)
        parts = urlsplit(url)
        return Service(host=parts.hostname, port=parts.port)

    @staticmethod
    def candidates(_: Mapping[str, str]) -> Sequence[Service]:
        """None: services are configured."""
        return []

    @staticmethod
    async def recognise(*_: object) -> bool:
        """Never: everything answers somehow."""
        return False

    async def read(self) -> Result:
        trusted = self._trust() if self._secure else None
        began = self._context.clock()
        took, wrong = None, None
        try:
            async with asyncio.timeout(self._context.timeout * SHARE):
                wrong = await (self._ask() if self._config.url else self._connect(trusted))
            took = self._context.clock() - began
        except TimeoutError:
            wrong = f"{self._config.place} gave no whole answer within {self._context.timeout * SHARE:g} s"
        except ReadError as error:
            if error.reason == "auth":  # the key cannot be had: that is not the service's doing
                raise
            wrong = str(error)
        self._note(wrong)
        if self._secure and self._context.clock() >= self._look:
            await self._look_at_certificate()
        advice = [] if wrong is None else [Advice(f"the service: {wrong}", "see why in the service's own log")]
        return Result(self._samples(took), advice)

    async def _ask(self) -> str | None:
        """What is wrong with the answer, None where nothing is. Raises ReadError where there is none."""
        config = self._config
        async with self._context.upstream.get(config.url) as answer:
            body = await answer.start(BODY)
        if answer.status not in (config.status or range(200, 300)):
            redirect = ", which is not followed" if 300 <= answer.status < 400 else ""
            return f"{answer.url} answers {answer.status}{redirect}"
        if config.text is not None and config.text.encode() not in body:
            return f"{answer.url} answers without the text that is expected"
        return None

    async def _connect(self, trusted: SSLContext | None) -> None:
        async with connected(*self._at, trusted):
            pass

    def _note(self, wrong: str | None) -> None:
        """Remember since when it is up, and log where that changes."""
        if wrong is None and self._since is None:
            self._since = self._wall()
            log.info("service is up", target=self._config.target_name)
        elif wrong is not None and wrong != self._wrong:
            log.warning("service is down", target=self._config.target_name, error=wrong)
        if wrong is not None:
            self._since = None
        self._wrong = wrong

    async def _look_at_certificate(self) -> None:
        self._expiry, wait = None, FAILED
        with suppress(ReadError, TimeoutError):
            async with asyncio.timeout(self._context.timeout * CERTIFICATE_SHARE):
                self._expiry, wait = await certificate_expiry(*self._at, self._trust_expired()), LOOK_AGAIN
        self._look = self._context.clock() + wait

    def _samples(self, took: float | None) -> list[Sample]:
        known, labels = families(), [("probe", "http" if self._config.url else "tcp")]
        told = {
            "llm_probe_up": float(self._wrong is None),
            "llm_probe_duration_seconds": took,
            "llm_probe_up_since_timestamp_seconds": self._since,
            "llm_probe_certificate_expiry_timestamp_seconds": self._expiry,
        }
        return [(self._context.table(known[name], labels), value) for name, value in told.items() if value is not None]


SOURCE = Http
