"""What caches saved, in money and in time, estimated from what the same model cost and took without them.

- response cache, USD: tokens it answered × spend per token that was paid for, over the window;
- response cache, seconds: hits × mean time that the provider took, over the window;
- prompt cache, USD: tokens read × (input price - cache_read price); filling it costs tokens written ×
  (cache_write price - input price).

Where no price is known nothing is said of money, and `llm_price_known` is 0. What was saved before the first paid
answer told a price is counted when it does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from exporter.catalogue import families
from exporter.core.types import Family, Labels, Sample, SeriesTable
from exporter.insight.words import Window, Words, some

_CACHED = (
    "llm_response_cache_tokens_total",
    "llm_response_cache_hits_total",
    "llm_cached_prompt_tokens_total",
    "llm_prompt_cache_write_tokens_total",
)
_PRICED = ("layer", "model", "provider")

Add = Callable[[Family, Iterable[tuple[str, str]], float], None]

_TOKENS = ("llm_prompt_tokens_total", "llm_output_tokens_total")
_COUNTED = (
    *_TOKENS,
    "llm_spend_usd_total",
    "llm_response_cache_tokens_total",
    "llm_upstream_duration_seconds_sum",
    "llm_upstream_duration_seconds_count",
)

READ = (*_TOKENS, *_CACHED, "llm_spend_usd_total", "llm_upstream_duration_seconds")
"""The families that savings are made from, beside the prices."""


class Savings:
    """What the caches of one target saved."""

    def __init__(self, table: SeriesTable, window: float) -> None:
        self._table = table
        self._window: Window[tuple[str, Labels]] = Window(window)
        self._last: dict[tuple[str, Labels], float] | None = None
        self._waiting: dict[tuple[str, Labels], float] = {}
        self._worth: dict[tuple[str, Labels], float] = {}

    def observe(self, words: Words, add: Add, now: float) -> Iterator[Sample]:
        """Count what was saved since the last read; gives `llm_price_known`."""
        self._window.push(now, {(name, labels): value for name in _COUNTED for labels, value in words[name].items()})
        gains = self._gains(words)
        known = families()
        for labels in words["llm_response_cache_hits_total"]:
            response = [*labels, ("cache", "response")]
            tokens = gains.get(("llm_response_cache_tokens_total", labels), 0.0)
            saved = self._saved(("usd", labels), tokens, self._paid_per_token(labels))
            if saved is not None:
                add(known["llm_cache_saved_usd_total"], response, saved)
            hits = gains.get(("llm_response_cache_hits_total", labels), 0.0)
            saved = self._saved(("seconds", labels), hits, self._mean_seconds(labels))
            if saved is not None:
                add(known["llm_cache_saved_seconds_total"], response, saved)
        prices = words["llm_price_usd_per_token"]
        for name, family, dear, cheap in (
            ("llm_cached_prompt_tokens_total", "llm_cache_saved_usd_total", "input", "cache_read"),
            ("llm_prompt_cache_write_tokens_total", "llm_cache_write_cost_usd_total", "cache_write", "input"),
        ):
            for labels in words[name]:
                more, less = (prices.get((*some(labels, *_PRICED), ("kind", kind))) for kind in (dear, cheap))
                if more is not None and less is not None:
                    gain = gains.get((name, labels), 0.0) * (more - less)
                    add(known[family], [*labels, ("cache", "prompt")], max(0.0, gain))
        for labels, spent in words["llm_spend_usd_total"].items():
            tokens = sum(words[name].get(labels, 0.0) for name in _TOKENS)
            tokens -= words["llm_response_cache_tokens_total"].get(labels, 0.0)
            model = some(labels, *_PRICED)
            listed = any(prices.get((*model, ("kind", kind)), 0.0) > 0.0 for kind in ("input", "output"))
            if spent > 0.0 or listed or tokens > 0.0:
                yield self._table(known["llm_price_known"], labels), float(spent > 0.0 or listed)

    def _gains(self, words: Words) -> dict[tuple[str, Labels], float]:
        """What the counters of cached things gained since the last read; nothing at the first."""
        values = {(name, labels): value for name in _CACHED for labels, value in words[name].items()}
        before, self._last = self._last, values
        if before is None:
            return {}
        return {key: value - before.get(key, 0.0) for key, value in values.items()}

    def _saved(self, key: tuple[str, Labels], amount: float, worth: float | None) -> float | None:
        """The amount's worth, as the window tells it or told it last; None while it has never been told."""
        if worth is not None:
            self._worth[key] = worth
        waiting = self._waiting.pop(key, 0.0) + amount
        if key not in self._worth:
            self._waiting[key] = waiting
            return None
        return waiting * self._worth[key]

    def _paid_per_token(self, labels: Labels) -> float | None:
        spent = self._window.gain(("llm_spend_usd_total", labels))
        tokens = sum(self._window.gain((name, labels)) for name in _TOKENS)
        tokens -= self._window.gain(("llm_response_cache_tokens_total", labels))
        return spent / tokens if spent > 0.0 and tokens > 0.0 else None

    def _mean_seconds(self, labels: Labels) -> float | None:
        count = self._window.gain(("llm_upstream_duration_seconds_count", labels))
        return self._window.gain(("llm_upstream_duration_seconds_sum", labels)) / count if count > 0.0 else None
