"""LiteLLM: the gateway's own metrics, its health, and its list of models.

Reading it is careful: the key goes with every request that needs it, `name[]` asks for nothing but what is mapped,
`/health` (which makes billable calls) and `/cache/ping` (which writes) are never called.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from exporter.catalogue import families
from exporter.config.model import TargetConfig
from exporter.config.secret import WithKey
from exporter.core.errors import ReadError
from exporter.core.fetch import Upstream, refuse
from exporter.core.source import Context, Result, source_map, waited
from exporter.core.types import Advice, Sample
from exporter.sources.litellm.deployments import Deployments, Listing
from exporter.sources.litellm.tpot import Tpot

DEFAULT_URL = "http://127.0.0.1:4000"
ALIVE = "/health/liveliness"
METRICS = "/metrics/"
SENTINEL = "python_info"
"""Asked for along with the rest: an answer without it means that LiteLLM's filter does not work (several workers)."""
CREATED = "litellm_proxy_total_requests_metric_created"
"""Tells a restart where LiteLLM has no start time of its process to tell: on macOS."""
LISTED = 600.0
"""Seconds for which the list of models and the version are kept."""
SLOW = 1.0
"""Seconds of answering above which the labels that make the metrics large are named."""

EXCLUDE_LABELS = """litellm_settings:
  prometheus_exclude_labels: [hashed_api_key, api_key_alias, user, user_email, client_ip, user_agent,
    team, team_alias, end_user, org_id, org_alias]"""


class Proxy(WithKey):
    """A LiteLLM proxy."""

    source: Literal["litellm"] = "litellm"
    health_endpoint: str = Field(
        ALIVE,
        description="Path, or URL, that tells whether the proxy is alive. Never `/health`, which makes billable calls.",
    )
    metrics_endpoint: str = Field(
        METRICS,
        description="Path, or URL, of the metrics; the URL of a separate metrics port is faster and needs no key.",
    )

    @field_validator("health_endpoint")
    @classmethod
    def _not_billed(cls, endpoint: str) -> str:
        if endpoint.rstrip("/").endswith("/health") or endpoint.strip("/") == "health":
            raise ValueError(f"/health makes billable calls (write {ALIVE})")
        return endpoint


