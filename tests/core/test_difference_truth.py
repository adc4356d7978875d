"""However bodies are written, cut and reordered: totals read by difference equal those of the strict parser.

Some hundred sequences, or as many as `SEQUENCES` says.
"""

from __future__ import annotations

import os
from math import inf, nan
from random import Random
from typing import Any
from unittest.mock import patch

import yaml
from helpers import MAP
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule
from prometheus_client.parser import text_string_to_metric_families
from reference import PlainReader

from exporter.catalogue import families
from exporter.core.errors import ReadError
from exporter.core.mapping import SourceMap
from exporter.core.total import Totals
from exporter.core.types import Samples, SeriesTable
from exporter.text.difference import Difference

MANY_WAYS = (
    MAP
    + """
internal:
  by_key: {from: [up_requests_total, up_calls_total], labels: {key: key}, only: [{model: m}]}
  by_model: {from: [up_seconds], type: histogram, labels: {model: model}, only: [{model: n}]}
"""
)
BOUNDS = ("0.1", "0.5", "1.0", "+Inf")
ODD = ('q\\"z', "b\\\\", "n\\nl", "c,d", "{e}", "é漢字", 'x=\\"y\\"', "} 5", "# HELP", 'k,le=\\"1\\"', "a  b")
KEYS = ("a", "b", "c", "d", *ODD)
MODELS = ("m", "n")
STYLES = ("plain", "crlf", "timestamps", "exemplars", "openmetrics", "blanks")


