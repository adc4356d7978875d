"""When targets are read."""

import asyncio
import time
import zlib
from typing import Any

import pytest
from helpers import Upstream

from exporter.core.board import Board, Health
from exporter.core.errors import ReadError
from exporter.core.poll import Watch, interval_in_force, next_on_grid
from exporter.core.source import Result
from exporter.core.types import SeriesTable
from exporter.insight import Insight, Settings


@pytest.mark.parametrize(
    ("configured", "took", "interval"),
    [(5.0, 0.1, 5.0), (5.0, 0.5, 5.0), (5.0, 0.6, 10.0), (5.0, 4.0, 40.0), (15.0, 4.0, 45.0)],
)
def test_a_read_takes_at_most_a_tenth_of_the_upstreams_time(configured: float, took: float, interval: float) -> None:
    assert interval_in_force(configured, took) == interval


def test_each_target_keeps_its_own_place_on_the_grid() -> None:
    for name in ("a", "b", "router-1"):
        phase = zlib.crc32(name.encode()) / 2**32 * 5.0
        at = 1000.0
        for _ in range(20):
            after = next_on_grid(at, 5.0, name)
            assert 0.0 < after - at <= 5.0 + 1e-9
            assert abs((after - phase) / 5.0 - round((after - phase) / 5.0)) < 1e-6
            at = after + 0.3
    assert next_on_grid(0.0, 5.0, "a") != next_on_grid(0.0, 5.0, "b")


class Scripted:
    """A source that does what it is told, read by read."""

    def __init__(self, up: Upstream, *script: Any) -> None:
        self.up = up
        self.script = list(script)
        self.reads: list[float] = []
        self.working = 0

    async def read(self) -> Result:
        assert self.working == 0
        self.working += 1
        try:
            self.reads.append(time.monotonic())
            step = self.script.pop(0) if self.script else 0.0
            if isinstance(step, Exception):
                raise step
            await asyncio.sleep(step)
            self.up.read("# nothing\n")
            return Result()
        finally:
            self.working -= 1


def watch(*script: Any, interval: float = 0.1, timeout: float = 1.0) -> tuple[Watch, Scripted, Health]:
    up = Upstream()
    source = Scripted(up, *script)
    health = Health("test", "t", {})
    board = Board()
    board.watch(health)
    insight = Insight(Settings(), SeriesTable({"source": "test", "target": "t"}))
    made = Watch(
        source, up.totals, up.reader, insight, url="http://t", interval=interval, timeout=timeout,
        exclude=frozenset(), max_series=1000, health=health, board=board, store=None,
    )  # fmt: skip
    return made, source, health


async def run(made: Watch, seconds: float) -> None:
    task = asyncio.create_task(made.run())
    await asyncio.sleep(seconds)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_reads_stand_on_the_grid_and_never_overlap() -> None:
    made, source, _ = watch(interval=0.2)
    await run(made, 1.5)
    phase = zlib.crc32(b"t") / 2**32 * 0.2
    places = [int((at - phase) // 0.2) for at in source.reads[1:]]  # the first read waits for nothing
    assert len(places) >= 2
    assert places == sorted(set(places))


async def test_a_slow_read_is_followed_by_the_next_after_ten_times_as_long() -> None:
    made, source, health = watch(0.15, interval=0.1)
    await run(made, 1.0)
    assert health.interval >= 1.5
    assert len(source.reads) == 1


async def test_a_hung_upstream_is_given_up_and_costs_no_more_than_its_share() -> None:
    made, _, health = watch(60.0, interval=0.1, timeout=0.2)
    reading = await made.read()
    assert reading.reason == "timeout"
    assert health.interval >= 2.0


async def test_a_refused_key_is_tried_again_after_a_minute_then_two_then_at_most_five() -> None:
    refused = ReadError("auth", "no")
    made, _, health = watch(*[refused] * 5)
    intervals = []
    for _ in range(5):
        await made.read()
        intervals.append(health.interval)
    assert intervals == [60.0, 120.0, 240.0, 300.0, 300.0]
    await made.read()
    assert health.interval == 0.1


async def test_a_defect_of_a_source_is_its_targets_failure_and_nobody_elses() -> None:
    made, _, health = watch(KeyError("oops"))
    reading = await made.read()
    assert reading.reason == "internal"
    assert "KeyError" in reading.error
    assert health.failures["internal"] == 1
    assert (await made.read()).ok
