"""Whether a target stands still: requests are running or waiting, and for too long nothing has moved.

A server that hangs often goes on answering its health checks. It is told by what it counts while it works: steps of the
engine, tokens, KV cache that fills, requests that were served. What moves although nothing gets on (a request arrives,
a client gives up) does not count; a map says so of its rules, and of others that they move while a request runs:

- where the upstream counts something that moves while a request runs, the configured time is allowed;
- where all moves only when a request has been served, as long as its own history makes plausible: `FACTOR` times what
  all but one in a thousand requests took, or the longest time without a move that was seen to end. Until `ENOUGH`
  requests have been served it is `UNKNOWN` at least; it is never more than `LONGEST`, never less than configured.

Every model and rank that the upstream tells requests of is judged by itself, by what is told of it or of all. An
upstream that tells no requests, or nothing that could move, is not judged.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import product

from exporter.catalogue import families
from exporter.core.ledger import Slot
from exporter.core.total import Totals
from exporter.core.types import Sample, Series, SeriesTable
from exporter.insight.score import quantile

REQUESTS = ("llm_requests_running", "llm_requests_waiting", "llm_dynamo_worker_requests_running")
"""Gauges that say whether there is anything to do."""
LEVELS = ("llm_kv_cache_usage_ratio",)
"""Gauges that change only where work is done: that of a long prefill, too, during which no token is counted."""
COUNTS = frozenset(
    (
        "llm_engine_iterations_total",
        "llm_output_tokens_total",
        "llm_prompt_tokens_total",
        "llm_time_to_first_token_seconds",
        "llm_inter_token_latency_seconds",
        "llm_time_per_output_token_seconds",
        "llm_request_queue_seconds",
        "llm_request_prefill_seconds",
        "llm_request_decode_seconds",
        "llm_request_duration_seconds",
        "llm_request_duration_mean_seconds",
        "llm_upstream_duration_seconds",
        "llm_request_failures_total",
        "llm_dynamo_worker_response_bytes_total",
    )
)
"""Counters, and histograms by their count, that move where work is done."""
ANSWERS = frozenset(("server_error", "unavailable", "rate_limited", "other"))
"""Reasons of failures that are answers. Who gives up, or is turned away, may do so at a server that stands still."""
DURATIONS = ("llm_request_duration_seconds", "llm_dynamo_worker_request_duration_seconds")
"""Histograms of how long requests took: the history."""

FACTOR = 3.0
ENOUGH = 1000.0
UNKNOWN = 600.0
"""Seconds that are allowed at least, while too little is known of how long requests take."""
LONGEST = 3600.0
"""Seconds that a history may allow at most."""

Place = tuple[str, str | None, str | None]
"""Layer, model and rank; None where the upstream does not tell it. Layers are never mixed."""


@dataclass(slots=True)
class Part:
    """What requests are told of by themselves: a model, a rank, or the whole target."""

    since: float  # monotonic seconds: when it last moved, or was first seen with something to do
    idle: bool = True
    stalled: bool = False
    progress: float | None = None  # Unix seconds at which it was last seen to have moved
    longest: float = 0.0  # seconds without a move, that one then ended


class Stall:
    """Judges one target, read by read. `after` is the configured time, in seconds."""

    def __init__(self, table: SeriesTable, after: float) -> None:
        self._table = table
        self._after = after
        self._last = 0.0  # monotonic seconds of the last read
        self._parts: dict[Place, Part] = {}
        self._opened: int | None = None  # the ledger's, when the counts were looked for
        self._slots: list[Slot] = []
        self._numbers: list[int] = []
        self._amounts: list[float] = []
        self._ranges: dict[Place, range] = {}
        self._live: set[Place] = set()
        self._levels: dict[Series, float] = {}
        self._history: tuple[float, float] | None = None

    def observe(self, totals: Totals, own: Iterable[Sample], now: float, wall: float) -> Iterator[Sample]:
        """The verdict after a read at `now` (monotonic seconds), `wall` in Unix seconds. To be exhausted."""
        gauges = list(totals.gauges((*REQUESTS, *LEVELS)))
        moved = self._moved(totals, gauges)
        requests: dict[Place, float] = {}
        for series, value in (*gauges, *own):
            if series.family.name in REQUESTS:
                place = _place(series)
                requests[place] = requests.get(place, 0.0) + value
        judged = _agreeing(requests, self._ranges)
        on = _agreeing(judged, moved)
        self._parts = {place: self._parts.get(place) or Part(now) for place in requests if place in judged}
        for place, part in self._parts.items():
            if place in on:
                part.progress = wall
                if not (part.idle or part.stalled):  # what was a stall says nothing of what is plausible
                    part.longest = max(part.longest, self._last - part.since)
            if part.idle or place in on:
                part.since = now
            part.idle = requests[place] <= 0.0
            stood = now - part.since
            part.stalled = not part.idle and stood >= self._after and stood >= self._allowed(place, part, totals)
        self._last = now
        return self._said()

    def _said(self) -> Iterator[Sample]:
        known = families()
        for (layer, model, rank), part in self._parts.items():
            labels = [(n, v) for n, v in (("layer", layer), ("model", model), ("rank", rank)) if v]
            yield self._table(known["llm_target_stalled"], labels), float(part.stalled)
            if part.progress is not None:
                yield self._table(known["llm_target_last_progress_timestamp_seconds"], labels), part.progress

    # -- what moved ----------------------------------------------------------------------------------------------

    def _moved(self, totals: Totals, gauges: Iterable[Sample]) -> Collection[Place]:
        """The places where something has moved since the last read; at another process's first body, all."""
        before = self._levels
        self._levels = {series: value for series, value in gauges if series.family.name in LEVELS}
        moved = {_place(series) for series, value in self._levels.items() if before.get(series, value) != value}
        moved |= self._counted(totals)
        if totals.anew:
            moved |= self._ranges.keys()
        if moved:
            self._history = None
        return moved

    def _counted(self, totals: Totals) -> set[Place]:
        """Where counters have moved. Most reads compare one list of numbers with the last."""
        ledger = totals.ledger
        if self._opened == ledger.opened:
            before, self._amounts = self._amounts, list(map(ledger.amounts.__getitem__, self._numbers))
        else:
            first = self._opened is None
            known = dict(zip(self._slots, self._amounts, strict=True))
            self._look(totals)
            self._amounts = list(map(ledger.amounts.__getitem__, self._numbers))
            before = self._amounts if first else [known.get(slot, 0.0) for slot in self._slots]
        if before == self._amounts:
            return set()
        return {
            place
            for place, held in self._ranges.items()
            if before[held.start : held.stop] != self._amounts[held.start : held.stop]
        }

    def _look(self, totals: Totals) -> None:
        """Find the counters that tell of work, place by place."""
        found: dict[Place, list[Slot]] = {}
        self._live = set()
        for (_, _, series), slot in totals.ledger.slots.items():
            if series.family.name in COUNTS and slot.rule is not None and _tells(series, slot.rule.progress):
                place = _place(series)
                found.setdefault(place, []).append(slot)
                if slot.rule.progress == "running":
                    self._live.add(place)
        self._opened = totals.ledger.opened
        self._slots, self._ranges = [], {}
        for place, slots in found.items():
            self._ranges[place] = range(len(self._slots), len(self._slots) + len(slots))
            self._slots += slots
        self._numbers = [slot.number for slot in self._slots]

    # -- what is allowed -----------------------------------------------------------------------------------------

    def _allowed(self, place: Place, part: Part, totals: Totals) -> float:
        """Seconds that this part may stand still."""
        if _agreeing((place,), self._live):
            return self._after
        if self._history is None:
            self._history = _history(totals)
        took, served = self._history
        plausible = FACTOR * max(took, part.longest)
        if served < ENOUGH:
            plausible = max(plausible, UNKNOWN)
        return max(self._after, min(plausible, LONGEST))