class Model:
    """An upstream with counters of old and new names, histograms, gauges and much that nobody wants."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.start: float | None = 1000.0
        self.clock = 1000.0
        self.children: dict[tuple[str, str], dict[str, Any]] = {}
        self.names = ("up_requests_total",)
        self.hidden: set[str] = set()  # names of families that are left out
        for _ in range(random.randint(1, 5)):
            self.appear()

    def appear(self) -> None:
        self.children.setdefault((self.random.choice(KEYS), self.random.choice(MODELS)), self.zero())

    def zero(self) -> dict[str, Any]:
        counts = sorted(self.random.randint(0, 9) for _ in BOUNDS)
        return {
            "buckets": [float(count) for count in counts],
            "sum": self.random.randint(0, 40) / 4,
            "count": float(self.random.randint(0, 40)),
            "gauge": float(self.random.randint(-3, 9)),
            "created": self.clock,
        }

    def step(self) -> None:
        """Something happens."""
        random = self.random
        for key, child in list(self.children.items()):
            luck = random.random()
            if luck < 0.04:
                del self.children[key]
            elif luck < 0.08:
                self.children[key] = self.zero()
            elif luck < 0.5:
                for place in range(random.randrange(len(BOUNDS)), len(BOUNDS)):
                    child["buckets"][place] += 1.0
                child["sum"] += random.choice((0.25, 1.0, 1e3, 12345.75))
                child["count"] += random.choice((1.0, 9.0, 1e4))
                child["gauge"] = random.choice((0.0, 2.0, -1e-7, 1e20))
            elif luck < 0.53:
                child[random.choice(("sum", "count", "gauge"))] = random.choice((nan, inf, -inf, -1.0))
            elif luck < 0.56:
                child["sum"] = child["count"] = 7.0
        if random.random() < 0.3:
            self.appear()
        if random.random() < 0.05:
            self.restart()
        if random.random() < 0.06:
            self.names = random.choice(
                (("up_requests_total",), ("up_calls_total",), ("up_requests_total", "up_calls_total"))
            )
        if random.random() < 0.06:
            self.hidden = set(random.sample(("up_seconds", "up_running", "junk_total", "junk_seconds"), 1))
        if random.random() < 0.04:
            self.hidden = set()
        if random.random() < 0.02:
            self.start = None if self.start is not None else self.clock

    def restart(self) -> None:
        self.clock += 100.0
        if self.start is not None:
            self.start = self.clock
        self.children = {key: self.zero() for key in self.children if self.random.random() < 0.9}

    def body(self, style: str, order: str) -> bytes:
        random = self.random
        children = list(self.children.items())
        if order == "sorted":
            children.sort(key=lambda child: child[0])
        elif order == "shuffled":
            random.shuffle(children)
        groups: list[list[str]] = []
        for name in (*self.names, "junk_total"):
            lines = [f"# HELP {name} some # TYPE words", f"# TYPE {name} counter"]
            lines += [self.line(name, key, child["count"], style) for key, child in children]
            lines += [self.line(f"{name[:-6]}_created", key, child["created"], style) for key, child in children]
            groups.append(lines)
        for name in ("up_seconds", "junk_seconds"):
            lines = [f"# TYPE {name} histogram"]
            for key, child in children:
                one = [
                    self.line(f"{name}_bucket", key, count, style, le)
                    for le, count in zip(BOUNDS, child["buckets"], strict=True)
                ]
                one.append(self.line(f"{name}_count", key, child["buckets"][-1], style))
                one.append(self.line(f"{name}_sum", key, child["sum"], style))
                if order == "shuffled" and random.random() < 0.1:
                    random.shuffle(one)
                lines += one
            groups.append(lines)
        lines = ["# TYPE up_running gauge", *(self.line("up_running", key, c["gauge"], style) for key, c in children)]
        groups.append(lines)
        groups = [lines for lines in groups if not any(name in lines[-1] for name in self.hidden)]
        if self.start is not None:
            groups.insert(random.choice((0, len(groups))), [f"process_start_time_seconds {self.start!r}"])
        if order == "shuffled":
            random.shuffle(groups)
        every = [line for lines in groups for line in lines]
        if random.random() < 0.15:  # some series stand twice
            for line in random.sample(every, min(3, len(every))):
                every.insert(random.randrange(len(every) + 1), self.written_otherwise(line))
        if style == "openmetrics":
            every = [line for line in every if line] + ["# EOF"]
        end = "\r\n" if style == "crlf" else "\n"
        return "".join(line + end for line in every).encode()

    def line(self, name: str, key: tuple[str, str], value: float, style: str, le: str | None = None) -> str:
        labels = [f'key="{key[0]}"', *([f'le="{le}"'] if le is not None else []), f'model="{key[1]}"']
        number = "NaN" if value != value else repr(value).replace("inf", "Inf")
        tail = ""
        if style == "timestamps":
            tail = f" {int(self.clock)}"
        elif style in ("exemplars", "openmetrics") and self.random.random() < 0.2:
            tail = ' # {trace_id="a b"} 0.5'
        blank = "  " if style == "blanks" and self.random.random() < 0.2 else " "
        return f"{name}{{{','.join(labels)}}}{blank}{number}{tail}"

    def written_otherwise(self, line: str) -> str:
        if line.startswith("#") or '{key="' not in line:
            return line
        return line.replace('{key="', '{ empty="", key="', 1) if self.random.random() < 0.5 else line


class Pair:
    """The reader and the reference, each with totals of its own, that live through the same."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.model = Model(random)
        self.other = Model(random)
        self.time = 0.0
        self.style = "plain"
        self.order = random.choice(("stable", "sorted", "shuffled"))
        self.begin()

    def begin(self, saved: Any = None) -> None:
        self.ours, self.theirs = (
            Totals(
                SourceMap("test", yaml.safe_load(MANY_WAYS), families()),
                SeriesTable({"source": "test", "target": "t"}),
                saved=saved,
                clock=lambda: self.time,
            )
            for _ in range(2)
        )
        self.reader = Difference(self.ours, clock=lambda: self.time)
        self.plain = PlainReader(self.theirs, clock=lambda: self.time)

    def read(self, *, cut: bool = False, other: bool = False) -> None:
        model = self.other if other else self.model
        body = model.body(self.style, self.order)
        openmetrics = self.style == "openmetrics"
        if cut:
            body = body[: self.random.randrange(len(body))]
        chunk = self.random.choice((1, 7, 64, 500, 4096, 1 << 16)) if len(body) < 20_000 else 4096
        self.reader.begin(openmetrics=openmetrics)
        with patch("exporter.text.difference.TURN", self.random.choice((2, 5, 256))):
            for start in range(0, len(body), chunk):
                more = self.reader.feed(body[start : start + chunk])
                while more and (cut or self.random.random() < 0.7):  # where no turn is given, nothing is lost
                    more = self.reader.feed(b"")
        certain = False
        if cut:
            self.reader.abort()
        else:
            certain = self.end()
        self.plain.read(body, openmetrics=openmetrics, whole=not cut)
        if not cut:
            shown = self.compare()
            if self.style == "plain" and certain:
                self.compare_gauges(body, shown)

    def end(self) -> bool:
        """The body is whole. False: two servers take turns, and nothing of it is shown."""
        try:
            self.reader.end()
        except ReadError as error:
            assert error.reason == "identity", error  # noqa: PT017 - anything else is a failure of the test
            return False
        return True

    def compare(self) -> Samples:
        shown, reference = (totals.samples(1 << 30) for totals in (self.ours, self.theirs))
        ours, theirs = ({series.prefix: value for series, value in samples} for samples in (shown, reference))
        assert ours == theirs
        for name in ("by_key", "by_model"):
            assert self.ours.internal(name) == self.theirs.internal(name)
        assert self.reader.samples >= len(self.plain._lines) - len(self.plain._gone)
        for reason in ("value", "limit", "type", "histogram"):
            assert self.ours.dropped[reason] == self.theirs.dropped[reason], reason
        return shown

    def compare_gauges(self, body: bytes, samples: Samples) -> None:
        """Against prometheus-client, which is right where a body is plain and a gauge only has to be added up."""
        sums: dict[str, float] = {}
        seen = set()
        for family in text_string_to_metric_families(body.decode()):
            for sample in family.samples:
                series = sample.name, tuple(sorted(label for label in sample.labels.items() if label[1]))
                if sample.name == "up_running" and series not in seen:
                    seen.add(series)
                    if -inf < sample.value < inf:
                        model = sample.labels["model"]
                        sums[model] = sums.get(model, 0.0) + sample.value
        shown = {series.get("model"): v for series, v in samples if series.family.name == "llm_requests_running"}
        assert shown.keys() == sums.keys()
        assert all(abs(shown[model] - sums[model]) <= 1e-6 * abs(sums[model]) for model in sums)

    def pass_time(self) -> None:
        """More than an hour, after which what vanished is forgotten."""
        self.time += 4000.0

    def restart_exporter(self) -> None:
        ours, theirs = self.ours.dump(self.reader.remembered()), self.theirs.dump(self.plain.remembered())
        assert (ours is None) == (theirs is None)
        if ours is None or theirs is None:
            return
        a, b = ours.whole(), theirs.whole()
        assert sorted(map(repr, a.pop("slots"))) == sorted(map(repr, b.pop("slots")))
        assert sorted(a.pop("forgotten")) == sorted(b.pop("forgotten"))
        assert a == b
        saved = self.ours.dump(self.reader.remembered())
        assert saved is not None
        self.begin(saved.whole())


class Sequences(RuleBasedStateMachine):
    """Anything that can happen, in any order."""

    @initialize(seed=st.integers(0, 1 << 32))
    def begin(self, seed: int) -> None:
        self.pair = Pair(Random(seed))

    @rule(steps=st.integers(0, 2), cut=st.booleans(), other=st.integers(0, 9))
    def read(self, steps: int, cut: bool, other: int) -> None:
        for _ in range(steps):
            self.pair.model.step()
        self.pair.read(cut=cut, other=other == 9)

    @rule(style=st.sampled_from(STYLES), order=st.sampled_from(["stable", "sorted", "shuffled"]))
    def write(self, style: str, order: str) -> None:
        self.pair.style, self.pair.order = style, order

    @rule(restart=st.booleans())
    def wait(self, restart: bool) -> None:
        if restart:
            self.pair.restart_exporter()
        else:
            self.pair.pass_time()


TestSequences = Sequences.TestCase
TestSequences.settings = settings(max_examples=int(os.environ.get("SEQUENCES", "300")), stateful_step_count=25)
