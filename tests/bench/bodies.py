"""Bodies of /metrics as large upstreams write them, each a little different from the one before.

Three sizes, whose families, labels and buckets are those of real servers:

- S: 2,115 series (0.4 MB), vLLM with five engines;
- M: 20,425 series (7.9 MB), LiteLLM with 95 keys;
- L: 102,340 series (39.7 MB), LiteLLM with 476 keys;

and one more, `process_start_time_seconds`. `python tests/bench/bodies.py M 10` says how fast they are made.

A body is a join of texts, one for each child (the lines of one label set in one family), and only the text of a child
that changed is formatted anew: a benchmark's upstream shares the machine with what is measured.
"""

from __future__ import annotations

import random
import sys
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from math import ceil

START = 1.7e9
"""When the upstream's process began, in Unix seconds."""

FEW = 20
"""Entities under which a cluster would be everything."""

MODELS = (
    ("gpt-4o", "openai"), ("gpt-4o-mini", "openai"), ("o3", "openai"), ("gpt-4o", "azure"),
    ("claude-sonnet-4-5-20250929", "anthropic"), ("claude-haiku-4-5", "anthropic"), ("claude-sonnet-4-5", "bedrock"),
    ("mistral-large", "bedrock"), ("gemini-2.5-pro", "vertex_ai"), ("deepseek-r1", "hosted_vllm"),
    ("meta-llama/Llama-3.3-70B-Instruct", "hosted_vllm"), ("qwen3-235b-a22b", "hosted_vllm"),
)  # fmt: skip

LITELLM_BUCKETS = (
    "0.005", "0.00625", "0.0125", "0.025", "0.05", "0.1", *(f"{half / 2}" for half in range(1, 21)),
    "15.0", "20.0", "25.0", "30.0", "60.0", "120.0", "180.0", "240.0", "300.0", "+Inf",
)  # fmt: skip
LITELLM_HISTOGRAMS = (
    "litellm_request_total_latency_metric", "litellm_llm_api_latency_metric",
    "litellm_llm_api_time_to_first_token_metric", "litellm_overhead_latency_metric",
    "litellm_deployment_latency_per_output_token",
)  # fmt: skip
LITELLM_COUNTERS = (
    "litellm_proxy_total_requests_metric", "litellm_proxy_failed_requests_metric", "litellm_spend_metric",
    "litellm_total_tokens_metric", "litellm_input_tokens_metric", "litellm_output_tokens_metric",
    "litellm_deployment_success_responses", "litellm_deployment_failure_responses", "litellm_deployment_total_requests",
    "litellm_requests_metric",
)  # fmt: skip

VLLM_BUCKETS = (
    "0.001", "0.005", "0.01", "0.02", "0.04", "0.06", "0.08", "0.1", "0.25", "0.5", "0.75", "1.0", "2.5", "5.0", "7.5",
    "10.0", "20.0", "40.0", "80.0", "160.0", "640.0", "2560.0", "+Inf",
)  # fmt: skip
VLLM_HISTOGRAMS = (
    "vllm:time_to_first_token_seconds", "vllm:time_per_output_token_seconds", "vllm:inter_token_latency_seconds",
    "vllm:e2e_request_latency_seconds", "vllm:request_queue_time_seconds", "vllm:request_inference_time_seconds",
    "vllm:request_prefill_time_seconds", "vllm:request_decode_time_seconds", "vllm:request_prompt_tokens",
    "vllm:request_generation_tokens", "vllm:request_max_num_generation_tokens", "vllm:request_params_n",
    "vllm:request_params_max_tokens", "vllm:iteration_tokens_total", "vllm:request_time_per_output_token_seconds",
)  # fmt: skip
VLLM_COUNTERS = (
    "vllm:prompt_tokens", "vllm:generation_tokens", "vllm:request_success", "vllm:num_preemptions",
    "vllm:prefix_cache_queries", "vllm:prefix_cache_hits", "vllm:external_prefix_cache_queries",
    "vllm:external_prefix_cache_hits", "vllm:mm_cache_queries", "vllm:mm_cache_hits", "vllm:spec_decode_num_drafts",
    "vllm:spec_decode_num_draft_tokens", "vllm:spec_decode_num_accepted_tokens", "vllm:http_requests",
)  # fmt: skip
VLLM_GAUGES = (
    "vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc", "vllm:lora_requests_info",
    "vllm:engine_sleep_state",
)  # fmt: skip


def number(value: float) -> str:
    """A value as prometheus-client writes it: `12.0`, `1.2345678e+06`."""
    text = repr(float(value))
    dot = text.find(".")
    if dot <= 6 or value < 0:
        return text
    mantissa = f"{text[0]}.{text[1:dot]}{text[dot + 1 :]}".rstrip("0.")
    return f"{mantissa}e+{dot - 1:02}"