def _place(series: Series) -> Place:
    labels = dict(series.own)
    return labels.get("layer", ""), labels.get("model"), labels.get("rank")


def _tells(series: Series, progress: str) -> bool:
    """Whether it moves only where work is done."""
    if series.suffix not in ("", "_count") or progress == "none":
        return False
    return series.family.name != "llm_request_failures_total" or series.get("reason") in ANSWERS


def _agreeing(parts: Iterable[Place], places: Collection[Place]) -> set[Place]:
    """Those of the parts that something is told of in the places: of that part alone, or of it among others.

    A part and a place agree where no label that both have tells them apart. Costs their sum, never their product.
    """
    found: set[Place] = set()
    if not places:
        return found
    by_labels: dict[tuple[bool, bool], set[Place]] = {}
    for part in parts:
        layer, model, rank = part
        has = model is not None, rank is not None
        if has not in by_labels:
            by_labels[has] = {(at, m if has[0] else None, r if has[1] else None) for at, m, r in places}
        if not by_labels[has].isdisjoint(product((layer,), {model, None}, {rank, None})):
            found.add(part)
    return found


def _history(totals: Totals) -> tuple[float, float]:
    """Seconds that all but one in a thousand requests took, and how many were served."""
    longest, served = 0.0, 0.0
    for name in DURATIONS:
        buckets: dict[float, float] = {}
        for series, value in totals.current((name,)):
            if series.le is not None:
                buckets[series.le] = buckets.get(series.le, 0.0) + value
        ordered = sorted(buckets.items())
        longest = max(longest, quantile(0.999, ordered) or 0.0)
        served += ordered[-1][1] if ordered else 0.0
    return longest, served
