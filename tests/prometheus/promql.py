"""What an expression of PromQL reads, and which labels its result may have: held against the catalogue, and our rules.

An expression of a rule, an alert, a page of the documentation or a dashboard that breaks one of these raises
BrokenRuleError, which says what and where:

- it names families of the catalogue, our own recordings, or `up`, and labels that these have;
- of a family that a target has it selects `source`: applications have an `llm_requests_total` of their own;
- what is summed was taken once of the replicas of an exporter, by `max without (replica, pod)`;
- nothing is aggregated over layers, and no buckets over sources, unless one is selected;
- two sides that are matched have the labels that they are matched on.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import promql_parser
import yaml
from promql_parser import AggModifierType, LabelModifierType, MatchOp, VectorMatchCardinality

from exporter.catalogue import families

ROOT = Path(__file__).parents[2]
RULES = sorted((ROOT / "prometheus").glob("rules/*.yml"))
ALERTS = sorted((ROOT / "prometheus").glob("alerts/*.yml"))

Labels = frozenset[str]
REPLICA: Labels = frozenset({"replica", "pod"})
"""What tells the replicas of one exporter apart."""
SCRAPED: Labels = frozenset({"job", "instance"}) | REPLICA
"""What Prometheus gives to each series of a page."""
OTHERS = {"up": SCRAPED}
"""Series of Prometheus's own that a rule may ask for."""
_SUFFIXES = {"histogram": ("_bucket", "_sum", "_count"), "summary": ("_sum", "_count")}
_SETS = ("and", "or", "unless")


class BrokenRuleError(Exception):
    """An expression breaks a rule."""


def series() -> dict[str, Labels]:
    """Every series that the exporter can show, with the labels that it may have."""
    known = dict(OTHERS)
    for family in families().values():
        for suffix in _SUFFIXES.get(family.kind, ("",)):
            bound = {"le"} if suffix == "_bucket" else set()
            known[family.name + suffix] = frozenset(family.labels) | SCRAPED | bound
    return known


def family_of(name: str) -> Any:
    """The family that a series is of, or None."""
    return families().get(name) or families().get(re.sub("_(bucket|sum|count)$", "", name))


@dataclass(frozen=True)
class Selected:
    """A selector, with the functions that it is an argument of."""

    node: Any
    calls: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return str(self.node.name)

    @property
    def matchers(self) -> dict[str, tuple[str, str]]:
        """By label: operator and value."""
        matchers = self.node.matchers.matchers
        return {each.name: (str(each.op).removeprefix("MatchOp."), each.value) for each in matchers}

    def takes_one(self, label: str) -> bool:
        """Whether all series that are taken have the same value of a label."""
        operator, value = self.matchers.get(label, ("", ""))
        return operator == "Equal" and bool(value)

    def takes_any(self, label: str) -> bool:
        """Whether series without a label are taken, too."""
        operator, value = self.matchers.get(label, ("Re", ".*"))
        same = value == "" if operator in ("Equal", "NotEqual") else re.fullmatch(value, "") is not None
        return same == (operator in ("Equal", "Re"))


def selectors(expression: Any, calls: tuple[str, ...] = ()) -> Iterator[Selected]:
    """All selectors of an expression, as text or parsed."""
    node = promql_parser.parse(expression) if isinstance(expression, str) else expression
    if isinstance(node, promql_parser.VectorSelector):
        yield Selected(node, calls)
    if isinstance(node, promql_parser.Call):
        calls = (*calls, node.func.name)
    children = [getattr(node, part, None) for part in ("lhs", "rhs", "expr", "vector_selector")]
    for child in (*children, *(getattr(node, "args", None) or ())):
        if child is not None:
            yield from selectors(child, calls)


@cache
def entries() -> dict[str, list[dict[str, Any]]]:
    """All rules: under `record` and `alert`, in the order in which they stand."""
    found: dict[str, list[dict[str, Any]]] = {"record": [], "alert": []}
    for path in (*RULES, *ALERTS):
        for group in yaml.safe_load(path.read_text("utf-8"))["groups"]:
            for rule in group["rules"]:
                found["record" if "record" in rule else "alert"].append(rule)
    return found


@cache
def checker() -> Checker:
    """A checker that knows our recordings. Those that depend on one another are checked in their own order."""
    made = Checker(series())
    left = list(entries()["record"])
    while left:
        names = {rule["record"] for rule in left}
        ready = [rule for rule in left if not names & {one.name for one in selectors(rule["expr"])}]
        assert ready, f"recordings that need each other: {sorted(names)}"
        for rule in ready:
            labels = made.labels(rule["expr"]) | set(rule.get("labels", ()))
            assert not labels & REPLICA, f"{rule['record']}: has replicas"
            made.known[rule["record"]] = made.known.get(rule["record"], frozenset()) | labels
        left = [rule for rule in left if rule not in ready]
    return made


