"""Our own vocabulary as insights read it, and sliding windows over it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from typing import Generic, TypeVar

from exporter.core.types import Labels, Sample

Key = TypeVar("Key")


class Words:
    """One target's values by family name, `words[name][labels]`; of histograms `name_sum`, `name_count`, `buckets`."""

    def __init__(self, samples: Iterable[Sample]) -> None:
        self._values: dict[str, dict[Labels, float]] = {}
        self._buckets: dict[str, dict[Labels, dict[float, float]]] = {}
        for series, value in samples:
            if series.le is None:
                self._values.setdefault(series.family.name + series.suffix, {})[series.own] = value
            else:
                self._buckets.setdefault(series.family.name, {}).setdefault(series.own, {})[series.le] = value

    def __getitem__(self, name: str) -> Mapping[Labels, float]:
        return self._values.get(name, {})

    def buckets(self, name: str) -> Mapping[Labels, Mapping[float, float]]:
        """A histogram's cumulative buckets by labels."""
        return self._buckets.get(name, {})


def some(labels: Labels, *names: str) -> Labels:
    """The labels of these names alone."""
    return tuple(pair for pair in labels if pair[0] in names)


class Window(Generic[Key]):
    """What counters gained within the last `seconds`. Snapshots are at least a sixtieth of the window apart."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._past: deque[tuple[float, Mapping[Key, float]]] = deque()
        self._now: tuple[float, Mapping[Key, float]] = (0.0, {})

    def push(self, now: float, values: Mapping[Key, float]) -> None:
        """The counters' values now."""
        known = {key: key for key in self._now[1]}  # sixty snapshots hold their keys once: a third of the memory
        self._now = (now, {known.get(key, key): value for key, value in values.items()})
        if not self._past or now - self._past[-1][0] >= self._seconds / 60:
            self._past.append(self._now)
        while len(self._past) > 1 and self._past[1][0] <= now - self._seconds:
            self._past.popleft()

    @property
    def covered(self) -> float:
        """Seconds that the window covers now."""
        return self._now[0] - self._past[0][0] if self._past else 0.0

    def gain(self, key: Key) -> float:
        """What a counter gained; one that was not there at the window's begin began at 0."""
        return self._now[1].get(key, 0.0) - self._past[0][1].get(key, 0.0) if self._past else 0.0
