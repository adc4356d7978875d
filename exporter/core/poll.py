"""Polling: each target at its own interval, on a fixed grid, never twice at once, never for long.

The grid's phase comes from a hash of the target's name, so that targets spread over the interval and each keeps its
place: jitter from read to read would make `rate()` over short windows wrong. A read takes at most a tenth of the
upstream's time: one that took 4 s is followed by the next after 40 s. One that was given up, after 10 s, is tried again
after 20 s, then 40, 80, 100: a server that hung for a moment is seen again soon.
"""

from __future__ import annotations

import asyncio
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from math import ceil

import structlog

from exporter.core.board import Board, Health
from exporter.core.errors import ReadError
from exporter.core.source import Follower, Result, Source, waited
from exporter.core.state import Store
from exporter.core.total import Totals
from exporter.core.types import Reading, Sample, Samples
from exporter.insight import Insight
from exporter.text.difference import Difference

SHARE = 10
"""A read takes at most one part in so many of the upstream's time."""
REFUSED = (60.0, 300.0)
"""Seconds until a target that refused a key is asked again: at first, and at most (it doubles)."""
log = structlog.get_logger(__name__)


def interval_in_force(configured: float, took: float) -> float:
    """Seconds between reads: as configured, or the next multiple of it that keeps a read to its share."""
    return configured * max(1, ceil(took * SHARE / configured))


