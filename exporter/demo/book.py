"""What a simulated upstream counts, under its own names, in the exposition format."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Sequence
from functools import lru_cache

from exporter.core.types import escaped, number


class Book:
    """Counters, gauges and histograms of one upstream. `common` are labels that all of them carry."""

    def __init__(self, **common: str) -> None:
        self._common = tuple(common.items())
        self._types: dict[str, str] = {}
        self._values: dict[str, dict[str, float]] = {}
        self._bounds: dict[str, Sequence[float]] = {}
        self._histograms: dict[str, dict[str, list[float]]] = {}  # each bucket by itself, then the sum

    def add(self, name: str, amount: float = 1.0, /, **labels: str) -> None:
        """Add to a counter; an amount of 0 makes it known."""
        values = self._family(name, "counter")
        text = _text((*self._common, *labels.items()))
        values[text] = values.get(text, 0.0) + amount

    def set(self, name: str, value: float, /, **labels: str) -> None:
        """Set a gauge."""
        self._family(name, "gauge")[_text((*self._common, *labels.items()))] = value

    def observe(self, name: str, bounds: Sequence[float], value: float, times: float = 1.0, /, **labels: str) -> None:
        """Put a value into a histogram, `times` times."""
        if name not in self._histograms:
            self._histograms[name], self._bounds[name] = {}, bounds
        text = _text((*self._common, *labels.items()))
        parts = self._histograms[name].get(text)
        if parts is None:
            parts = self._histograms[name][text] = [0.0] * (len(bounds) + 2)
        parts[bisect_left(bounds, value)] += times
        parts[-1] += value * times

    def _family(self, name: str, kind: str) -> dict[str, float]:
        if name not in self._values:
            self._values[name], self._types[name] = {}, kind
        return self._values[name]

    def text(self, wanted: Collection[str] = ()) -> str:
        """The whole book, or the samples with the `wanted` names alone."""
        lines: list[str] = []
        for name, values in self._values.items():
            if not wanted or name in wanted:
                lines.append(f"# TYPE {name} {self._types[name]}")
                lines += (f"{name}{{{labels}}} {number(value)}" for labels, value in values.items())
        for name, children in self._histograms.items():
            parts = [f"{name}{end}" for end in ("_bucket", "_count", "_sum")]
            if wanted and not any(part in wanted for part in parts):
                continue
            lines.append(f"# TYPE {name} histogram")
            for labels, child in children.items():
                comma = "," if labels else ""
                total = 0.0
                for bound, count in zip((*self._bounds[name], float("inf")), child[:-1], strict=True):
                    total += count
                    lines.append(f'{name}_bucket{{{labels}{comma}le="{number(bound)}"}} {number(total)}')
                lines.append(f"{name}_count{{{labels}}} {number(total)}")
                lines.append(f"{name}_sum{{{labels}}} {number(child[-1])}")
        return "\n".join(lines) + "\n"


@lru_cache(maxsize=4096)
def _text(labels: tuple[tuple[str, str], ...]) -> str:
    return ",".join(f'{name}="{escaped(value)}"' for name, value in labels)
