"""Time per output token, corrected: LiteLLM's own family records TTFT ÷ output tokens for streams.

For each deployment and read, from what the read's sums and counts gained:
`(latency - answers × first/streams) / (tokens - answers)` seconds a token, where `first/streams` is the mean time to
the first token. It assumes that whole answers wait as long as streams for their first token (measured on mixed traffic:
12.75 ms for 12, 21.1 for 20, 10.95 for 10, 5.5 for 5). Said only where streams ended and nothing came from the response
cache, whose tokens count without time. LiteLLM counts the parts of one request one after the other, and a read may come
between: so sums are compared APART seconds apart at least (read each half second, TPOT came out up to 24 % high).
"""

from __future__ import annotations

from collections.abc import Mapping

from exporter.catalogue import families
from exporter.core.total import Totals
from exporter.core.types import Labels

APART = 4.0
"""Seconds between two looks at the sums: less than the usual interval of 5 s."""

_PARTS = ("latency_seconds", "answers", "first_seconds", "streams", "tokens", "hits")


class Tpot:
    """Adds to `llm_time_per_output_token_mean_seconds` what each read shows."""

    def __init__(self) -> None:
        self._last: dict[str, dict[str, float]] = {}
        self._names: dict[str, Labels] = {}
        self._next = float("-inf")

    def observe(self, totals: Totals, now: float) -> None:
        """Take the totals after a read at `now`, in monotonic seconds."""
        if now < self._next:
            return
        self._next = now + APART
        sums_of: dict[str, dict[str, float]] = {}
        for part in _PARTS:
            for labels, value in totals.internal(f"tpot_{part}").items():
                deployment = dict(labels).get("deployment")
                if deployment is None:
                    continue
                sums = sums_of.setdefault(deployment, dict.fromkeys(_PARTS, 0.0))
                sums[part] += value
                if part == "streams":
                    names = tuple(pair for pair in labels if pair[0] != "deployment")
                    self._names.setdefault(deployment, names)
        before, self._last = self._last, sums_of
        self._names = {deployment: names for deployment, names in self._names.items() if deployment in sums_of}
        family = families()["llm_time_per_output_token_mean_seconds"]
        for deployment, sums in sums_of.items():
            if deployment in self._names:
                seconds, tokens = _gained(before.get(deployment, sums), sums)
                totals.add(family, self._names[deployment], seconds, "_sum")
                totals.add(family, self._names[deployment], tokens, "_count")


def _gained(before: Mapping[str, float], now: Mapping[str, float]) -> tuple[float, float]:
    """Seconds and tokens after the first between two reads; (0, 0) where nothing can be said."""
    gain = {part: now[part] - before[part] for part in _PARTS}
    if gain["streams"] <= 0.0 or gain["hits"] > 0.0:
        return 0.0, 0.0
    seconds = gain["latency_seconds"] - gain["answers"] * gain["first_seconds"] / gain["streams"]
    tokens = gain["tokens"] - gain["answers"]
    return (seconds, tokens) if seconds > 0.0 and tokens > 0.0 else (0.0, 0.0)
