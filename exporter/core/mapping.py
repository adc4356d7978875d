"""From an upstream's words to ours: what `map.yaml` says, checked at load and applied to a line once.

A map is a list of rules. A rule feeds one of our families from an ordered list of upstream names, newest first, which
are alternatives and never added; several rules for one family are different events and add up. What a rule says of
labels is worked out when a line is seen for the first time; from then on the line is known by its bytes, so nothing
here needs to be fast.

An upstream name that begins with `*` stands for all that end in what follows (`*_requests_total`), for upstreams whose
prefix their users choose. A name that is written out wins over endings, a longer ending over a shorter one, and names
under `not:` are matched by none.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal, get_args

from exporter.catalogue import COMMON, rules_of
from exporter.core.types import Family, Kind

Merge = Literal["sum", "max", "min", "none"]
Progress = Literal["running", "end", "none"]
Labels = Mapping[str, str]

KEPT_VALUES = 20
"""An upstream label that the configuration keeps shows this many values; the rest is `other`."""

TABLE_LENGTH = 10_000
"""Entries of a table at most."""

_HISTOGRAM = ("_bucket", "_count", "_sum")
_MAP_KEYS = {"identity", "layer", "absent", "copies", "drop", "not", "tables", "families", "internal"}
_RULE_KEYS = {
    "from", "labels", "constant", "scale", "merge", "copies", "only", "drop", "when", "type", "declared", "lazy",
    "progress",
}  # fmt: skip
_IDENTITY_KEYS = {"name", "label"}
_UPSTREAM_TYPES = frozenset(get_args(Kind))


class MapError(Exception):
    """A map that cannot be right. The message names the source, the family and what to write."""


@dataclass(frozen=True, slots=True)
class Condition:
    """What a line's labels must look like: patterns by upstream label; an absent label reads as ''."""

    patterns: tuple[tuple[str, tuple[str, ...]], ...]

    def holds(self, labels: Labels) -> bool:
        return all(
            any(fnmatchcase(labels.get(name, ""), pattern) for pattern in patterns) for name, patterns in self.patterns
        )


@dataclass(frozen=True, slots=True)
class Pick:
    """Where one label of ours comes from.

    The first of the upstream labels `names` that is present (`hexadecimal`: where it is a decimal number, made so); or
    the value of the first of `cases` that holds; or, with `table`, what the table knows of the upstream label `key`,
    and `names` only where it knows nothing.
    """

    names: tuple[str, ...] = ()
    cases: tuple[tuple[str, Condition], ...] = ()
    otherwise: str | None = None
    table: str | None = None
    key: str = ""
    hexadecimal: bool = False

    def named(self, labels: Labels) -> str | None:
        """The value of the first of `names` that is present."""
        value = next((labels[name] for name in self.names if name in labels), None)
        if value is not None and self.hexadecimal and re.fullmatch("[0-9]{1,20}", value):
            return f"{int(value):x}"
        return value


@dataclass(frozen=True, slots=True)
class Rule:
    """One way in which a family is fed. `key` names it in the state file; `declared` are the TYPEs of its upstream.

    `lazy` says that the upstream does not show the counter until it has counted; if not, one that it does not show is
    one that it cannot tell, and no 0.

    `progress` says when the upstream moves it: while a request runs, at the end of one that was served, or also where
    nothing gets on (a request arrives, a client gives up).
    """

    key: str
    family: Family
    sources: tuple[str, ...]
    labels: tuple[tuple[str, Pick], ...]
    constant: tuple[tuple[str, str], ...]
    scale: float
    merge: Merge
    copies: frozenset[str]
    only: tuple[Condition, ...]
    drop: tuple[Condition, ...]
    when: frozenset[str]
    declared: frozenset[str]
    lazy: bool
    progress: Progress

    def boundary(self, le: str) -> float:
        """A bucket's boundary in our unit. Raises ValueError where it is not a number."""
        bound = float(le)
        return bound if self.scale == 1.0 else float(f"{bound * self.scale:.12g}")

    @property
    def internal(self) -> bool:
        """Whether what the rule feeds is for our own code alone."""
        return self.family.order < 0

    def agrees(self, labels: Labels) -> bool:
        """Whether the rule may feed a series that has these labels of ours."""
        return all(labels.get(name, value) == value for name, value in self.constant)

    @property
    def lookups(self) -> Iterator[tuple[str, str]]:
        """Each table that a label of this rule is looked up in, with the upstream label looked up."""
        return ((pick.table, pick.key) for _, pick in self.labels if pick.table is not None)


Way = tuple[Rule, int, str]
"""How a sample feeds a rule: the rule, the number of the alternative, the part of a histogram that it is."""


@dataclass(frozen=True, slots=True)
class Table:
    """What one upstream label says of another, learnt from lines that have both."""

    key: str
    values: tuple[str, ...]


def _listed(given: Any) -> tuple[str, ...]:
    return tuple(str(item) for item in given) if isinstance(given, list) else (str(given),)


