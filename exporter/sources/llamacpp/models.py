"""What is known of a server's models: their states, how often they came and went, when they were last asked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from exporter.catalogue import families
from exporter.core.total import Totals
from exporter.core.types import Labels, Sample, Series, SeriesTable

STATES = ("loaded", "loading", "sleeping", "unloaded", "downloading", "failed")
MOST = 1000
"""Models of a server that are shown, each with a name of NAME characters at most."""
NAME = 512

Fact = tuple[str, Labels, float]
"""What else is said of a model: family, labels beside `model`, value."""


@dataclass(slots=True)
class Model:
    """One model. `here` says that a process has it, awake or asleep; `life` tells that process from the next one."""

    state: str
    here: bool
    life: str | None
    requested: float | None = None  # Unix seconds
    facts: Sequence[Fact] = field(default=())


class Models:
    """The models of one server. `tells` are the states that the server can tell."""

    def __init__(self, table: SeriesTable, totals: Totals, tells: Sequence[str] = STATES) -> None:
        self._table = table
        self._totals = totals
        self._tells = tells
        self._known: dict[str, Model] = {}
        self._listed = False  # what is new from now on has come since
        self._made: dict[tuple[str, Labels], Series] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._known

    def __getitem__(self, name: str) -> Model:
        return self._known[name]

    def see(self, name: str, state: str, life: str | None = None) -> bool:
        """Take what is said of a model; whether that is news. `life` is None where nothing tells processes apart."""
        model = self._known.get(name)
        if model is None:
            if len(self._known) >= MOST or len(name) > NAME:
                self._totals.drop("limit")
                return False
            model = self._known[name] = Model("", not self._listed and state in ("loaded", "sleeping"), life)
            self._count(name, 0.0, 0.0)
        news = model.state != state
        model.state = state
        if state in ("loaded", "sleeping"):
            again = model.here and life is not None and model.life not in (None, life)
            self._count(name, float(again or not model.here), float(again))
            model.life = life or (model.life if model.here else None)
            model.here = True
        elif state != "loading":  # one that wakes is loading, too
            self._count(name, 0.0, float(model.here))
            model.here = False
        return news

    def _count(self, name: str, loads: float, unloads: float) -> None:
        if not name:
            return  # a server that is loading does not tell what
        known, labels = families(), (("model", name),)
        self._totals.add(known["llm_model_loads_total"], labels, loads)
        self._totals.add(known["llm_model_unloads_total"], labels, unloads)

    def keep(self, names: Iterable[str]) -> None:
        """Forget the models that are not among `names`, the whole list: those that were there have been unloaded."""
        for name in self._known.keys() - set(names):
            self.forget(name)
        self._listed = True

    def forget(self, name: str) -> None:
        """A model that the server has no longer."""
        model = self._known.pop(name, None)
        if model is not None:
            self._count(name, 0.0, float(model.here))
            for counter in ("llm_model_loads_total", "llm_model_unloads_total"):
                self._totals.leave(families()[counter], (("model", name),))

    def samples(self) -> list[Sample]:
        """What is known now."""
        rows: list[Fact] = []
        states: Counter[str] = Counter()
        for name, model in self._known.items():
            of = (("model", name),)
            states[model.state] += 1
            rows += (("llm_model_state", (*of, ("state", each)), float(each == model.state)) for each in self._tells)
            if model.requested is not None:
                rows.append(("llm_model_last_request_timestamp_seconds", of, model.requested))
            rows += ((family, (*of, *labels), value) for family, labels, value in model.facts)
        rows += (("llm_models", (("state", each),), float(states[each])) for each in self._tells)
        known, made = families(), {}
        for family, labels, _ in rows:
            key = family, labels
            made[key] = self._made.get(key) or self._table(known[family], labels)
        self._made = made
        return [(made[family, labels], value) for family, labels, value in rows]


def whole(value: Any) -> float | None:
    """A number of things as JSON has it; None where it is none, or nothing."""
    return float(value) if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**63 else None


def text(value: Any) -> str:
    """A word as JSON has it; nothing where it says nothing."""
    return value if isinstance(value, str) and len(value) <= NAME and value.lower() not in ("unknown", "none") else ""
