"""When one model's metrics are read, and what they said.

In some builds of llama.cpp a read of /metrics is work like any other: it wakes a model that sleeps, and begins anew the
time after which an idle one falls asleep (so measured on b10434; b11549 does neither). A model that has such a timer is
read at each turn while it works, then left alone until the timer has run out. No counter is lost by sleeping: what came
meanwhile is in the next read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from exporter.catalogue import families
from exporter.core.errors import ReadError
from exporter.core.fetch import Answer
from exporter.core.source import Row
from exporter.core.total import Totals
from exporter.core.types import Labels
from exporter.text.parse import Malformed, parse

LIMIT = 1 << 20
"""Bytes of one model's metrics at most: they are a few thousand."""
MARGIN = 2.0
"""Seconds by which a timer may be off: llama.cpp looks at it once in a second."""


@dataclass(slots=True)
class Turn:
    """One process's time with a model."""

    name: str
    life: str
    timer: float | None  # idle seconds after which it sleeps; None where it never does
    new: bool = False  # it came while its server was watched
    slots: float | None = None
    asked: float | None = None  # monotonic seconds
    busy: bool = False  # something moved, or ran, in the last read
    worked: bool = False  # the same, until it was noted
    counters: dict[str, float] = field(default_factory=dict)
    now: dict[str, float] = field(default_factory=dict)  # all else, where it was read at this turn

    def is_due(self, now: float) -> bool:
        """Whether its metrics may be read: it stays awake no longer for it than one read after its last request."""
        if self.timer is None or self.asked is None:
            return True
        since = now - self.asked
        return since > self.timer + MARGIN or (self.busy and since < self.timer - MARGIN)

    async def take(self, answer: Answer, now: float) -> None:
        """Read its metrics. Raises ReadError."""
        body = await answer.start(LIMIT)
        if len(body) > LIMIT:
            raise ReadError("too_large", f"{answer.url} answers with more than {LIMIT} bytes for one model")
        if not body.endswith(b"\n"):
            raise ReadError("truncated", f"{answer.url}: the body was cut on its way")
        try:
            lines = {line.name.replace("llamacpp_", "llamacpp:", 1): line.value for line in parse(body)}
        except Malformed as error:
            raise ReadError("malformed", f"{answer.url}: {error}") from None
        counters = {name: value for name, value in lines.items() if name.endswith("_total")}
        self.now = {name: value for name, value in lines.items() if name not in counters}
        running = any(self.now.get(f"llamacpp:requests_{state}") for state in ("processing", "deferred"))
        self.busy = running or any(value != self.counters.get(name, 0.0) for name, value in counters.items())
        self.worked |= running or (self.busy and (self.new or self.asked is not None))
        self.asked, self.counters = now, counters

    def rows(self) -> Iterator[Row]:
        """Its counters, as they were last read, and what was read at this turn."""
        labels = {"model": self.name, "life": self.life}
        for name, value in (*self.counters.items(), *self.now.items()):
            yield name, labels, value


class Mean:
    """The mean time per output token, whose parts are told together."""

    def __init__(self) -> None:
        self._decoded: dict[Labels, tuple[float, float]] = {}  # seconds and tokens so far, by model

    def add(self, totals: Totals) -> None:
        """Go on with what the totals have just been told."""
        family = families()["llm_time_per_output_token_mean_seconds"]
        seconds, tokens = totals.internal("decode_seconds"), totals.internal("decode_tokens")
        before, self._decoded = self._decoded, {labels: (seconds.get(labels, 0.0), tokens[labels]) for labels in tokens}
        for labels, now in self._decoded.items():
            spent, count = before.get(labels, now)
            totals.add(family, labels, max(0.0, now[0] - spent), "_sum")
            totals.add(family, labels, max(0.0, now[1] - count), "_count")