def next_on_grid(now: float, interval: float, name: str) -> float:
    """The first instant after `now` on the target's grid."""
    phase = zlib.crc32(name.encode()) / 2**32 * interval
    return (int((now - phase) // interval) + 1) * interval + phase


class Watch:
    """One target, read again and again onto the board."""

    def __init__(
        self,
        source: Source,
        totals: Totals,
        reader: Difference,
        insight: Insight,
        *,
        url: str,
        interval: float,
        timeout: float,
        exclude: frozenset[str],
        max_series: int,
        health: Health,
        board: Board,
        store: Store | None,
    ) -> None:
        self.health = health
        self._source = source
        self.totals = totals
        self.reader = reader
        self._insight = insight
        self._url = url
        self._configured = interval
        self._timeout = timeout
        self._exclude = exclude
        self._max_series = max_series
        self._board = board
        self._store = store
        self._pause = 0.0  # for which the upstream is left alone since it refused, or was silent
        self._saved = 0.0
        self._dirty = False
        self._told = Samples()  # of the totals and of insight, in the last read
        health.interval = interval

    async def run(self) -> None:
        """Read until cancelled; the state is saved at the end."""
        with self._store.keeping() if self._store is not None else nullcontext():
            try:
                async with asyncio.TaskGroup() as group:
                    if isinstance(self._source, Follower):
                        group.create_task(self._follow(self._source))
                    await self._poll()
            finally:
                self.save()

    async def _poll(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            try:
                await self.read()
            except Exception as error:  # noqa: BLE001 - none is known; it would end the exporter
                self._publish(self._failed(error, 0.0))
            interval = self.health.interval
            wait = next_on_grid(loop.time(), interval, self.health.target) - loop.time()
            if loop.time() + wait - began < interval * 0.999 and interval > self._configured:
                wait += interval  # the share counts from one read's begin to the next one's
            await asyncio.sleep(wait)

    async def _follow(self, source: Follower) -> None:
        """Publish what the source hears between reads."""
        while True:
            try:
                async for result in source.follow():
                    last = self.health.reading
                    if last is not None:
                        self._publish(self._made_of(result, last.seconds))
            except Exception as error:  # noqa: BLE001 - as a failed read: the target's failure, and nobody else's
                self._publish(self._failed(error, 0.0))
            await asyncio.sleep(self.health.interval)

    async def read(self) -> Reading:
        """Read once and publish what came of it. Never raises but when cancelled."""
        took: float | None = None
        whole = False
        began, waiting, bodies = time.monotonic(), waited(), self.reader.bodies
        try:
            async with asyncio.timeout(self._timeout):
                result = await self._source.read()
            whole = result.failure is None or self.reader.bodies != bodies
            self._told = self._totals(result.samples) if whole else Samples()
            if result.shows is not None:
                kept = [sample for sample in self._told if result.shows(sample[0])]
                self._told = Samples([series for series, _ in kept], [value for _, value in kept])
            reading = self._made_of(result, time.monotonic() - began)
            took = result.seconds
        except Exception as error:  # noqa: BLE001 - the one place: a target's failure becomes its Reading
            self._told = Samples()
            reading = self._failed(error, time.monotonic() - began)
        self._dirty = True  # a read that failed may have counted something, too
        seconds = reading.seconds if took is None else took
        # what the loop worked meanwhile, for whatever target, is no time of the upstream's
        took = waited() - waiting if took is None else took
        self.health.interval = self._interval_after(None if whole else reading.reason, took, seconds)
        self.health.samples = self.reader.samples
        self.health.dropped = self.totals.dropped
        self._publish(reading)
        if self._store is not None and time.monotonic() - self._saved > self._store.interval:
            for _ in self._saving():
                await asyncio.sleep(0)
        return reading

    def _interval_after(self, reason: str | None, took: float, seconds: float) -> float:
        """Seconds until the next read, after one of `seconds`, of them `took` the upstream's, in vain by `reason`."""
        share = interval_in_force(self._configured, took)
        if reason == "auth":
            self._pause = min(max(2 * self._pause, REFUSED[0]), REFUSED[1])
            return max(share, self._pause)
        if reason == "timeout":  # it may be back soon, and may not have worked at all: its share is come to in steps
            self._pause = max(min(max(self._pause, seconds) * 2, seconds * SHARE), self._configured)
            return self._pause
        self._pause = 0.0
        return share

    def _publish(self, reading: Reading) -> None:
        self._log(reading)
        self._board.publish(reading)

    def _made_of(self, result: Result, seconds: float) -> Reading:
        failure = result.failure
        return Reading(
            target=self.health.target,
            at=time.time(),
            seconds=seconds,
            samples=self._samples(result.samples),
            advice=tuple(result.advice),
            version=result.version,
            reason=None if failure is None else failure.reason,
            error=str(failure or ""),
        )

    def _totals(self, own: Sequence[Sample]) -> Samples:
        """What the totals and insight say now."""
        # first: it may move what is shown
        more = self._insight.observe(self.totals, own, time.monotonic(), time.time())
        shown = self.totals.samples(self.health.carried)
        for series, value in more:
            shown.series.append(series)
            shown.values.append(value)
        return shown

    def _samples(self, own: Sequence[Sample]) -> Samples:
        """What is published: the totals as they were read, and the source's own, which are never too many."""
        shown, more = Samples([*self._told.series], [*self._told.values]), own
        if self._exclude:
            kept = [sample for sample in shown if sample[0].family.name not in self._exclude]
            shown = Samples([series for series, _ in kept], [value for _, value in kept])
            more = [sample for sample in own if sample[0].family.name not in self._exclude]
        over = len(shown) + len(more) - self._max_series
        if over > 0:
            self.totals.dropped["limit"] += over
            more = more[: self._max_series]
            shown = Samples(shown.series[:-over], shown.values[:-over])
        shown.series.extend([series for series, _ in more])
        shown.values.extend([value for _, value in more])
        return shown

    def _failed(self, error: Exception, seconds: float) -> Reading:
        if isinstance(error, ReadError):
            reason, text = error.reason, str(error)
        elif isinstance(error, TimeoutError):
            reason = "timeout"
            text = (
                f"{self._url} gave no whole answer within {self._timeout:g} s (raise `timeout`, or see why it is slow)"
            )
        else:
            reason = "internal"
            text = f"a defect of the exporter, please report it: {type(error).__name__}: {error}"
            log.error("a read failed by a defect of the exporter", target=self.health.target, exc_info=error)
        return Reading(self.health.target, time.time(), seconds, reason=reason, error=text)

    def _log(self, reading: Reading) -> None:
        """Log where the state of the target changes, and only there."""
        before = self.health.reading
        if reading.ok and (before is None or not before.ok):
            log.info(
                "target is up", target=reading.target, seconds=round(reading.seconds, 3), series=len(reading.samples)
            )
        elif not reading.ok and (before is None or before.reason != reading.reason):
            log.warning("target is down", target=reading.target, reason=reading.reason, error=reading.error)

    def save(self) -> None:
        """Write the state, where it has changed."""
        for _ in self._saving():
            pass

    def _saving(self) -> Iterator[None]:
        """The same in small steps, between which others have their turn."""
        if not self._dirty or self._store is None:
            return
        state = self.totals.dump(self.reader.remembered())
        if state is not None:
            yield from self._store.save(self.health.target, self._url, state)
            self._saved = time.monotonic()
            self._dirty = False
