"""What one of Dynamo's HTTP ports says: a frontend's, or the system port of a worker."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import islice

from exporter.catalogue import families
from exporter.config.model import TargetConfig
from exporter.core.errors import ReadError
from exporter.core.fetch import refuse
from exporter.core.source import Context, Result, waited
from exporter.core.types import Sample

METRICS, HEALTH, MODELS = "/metrics", "/health", "/v1/models"
PATIENCE = 2.0
"""Seconds that /health may take."""
FORGET = 600.0
"""Seconds for which a model that is gone is shown as not ready, where the configuration has no `forget`."""
LISTED = 1000
"""Models of a list that are taken, each with a name of NAME characters at most."""
NAME = 512

SWITCH = (
    "a frontend has them on its HTTP port; a worker's system port is off until DYN_SYSTEM_PORT is set, in old versions "
    "along with DYN_SYSTEM_ENABLED=true"
)
_CAPACITY = {
    "llm_model_context_tokens": "model_context_tokens",
    "llm_dynamo_model_kv_blocks": "model_kv_blocks",
    "llm_dynamo_model_kv_block_tokens": "model_kv_block_tokens",
    "llm_dynamo_model_max_sequences": "model_max_sequences",
}
"""What is said of a model as long as it is there, by family: the rule of the map that has it."""


class Endpoint:
    """Reads one frontend, or one worker's system port."""

    def __init__(self, config: TargetConfig, context: Context) -> None:
        self.endpoints: dict[str, str] = {}  # of a worker, as the last read found it: name → what it says of itself
        self._context = context
        self._forget: float = getattr(config, "forget", FORGET)
        self._is_dynamo = False  # by its /health
        self._tells = False  # which models are ready, by metrics of their own
        self._seen: dict[str, float] = {}  # model → monotonic seconds

    async def read(self) -> Result:
        """Read the port once into the context's totals. Raises ReadError."""
        self.endpoints = {}
        began = waited()
        try:
            told = await self._metrics()
        except ReadError as error:
            if error.reason != "connect" or self._is_dynamo:
                raise
            raise ReadError("connect", f"{error} (for Dynamo's metrics: {SWITCH})") from None
        took = waited() - began
        own = await self._health()
        if not told:  # an old frontend has no metrics until it has a model
            if not self._is_dynamo:
                what = f"answers nothing, and {HEALTH} there is not Dynamo's ({SWITCH})"
                raise ReadError("content", f"{self._context.upstream.at(METRICS)} {what}")
            self._context.tell(())
        own += self._models(await self._ready())
        return Result(own, seconds=took)

    async def _metrics(self) -> bool:
        """Read the metrics into the totals; False where there are none at all."""
        async with self._context.upstream.get(METRICS) as answer:
            if answer.status == 404:
                raise ReadError("status", f"{answer.url} answers 404: no metrics of Dynamo's are there ({SWITCH})")
            refuse(answer)
            return await self._context.take(answer, b"\n")

    async def _health(self) -> list[Sample]:
        """Whether all is well by /health, which a frontend leaves unanswered while etcd hangs."""
        began = time.monotonic()
        status, said = 0, None
        with suppress(ReadError, TimeoutError):
            async with asyncio.timeout(PATIENCE), self._context.upstream.get(HEALTH) as answer:
                status = answer.status
                said = await answer.json()
        if status == 404:
            return []
        up = status == 200
        endpoints = said.get("endpoints") if isinstance(said, dict) else None
        if status:
            self._is_dynamo = isinstance(endpoints, dict | list)
        if isinstance(endpoints, dict):
            # without DYN_SYSTEM_USE_ENDPOINT_HEALTH_STATUS a worker answers 503 for ever, whatever its endpoints say
            self.endpoints = {str(name)[:NAME]: str(state)[:NAME] for name, state in islice(endpoints.items(), LISTED)}
            up = bool(self.endpoints) and all(state == "ready" for state in self.endpoints.values())
        elif isinstance(said, dict) and "status" in said:
            up = up and said["status"] == "healthy"
        known, labels = families(), [("probe", "health")]
        return [
            (self._context.table(known["llm_probe_up"], labels), float(up)),
            (self._context.table(known["llm_probe_duration_seconds"], labels), time.monotonic() - began),
        ]

    async def _ready(self) -> dict[str, float]:
        """The models that are there, and whether requests for them can be routed: 1 or 0."""
        ready = self._by_model("model_ready")
        self._tells |= bool(ready)
        if self._tells or self.endpoints:
            return ready
        return dict.fromkeys(await self._listed(), 1.0)

    def _by_model(self, rule: str) -> dict[str, float]:
        told = ((dict(labels).get("model"), value) for labels, value in self._context.totals.internal(rule).items())
        return {model: value for model, value in told if model is not None}

    async def _listed(self) -> list[str]:
        """The models of the list that clients see: versions before 1.0 say nothing else of readiness."""
        async with self._context.upstream.get(MODELS) as answer:
            if answer.status == 404:
                return []
            refuse(answer)
            said = await answer.json()
        entries = said.get("data") if isinstance(said, dict) else None
        names = (entry.get("id") for entry in entries if isinstance(entry, dict)) if isinstance(entries, list) else ()
        return [name for name in islice(names, LISTED) if isinstance(name, str) and 0 < len(name) <= NAME]

    def _models(self, ready: Mapping[str, float]) -> Iterator[Sample]:
        known, table, now = families(), self._context.table, self._context.clock()
        self._seen |= dict.fromkeys(ready, now)
        self._seen = {model: at for model, at in self._seen.items() if now - at <= self._forget}
        for model in self._seen:
            yield table(known["llm_dynamo_model_ready"], [("model", model)]), ready.get(model, 0.0)
        for name, rule in _CAPACITY.items():
            family = known[name]
            layer = [("layer", "frontend")] if "layer" in family.labels else []
            for model, value in self._by_model(rule).items():
                if model in ready:
                    yield table(family, [*layer, ("model", model)]), value
