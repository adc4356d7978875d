"""One rule of a map: which upstream samples feed a family of ours, under which labels, and when.

What it says of labels is worked out when a line is seen for the first time; from then on the line is known by its
bytes, so nothing here needs to be fast.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

from exporter.core.types import Family, Labels, LabelSet

Merge = Literal["sum", "max", "min", "none"]
Progress = Literal["running", "end", "none"]

_PATH = re.compile(r"/|\.{1,2}/|~|[a-zA-Z]:[\\/]|[a-z0-9]+://")
_CACHED = re.compile(r"[\\/]models--([^\\/]+?)--([^\\/]+)")


def alias(model: str) -> str:
    """What a model is called that an engine was given as a path: the path's last part, so that no path is a label.

    Of a snapshot in the cache of Hugging Face's hub it is the owner and the name.
    """
    if not _PATH.match(model):
        return model
    cached = _CACHED.search(model)
    return f"{cached[1]}/{cached[2]}" if cached else re.split(r"[\\/]", model.rstrip("\\/"))[-1]


@dataclass(frozen=True, slots=True)
class Condition:
    """What a line's labels must look like: patterns by upstream label; an absent label reads as ''."""

    patterns: tuple[tuple[str, tuple[str, ...]], ...]

    def holds(self, labels: LabelSet) -> bool:
        return all(
            any(fnmatchcase(labels.get(name, ""), pattern) for pattern in patterns) for name, patterns in self.patterns
        )


def listed(given: Any) -> tuple[str, ...]:
    """One word, or a list of words, as words."""
    return tuple(str(item) for item in given) if isinstance(given, list) else (str(given),)


def conditions(given: Any) -> tuple[Condition, ...]:
    """A list of conditions as written."""
    return tuple(
        Condition(tuple((name, listed(patterns)) for name, patterns in condition.items())) for condition in given
    )


@dataclass(frozen=True, slots=True)
class Pick:
    """Where one label of ours comes from.

    The first of the upstream labels `names` that is present (`hexadecimal`: where it is a decimal number, made so;
    `served`: the name of a model, and of a path its `alias`); or the value of the first of `cases` that holds; or, with
    `table`, what the table knows of the upstream label `key`, and `names` only where it knows nothing.
    """

    names: tuple[str, ...] = ()
    cases: tuple[tuple[str, Condition], ...] = ()
    otherwise: str | None = None
    table: str | None = None
    key: str = ""
    hexadecimal: bool = False
    served: bool = False

    @staticmethod
    def of(given: Any) -> Pick:
        """What a map says of one label."""
        if not isinstance(given, dict):
            return Pick(names=listed(given))
        if "hex" in given:
            return Pick(names=listed(given["hex"]), hexadecimal=True)
        if "served" in given:
            return Pick(names=listed(given["served"]), served=True)
        if "lookup" in given:
            return Pick(names=listed(given.get("else", [])), table=given["lookup"], key=given["by"])
        cases = tuple(
            (case["is"], conditions([{name: value for name, value in case.items() if name != "is"}])[0])
            for case in given["cases"]
        )
        return Pick(cases=cases, otherwise=given.get("else"))

    def value(self, labels: LabelSet, tables: Mapping[str, LabelSet]) -> str | None:
        """What the label is on a line with these upstream labels; None where it is not known."""
        for case, condition in self.cases:
            if condition.holds(labels):
                return case
        value = self.otherwise if self.table is None else tables[self.table].get(labels.get(self.key, ""))
        return self._named(labels) if value is None else value

    def _named(self, labels: LabelSet) -> str | None:
        """The value of the first of `names` that is present."""
        value = next((labels[name] for name in self.names if name in labels), None)
        if value is not None and self.hexadecimal and re.fullmatch("[0-9]{1,20}", value):
            return f"{int(value):x}"
        return alias(value) if value is not None and self.served else value


@dataclass(frozen=True, slots=True)
class Rule:
    """One way in which a family is fed. `key` names it in the state file; `declared` are the TYPEs of its upstream.

    `part` is what of a summary it feeds, `_sum` or `_count`, and empty where the family is none; `origin` is the source
    whose map was included, and empty where the rule is the map's own.

    `lazy` says that the upstream does not show the counter until it has counted; if not, one that it does not show is
    one that it cannot tell, and no 0.

    `wraps` is the number at which the upstream's counter begins again at 0; 0 where it does not.

    `progress` says when the upstream moves it: while a request runs, at the end of one that was served, or also where
    nothing gets on (a request arrives, a client gives up).
    """

    key: str
    family: Family
    sources: tuple[str, ...]
    labels: tuple[tuple[str, Pick], ...]
    constant: Labels
    scale: float
    merge: Merge
    copies: frozenset[str]
    only: tuple[Condition, ...]
    drop: tuple[Condition, ...]
    when: frozenset[str]
    declared: frozenset[str]
    lazy: bool
    wraps: int
    progress: Progress
    part: str
    origin: str = ""

    def sample(self, alternative: int, suffix: str) -> str:
        """The upstream's name of the samples that feed this part of the family."""
        return self.sources[alternative] + ("" if self.part else suffix)

    def boundary(self, le: str) -> float:
        """A bucket's boundary in our unit. Raises ValueError where it is not a number."""
        bound = float(le)
        return bound if self.scale == 1.0 else float(f"{bound * self.scale:.12g}")

    @property
    def internal(self) -> bool:
        """Whether what the rule feeds is for our own code alone."""
        return self.family.order < 0

    def agrees(self, labels: LabelSet) -> bool:
        """Whether the rule may feed a series that has these labels of ours."""
        return all(labels.get(name, value) == value for name, value in self.constant)

    @property
    def lookups(self) -> Iterator[tuple[str, str]]:
        """Each table that a label of this rule is looked up in, with the upstream label looked up."""
        return ((pick.table, pick.key) for _, pick in self.labels if pick.table is not None)

    def place(self, labels: LabelSet, tables: Mapping[str, LabelSet]) -> Labels | None:
        """Our labels for a line, or None where the rule leaves the line out."""
        if any(condition.holds(labels) for condition in self.drop):
            return None
        if self.only and not any(condition.holds(labels) for condition in self.only):
            return None
        ours = dict(self.constant)
        for name, pick in self.labels:
            value = pick.value(labels, tables)
            if value is not None:
                ours[name] = value
        return tuple(sorted(ours.items()))

    def told(self, label: str) -> set[str]:
        """The values that it can give a label, beside those it copies from the upstream."""
        told = {value for name, value in self.constant if name == label}
        for name, pick in self.labels:
            if name == label:
                told.update(value for value, _ in pick.cases)
                told.update({pick.otherwise} if pick.otherwise else ())
        return told


Way = tuple[Rule, int, str]
"""How a sample feeds a rule: the rule, the number of the alternative, the part of a histogram that it is."""
