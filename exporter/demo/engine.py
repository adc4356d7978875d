"""An engine that serves one model: a queue, slots, prefill and decode, counted in vLLM's words."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from exporter.demo.book import Book
from exporter.demo.world import World

FIRST = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0)
TOKEN = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0)
WHOLE = (0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0)
LENGTH = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0, 10000.0, 20000.0)
"""vLLM's boundaries."""


@dataclass(slots=True, eq=False)
class Call:
    """A request to a backend; `done` hears of its end. `first` and `end` are seconds, None until then."""

    model: str
    prompt: int
    cached: int
    output: int
    arrived: float
    done: Callable[[Call], None]
    first: float | None = None
    end: float | None = None
    failure: int = 0  # the HTTP status, 0 where all is well
    given_up: bool = False

    def give_up(self) -> None:
        """Wait no longer for its end, unless it has come."""
        if self.end is None and not self.given_up:
            self.given_up = True
            self.done(self)


@dataclass(slots=True, eq=False)
class _Slot:
    call: Call
    admitted: float
    first: float
    end: float
    each: float  # seconds a token
    told: int = 0  # tokens


class Engine:
    """`slots` requests at once, `prefill` tokens a second, `each` seconds a token when alone, a cache of `kv`."""

    def __init__(
        self,
        world: World,
        model: str,
        book: Book,
        *,
        slots: int,
        prefill: float,
        each: float,
        kv: int,
        draft: bool = False,  # guesses tokens ahead
        prefix: bool = True,  # prefills itself, with a cache of prefixes
    ) -> None:
        self.model, self.slots, self.kv = model, slots, kv
        self.stands = False  # stands still
        self.slow = 1.0  # times as long as usual
        self.tokens = 0  # that it ever put out, in all its lives
        self.running: list[_Slot] = []
        self.waiting: deque[Call] = deque()
        self._world = world
        self._prefill, self._each, self._draft, self._prefix = prefill, each, draft, prefix
        self._labels = {"model_name": model, "engine": "0"}
        world.steppers.append(self._step)
        self.begin(book)

    def begin(self, book: Book) -> None:
        """Be a new process, whose counters begin at 0."""
        self.book = book
        self.spent = dict.fromkeys(
            ("prompt", "cached", "output", "decode_seconds", "iterations"), 0.0
        )  # as llama.cpp counts
        for name in ("prompt_tokens", "prompt_tokens_cached", "generation_tokens", "num_preemptions"):
            self._count(name, 0)
        for reason in ("stop", "length", "abort", "error"):
            self.book.add("vllm:request_success_total", 0, finished_reason=reason, **self._labels)
        self._gauges()

    @property
    def busy(self) -> float:
        """How much of it is at work, 0 to 1."""
        return 0.0 if self.stands else min(1.0, len(self.running) / self.slots)

    @property
    def cache_used(self) -> float:
        """How much of the KV cache is in use, 0 to 1."""
        return min(1.0, sum(slot.call.prompt + slot.told for slot in self.running) / self.kv)

    def submit(self, call: Call) -> None:
        self.waiting.append(call)

    def kill(self) -> None:
        """Lose everything that is in work."""
        lost = [*(slot.call for slot in self.running), *self.waiting]
        self.running, self.waiting = [], deque()
        for call in lost:
            if not call.given_up:
                call.failure, call.end = 500, self._world.now
                call.done(call)
        self._gauges()

    def _step(self, seconds: float) -> None:
        now = self._world.now
        if self.stands:
            for slot in self.running:
                slot.first += seconds
                slot.end += seconds
            self._gauges()
            return
        before = self.tokens
        for slot in self.running:
            self._tell(slot, now)
        if self.running:  # a token for each request in each iteration
            iterations = max(1, round((self.tokens - before) / len(self.running)))
            self.book.observe("vllm:iteration_tokens_total", LENGTH, len(self.running), iterations, **self._labels)
            self.spent["iterations"] += iterations
        for slot in [slot for slot in self.running if slot.call.given_up or slot.end <= now]:
            self.running.remove(slot)
            self._finish(slot)
        while self.waiting and len(self.running) < self.slots:
            self._admit(self.waiting.popleft(), now)
        self._gauges()

    def _admit(self, call: Call, now: float) -> None:
        if call.given_up:
            return
        admitted = max(now - 0.5 * self._world.random.random(), call.arrived + 0.002)
        first = admitted + 0.015 + (call.prompt - call.cached) / self._prefill * self.slow
        each = self._each * (1.0 + 0.8 * len(self.running) / self.slots) * self.slow
        self.running.append(_Slot(call, admitted, first, first + call.output * each, each))

    def _tell(self, slot: _Slot, now: float) -> None:
        """Count what a request got since the last step."""
        call = slot.call
        if call.first is None and slot.first <= now:
            call.first = slot.first
            self.book.observe("vllm:time_to_first_token_seconds", FIRST, slot.first - call.arrived, **self._labels)
            self._count("prompt_tokens", call.prompt)
            if self._prefix:
                self._count("prompt_tokens_cached", call.cached)
                self._count("prefix_cache_queries", call.prompt)
                self._count("prefix_cache_hits", call.cached)
            self.spent["prompt"] += call.prompt - call.cached
            self.spent["cached"] += call.cached
        told = min(call.output, int((now - slot.first) / slot.each)) if call.first is not None else 0
        if told > slot.told:
            gained, slot.told = told - slot.told, told
            self._count("generation_tokens", gained)
            self.book.observe("vllm:inter_token_latency_seconds", TOKEN, slot.each, gained, **self._labels)
            self.tokens += gained
            self.spent["output"] += gained
            self.spent["decode_seconds"] += gained * slot.each
            if self._draft:
                self._count("spec_decode_num_draft_tokens", gained)
                self._count("spec_decode_num_accepted_tokens", int(gained * 0.68))

    def _finish(self, slot: _Slot) -> None:
        call, labels = slot.call, self._labels
        reason = "abort" if call.given_up else "length" if self._world.random.random() < 0.06 else "stop"
        self.book.add("vllm:request_success_total", finished_reason=reason, **labels)
        whole = slot.end - call.arrived
        for name, bounds, value in (
            ("e2e_request_latency_seconds", WHOLE, whole),
            ("request_queue_time_seconds", WHOLE, slot.admitted - call.arrived),
            ("request_prefill_time_seconds", WHOLE, slot.first - slot.admitted),
            ("request_decode_time_seconds", WHOLE, slot.end - slot.first),
            ("request_time_per_output_token_seconds", TOKEN, slot.each),
            ("request_prompt_tokens", LENGTH, float(call.prompt)),
            ("request_generation_tokens", LENGTH, float(slot.told)),
        ):
            self.book.observe(f"vllm:{name}", bounds, value, **labels)
        if not call.given_up:
            call.end = slot.end
            call.done(call)

    def _gauges(self) -> None:
        book, labels = self.book, self._labels
        book.set("vllm:num_requests_running", float(len(self.running)), **labels)
        book.set("vllm:num_requests_waiting", float(len(self.waiting)), **labels)
        used = self.cache_used
        book.set("vllm:kv_cache_usage_perc", used, **labels)
        if used > 0.95 and not self.stands:
            self._count("num_preemptions", 1)

    def _count(self, name: str, amount: float) -> None:
        self.book.add(f"vllm:{name}_total", amount, **self._labels)
