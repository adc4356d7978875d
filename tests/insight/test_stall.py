"""When a target is said to stand still, and when not: simulated servers, read every few seconds of simulated time."""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from helpers import Upstream
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter.catalogue import families
from exporter.core.source import source_map
from exporter.core.types import Sample, SeriesTable
from exporter.insight import stall
from exporter.insight.stall import COUNTS, DURATIONS, LEVELS, REQUESTS, Stall

MAP = """
identity: process_start_time_seconds
layer: engine
families:
  llm_requests_running: {from: [up_running], labels: &who {model: model, rank: rank}, merge: max}
  llm_requests_waiting: {from: [up_waiting], labels: *who, merge: max}
  llm_kv_cache_usage_ratio: {from: [up_kv], labels: *who, merge: max}
  llm_engine_iterations_total: {from: [up_steps_total], labels: *who, progress: running}
  llm_inter_token_latency_seconds: {from: [up_gap_seconds], labels: *who, progress: running}
  llm_prompt_tokens_total: {from: [up_arrived_total], labels: *who, progress: none}
  llm_output_tokens_total: {from: [up_tokens_total], labels: *who}
  llm_request_duration_seconds: {from: [up_seconds], labels: *who}
  llm_request_failures_total:
    from: [up_failures_total]
    labels: {model: model, rank: rank, reason: {cases: [{is: cancelled, status: "499"}], else: other}}
"""
AFTER, EVERY = 60.0, 5.0
EPOCH = 1_700_000_000.0


class Watched:
    """A target as it is read and judged, on a clock that is moved by hand."""

    def __init__(self, after: float = AFTER) -> None:
        self.up = Upstream(text=MAP)
        self.table = SeriesTable({"source": "test", "target": "t"})
        self.stall = Stall(self.table, after)
        self.now = 0.0
        self.shown: dict[tuple[str, str], float] = {}

    def read(self, body: str, own: list[Sample] | None = None) -> dict[str, float]:
        """Who stands still, by model and rank."""
        self.up.read(body)
        self.shown = {
            (series.family.name, ",".join(value for name, value in series.own if name != "layer")): value
            for series, value in self.stall.observe(self.up.totals, own or [], self.now, EPOCH + self.now)
        }
        return {who: value for (name, who), value in self.shown.items() if name == "llm_target_stalled"}

    def after(self, seconds: float, body: str) -> dict[str, float]:
        self.now += seconds
        return self.read(body)

    def progress(self, who: str = "m") -> float | None:
        at = self.shown.get(("llm_target_last_progress_timestamp_seconds", who))
        return None if at is None else at - EPOCH


def body(labels: str = 'model="m"', **values: float) -> str:
    return "".join(f"up_{name}{{{labels}}} {value}\n" for name, value in values.items())


# -- one thing at a time -----------------------------------------------------------------------------------------------


def test_a_frozen_engine_with_nothing_running_and_three_waiting_is_stalled_after_the_configured_time() -> None:
    server = Watched()
    frozen = body(running=0, waiting=3, steps_total=40)
    assert server.read(frozen) == {"m": 0.0}
    for _ in range(int(AFTER / EVERY) - 1):
        assert server.after(EVERY, frozen) == {"m": 0.0}
    assert server.after(EVERY, frozen) == {"m": 1.0}
    assert server.progress() is None, "it was never seen to move"
    assert server.after(EVERY, body(running=1, waiting=2, steps_total=41)) == {"m": 0.0}
    assert server.progress() == server.now


def test_idle_time_is_no_standstill_and_a_request_after_it_has_the_whole_time() -> None:
    server = Watched()
    server.read(body(running=0, steps_total=40))
    assert server.after(3600.0, body(running=0, steps_total=40)) == {"m": 0.0}
    assert server.after(EVERY, body(running=1, steps_total=40)) == {"m": 0.0}
    assert server.after(AFTER - 1.0, body(running=1, steps_total=40)) == {"m": 0.0}
    assert server.after(1.0, body(running=1, steps_total=40)) == {"m": 1.0}
    assert server.after(EVERY, body(running=0, steps_total=40)) == {"m": 0.0}, "whoever waited has gone"


