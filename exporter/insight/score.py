"""The provider scorecard: one number from 0 to 1 for how well each provider serves, and the parts it is made of.

Over a sliding window, `score = (1 - E)² × (0.6 + 0.2 L + 0.2 T)`: E is the share of attempts that failed, L and T are
the objective over the p95 of the answer's latency and of the time to the first token, at most 1. A part that the window
does not tell (no stream ended) leaves its weight to the other; where neither is told both count as 1. Errors weigh
double because a retry costs the client the failed attempt as well. A provider that failed all is 0, a slow one 0.6 at
least.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import inf

from exporter.catalogue import families
from exporter.core.types import Labels, Sample, SeriesTable
from exporter.insight.words import Window, Words, some

_COUNTS = {"requests": "llm_provider_requests_total", "failures": "llm_provider_failures_total"}
_TIMES = {"latency": "llm_upstream_duration_seconds", "ttft": "llm_time_to_first_token_seconds"}
READ = (*_COUNTS.values(), *_TIMES.values())
"""The families that a score is made from."""
QUANTILES = (("p50", 0.5), ("p95", 0.95))


def quantile(q: float, buckets: Sequence[tuple[float, float]]) -> float | None:
    """The q-quantile of cumulative buckets `(upper bound, count)` in rising order, as Prometheus estimates it.

    None where they hold nothing. In the last bucket, whose bound is +Inf, the bound below it is given.
    """
    total = buckets[-1][1] if buckets else 0.0
    if total <= 0.0:
        return None
    rank = q * total
    below, counted = 0.0, 0.0
    for bound, count in buckets:
        if count >= rank:
            if bound == inf:
                return below
            return below + (bound - below) * ((rank - counted) / (count - counted) if count > counted else 1.0)
        below, counted = bound, count
    return below


def score(error_ratio: float, parts: Sequence[float]) -> float:
    """The score from the error ratio and those of L and T that are known."""
    speed = sum(parts) / len(parts) if parts else 1.0
    return (1.0 - error_ratio) ** 2 * (0.6 + 0.4 * speed)


class Scorecard:
    """Scores each provider of one target."""

    def __init__(self, table: SeriesTable, window: float, minimum: int, latency: float, ttft: float) -> None:
        self._table = table
        self._minimum = minimum
        self._objectives = {"latency": latency, "ttft": ttft}
        self._window: Window[tuple[Labels, str, float]] = Window(window)

    def observe(self, words: Words, now: float) -> Iterator[Sample]:
        """The scorecard after a read at `now`, in monotonic seconds."""
        values: dict[tuple[Labels, str, float], float] = {}

        def count(labels: Labels, what: str, bound: float, value: float) -> None:
            provider = some(labels, "layer", "provider")
            if "provider" in dict(provider):  # an engine that serves by itself has no score
                key = provider, what, bound
                values[key] = values.get(key, 0.0) + value

        for what, family in _COUNTS.items():
            for labels, value in words[family].items():
                count(labels, what, inf, value)
        for what, family in _TIMES.items():
            for labels, buckets in words.buckets(family).items():
                for bound, value in buckets.items():
                    count(labels, what, bound, value)
        self._window.push(now, values)
        bounds: dict[tuple[Labels, str], list[float]] = {}
        for provider, what, bound in sorted(values, key=lambda key: key[2]):
            bounds.setdefault((provider, what), []).append(bound)
        for provider, what in bounds:
            if what == "requests":
                yield from self._provider(provider, bounds)

    def _provider(self, provider: Labels, bounds: Mapping[tuple[Labels, str], Sequence[float]]) -> Iterator[Sample]:
        known, table = families(), self._table
        requests = self._window.gain((provider, "requests", inf))
        yield table(known["llm_provider_window_seconds"], provider), self._window.covered
        yield table(known["llm_provider_window_requests"], provider), requests
        for what, objective in self._objectives.items():
            yield table(known["llm_provider_objective_seconds"], [*provider, ("stat", what)]), objective
        if requests <= 0.0:
            return
        errors = min(1.0, self._window.gain((provider, "failures", inf)) / requests)
        yield table(known["llm_provider_window_error_ratio"], provider), errors
        parts = []
        for what, objective in self._objectives.items():
            buckets = [
                (bound, self._window.gain((provider, what, bound))) for bound in bounds.get((provider, what), ())
            ]
            for stat, q in QUANTILES:
                seconds = quantile(q, buckets)
                if seconds is not None:
                    yield table(known[f"llm_provider_window_{what}_seconds"], [*provider, ("stat", stat)]), seconds
                    if stat == "p95":
                        parts.append(min(1.0, objective / seconds) if seconds > 0.0 else 1.0)
        if requests >= self._minimum:
            yield table(known["llm_provider_score"], provider), score(errors, parts)