@dataclass(frozen=True, slots=True)
class Entity:
    """What has a child in every family, a key or an engine: its labels, as text before and after where `le` stands."""

    before: str
    after: str

    def line(self, name: str, le: str = "") -> str:
        """A line up to its value."""
        return f'{name}{{{self.before},le="{le}",{self.after}}} ' if le else f"{name}{{{self.before},{self.after}}} "


def _key(place: int, dice: random.Random) -> Entity:
    model, provider = MODELS[place % len(MODELS)]
    alias, key = f"{dice.getrandbits(24):06x}", f"{dice.getrandbits(256):064x}"
    team = f"{dice.getrandbits(128):032x}"
    team = f"{team[:8]}-{team[8:12]}-{team[12:16]}-{team[16:20]}-{team[20:]}"
    return Entity(
        f'api_key_alias="svc-{alias}-prod-{place}",api_provider="{provider}",end_user="None",hashed_api_key="{key}"',
        f'model="{model}",requested_model="{model}",team="{team}",team_alias="team {place % 40}",'
        f'user="user-{place}",user_email="user{place}@example.com"',
    )


def _engine(place: int, dice: random.Random) -> Entity:
    return Entity(
        f'dynamo_component="backend",dynamo_endpoint="generate",dynamo_namespace="prod",engine="{place}"',
        'model_name="meta-llama/Llama-3.3-70B-Instruct"',
    )


@dataclass(frozen=True, slots=True)
class Shape:
    """A size: how many entities, how each is made, and the families they have children in."""

    entities: int
    entity: Callable[[int, random.Random], Entity]
    buckets: tuple[str, ...]
    histograms: tuple[str, ...]
    counters: tuple[str, ...]
    gauges: tuple[str, ...] = ()


SHAPES = {
    "S": Shape(5, _engine, VLLM_BUCKETS, VLLM_HISTOGRAMS, VLLM_COUNTERS, VLLM_GAUGES),
    "M": Shape(95, _key, LITELLM_BUCKETS, LITELLM_HISTOGRAMS, LITELLM_COUNTERS),
    "L": Shape(476, _key, LITELLM_BUCKETS, LITELLM_HISTOGRAMS, LITELLM_COUNTERS),
}


class Single:
    """A child of one line. `step` makes the next value of the last one."""

    __slots__ = ("_line", "_step", "_value")
    lines = 1

    def __init__(self, line: str, value: float, step: Callable[[float], float]) -> None:
        self._line = line
        self._value = value
        self._step = step

    def change(self, lines: int) -> None:
        self._value = self._step(self._value)

    def text(self) -> bytes:
        return f"{self._line}{number(self._value)}\n".encode()


class Histogram:
    """A child of a line for each bucket, `_count` and `_sum`."""

    __slots__ = ("_counts", "_dice", "_sum", "_template", "lines")

    def __init__(self, entity: Entity, name: str, buckets: Sequence[str], most: int, dice: random.Random) -> None:
        self.lines = len(buckets) + 2
        self._dice = dice
        self._template = "".join(
            (
                *(entity.line(f"{name}_bucket", le) + "%d.0\n" for le in buckets),
                entity.line(f"{name}_count") + "%d.0\n",
                entity.line(f"{name}_sum") + "%b\n",
            )
        ).encode()
        self._counts = [0]
        for _ in buckets:
            self._counts.append(self._counts[-1] + dice.randrange(most))
        del self._counts[0]
        self._sum = self._counts[-1] * 1.2345678

    def change(self, lines: int) -> None:
        """One observation in the bucket that makes `lines` lines change: the buckets from it on, count and sum."""
        first = self.lines - lines
        self._counts[first:] = [count + 1 for count in self._counts[first:]]
        self._sum += self._dice.random() * 3

    def text(self) -> bytes:
        counts = self._counts
        return self._template % (*counts, counts[-1], number(self._sum).encode())


Child = Single | Histogram


@dataclass(slots=True)
class Section:
    """A family on the page: its header and, by entity, each child and its text."""

    header: bytes
    child: Callable[[Entity, bool], Child]
    fixed: bool = False  # a time of creation: does not change, but where everything does
    children: list[Child] = field(default_factory=list)
    texts: list[bytes] = field(default_factory=list)

    def insert(self, place: int, entity: Entity, *, new: bool) -> None:
        child = self.child(entity, new)
        self.children.insert(place, child)
        self.texts.insert(place, child.text())

    def remove(self, place: int) -> None:
        del self.children[place], self.texts[place]

    def change(self, place: int, lines: int) -> None:
        child = self.children[place]
        child.change(lines)
        self.texts[place] = child.text()


