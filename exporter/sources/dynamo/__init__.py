"""NVIDIA Dynamo: what is registered and how it is, and what frontends and workers say of themselves.

A target of this source is one port that is read (a frontend's, a worker's system port), or the place where all is
registered (etcd, or a folder). One entry of a configuration makes several of them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from exporter.config.model import TargetConfig, host_and_port
from exporter.config.secret import WithPassword
from exporter.config.values import AbsolutePath, BaseUrl, Duration, Url
from exporter.core.fetch import Upstream
from exporter.core.source import Context, Result
from exporter.sources.dynamo.discovery import Discovery
from exporter.sources.dynamo.endpoint import HEALTH, METRICS, Endpoint
from exporter.sources.dynamo.registry import PREFIXES
from exporter.sources.engine import exposes, names, speakers
from exporter.sources.etcd.gateway import Gateway

FRONTEND_PORT = "8000"
ETCD = "http://127.0.0.1:2379"
NATS = "http://127.0.0.1:8222"

_Urls = Annotated[tuple[BaseUrl, ...], Field(min_length=1)]


class Deployment(WithPassword):
    """A Dynamo deployment: where it registers itself, its frontends, its workers. Or, with `url`, one port of it."""

    usual_interval: ClassVar[float | None] = 3.0

    source: Literal["dynamo"] = "dynamo"
    url: BaseUrl = Field(default="", description="One frontend, or one worker's system port, and nothing else.")
    etcd: _Urls | None = Field(
        default=None, description="The members of the etcd in which workers register. `user` and `password` are etcd's."
    )
    directory: AbsolutePath | None = Field(
        default=None, description="Instead of `etcd`: the folder of the file backend, Dynamo's `DYN_FILE_KV`."
    )
    frontends: _Urls | None = Field(default=None, description="The frontends: they do not register themselves.")
    workers: _Urls | None = Field(
        default=None, description="Workers' system ports that are not found by themselves, which most are."
    )
    nats: Url | None = Field(
        default=None,
        description="Monitoring port of the NATS that requests go through, where they do: tells which workers are gone "
        "long before etcd does, and what each has sent.",
    )
    internal: bool = Field(default=False, description="Also show the endpoints that workers keep for themselves.")
    forget: Duration = Field(
        default=600.0, description="Time that an endpoint is shown as offline before it is left out."
    )

    @model_validator(mode="after")
    def _something_to_read(self) -> Self:
        places = [self.etcd, self.directory, self.frontends, self.workers]
        if self.url and any(places):
            raise ValueError("url beside etcd, directory, frontends or workers (write it under frontends)")
        if not self.url and not any(places):
            raise ValueError("nothing to read (write etcd, frontends or workers)")
        if self.etcd and self.directory:
            raise ValueError("etcd beside directory (write the one that Dynamo uses)")
        return self

    @property
    def place(self) -> str:
        return self.url or (self.etcd[0] if self.etcd else self.directory or "")

    def parts(self) -> Sequence[Self]:
        """The discovery, under the entry's name, and `NAME/host:port` for each port."""
        ports = [self.at_port(url) for url in (*(self.frontends or ()), *(self.workers or ()))]
        if self.url:
            return (self,)
        if not (self.etcd or self.directory):
            return ports
        return (self.model_copy(update={"frontends": None, "workers": None}), *ports)

    def at_port(self, url: str) -> Self:
        """The target at one port of this deployment."""
        only: dict[str, Any] = dict.fromkeys(
            ("etcd", "directory", "frontends", "workers", "nats", "user", "password", "password_file", "password_env")
        )
        return self.model_copy(update={**only, "url": url, "name": f"{self.target_name}/{host_and_port(url)}"})


class Dynamo:
    """Reads one port of a deployment, or its registry."""

    kind: ClassVar[str] = "dynamo"
    speaks: ClassVar[tuple[str, ...]] = ("dynamo_", "nv_llm_http_service_")
    Config: ClassVar[type[TargetConfig]] = Deployment

    def __init__(self, config: Deployment, context: Context) -> None:
        self._part = Endpoint(config, context) if config.url else Discovery(config, context)

    @staticmethod
    def at(url: str, _: Mapping[str, str]) -> Deployment:
        return Deployment(url=url)

    @staticmethod
    def candidates(environ: Mapping[str, str]) -> Sequence[Deployment]:
        """What registers in `ETCD_ENDPOINTS`, else in an etcd here; and a frontend here, on `DYN_HTTP_PORT` or 8000."""
        given: dict[str, Any] = {"name": "dynamo", "nats": NATS}
        members = [member.strip().rstrip("/") for member in environ.get("ETCD_ENDPOINTS", ETCD).split(",")]
        given["etcd"] = tuple(member if "://" in member else f"http://{member}" for member in members)
        if environ.get("ETCD_AUTH_USERNAME"):
            given |= {"user": environ["ETCD_AUTH_USERNAME"], "password_env": "ETCD_AUTH_PASSWORD"}
        given["frontends"] = (f"http://127.0.0.1:{environ.get('DYN_HTTP_PORT') or FRONTEND_PORT}",)
        return Deployment(**given).parts()

    @staticmethod
    async def recognise(upstream: Upstream, target: TargetConfig) -> bool:
        if isinstance(target, Deployment) and target.etcd:
            members = [upstream.elsewhere(url) for url in target.etcd]
            keys, _ = await Gateway(members, target.login).ranges(PREFIXES)
            return bool(keys)
        metrics = await upstream.glance(METRICS)
        found = speakers(names(metrics))
        if not exposes(metrics) or (found and "dynamo" not in found):
            return False  # and its /health may not be asked: SGLang's runs a generation
        async with upstream.get(HEALTH) as answer:
            if not answer.content_type.startswith(("application/json", "text/plain")):
                return False
            said = await answer.json()
        return isinstance(said, dict) and "endpoints" in said and ("instances" in said or "uptime" in said)

    async def read(self) -> Result:
        return await self._part.read()

    async def follow(self) -> AsyncIterator[Result]:
        if isinstance(self._part, Discovery):
            async for result in self._part.follow():
                yield result


SOURCE = Dynamo