def _conditions(given: Any) -> tuple[Condition, ...]:
    return tuple(
        Condition(tuple((name, _listed(patterns)) for name, patterns in condition.items())) for condition in given
    )


def _pick(given: Any) -> Pick:
    if not isinstance(given, dict):
        return Pick(names=_listed(given))
    if "hex" in given:
        return Pick(names=_listed(given["hex"]), hexadecimal=True)
    if "lookup" in given:
        return Pick(names=_listed(given.get("else", [])), table=given["lookup"], key=given["by"])
    cases = tuple(
        (case["is"], _conditions([{name: value for name, value in case.items() if name != "is"}])[0])
        for case in given["cases"]
    )
    return Pick(cases=cases, otherwise=given.get("else"))


class SourceMap:
    """A source's whole map. `what` names it in errors; `families` is the catalogue it is checked against."""

    def __init__(self, what: str, given: Mapping[str, Any], families: Mapping[str, Family]) -> None:
        self._what = what
        self._refuse_unknown("the map", given, _MAP_KEYS)
        identity = given.get("identity")
        if not isinstance(identity, dict):
            identity = {"name": identity, "label": None}
        elif set(identity) != _IDENTITY_KEYS:
            raise MapError(f"{what}: identity: {sorted(identity)} (write a name, or {sorted(_IDENTITY_KEYS)})")
        self.identity: str | None = identity["name"]
        self.identity_label: str | None = identity["label"]
        self.layer: str | None = given.get("layer")
        self._absent = frozenset("" if value is None else str(value) for value in given.get("absent", ("",)))
        self.copies = frozenset(given.get("copies", ()))
        self._drop = _conditions(given.get("drop", ()))
        self.tables = {
            name: Table(table["key"], _listed(table["value"])) for name, table in given.get("tables", {}).items()
        }
        self.rules = tuple(self._rules(given, families))
        self._not = _listed(given.get("not", []))
        self._by_sample: dict[str, list[Way]] = {}
        self._by_ending: dict[str, list[Way]] = {}
        self._matched: dict[str, list[Way]] = {}  # names that have an ending, with what they feed
        for rule in self.rules:
            for index, source in enumerate(rule.sources):
                named = self._by_ending if source.startswith("*") else self._by_sample
                suffixes = _HISTOGRAM if rule.family.kind == "histogram" else ("",)
                for suffix in suffixes:
                    fed = named.setdefault(source.removeprefix("*") + suffix, [])
                    if fed and (fed[0][0].family.kind == "gauge") != (rule.family.kind == "gauge"):
                        raise MapError(f"{what}: {source} is mapped both as a counter and as a gauge")
                    fed.append((rule, index, suffix))

    def _refuse_unknown(self, where: str, given: Mapping[str, Any], known: Iterable[str]) -> None:
        if unknown := set(given) - set(known):
            raise MapError(f"{self._what}: {where}: unknown {sorted(unknown)} (write one of {sorted(known)})")

    def _rules(self, given: Mapping[str, Any], families: Mapping[str, Family]) -> Iterator[Rule]:
        for name, entry in given["families"].items():
            family = families.get(name)
            if family is None:
                raise MapError(f"{self._what}: {name} is not in the catalogue (declare it in exporter/catalogue)")
            for index, rule in enumerate(rules_of(entry)):
                yield self._rule(f"{name}#{index}" if index else name, family, rule)
        for name, rule in given.get("internal", {}).items():
            labels = tuple(rule.get("labels", {}))
            kind: Kind = rule.get("type", "counter")
            yield self._rule(name, Family(name, kind, "", (*COMMON, "layer", *labels), order=-1), rule)

    def _rule(self, key: str, family: Family, given: Mapping[str, Any]) -> Rule:
        self._refuse_unknown(key, given, _RULE_KEYS)
        if not given.get("from"):
            raise MapError(f"{self._what}: {key}: from: is empty (write the upstream's names, newest first)")
        if family.kind == "summary":
            raise MapError(f"{self._what}: {key}: a summary is made by code, not by a map")
        for name in map(str, given["from"]):
            if "*" in name and not re.fullmatch(r"\*(_[a-zA-Z0-9]+)+", name):
                raise MapError(f"{self._what}: {key}: from: {name} (a pattern is * and how names end: *_seconds)")
        declared = frozenset(_listed(given.get("declared", family.kind)))
        if odd := declared - _UPSTREAM_TYPES:
            raise MapError(f"{self._what}: {key}: declared: {sorted(odd)} (write some of {sorted(_UPSTREAM_TYPES)})")
        picks = {name: _pick(pick) for name, pick in given.get("labels", {}).items()}
        constant = {name: str(value) for name, value in given.get("constant", {}).items()}
        if self.layer and "layer" in family.labels:
            constant.setdefault("layer", self.layer)
        for name in (*picks, *constant):
            if name not in family.labels:
                raise MapError(f"{self._what}: {key}: {family.name} has no label {name} (it has {family.labels})")
        for name, values in family.closed.items():
            if extra := _told(name, picks.items(), constant.items()) - set(values):
                raise MapError(f"{self._what}: {key}: {name}={sorted(extra)} is not one of {values}")
        merge = given.get("merge", "none" if family.kind == "gauge" else "sum")
        if merge not in get_args(Merge) or (family.kind != "gauge" and merge != "sum"):
            raise MapError(f"{self._what}: {key}: merge: {merge} (write sum, max, min or none; for gauges only)")
        progress = given.get("progress", "end")
        if progress not in get_args(Progress):
            raise MapError(f"{self._what}: {key}: progress: {progress} (write running, end or none)")
        for pick in picks.values():
            if pick.table is not None and pick.table not in self.tables:
                raise MapError(f"{self._what}: {key}: no table {pick.table} (it has {sorted(self.tables)})")
        return Rule(
            key=key,
            family=family,
            sources=tuple(given["from"]),
            labels=tuple(picks.items()),
            constant=tuple(constant.items()),
            scale=float(given.get("scale", 1.0)),
            merge=merge,
            copies=frozenset(given.get("copies", self.copies)),
            only=_conditions(given.get("only", ())),
            drop=(*self._drop, *_conditions(given.get("drop", ()))),
            when=frozenset(given.get("when", ())),
            declared=declared,
            lazy=bool(given.get("lazy", True)),
            progress=progress,
        )

    @property
    def sample_names(self) -> tuple[str, ...]:
        """Every upstream sample name that is written out in the map, for upstreams that can filter."""
        gates = {name for rule in self.rules for name in rule.when}
        return tuple(sorted(gates | set(self._by_sample) | ({self.identity} if self.identity else set())))

    def wants(self, name: str) -> list[Way]:
        """The rules fed by samples of this name: rule, number of the alternative, part of a histogram."""
        fed = self._by_sample.get(name) or self._matched.get(name)
        if fed is None:
            fed = self._match(name)
            if fed and len(self._matched) < TABLE_LENGTH:
                self._matched[name] = fed
        return fed

    def _match(self, name: str) -> list[Way]:
        """What names with the ending of this one feed: the longest ending counts."""
        at = name.find("_") if self._by_ending else -1
        while at >= 0:
            fed = self._by_ending.get(name[at:])
            if fed is not None:
                return [] if any(fnmatchcase(name, pattern) for pattern in self._not) else fed
            at = name.find("_", at + 1)
        return []

    def present(self, labels: Iterable[tuple[str, str]]) -> dict[str, str]:
        """A line's labels without those whose value means that there is none."""
        return {name: value for name, value in labels if value not in self._absent}

    def learn(self, labels: Labels, tables: Mapping[str, dict[str, str]]) -> None:
        """Take from a line what it says about the tables. What was learnt first stays."""
        for name, table in self.tables.items():
            if table.key in labels and labels[table.key] not in tables[name] and len(tables[name]) < TABLE_LENGTH:
                for value in table.values:
                    if value in labels:
                        tables[name][labels[table.key]] = labels[value]
                        break

    @staticmethod
    def place(
        rule: Rule, labels: Labels, tables: Mapping[str, Mapping[str, str]]
    ) -> tuple[tuple[str, str], ...] | None:
        """Our labels for a line under a rule, or None where the rule leaves the line out."""
        if any(condition.holds(labels) for condition in rule.drop):
            return None
        if rule.only and not any(condition.holds(labels) for condition in rule.only):
            return None
        ours = dict(rule.constant)
        for name, pick in rule.labels:
            value = pick.otherwise
            if pick.table is not None:
                value = tables[pick.table].get(labels.get(pick.key, ""))
            for case, condition in pick.cases:
                if condition.holds(labels):
                    value = case
                    break
            if value is None:
                value = pick.named(labels)
            if value is not None:
                ours[name] = value
        return tuple(sorted(ours.items()))

    def is_lazy(self, family: Family, beside: Mapping[str, str]) -> bool:
        """Whether a counter that the upstream does not show may be 0 beside these labels."""
        return any(rule.lazy for rule in self.rules if rule.family is family and rule.agrees(beside))

    def tells(self, family: Family, label: str, beside: Mapping[str, str]) -> frozenset[str]:
        """The values of a closed label that this upstream can tell, beside the other labels of a series."""
        rules = [rule for rule in self.rules if rule.family is family and rule.agrees(beside)]
        return frozenset(told for rule in rules for told in _told(label, rule.labels, rule.constant))


def _told(label: str, picks: Iterable[tuple[str, Pick]], constant: Iterable[tuple[str, str]]) -> set[str]:
    """The values that a rule can give a label, beside those it copies from the upstream."""
    told = {value for name, value in constant if name == label}
    for name, pick in picks:
        if name == label:
            told.update(value for value, _ in pick.cases)
            told.update({pick.otherwise} if pick.otherwise else ())
    return told