class Bodies:
    """The bodies of one upstream: `next()` is the first, then each with `percent` of its series changed.

    Which series change is clustered, as traffic makes it: some entities change in all their families (with few
    entities: some children change). With `spread` as many children as possible change, each in as few lines as may be.
    `churn` entities vanish before each further body, and as many new ones take their sorted places in every family.
    The same arguments make the same bodies.
    """

    def __init__(self, size: str, percent: float, *, spread: bool = False, churn: int = 0, seed: int = 0) -> None:
        self._shape = SHAPES[size]
        self._percent = percent
        self._spread = spread
        self._clustered = not spread and self._shape.entities >= FEW
        self._churn = churn
        self._dice = random.Random(f"{size} {seed}")
        self._began = False
        start = f"process_start_time_seconds {number(START)}\n"
        about = "Start time of the process since unix epoch in seconds."
        self._top = _header("process_start_time_seconds", "gauge", about) + start.encode()
        self._sections = list(self._families())
        self._keys: list[str] = []
        self._made = 0
        for _ in range(self._shape.entities):
            self._add(new=False)
        self.series = 1 + sum(child.lines for section in self._sections for child in section.children)

    def next(self) -> bytes:
        """The next body."""
        if self._began:
            self._vanish_and_come()
            self._change()
        self._began = True
        pieces = (chain((section.header,), section.texts) for section in self._sections)
        return b"".join(chain((self._top,), *pieces))

    def _families(self) -> Iterator[Section]:
        shape, dice = self._shape, self._dice

        def grown(value: float) -> float:
            return value + 1 + dice.randrange(400)

        def spent(value: float) -> float:
            return value + dice.random() / 20

        def single(name: str, step: Callable[[float], float]) -> Callable[[Entity, bool], Child]:
            return lambda entity, new: Single(entity.line(name), step(0 if new else dice.randrange(100_000)), step)

        def histogram(name: str) -> Callable[[Entity, bool], Child]:
            return lambda entity, new: Histogram(entity, name, shape.buckets, 2 if new else 300, dice)

        def created(name: str) -> Section:
            line = f"{name}_created"
            return Section(
                _header(line, "gauge", f"Total of {name}."),
                lambda entity, new: Single(entity.line(line), START + dice.random() * 1e7, lambda at: at + 0.25),
                fixed=True,
            )

        for name in shape.histograms:
            yield Section(_header(name, "histogram", f"Histogram of {name}."), histogram(name))
            yield created(name)
        for name in shape.counters:
            total = f"{name}_total"
            yield Section(
                _header(total, "counter", f"Total of {name}."), single(total, spent if "spend" in name else grown)
            )
            yield created(name)
        for name in shape.gauges:
            yield Section(_header(name, "gauge", f"Gauge of {name}."), single(name, lambda _: dice.randrange(1000)))

    def _add(self, *, new: bool) -> None:
        """One more entity, in its sorted place."""
        entity = self._shape.entity(self._made, self._dice)
        self._made += 1
        place = bisect_left(self._keys, entity.before)
        self._keys.insert(place, entity.before)
        for section in self._sections:
            section.insert(place, entity, new=new)

    def _vanish_and_come(self) -> None:
        for _ in range(self._churn):
            place = self._dice.randrange(len(self._keys))
            del self._keys[place]
            for section in self._sections:
                section.remove(place)
            self._add(new=True)

    def _change(self) -> None:
        wanted = int(self.series * self._percent / 100)
        for section, place in self._candidates():
            if wanted <= 0:
                return
            lines = self._lines_of(section.children[place])
            section.change(place, lines)
            wanted -= lines

    def _candidates(self) -> Iterator[tuple[Section, int]]:
        """Children in the order in which they change, until enough have."""
        places = list(range(len(self._keys)))
        if self._percent >= 100:
            yield from ((section, place) for section in self._sections for place in places)
            return
        sections = [section for section in self._sections if not section.fixed]
        if not self._clustered:
            children = [(section, place) for section in sections for place in places]
            self._dice.shuffle(children)
            yield from children
            return
        self._dice.shuffle(places)
        yield from ((section, place) for place in places for section in sections)

    def _lines_of(self, child: Child) -> int:
        """How many of a child's lines change."""
        if child.lines == 1 or self._percent >= 100:
            return child.lines
        if self._spread:
            return max(3, ceil(child.lines * self._percent / 100))
        return child.lines - self._dice.randrange(child.lines - 8)


def _header(name: str, kind: str, text: str) -> bytes:
    return f"# HELP {name} {text}\n# TYPE {name} {kind}\n".encode()


def main() -> None:
    """Say how large the bodies are and how fast they are made."""
    size, percent = sys.argv[1], float(sys.argv[2])
    bodies = Bodies(size, percent)
    body = bodies.next()
    began = time.process_time()
    for _ in range(10):
        body = bodies.next()
    print(f"{bodies.series} series, {len(body) / 1e6:.1f} MB, {10 / (time.process_time() - began):.0f} bodies a second")


if __name__ == "__main__":
    main()
