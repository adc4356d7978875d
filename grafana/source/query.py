"""The shapes of our questions to Prometheus.

Every selector names `job` and `instance`, so that a family that an application calls the same stays out. Replicas of an
exporter, which are one instance, count once: `max without (replica, pod)` comes first, as in the rules. Requests of
different layers are never added, buckets only within one source: boundaries are the upstream's own.
"""

from __future__ import annotations

from dataclasses import dataclass

from grafana.source.style import PERCENTILES, codes

OURS = 'job=~"$job",instance=~"$instance"'

AT = "job, instance, target"
"""What identifies a target; joins are on these."""

BY, NAME = "instance, target", "{{instance}} {{target}}"
"""What a target is shown by, and its legend: exporters of two machines may have targets of one name."""


@dataclass(frozen=True, slots=True)
class Query:
    """One question of a panel: its PromQL, what its series are called, and a colour where that has a meaning."""

    expr: str
    legend: str = "__auto"
    colour: str | None = None


def select(family: str, *matchers: str) -> str:
    """The series of a family that the variables select, of each replica of an exporter by itself."""
    return f"{family}{{{','.join((OURS, *matchers))}}}"


def once(expr: str) -> str:
    """One replica of each exporter: of a gauge the one that reaches its target, of a rate the one that saw most."""
    return f"max without (replica, pod) ({expr})"


def pick(family: str, *matchers: str) -> str:
    """The series of a family that the variables select."""
    return once(select(family, *matchers))


def rate(family: str, *matchers: str, offset: str = "") -> str:
    """What a counter gains each second."""
    return once(f"rate({select(family, *matchers)}[$__rate_interval]{offset and f' offset {offset}'})")


def gain(family: str, *matchers: str, over: str = "$__rate_interval") -> str:
    """What a counter gains over a step of the panel, or over what it shows ($__range)."""
    return once(f"increase({select(family, *matchers)}[{over}])")


def highest(by: str, family: str, *matchers: str) -> str:
    """The greatest value by labels, or of all."""
    return f"max{by and f' by ({by}) '}({select(family, *matchers)})"


def lowest(by: str, family: str, *matchers: str) -> str:
    """The least value by labels; of replicas the greatest: what one of them reaches is not down."""
    return f"min by ({by}) ({pick(family, *matchers)})"


def total(by: str, expr: str) -> str:
    """The sum by labels."""
    return f"sum by ({by}) ({expr})"


def share(part: str, whole: str) -> str:
    """A part of a whole; nothing where the whole is 0: what was not asked for did not succeed, nor fail."""
    return f"{part} / ({whole} > 0)"


def mean(family: str, by: str, *matchers: str) -> str:
    """The mean of what a histogram or summary took in, of one step."""
    return share(total(by, rate(f"{family}_sum", *matchers)), total(by, rate(f"{family}_count", *matchers)))


def quantile(q: float, family: str, by: str, *matchers: str, offset: str = "") -> str:
    """A quantile by labels, one of which, or of the matchers, is the source."""
    buckets = rate(f"{family}_bucket", *matchers, offset=offset)
    return f"histogram_quantile({q:g}, {total(', '.join(filter(None, ('le', by))), buckets)})"


def percentiles(family: str, by: str, *matchers: str) -> list[Query]:
    """The one way to show a distribution over time: p50, p95 and p99, in their colours."""
    return [Query(quantile(q, family, by, *matchers), f"p{q * 100:g}", colour) for q, colour in PERCENTILES.items()]


def state(family: str, by: str, *matchers: str) -> str:
    """The code (`style.codes`) of the state that a thing is in; 0 where it is in none.

    Of exclusive states one series is 1. Each is multiplied by its code, and the greatest is taken.
    """
    words = (select(family, *matchers, f'state="{word}"') + f" * {code}" for word, code in codes(family).items())
    return f"max by ({by}) ({' or '.join(words)})"


def called(expr: str, **labels: str) -> str:
    """The series with further labels, all the same."""
    for label, value in labels.items():
        expr = f'label_replace({expr}, "{label}", "{value}", "", "")'
    return expr


def joined(expr: str, label: str, *parts: str, by: str = " ") -> str:
    """The series with a label made of others."""
    quoted = ", ".join(f'"{part}"' for part in parts)
    return f'label_join({expr}, "{label}", "{by}", {quoted})'


def renamed(expr: str, label: str, old: str) -> str:
    """The series with a copy of a label under another name."""
    return f'label_replace({expr}, "{label}", "$1", "{old}", "(.*)")'
