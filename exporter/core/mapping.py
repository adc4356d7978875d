"""From an upstream's words to ours: what `map.yaml` says, checked at load and applied to a line once.

A map is a list of rules. A rule feeds one of our families from an ordered list of upstream names, newest first, which
are alternatives and never added; several rules for one family are different events and add up. What a rule says of a
line's labels stands in `rule.py`.

An upstream name that begins with `*` stands for all that end in what follows (`*_requests_total`), for upstreams whose
prefix their users choose. A name that is written out wins over endings, a longer ending over a shorter one, and names
under `not:` are matched by none. A name with a `:` stands for the one with `_` in its place, too, and under `prefixes:`
a map says with what else its names may begin: each spelling is an alternative of its own.

A map may `include:` other sources' maps: their rules stand before its own, with their layer. Where several rules tell
the same series of a gauge, the first of them that is there is shown.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from exporter.catalogue import COMMON, rules_of
from exporter.core import form
from exporter.core.form import MapError, Path
from exporter.core.rule import Pick, Rule, Way, conditions, listed
from exporter.core.types import Family, Kind, LabelSet

KEPT_VALUES = 20
"""An upstream label that the configuration keeps shows this many values; the rest is `other`."""

TABLE_LENGTH = 10_000
"""Entries of a table at most."""

_HISTOGRAM = ("_bucket", "_count", "_sum")


@dataclass(frozen=True, slots=True)
class Table:
    """What one upstream label says of another, learnt from lines that have both."""

    key: str
    values: tuple[str, ...]


class SourceMap:
    """A source's whole map. `what` names it in errors; `families` is the catalogue it is checked against.

    `others` are the maps that it may include, by their source, as written.
    """

    def __init__(
        self,
        what: str,
        given: Mapping[str, Any],
        families: Mapping[str, Family],
        others: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        try:
            form.check(given, ())
            self._build(given, families, others or {})
        except MapError as error:
            raise MapError(error.text, error.path, what) from None

    def _build(
        self, given: Mapping[str, Any], families: Mapping[str, Family], others: Mapping[str, Mapping[str, Any]]
    ) -> None:
        identity = given.get("identity")
        if not isinstance(identity, dict):
            identity = {"name": identity, "label": None}
        self.identity: str | None = identity["name"]
        self.identity_label: str | None = identity["label"]
        self.layer: str | None = given.get("layer")
        self.experimental = bool(given.get("experimental"))
        self._absent = frozenset("" if value is None else str(value) for value in given.get("absent", ("",)))
        self.copies = frozenset(given.get("copies", ()))
        self._drop = conditions(given.get("drop", ()))
        self._prefixes: Mapping[str, list[str]] = given.get("prefixes", {})
        self.tables = {
            name: Table(table["key"], listed(table["value"])) for name, table in given.get("tables", {}).items()
        }
        self.rules = (*self._included(given, families, others), *self._rules(given, families))
        self._not = listed(given.get("not", []))
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
                        path: Path = ("families", rule.family.name, "from")
                        raise MapError(f"{source} is mapped both as a counter and as a gauge", path)
                    fed.append((rule, index, rule.part or suffix))

    def _included(
        self, given: Mapping[str, Any], families: Mapping[str, Family], others: Mapping[str, Mapping[str, Any]]
    ) -> Iterator[Rule]:
        for place, kind in enumerate(given.get("include", ())):
            if kind not in others:
                raise MapError(f"no map of a source: {kind} (known: {', '.join(sorted(others))})", ("include", place))
            other = SourceMap(kind, others[kind], families, others)
            self.tables = {**other.tables, **self.tables}
            for rule in other.rules:
                key = rule.key if rule.internal else f"{kind}/{rule.key}"
                drop = (*self._drop, *rule.drop)
                yield replace(rule, key=key, sources=self._spelled(rule.sources), drop=drop, origin=kind)

    def _spelled(self, names: Iterable[str]) -> tuple[str, ...]:
        """The names, and behind each what else stands for it."""
        spelled: dict[str, None] = {}
        for name in names:
            every = [name]
            for prefix, others in self._prefixes.items():
                if name.startswith(prefix):
                    every += [other + name.removeprefix(prefix) for other in others]
            for each in every:
                spelled |= dict.fromkeys((each, each.replace(":", "_")))
        return tuple(spelled)

    def _rules(self, given: Mapping[str, Any], families: Mapping[str, Family]) -> Iterator[Rule]:
        for name, entry in given["families"].items():
            family = families.get(name)
            if family is None:
                where = "see docs/metrics.md; a word of ours is declared in exporter/catalogue"
                raise MapError(f"{name} is not in the catalogue ({where})", ("families", name))
            for index, rule in enumerate(rules_of(entry)):
                path: Path = ("families", name, index) if isinstance(entry, list) else ("families", name)
                yield self._rule(f"{name}#{index}" if index else name, family, rule, path)
        for name, rule in given.get("internal", {}).items():
            labels = tuple(rule.get("labels", {}))
            kind: Kind = rule.get("type", "counter")
            yield self._rule(
                name, Family(name, kind, "", (*COMMON, "layer", *labels), order=-1), rule, ("internal", name)
            )

    def _rule(self, key: str, family: Family, given: Mapping[str, Any], path: Path) -> Rule:
        if (family.kind == "summary") != ("part" in given):
            remedy = "write part: sum, or part: count" if family.kind == "summary" else "leave part: out"
            raise MapError(f"{family.name} is a {family.kind} ({remedy})", path)
        picks = {name: Pick.of(pick) for name, pick in given.get("labels", {}).items()}
        constant = {name: str(value) for name, value in given.get("constant", {}).items()}
        for place, names in (("labels", picks), ("constant", constant)):
            for name in names:
                if name not in family.labels:
                    raise MapError(f"{family.name} has no label {name} (it has {family.labels})", (*path, place, name))
        if self.layer and "layer" in family.labels:
            constant.setdefault("layer", self.layer)
        part = f"_{given['part']}" if "part" in given else ""
        rule = Rule(
            key=key,
            family=family,
            sources=self._spelled(given["from"]),
            labels=tuple(picks.items()),
            constant=tuple(constant.items()),
            scale=float(given.get("scale", 1.0)),
            merge=given.get("merge", "none" if family.kind == "gauge" else "sum"),
            copies=frozenset(given.get("copies", self.copies)),
            only=conditions(given.get("only", ())),
            drop=(*self._drop, *conditions(given.get("drop", ()))),
            when=frozenset(given.get("when", ())),
            declared=frozenset(listed(given.get("declared", "counter" if part else family.kind))),
            lazy=bool(given.get("lazy", True)),
            wraps=given.get("wraps", 0),
            progress=given.get("progress", "end"),
            part=part,
        )
        for name, values in family.closed.items():
            if extra := rule.told(name) - set(values):
                raise MapError(f"{name}={sorted(extra)} is not one of {values}", (*path, "labels"))
        if family.kind != "gauge" and rule.merge != "sum":
            raise MapError("how gauges are merged, and this is none (leave it out; for gauges only)", (*path, "merge"))
        if family.kind != "counter" and "wraps" in given:
            raise MapError("where counters begin again, and this is none (leave it out)", (*path, "wraps"))
        for name, pick in rule.labels:
            if pick.table is not None and pick.table not in self.tables:
                known = sorted(self.tables)
                raise MapError(f"no table {pick.table} (known: {known})", (*path, "labels", name, "lookup"))
        return rule

    @property
    def internal(self) -> frozenset[str]:
        """The rules that are for our own code alone, by their keys."""
        return frozenset(rule.key for rule in self.rules if rule.internal)

    def before(self) -> dict[str, tuple[str, ...]]:
        """For each rule of a gauge the rules before it that may tell the same series."""
        found: dict[str, tuple[str, ...]] = {}
        gauges: dict[Family, list[Rule]] = {}
        for rule in self.rules:
            if rule.family.kind == "gauge" and not rule.internal:
                others = gauges.setdefault(rule.family, [])
                if alike := tuple(other.key for other in others if other.agrees(dict(rule.constant))):
                    found[rule.key] = alike
                others.append(rule)
        return found

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

    def learn(self, labels: LabelSet, tables: Mapping[str, dict[str, str]]) -> None:
        """Take from a line what it says about the tables. What was learnt first stays."""
        for name, table in self.tables.items():
            if table.key in labels and labels[table.key] not in tables[name] and len(tables[name]) < TABLE_LENGTH:
                for value in table.values:
                    if value in labels:
                        tables[name][labels[table.key]] = labels[value]
                        break

    def is_lazy(self, family: Family, beside: LabelSet, origins: Container[str]) -> bool:
        """Whether a counter that the upstream does not show may be 0 beside these labels."""
        return any(rule.lazy for rule in self._beside(family, beside, origins))

    def tells(self, family: Family, label: str, beside: LabelSet, origins: Container[str]) -> frozenset[str]:
        """The values of a closed label that this upstream can tell, beside the other labels of a series."""
        rules = self._beside(family, beside, origins)
        return frozenset(told for rule in rules for told in rule.told(label))

    def _beside(self, family: Family, beside: LabelSet, origins: Container[str]) -> list[Rule]:
        """The rules that can feed a family beside these labels, of the maps that what is beside it comes from."""
        return [rule for rule in self.rules if rule.family is family and rule.origin in origins and rule.agrees(beside)]