@pytest.mark.parametrize("what", ["steps_total", "tokens_total", "kv", "gap_seconds_count", "seconds_count"])
def test_whatever_moves_while_work_is_done_is_progress(what: str) -> None:
    def at(value: float) -> str:
        told = {"running": 1.0, "steps_total": 1.0, what: value}
        histogram = "".join(
            body(f'model="m",le="{le}"', **{what.replace("count", "bucket"): value})
            for le in ("1.0", "+Inf")
            if what.endswith("_count")
        )
        return body(**told) + histogram

    server = Watched()
    server.read(at(0.25))
    for step in range(1, 100):
        assert server.after(EVERY, at(0.25 + step)) == {"m": 0.0}
        assert server.progress() == server.now
    assert server.after(AFTER, at(99.25)) == {"m": 1.0}
    assert server.progress() == server.now - AFTER


def test_arrivals_and_clients_that_give_up_are_no_progress() -> None:
    server = Watched()
    for step in range(20):
        told = body(running=5, steps_total=7, arrived_total=step * 100)
        stalled = server.after(EVERY, told + body('model="m",status="499"', failures_total=step))
        assert stalled == {"m": float(step * EVERY >= AFTER)}
    assert server.after(EVERY, told + body('model="m",status="500"', failures_total=1)) == {"m": 0.0}


def test_one_frozen_rank_among_eight_is_seen() -> None:
    server = Watched()
    for step in range(20):
        told = "".join(
            body(f'model="m",rank="{rank}"', running=2, steps_total=7 if rank == 5 else step) for rank in range(8)
        )
        stalled = server.after(EVERY, told)
    assert stalled == {f"m,{rank}": float(rank == 5) for rank in range(8)}


def test_what_is_told_of_all_ranks_together_counts_for_each() -> None:
    server = Watched()
    for step in range(40):
        told = "".join(body(f'model="m",rank="{rank}"', running=2) for rank in range(2))
        stalled = server.after(EVERY, told + body(steps_total=step) + body('model="n"', running=1, steps_total=0))
    assert stalled == {"m,0": 0.0, "m,1": 0.0, "n": 1.0}


def test_who_tells_no_requests_or_nothing_that_moves_is_not_judged() -> None:
    server = Watched()
    assert server.read(body(steps_total=1)) == {}
    assert server.after(3600.0, body(steps_total=1)) == {}
    server = Watched()
    assert server.read(body(running=1, arrived_total=5)) == {}
    assert server.after(3600.0, body(running=1, arrived_total=9)) == {}


def test_a_restart_is_progress() -> None:
    server = Watched()
    start = "process_start_time_seconds"
    server.read(body(running=1, steps_total=5) + f"{start} 1000\n")
    assert server.after(AFTER, body(running=1, steps_total=5) + f"{start} 1000\n") == {"m": 1.0}
    assert server.after(EVERY, body(running=1, steps_total=0) + f"{start} 2000\n") == {"m": 0.0}
    assert server.progress() == server.now
    assert server.after(AFTER, body(running=1, steps_total=0) + f"{start} 2000\n") == {"m": 1.0}


def test_series_that_come_and_go_are_no_progress_of_what_stands_still() -> None:
    server = Watched()
    server.read(body(running=1, steps_total=5))
    for step in range(1, 20):
        told = body(running=1, steps_total=5) + body(f'model="other-{step}"', steps_total=3)
        stalled = server.after(EVERY, told)
    assert stalled == {"m": 1.0}
    assert server.after(EVERY, told + body('model="m",rank="0"', tokens_total=1)) == {"m": 0.0}, "a first token is"


def test_reads_further_apart_than_the_configured_time_see_it_at_the_second() -> None:
    server = Watched(after=10.0)
    assert server.read(body(running=1, steps_total=5)) == {"m": 0.0}
    assert server.after(40.0, body(running=1, steps_total=6)) == {"m": 0.0}
    assert server.after(40.0, body(running=1, steps_total=6)) == {"m": 1.0}


def test_requests_that_a_source_tells_by_itself_are_judged() -> None:
    """As LiteLLM's, which are told for the gateway as a whole, while its counters have models."""
    server = Watched()
    series = server.table(families()["llm_requests_running"], [("layer", "engine")])
    for step in range(30):
        server.now += EVERY
        moving = server.read(body(steps_total=step), [(series, 2.0)])
    assert moving == {"": 0.0}
    server.now += AFTER
    assert server.read(body(steps_total=step), [(series, 2.0)]) == {"": 1.0}


def test_a_hostile_page_of_many_models_and_ranks_costs_their_sum_and_not_their_product() -> None:
    models = [("engine", f"m{number}", None) for number in range(20_000)]
    ranks = [("engine", None, str(number)) for number in range(20_000)]
    assert len(stall._agreeing(models, ranks)) == 20_000, "a product would take minutes"
    assert stall._agreeing([("engine", "m", "0")], [("engine", "m", "1"), ("gateway", "m", "0")]) == set()


