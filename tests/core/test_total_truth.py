"""Whatever happens to lines, processes, bodies and the exporter: totals equal what really happened, and never fall."""

import json
from collections import Counter
from typing import Any

from helpers import Upstream
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

MODELS = ("m", "n")
KEYS = ("a", "b", "c")
LINES = [(model, key) for model in MODELS for key in KEYS]


class Truth(RuleBasedStateMachine):
    """An upstream that lives through everything, with exact books of what a reader could have seen.

    A line's *life* is the time in which it only grows: until it, or its process, begins again at 0. What can be seen of
    a life is the largest value that was in a body, so the truth is the sum of those.
    """

    def __init__(self) -> None:
        super().__init__()
        self.up = Upstream()
        self.values: dict[tuple[str, str], float] = {}
        self.hidden: set[tuple[str, str]] = set()
        self.start = 1000.0
        self.seen: dict[tuple[str, str], float] = {}  # of each line's present life
        self.missed: set[tuple[str, str]] = set()  # lines that a whole body has been without, remembered by the reader
        self.begun: set[tuple[str, str]] = set()  # lines that began again since the last whole body
        self.forgotten: set[tuple[str, str]] = set()
        self.truth: Counter[str] = Counter()
        self.unsure: dict[tuple[str, str], float] = {}  # seen in cut bodies, before what told their process
        self.known_start: float | None = None
        self.last_shown: dict[str, float] = {}
        self.saved: dict[str, Any] | None = None
        self.fresh = True  # the exporter has not read a whole body since its start

    # what the upstream does

    @rule(line=st.sampled_from(LINES), by=st.integers(0, 5))
    def grow(self, line: tuple[str, str], by: int) -> None:
        if line not in self.begun:  # what has overtaken unseen cannot be told from what went on
            self.values[line] = self.values.get(line, 0.0) + by

    @precondition(lambda self: not self.fresh)
    @rule(line=st.sampled_from(LINES))
    def hide(self, line: tuple[str, str]) -> None:
        if line in self.values and line in self.seen and line not in self.begun:
            self.hidden.add(line)

    @rule(line=st.sampled_from(LINES))
    def show(self, line: tuple[str, str]) -> None:
        self.hidden.discard(line)

    @precondition(lambda self: not self.fresh)
    @rule(line=st.sampled_from(LINES), share=st.floats(0, 0.9))
    def begin_again(self, line: tuple[str, str], share: float) -> None:
        seen = self.seen.get(line, 0.0)
        known = line not in self.forgotten and line not in self.unsure and line not in self.hidden
        if seen >= 1.0 and known and line not in self.missed:  # a fall that nobody sees cannot be told
            self.values[line] = float(int(seen * share))
            self.seen[line] = 0.0
            self.begun.add(line)

    @rule(values=st.dictionaries(st.sampled_from(LINES), st.integers(0, 20)))
    def restart(self, values: dict[tuple[str, str], int]) -> None:
        self.start += 100.0
        self.values = {line: float(value) for line, value in values.items()}
        self.hidden = set()
        self.seen = {}
        self.missed = set()
        self.begun.clear()

    # what the exporter does

    def body(self, position: int, order: list[tuple[str, str]]) -> tuple[str, list[tuple[str, str] | None]]:
        lines: list[tuple[str, str] | None] = [
            line for line in order if line in self.values and line not in self.hidden
        ]
        lines.insert(min(position, len(lines)), None)
        text = "".join(
            f"process_start_time_seconds {self.start!r}\n"
            if line is None
            else f'up_requests_total{{key="{line[1]}",model="{line[0]}"}} {self.values[line]!r}\n'
            for line in lines
        )
        return text, lines

    def see(self, line: tuple[str, str], value: float) -> None:
        if line in self.forgotten and line not in self.seen:
            self.forgotten.discard(line)
        else:
            self.truth[line[0]] += value - self.seen.get(line, 0.0)
        self.seen[line] = value

    def learn_process(self) -> None:
        """A body tells its process: what cut bodies showed was this process's, or cannot be told from its own."""
        if self.known_start in (None, self.start):
            for line, value in self.unsure.items():
                self.see(line, value)
        else:
            self.seen = {}
            self.forgotten.clear()
        self.known_start = self.start
        self.unsure = {}

    @rule(position=st.integers(0, 6), order=st.permutations(LINES), chunk=st.sampled_from([7, 64, 4096]))
    def read(self, position: int, order: list[tuple[str, str]], chunk: int) -> None:
        text, lines = self.body(position, order)
        self.learn_process()
        self.up.read(text, chunk)
        for line in lines:
            if line is not None:
                self.see(line, self.values[line])
                self.missed.discard(line)
        self.missed |= {line for line in self.seen if line not in lines}
        self.fresh = False
        self.begun.clear()
        self.saved = self.up.dump()
        self.check()

    @rule(position=st.integers(0, 6), order=st.permutations(LINES), share=st.floats(0, 1))
    def cut(self, position: int, order: list[tuple[str, str]], share: float) -> None:
        text, lines = self.body(position, order)
        at = int(len(text) * share)
        whole = text[:at].count("\n")
        told = None in lines[:whole]
        self.up.cut(text, at)
        if self.fresh:
            return  # nothing to go on from yet
        if told:
            self.learn_process()
        for line in lines[:whole]:
            if line is not None and told:
                self.see(line, self.values[line])
            elif line is not None:
                self.unsure[line] = self.values[line]
        self.saved = self.up.dump() or self.saved

    @precondition(lambda self: not self.fresh and self.known_start == self.start)
    @rule()
    def forget(self) -> None:
        """An hour and more passes between two reads."""
        self.read(0, LINES, 4096)
        self.up.time += 4000.0
        gone = set(self.missed)
        self.read(0, LINES, 4096)
        self.lose(gone & self.missed)

    def lose(self, lines: set[tuple[str, str]]) -> None:
        """The reader remembers these lines no more, only that they had counted something."""
        for line in lines:
            if self.seen[line] > 0.0:
                self.forgotten.add(line)
                del self.seen[line]
        self.missed -= lines

    @precondition(lambda self: not self.fresh and not self.hidden and not self.begun)
    @rule()
    def restart_exporter(self) -> None:
        """While nobody looks, a single line's fall can hide behind the growth of another: that is left out here."""
        assert self.saved is not None
        self.unsure = {}
        self.lose(set(self.missed))
        self.up = Upstream(json.loads(json.dumps(self.saved)))
        self.fresh = True

    def check(self) -> None:
        shown = self.up.shown()
        for model in MODELS:
            total = shown.get(f'llm_requests_total{{model="{model}"}}')
            if total is not None:
                assert total == self.truth[model]
                assert total >= self.last_shown.get(model, 0.0)
                self.last_shown[model] = total

    @invariant()
    def nothing_is_left_out(self) -> None:
        assert not self.up.totals.dropped.total()


TestTruth = Truth.TestCase
TestTruth.settings = settings(max_examples=600, stateful_step_count=40)