class Checker:
    """Checks expressions against the series that are known.

    Where `strict`, as of rules, selectors name a source, and not even the greatest is taken over layers; a dashboard
    names job and instance, and may show the worst of several layers.
    """

    def __init__(self, known: dict[str, Labels], *, strict: bool = True) -> None:
        self.known = known
        self._strict = strict

    def labels(self, expression: str) -> Labels:
        """The labels that the result of a checked expression may have."""
        return self._of(promql_parser.parse(expression)) or frozenset()

    def _of(self, node: Any) -> Labels | None:
        """The labels of an expression's result; None for a scalar or text."""
        match type(node).__name__:
            case "VectorSelector":
                return self._selected(node)
            case "MatrixSelector":
                return self._selected(node.vector_selector)
            case "ParenExpr" | "UnaryExpr" | "SubqueryExpr":
                return self._of(node.expr)
            case "AggregateExpr":
                return self._aggregated(node)
            case "BinaryExpr":
                return self._matched(node)
            case "Call":
                return self._called(node)
            case _:
                return None

    def _selected(self, node: Any) -> Labels:
        if node.name not in self.known:
            raise BrokenRuleError(f"{node.name}: no series of ours")
        labels, family = self.known[node.name], family_of(node.name)
        if self._strict and family is not None and "source" in labels and Selected(node).takes_any("source"):
            raise BrokenRuleError(f'{node.prettify()}: does not select source!=""')
        if node.matchers.or_matchers:
            raise BrokenRuleError(f"{node.prettify()}: alternatives of matchers are not checked here")
        for matcher in node.matchers.matchers:
            if matcher.name not in labels:
                raise BrokenRuleError(f"{node.prettify()}: {node.name} has no label {matcher.name}")
            if (closed := family and family.closed.get(matcher.name)) and matcher.value and "$" not in matcher.value:
                exact = matcher.op in (MatchOp.Equal, MatchOp.NotEqual)
                words = [matcher.value] if exact else matcher.value.split("|")
                for word in words:
                    if not any(word == one if exact else re.fullmatch(word, one) for one in closed):
                        raise BrokenRuleError(f"{node.prettify()}: {matcher.name} is never {word}")
        return labels

    def _aggregated(self, node: Any) -> Labels:
        inner = self._of(node.expr) or frozenset()
        named = frozenset(node.modifier.labels) if node.modifier else frozenset()
        without = node.modifier is not None and node.modifier.type == AggModifierType.Without
        if wrong := named - inner:
            raise BrokenRuleError(f"{node.prettify()}: there is no {', '.join(sorted(wrong))} to aggregate")
        if str(node.op) in ("topk", "bottomk"):
            return inner
        outer = inner - named if without else named
        gone = {label for label in inner - outer if not self._one(node, label)}
        if "layer" in gone and (self._strict or str(node.op) in ("sum", "avg")):
            raise BrokenRuleError(f"{node.prettify()}: crosses layers")
        if "le" in gone and str(node.op) in ("sum", "avg"):
            raise BrokenRuleError(f"{node.prettify()}: adds one bucket to another")
        if "le" in inner and "source" in gone:
            raise BrokenRuleError(f"{node.prettify()}: adds buckets of different sources")
        if gone & REPLICA and str(node.op) not in ("max", "min") and "source" in inner:
            raise BrokenRuleError(
                f"{node.prettify()}: counts each replica of an exporter (take max without (replica, pod) first)"
            )
        if str(node.op) == "count_values":
            return outer | {node.param.val}
        return outer

    def _one(self, node: Any, label: str) -> bool:
        """Whether all that an expression selects has the same value of a label."""
        return all(one.takes_one(label) for one in selectors(node) if label in self.known[one.name])

    def _matched(self, node: Any) -> Labels | None:
        left, right = self._of(node.lhs), self._of(node.rhs)
        if left is None or right is None:
            return right if left is None else left
        modifier = node.modifier
        matching = modifier.matching if modifier is not None else None
        if matching is not None and (wrong := frozenset(matching.labels) - left - right):
            raise BrokenRuleError(f"{node.prettify()}: neither side has {', '.join(sorted(wrong))}")
        if matching is None:
            key_left, key_right = left, right
        elif matching.type == LabelModifierType.Include:
            key_left = key_right = frozenset(matching.labels)
            if missing := key_left - (left & right):
                raise BrokenRuleError(f"{node.prettify()}: one side has no {', '.join(sorted(missing))}")
        else:
            key_left, key_right = left - set(matching.labels), right - set(matching.labels)
        operator = str(node.op).strip()
        if operator == "or" and matching is None:
            return left | right
        if key_left != key_right:
            raise BrokenRuleError(f"{node.prettify()}: sides differ in {', '.join(sorted(key_left ^ key_right))}")
        if operator in _SETS:
            return left | right if operator == "or" else left
        match modifier.card if modifier is not None else None:
            case VectorMatchCardinality.ManyToOne:
                return left | set(modifier.group_labels or ())
            case VectorMatchCardinality.OneToMany:
                return right | set(modifier.group_labels or ())
            case _:
                return key_left

    def _called(self, node: Any) -> Labels | None:
        name = node.func.name
        results = [self._of(argument) for argument in node.args]
        if name == "label_replace":
            labels = results[0] or frozenset()
            if (taken := node.args[3].val) and taken not in labels:
                raise BrokenRuleError(f"{node.prettify()}: there is no {taken} to take the value from")
            return labels | {node.args[1].val}
        if name == "label_join":
            labels = results[0] or frozenset()
            if missing := {part.val for part in node.args[3:]} - labels:
                raise BrokenRuleError(f"{node.prettify()}: there is no {', '.join(sorted(missing))} to join")
            return labels | {node.args[1].val}
        if name in ("time", "scalar"):
            return None
        if name == "vector":
            return frozenset()
        labels = next((one for one in results if one is not None), frozenset())
        if name == "histogram_quantile":
            if missing := {one for one in ("le", "source") if one not in labels and not self._one(node, one)}:
                raise BrokenRuleError(f"{node.prettify()}: its buckets have no {', '.join(sorted(missing))}")
            return labels - {"le"}
        return labels