# -- where all moves at a request's end --------------------------------------------------------------------------------


def ended(count: int, top: float) -> str:
    """A server whose requests took up to `top` seconds each, so far."""
    bounds = [1.0, 10.0, 60.0, 120.0, 300.0, math.inf]
    buckets = "".join(
        f'up_seconds_bucket{{model="m",le="{"+Inf" if le == math.inf else le}"}} {count if le >= top else 0}\n'
        for le in bounds
    )
    return buckets + body(seconds_count=count, seconds_sum=count * top, tokens_total=count * 9)


@pytest.mark.parametrize(
    ("count", "top", "allowed"),
    [(0, 1.0, 600.0), (50, 1.0, 600.0), (50, 300.0, 900.0), (5000, 10.0, AFTER), (5000, 120.0, 360.0)],
)
def test_what_moves_at_the_end_alone_has_the_time_that_its_history_makes_plausible(
    count: int, top: float, allowed: float
) -> None:
    server = Watched()
    frozen = body(running=1) + ended(count, top)
    server.read(frozen)
    until = 0.0
    while server.after(EVERY, frozen) == {"m": 0.0}:
        until = server.now
        assert until < 7200.0
    assert allowed - 2 * EVERY <= until < allowed


def test_a_long_request_makes_as_long_a_one_plausible_and_a_standstill_does_not() -> None:
    server = Watched()
    for tokens in range(2):
        assert server.after(500.0, body(running=1, tokens_total=tokens)) == {"m": 0.0}
        for _ in range(100):  # 500 s without a move
            assert server.after(EVERY, body(running=1, tokens_total=tokens)) == {"m": 0.0}
    server.after(EVERY, body(running=1, tokens_total=5))
    assert server.after(1400.0, body(running=1, tokens_total=5)) == {"m": 0.0}
    assert server.after(200.0, body(running=1, tokens_total=5)) == {"m": 1.0}, "three times 500 s"
    server.after(5000.0, body(running=1, tokens_total=6))
    assert server.after(1600.0, body(running=1, tokens_total=6)) == {"m": 1.0}


def test_no_history_allows_more_than_an_hour() -> None:
    server = Watched()
    server.read(body(running=1, tokens_total=0))
    server.stall._parts["engine", "m", None].longest = 5000.0
    server.after(EVERY, body(running=1, tokens_total=1))
    assert server.after(3599.0, body(running=1, tokens_total=1)) == {"m": 0.0}
    assert server.after(1.0, body(running=1, tokens_total=1)) == {"m": 1.0}


# -- an hour of traffic ------------------------------------------------------------------------------------------------


@dataclass
class Request:
    arrived: float
    prefill: float  # seconds
    tokens: float
    told: float = 0.0  # tokens so far
    patience: float = math.inf


