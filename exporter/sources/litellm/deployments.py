"""LiteLLM's deployments: their names, prices and state, and the server behind its cache.

LiteLLM's own `litellm_deployment_state` carries several label sets for one deployment and never clears a cooldown; here
a deployment's state follows from what it did since the last read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from exporter.catalogue import families
from exporter.core.total import Totals
from exporter.core.types import Labels, Sample, SeriesTable

RECOVERED = 60.0
"""Seconds after its last failure at which a deployment counts as up again, though nothing has succeeded on it."""

DEAREST = 1e6
"""USD a token that no price reaches."""

LAYER = ("layer", "gateway")
_PRICES = (
    ("input", "input_cost_per_token"),
    ("output", "output_cost_per_token"),
    ("cache_read", "cache_read_input_token_cost"),
    ("cache_write", "cache_creation_input_token_cost"),
)


@dataclass(frozen=True, slots=True)
class Deployment:
    """One entry of /model/info. Prices in USD a token by kind, where LiteLLM has them."""

    id: str
    model: str
    provider: str
    upstream_model: str
    prices: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Listing:
    """What /model/info lists."""

    deployments: tuple[Deployment, ...]

    @staticmethod
    def of(answer: Any) -> Listing:
        """The deployments of an answer; entries that are not as LiteLLM writes them are left out."""
        entries = answer.get("data") if isinstance(answer, dict) else None
        return Listing(tuple(filter(None, map(_deployment, entries if isinstance(entries, list) else ()))))


def _deployment(entry: Any) -> Deployment | None:
    if not isinstance(entry, dict):
        return None
    info, parameters = entry.get("model_info"), entry.get("litellm_params")
    if not isinstance(info, dict) or not isinstance(parameters, dict):
        return None
    model, name = parameters.get("model"), entry.get("model_name")
    if not all(isinstance(text, str) and text for text in (model, name, info.get("id"))):
        return None
    assert isinstance(model, str)  # noqa: S101 - shown above, for the type checker
    prefix, slash, rest = model.partition("/")
    provider = parameters.get("custom_llm_provider") or (prefix if slash else info.get("litellm_provider"))
    prices = {
        kind: float(info[key])
        for kind, key in _PRICES
        if isinstance(info.get(key), int | float) and not isinstance(info.get(key), bool) and 0 <= info[key] < DEAREST
    }
    return Deployment(info["id"], str(name), str(provider or ""), rest if slash else model, prices)


class Deployments:
    """What is known of one proxy's deployments, from read to read."""

    def __init__(self, table: SeriesTable) -> None:
        self._table = table
        self._last: dict[str, tuple[float, float]] | None = None
        self._failed: dict[str, float] = {}  # deployment → monotonic seconds of its last failure with no success since
        self._cache: tuple[float, float] | None = None

    def observe(self, totals: Totals, listing: Listing | None, now: float) -> list[Sample]:
        """The gauges after a read at `now`, in monotonic seconds."""
        samples = list(self._states(totals, listing, now))
        samples += self._infos(totals, listing)
        if listing is not None:
            samples += self._prices(listing)
        samples += self._backend(totals)
        return samples

    def _states(self, totals: Totals, listing: Listing | None, now: float) -> Iterator[Sample]:
        requests = _by_deployment(totals.values("llm_deployment_requests_total"))
        failures = _by_deployment(totals.values("llm_deployment_failures_total"))
        cooldowns = _by_deployment(totals.values("llm_deployment_cooldowns_total"))
        state = {
            name: (
                requests.get(name, 0.0) - failures.get(name, 0.0),
                failures.get(name, 0.0) + cooldowns.get(name, 0.0),
            )
            for name in requests.keys() | failures.keys() | cooldowns.keys()
        }
        before = self._last if self._last is not None else state
        self._last = state
        for name, (succeeded, failed) in state.items():
            had_succeeded, had_failed = before.get(name, (0.0, 0.0))
            if succeeded > had_succeeded:
                self._failed.pop(name, None)
            elif failed > had_failed:
                self._failed[name] = now
        for name, since in list(self._failed.items()):
            if now - since >= RECOVERED:
                del self._failed[name]
        family = families()["llm_deployment_up"]
        listed = {deployment.id for deployment in listing.deployments} if listing is not None else set()
        for name in sorted(state.keys() | listed):
            yield self._table(family, [LAYER, ("deployment", name)]), float(name not in self._failed)

    def _infos(self, totals: Totals, listing: Listing | None) -> Iterator[Sample]:
        names = {
            deployment.id: {
                "model": deployment.model,
                "provider": deployment.provider,
                "upstream_model": deployment.upstream_model,
            }
            for deployment in (listing.deployments if listing is not None else ())
        }
        for labels in totals.internal("deployment_names"):
            told = dict(labels)
            if "deployment" in told:
                # what the metrics call a provider is what every other family says
                names[told.pop("deployment")] = {name: value for name, value in told.items() if name != "layer"}
        family = families()["llm_deployment_info"]
        for deployment, said in sorted(names.items()):
            yield self._table(family, [LAYER, ("deployment", deployment), *said.items()]), 1.0

    def _prices(self, listing: Listing) -> Iterator[Sample]:
        models: dict[str, set[str]] = {}
        prices: dict[tuple[str, str, str], set[float | None]] = {}
        for deployment in listing.deployments:
            models.setdefault(deployment.provider, set()).add(deployment.model)
            for kind, _ in _PRICES:
                key = (deployment.model, deployment.provider, kind)
                prices.setdefault(key, set()).add(deployment.prices.get(kind))
        known = families()
        for provider, offered in models.items():
            yield self._table(known["llm_provider_models"], [LAYER, ("provider", provider)]), float(len(offered))
        for (model, provider, kind), told in prices.items():
            price = next(iter(told))
            if len(told) == 1 and price is not None:
                labels = [LAYER, ("model", model), ("provider", provider), ("kind", kind)]
                yield self._table(known["llm_price_usd_per_token"], labels), price

    def _backend(self, totals: Totals) -> Iterator[Sample]:
        requests, failures = (sum(totals.internal(name).values()) for name in ("redis_requests", "redis_failures"))
        breaker = {dict(labels).get("state"): value for labels, value in totals.internal("redis_breaker").items()}
        if not requests and not failures:
            return
        before, self._cache = self._cache or (requests, failures), (requests, failures)
        broken = failures > before[1] or any(value > 0.0 for state, value in breaker.items() if state != "closed")
        yield self._table(families()["llm_cache_backend_up"], [LAYER, ("backend", "redis")]), float(not broken)


def _by_deployment(values: Mapping[Labels, float]) -> dict[str, float]:
    sums: dict[str, float] = {}
    for labels, value in values.items():
        name = dict(labels).get("deployment")
        if name is not None:
            sums[name] = sums.get(name, 0.0) + value
    return sums
