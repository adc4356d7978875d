"""What an expression of PromQL reads, and which labels its result may have: held against the catalogue, and our rules.

An expression that breaks one of these raises BrokenRuleError, which says what and where:

- it names families of the catalogue, our own recordings, or `up`, and labels that these have;
- of a family that a target has it selects `source`: applications have an `llm_requests_total` of their own;
- what is summed was taken once of the replicas of an exporter, by `max without (replica, pod)`;
- nothing is aggregated over layers, and no buckets over sources;
- two sides that are matched have the labels that they are matched on.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import promql_parser
from promql_parser import AggModifierType, LabelModifierType, MatchOp, VectorMatchCardinality

from exporter.catalogue import families

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


def selectors(node: Any) -> Iterator[Any]:
    """All selectors of an expression."""
    if isinstance(node, promql_parser.VectorSelector):
        yield node
    for part in ("lhs", "rhs", "expr", "vector_selector", "param"):
        if (child := getattr(node, part, None)) is not None:
            yield from selectors(child)
    for child in getattr(node, "args", ()):
        yield from selectors(child)


def _wants_one(matcher: Any) -> bool:
    """Whether a matcher takes no series that is without its label."""
    match matcher.op:
        case MatchOp.Equal:
            return bool(matcher.value)
        case MatchOp.NotEqual:
            return not matcher.value
        case MatchOp.Re:
            return not re.fullmatch(matcher.value, "")
        case _:
            return bool(re.fullmatch(matcher.value, ""))


class Checker:
    """Checks expressions against what is known: the catalogue, and recordings that were checked before."""

    def __init__(self) -> None:
        self.known = series()

    def labels(self, expression: str, recorded: Mapping[str, Labels] | None = None) -> Labels:
        """The labels that the result of a checked expression may have."""
        self.known |= recorded or {}
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
        if node.matchers.or_matchers:
            raise BrokenRuleError(f"{node.prettify()}: alternatives of matchers are not checked here")
        for matcher in node.matchers.matchers:
            if matcher.name not in labels:
                raise BrokenRuleError(f"{node.prettify()}: {node.name} has no label {matcher.name}")
            if (closed := family and family.closed.get(matcher.name)) and matcher.value:
                exact = matcher.op in (MatchOp.Equal, MatchOp.NotEqual)
                words = [matcher.value] if exact else matcher.value.split("|")
                for word in words:
                    if not any(word == one if exact else re.fullmatch(word, one) for one in closed):
                        raise BrokenRuleError(f"{node.prettify()}: {matcher.name} is never {word}")
        if "source" in labels and family is not None:
            chosen = [one for one in node.matchers.matchers if one.name == "source"]
            if not any(_wants_one(one) for one in chosen):
                raise BrokenRuleError(f'{node.prettify()}: does not select source!=""')
        return labels

    def _aggregated(self, node: Any) -> Labels:
        inner = self._of(node.expr) or frozenset()
        named = frozenset(node.modifier.labels) if node.modifier else frozenset()
        without = node.modifier is not None and node.modifier.type == AggModifierType.Without
        if wrong := named - inner:
            raise BrokenRuleError(f"{node.prettify()}: there is no {', '.join(sorted(wrong))} to aggregate")
        outer = inner - named if without else named
        gone = inner - outer
        if "layer" in gone:
            raise BrokenRuleError(f"{node.prettify()}: crosses layers")
        if "le" in inner and "source" in gone:
            raise BrokenRuleError(f"{node.prettify()}: adds buckets of different sources")
        if gone & REPLICA and str(node.op) not in ("max", "min") and "source" in inner:
            raise BrokenRuleError(
                f"{node.prettify()}: counts each replica of an exporter (take max without (replica, pod) first)"
            )
        return outer

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
                return left
            case VectorMatchCardinality.OneToMany:
                return right
            case _:
                return key_left

    def _called(self, node: Any) -> Labels | None:
        name = node.func.name
        results = [self._of(argument) for argument in node.args]
        if name == "label_replace":
            labels = results[0] or frozenset()
            if node.args[3].val not in labels:
                raise BrokenRuleError(f"{node.prettify()}: there is no {node.args[3].val} to take the value from")
            return labels | {node.args[1].val}
        if name in ("time", "scalar"):
            return None
        if name == "vector":
            return frozenset()
        labels = next((one for one in results if one is not None), frozenset())
        if name == "histogram_quantile":
            if missing := {"le", "source"} - labels:
                raise BrokenRuleError(f"{node.prettify()}: its buckets have no {', '.join(sorted(missing))}")
            return labels - {"le"}
        return labels
