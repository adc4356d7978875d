"""What no upstream says: scores, savings, standstills; made from our own vocabulary, so for every source alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from exporter.core.total import Totals
from exporter.core.types import Sample, SeriesTable
from exporter.insight import savings, score
from exporter.insight.savings import Savings
from exporter.insight.score import Scorecard
from exporter.insight.stall import Stall
from exporter.insight.words import Words

READ = tuple(dict.fromkeys((*score.READ, *savings.READ)))
"""The families that scores and savings are made from."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Seconds of the sliding window, requests under which nothing is scored, objectives of the p95s in seconds.

    `stalled_after`: seconds that requests may stand still.
    """

    window: float = 900.0
    minimum_requests: int = 10
    latency: float = 30.0
    ttft: float = 2.0
    stalled_after: float = 120.0


class Insight:
    """The insights into one target."""

    def __init__(self, settings: Settings, table: SeriesTable) -> None:
        self._pace = settings.window / 60
        self._next = 0.0
        self._said: list[Sample] = []
        self._scorecard = Scorecard(table, settings.window, settings.minimum_requests, settings.latency, settings.ttft)
        self._savings = Savings(table, settings.window)
        self._stall = Stall(table, settings.stalled_after)

    def observe(self, totals: Totals, own: Sequence[Sample], now: float, wall: float) -> list[Sample]:
        """The gauges that follow from what is known now (monotonic and Unix seconds); counters go into the totals.

        Whether the target stands still is told at each read. The others are worked out anew once in a sixtieth of the
        window: a mean over minutes does not change within seconds.
        """
        return [*self._windowed(totals, own, now), *self._stall.observe(totals, own, now, wall)]

    def _windowed(self, totals: Totals, own: Sequence[Sample], now: float) -> list[Sample]:
        if now < self._next:
            return self._said
        self._next = now + self._pace
        words = Words([*totals.current(READ), *own])
        self._said = [*self._scorecard.observe(words, now), *self._savings.observe(words, totals.add, now)]
        return self._said