@dataclass
class Server:
    """Serves random traffic, a second at a time: quiet, lone and crowded stretches; now and then a very long prefill.

    `shows` is what its page tells: `steps` (and how full the KV cache is), `tokens` as they flow, or only `ends`.
    """

    shows: str
    random: random.Random
    now: float = 0.0
    frozen: bool = False
    served: int = 0
    given_up: int = 0
    arrived: int = 0
    steps: int = 0
    tokens: float = 0.0
    gaps: int = 0
    kv: float = 0.0
    seconds: list[float] = field(default_factory=list)
    running: list[Request] = field(default_factory=list)
    waiting: list[Request] = field(default_factory=list)
    slots: int = 4

    def second(self) -> None:
        self.now += 1.0
        stretch = int(self.now // 300) % 3
        if self.random.random() < (0.002, 0.02, 0.3)[stretch]:
            self.arrived += 1
            rare = self.random.random()
            prefill = self.random.uniform(20.0, 55.0) if rare < 0.1 else self.random.expovariate(1.0)
            tokens = min(self.random.lognormvariate(5.0, 1.0), 9000.0)
            patience = self.random.uniform(1.0, 60.0) if rare > 0.9 else math.inf
            self.waiting.append(Request(self.now, prefill, tokens, patience=patience))
        for queue in (self.waiting, self.running):
            for request in [request for request in queue if self.now - request.arrived > request.patience]:
                self.given_up += 1
                queue.remove(request)
        if self.frozen:
            return
        while self.waiting and len(self.running) < self.slots:
            self.running.append(self.waiting.pop(0))
        gave = False
        for request in list(self.running):
            if request.prefill > 0.0:
                request.prefill -= 1.0
                self.kv = (self.kv + 0.001) % 1.0
                continue
            gave = True
            request.told += 30.0
            if self.shows != "ends":
                self.tokens += 30.0
                self.gaps += 30
            if request.told >= request.tokens:
                self.served += 1
                self.tokens += request.told if self.shows == "ends" else 0.0
                self.seconds.append(self.now - request.arrived)
                self.running.remove(request)
        self.steps += gave  # as vLLM counts: steps that gave a token

    def page(self) -> str:
        told = body(tokens_total=self.tokens, arrived_total=self.arrived * 100)
        told += body('model="m",status="499"', failures_total=self.given_up)
        if self.shows == "steps":
            return told + body(
                running=len(self.running), waiting=len(self.waiting), steps_total=self.steps, kv=round(self.kv, 4)
            )
        told += body(running=len(self.running) + len(self.waiting))
        if self.shows == "tokens":
            gaps = body('model="m",le="+Inf"', gap_seconds_bucket=self.gaps)
            return told + gaps + body(gap_seconds_count=self.gaps, gap_seconds_sum=self.gaps * 0.03)
        for le in (1.0, 5.0, 30.0, 120.0, 600.0, math.inf):
            bound = "+Inf" if le == math.inf else le
            told += f'up_seconds_bucket{{model="m",le="{bound}"}} {sum(took <= le for took in self.seconds)}\n'
        return told + body(seconds_count=len(self.seconds), seconds_sum=sum(self.seconds))


def reads(server: Server, watched: Watched, seconds: float) -> Iterator[float | None]:
    """What each read says, until so many seconds have passed."""
    until = server.now + seconds
    while server.now < until:
        for _ in range(int(EVERY)):
            server.second()
        watched.now = server.now
        yield watched.read(server.page()).get("m")


SHOWS = pytest.mark.parametrize("shows", ["steps", "tokens", "ends"])


@SHOWS
@pytest.mark.parametrize("seed", range(4))
def test_an_hour_of_idle_lone_and_crowded_traffic_with_long_prefills_raises_no_alarm(shows: str, seed: int) -> None:
    server, watched = Server(shows, random.Random(seed)), Watched()
    said = list(reads(server, watched, 3600.0))
    assert 1.0 not in said
    assert 0.0 in said
    assert server.served > 100, "there was traffic"
    assert server.given_up > 3


def answering(server: Server) -> bool:
    return any(request.told > 0.0 and request.patience == math.inf for request in server.running)


@SHOWS
@given(seed=st.integers(0, 2**32), moment=st.floats(900.0, 2700.0))
@settings(max_examples=15)
def test_a_server_that_freezes_in_the_middle_of_an_answer_is_stalled_in_time_and_no_more_with_its_next_token(
    shows: str, seed: int, moment: float
) -> None:
    server, watched = Server(shows, random.Random(seed)), Watched()
    for said in reads(server, watched, 7200.0):
        assert said != 1.0
        if server.now >= moment and answering(server):
            break
    server.frozen, froze = True, server.now
    said = next(judged for judged in reads(server, watched, stall.LONGEST + 2 * EVERY) if judged == 1.0)
    stood, progress = server.now - froze, watched.progress()
    assert progress is not None
    if shows == "ends":
        assert stood <= stall.LONGEST
        assert progress <= froze
    else:
        assert (stood, progress) == (AFTER, froze)
    server.frozen = False
    cleared = next(server.now for judged in reads(server, watched, 1200.0) if judged == 0.0)
    assert shows == "ends" or cleared == froze + stood + EVERY, "at the first read that sees a token"


# -- the maps ----------------------------------------------------------------------------------------------------------


def test_what_is_judged_by_are_words_of_ours() -> None:
    assert {*REQUESTS, *LEVELS, *COUNTS, *DURATIONS} <= families().keys()


@pytest.mark.parametrize("kind", ["litellm", "dynamo"])
def test_every_kind_of_upstream_has_something_that_moves_while_work_is_done(kind: str) -> None:
    layers: dict[str, set[str]] = {}
    for rule in source_map(kind).rules:
        if rule.family.name in COUNTS and rule.progress != "none":
            layers.setdefault(dict(rule.constant).get("layer", ""), set()).add(rule.progress)
    expected = {"litellm": {"gateway": {"end"}}, "dynamo": {"frontend": {"end", "running"}, "": {"running"}}}
    assert expected[kind].items() <= layers.items()
