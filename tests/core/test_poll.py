"""When targets are read."""

import asyncio
import time
import zlib
from collections.abc import AsyncIterator
from dataclasses import replace
from selectors import EpollSelector
from typing import Any

import pytest
from helpers import Upstream

from exporter.catalogue import families
from exporter.core.board import Board, Health
from exporter.core.errors import ReadError
from exporter.core.poll import Watch, interval_in_force, next_on_grid
from exporter.core.source import Result
from exporter.core.types import SeriesTable
from exporter.insight import Insight, Settings


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock all but stands while anyone works, and goes on at once where all wait for it."""
    now, select = 1000.0, EpollSelector.select

    def look(selector: EpollSelector, timeout: float | None = None) -> Any:
        nonlocal now
        now += max(timeout or 0.0, 0.0) + 1e-6
        return select(selector, 0 if timeout else timeout)

    monkeypatch.setattr(EpollSelector, "select", look)
    monkeypatch.setattr(time, "monotonic", lambda: now)


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


async def test_a_hung_upstream_is_given_up_and_asked_again_soon_then_ever_more_rarely() -> None:
    made, _, health = watch(*[60.0] * 5, interval=0.1, timeout=0.2)
    intervals = []
    for _ in range(5):
        assert (await made.read()).reason == "timeout"
        intervals.append(health.interval)
    assert intervals[0] >= 2 * 0.2
    assert intervals[1] == 2 * intervals[0]
    assert intervals[4] >= 10 * 0.2
    await made.read()
    assert health.interval == 0.1


@pytest.mark.parametrize("reason", ["auth", "timeout"])
async def test_weeks_of_failures_do_no_harm(reason: str) -> None:
    made, _, health = watch(*[ReadError(reason, "no")] * 3000, interval=0.1)
    for _ in range(3000):
        assert (await made.read()).reason == reason
    assert health.interval == (300.0 if reason == "auth" else 0.1)


async def test_a_defect_beside_a_read_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    made, source, health = watch(interval=0.05)
    monkeypatch.setattr(made, "_interval_after", lambda *_: 1 / 0)
    await run(made, 1.0)
    assert len(source.reads) > 1
    assert health.failures["internal"] > 1


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


FAMILY = families()["llm_etcd_up"]


class Told:
    """A source that gives the results it is told to give, after a body or without one; and follows what it is sent."""

    def __init__(self, up: Upstream) -> None:
        self.up = up
        self.table = SeriesTable({"source": "test", "target": "t"})
        self.next: Result | Exception = Result()
        self.body = ""
        self.news: asyncio.Queue[Result | Exception] = asyncio.Queue()
        self.followed = 0
        self.ended = 0

    def result(self, value: float, **more: Any) -> Result:
        return Result([(self.table(FAMILY), value)], **more)

    async def read(self) -> Result:
        if self.body:
            self.up.read(self.body)
        if isinstance(self.next, Exception):
            raise self.next
        return self.next

    async def follow(self) -> AsyncIterator[Result]:
        self.followed += 1
        try:
            while True:
                news = await self.news.get()
                if isinstance(news, Exception):
                    raise news
                yield news
        finally:
            self.ended += 1


def told(interval: float = 60.0) -> tuple[Watch, Told, Health]:
    made, _, health = watch(interval=interval)
    source = Told(Upstream())
    made._source = source
    made.totals, made.reader = source.up.totals, source.up.reader
    return made, source, health


def values(health: Health) -> dict[str, float]:
    assert health.reading is not None
    return {series.family.name: value for series, value in health.reading.samples}


RUNNING = 'up_running{model="m"} 3\n'


async def test_a_failure_may_leave_what_is_known_and_old_totals_are_not_part_of_it() -> None:
    made, source, health = told()
    source.body, source.next = RUNNING, source.result(1.0)
    await made.read()
    assert values(health) == {"llm_requests_running": 3.0, "llm_etcd_up": 1.0}
    source.body, source.next = "", source.result(0.0, failure=ReadError("connect", "gone"))
    reading = await made.read()
    assert (reading.reason, reading.error) == ("connect", "gone")
    assert values(health) == {"llm_etcd_up": 0.0}
    source.body = RUNNING  # half of the upstream answers
    await made.read()
    assert values(health) == {"llm_requests_running": 3.0, "llm_etcd_up": 0.0}
    assert health.failures["connect"] == 2
    source.next = ReadError("timeout", "slow")
    await made.read()
    assert values(health) == {}


async def test_beyond_the_limit_on_series_the_source_s_own_are_the_last_to_go() -> None:
    made, source, health = told()
    made._max_series = 2
    source.body = "".join(f'up_running{{model="m{number}"}} 3\n' for number in range(3))
    source.next = source.result(1.0)
    await made.read()
    assert values(health) == {"llm_requests_running": 3.0, "llm_etcd_up": 1.0}
    assert (len(health.reading.samples), made.totals.dropped["limit"]) == (2, 2)  # type: ignore[union-attr]
    made._max_series = 1
    await made.read()
    assert values(health) == {"llm_etcd_up": 1.0}


async def test_who_refuses_a_key_in_part_is_asked_at_its_interval() -> None:
    made, source, health = told(interval=5.0)
    source.next = source.result(0.0, failure=ReadError("auth", "no"))
    await made.read()
    assert health.interval == 60.0
    source.body = RUNNING
    await made.read()
    assert health.interval == 5.0


async def test_a_source_says_how_long_its_upstream_worked_where_it_waited_for_others() -> None:
    made, source, health = told(interval=0.1)
    source.next = Result(seconds=0.5)
    await made.read()
    assert health.interval == 5.0
    source.next = Result(seconds=0.0)
    await made.read()
    assert health.interval == 0.1


async def test_what_a_source_hears_between_reads_is_published_at_once_beside_what_was_read() -> None:
    made, source, health = told()
    source.body, source.next = RUNNING, source.result(0.0)
    task = asyncio.create_task(made.run())
    await asyncio.sleep(0.05)
    assert values(health) == {"llm_requests_running": 3.0, "llm_etcd_up": 0.0}
    await source.news.put(source.result(1.0))
    await asyncio.sleep(0.01)
    assert values(health) == {"llm_requests_running": 3.0, "llm_etcd_up": 1.0}
    await source.news.put(source.result(0.5, failure=ReadError("connect", "lost")))
    await asyncio.sleep(0.01)
    assert health.reading is not None
    assert health.reading.reason == "connect"
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (source.followed, source.ended) == (1, 1)


async def test_a_source_that_fails_at_hearing_is_down_and_hears_again_after_an_interval() -> None:
    made, source, health = told(interval=0.05)
    source.next = source.result(1.0)
    task = asyncio.create_task(made.run())
    await asyncio.sleep(0.02)
    await source.news.put(KeyError("oops"))
    await asyncio.sleep(0.3)
    assert health.failures["internal"] == 1
    assert source.followed == 2
    assert health.reading is not None
    assert health.reading.ok, "reads go on"
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_what_only_waited_is_asked_again_at_once() -> None:
    made, source, health = told(interval=0.1)
    result = source.result(0.0, failure=ReadError("timeout", "a part of it said nothing"))
    for seconds, interval in ((0.001, 0.1), (0.2, 0.4)):
        source.body, source.next = "", replace(result, seconds=seconds)
        assert (await made.read()).reason == "timeout"
        assert health.interval == interval