class LiteLLM:
    """Reads one LiteLLM proxy."""

    kind: ClassVar[str] = "litellm"
    Config: ClassVar[type[WithKey]] = Proxy

    def __init__(self, config: Proxy, context: Context) -> None:
        self._config = config
        self._context = context
        self._deployments = Deployments(context.table)
        self._tpot = Tpot()
        self._filter = not context.everything
        self._names = [("name[]", name) for name in (*source_map(self.kind).sample_names, CREATED, SENTINEL)]
        self._cached = False
        self._listing: Listing | None = None
        self._version: str | None = None
        self._listed = float("-inf")
        self._took = 0.0
        self._separate_port = not context.upstream.at(config.metrics_endpoint).startswith(f"{config.url}/")

    @staticmethod
    def at(url: str, environ: Mapping[str, str]) -> Proxy:
        given: dict[str, Any] = {"url": url}
        for variable, key in (
            ("LITELLM_HEALTH_ENDPOINT", "health_endpoint"),
            ("LITELLM_METRICS_ENDPOINT", "metrics_endpoint"),
            ("LITELLM_API_KEY_FILE", "api_key_file"),
        ):
            if environ.get(variable):
                given[key] = environ[variable]
        if "api_key_file" not in given and environ.get("LITELLM_API_KEY"):
            given["api_key_env"] = "LITELLM_API_KEY"
        return Proxy(**given)

    @staticmethod
    def candidates(environ: Mapping[str, str]) -> Sequence[Proxy]:
        """The proxy that `LITELLM_HOST` names (with or without http:// and port), else one on LiteLLM's port here."""
        url = environ.get("LITELLM_HOST") or DEFAULT_URL
        if "://" not in url:
            url = f"http://{url}" if ":" in url else f"http://{url}:4000"
        return [LiteLLM.at(url, environ).model_copy(update={"name": "litellm"})]

    @staticmethod
    async def recognise(upstream: Upstream, _: TargetConfig) -> bool:
        async with upstream.get(ALIVE) as answer:
            return answer.status == 200 and (await answer.start(100)).strip() == b'"I\'m alive!"'

    async def read(self) -> Result:
        own = await self._health()
        await self._metrics()
        if self._context.clock() - self._listed > LISTED:
            await self._list()
        totals = self._context.totals
        self._tpot.observe(totals, self._context.clock())
        own += self._deployments.observe(totals, self._listing, self._context.clock())
        own += self._requests_running()
        return Result(own, tuple(self._advice()), self._version)

    async def _health(self) -> list[Sample]:
        known, table = families(), self._context.table
        samples: list[Sample] = []
        for probe, endpoint in (("liveliness", self._config.health_endpoint), ("readiness", "/health/readiness")):
            began = time.monotonic()
            status = await self._context.upstream.status(endpoint)
            if status == 404:
                self._separate_port = True  # which has no such endpoints
                continue
            labels = [("probe", probe)]
            samples.append((table(known["llm_probe_up"], labels), float(status == 200)))
            samples.append((table(known["llm_probe_duration_seconds"], labels), time.monotonic() - began))
        return samples

    async def _metrics(self) -> None:
        began = waited()
        if self._filter:
            self._filter = await self._take(self._names)
        if not self._filter:
            await self._take([])
        self._took = waited() - began

    async def _take(self, query: Sequence[tuple[str, str]]) -> bool:
        """Read the metrics into the totals; False where the answer shows that it was not filtered but emptied."""
        async with self._context.upstream.get(self._config.metrics_endpoint, query) as answer:
            if answer.status == 404:
                raise ReadError(
                    "status",
                    f"{answer.url} answers 404: its metrics are off (write litellm_settings: callbacks: [prometheus])",
                )
            if answer.status in (401, 403):
                raise ReadError("auth", self._refusal(answer.url, answer.status))
            refuse(answer)
            return await self._context.take(answer, SENTINEL.encode() if query else b"")

    def _refusal(self, url: str, status: int) -> str:
        remedy = "set LITELLM_API_KEY, or api_key_file in the configuration; any valid key will do"
        what = "the key is refused" if self._config.secret() else "a key is wanted"
        return (
            f"{url} answers {status}: {what} ({remedy}; or let metrics go without: litellm_settings: "
            "require_auth_for_metrics_endpoint: false)"
        )

    async def _list(self) -> None:
        """The list of models and the version: dear to make, rarely changed, and no failure where they are missing."""
        self._listed = self._context.clock()
        self._filter = not self._context.everything  # the proxy may have been started anew, with one worker
        details, models = await self._json("/health/readiness/details"), await self._json("/model/info")
        if isinstance(details, dict):
            self._version = str(details.get("litellm_version") or "")[:64] or None
            self._cached = bool(details.get("cache"))
        if models is not None:
            self._listing = Listing.of(models)

    async def _json(self, endpoint: str) -> Any:
        """What an endpoint answers, None where it does not."""
        with suppress(ReadError):
            async with self._context.upstream.get(endpoint) as answer:
                return await answer.json() if answer.status == 200 else None
        return None

    def _requests_running(self) -> list[Sample]:
        """Requests in flight, less our own read, which a separate metrics port does not count."""
        running = self._context.totals.internal("in_flight")
        if not running:
            return []
        series = self._context.table(families()["llm_requests_running"], [("layer", "gateway")])
        own = 0.0 if self._separate_port else 1.0
        return [(series, max(0.0, sum(running.values()) - own))]

    def _advice(self) -> list[Advice]:
        advice = []
        if not any(self._context.totals.present.values()):
            remedy = "see whether it is a LiteLLM proxy, and has served a request since it started"
            advice.append(Advice(f"every number: {self._config.metrics_endpoint} has none of LiteLLM's", remedy))
        if self._took > SLOW:
            advice.append(
                Advice(
                    f"fresh numbers: LiteLLM takes {self._took:.1f} s to write its metrics, a line for each key, user "
                    "and team, so they are read more rarely",
                    EXCLUDE_LABELS,
                )
            )
        if self._listing is None:
            remedy = "give the master key: LITELLM_API_KEY, or api_key_file in the configuration"
            advice.append(Advice("models per provider and prices (/model/info is refused or missing)", remedy))
        if self._cached and not self._context.totals.internal("redis_requests"):
            advice.append(
                Advice("the server behind the cache", 'litellm_settings:\n  service_callback: ["prometheus_system"]')
            )
        return advice


SOURCE = LiteLLM
