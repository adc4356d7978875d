"""The simulated day: its time, its load, its troubles, and what happens when.

The day alone is compressed: at a speed of 24 it passes in an hour. Whatever lasts or flows (an answer, requests a
second, watts, dollars an hour) does so in real seconds, so that what is shown is as plausible as of a real stack.
All chance comes from the seed and falls in steps of fixed length: the same seed makes the same day.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable
from itertools import count

STEP = 0.5
"""Real seconds between two looks at everything that flows."""
MORNING = 8.0
"""The hour at which the simulation begins, unless another one is asked for."""

TROUBLES: dict[str, tuple[float, float]] = {
    "provider": (8.5, 11.0),  # azure answers with 503, some requests time out
    "engine": (11.5, 13.5),  # vllm-b stands still, with requests in it
    "worker": (14.0, 16.0),  # a decode worker of Dynamo is killed, and comes back as another
    "gpu": (16.5, 18.5),  # the cooling of GPU 5 fails
    "limits": (18.75, 20.0),  # anthropic answers with 429
    "service": (20.25, 21.25),  # the search that agents use is down
    "cache": (21.5, 22.5),  # Redis does not answer LiteLLM
    "unit": (21.75, 22.9),  # the reranker ends as soon as it is asked, with an XID
}
"""What goes wrong each day, from which hour to which."""

_PEAKS = ((10.5, 2.2, 0.75), (15.0, 2.6, 0.85), (20.5, 1.8, 0.35))
"""Hour, width in hours and height of the day's peaks of load."""


class World:
    """Time and chance, for all that is simulated. `speed` is simulated seconds in a real one, from `hour` on."""

    def __init__(self, seed: int, speed: float, wall: float, hour: float = MORNING) -> None:
        self.random = random.Random(seed)  # noqa: S311 - the same day for the same seed is what is wanted
        self.now = 0.0  # real seconds since the begin
        self.began = wall  # Unix seconds
        self.steppers: list[Callable[[float], None]] = []
        self._speed, self._from = speed, hour
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._turn = count()

    @property
    def wall(self) -> float:
        """Unix seconds."""
        return self.began + self.now

    @property
    def hour(self) -> float:
        """The hour of the simulated day, 0 to 24."""
        return (self._from + self.now * self._speed / 3600.0) % 24.0

    def troubled(self, trouble: str) -> bool:
        """Whether something goes wrong now."""
        begin, end = TROUBLES[trouble]
        return begin <= self.hour < end

    @property
    def load(self) -> float:
        """How much is asked for now: 0.1 in the night, 1 and somewhat more at the peaks."""
        apart = (((self.hour - hour + 12.0) % 24.0 - 12.0, width, height) for hour, width, height in _PEAKS)
        return 0.1 + sum(height * math.exp(-((hours / width) ** 2)) for hours, width, height in apart)

    def happens(self, often: float) -> int:
        """How often something happens that does so `often` times on average (Poisson)."""
        threshold, product, times = math.exp(-often), self.random.random(), 0
        while product > threshold:
            product *= self.random.random()
            times += 1
        return times

    def about(self, median: float, spread: float) -> float:
        """A positive number around a median (log-normal)."""
        return median * math.exp(self.random.gauss(0.0, spread))

    def later(self, seconds: float, what: Callable[[], None]) -> None:
        """Have something happen in so many seconds."""
        heapq.heappush(self._due, (self.now + seconds, next(self._turn), what))

    def advance(self, to: float) -> None:
        """Let everything happen until `to`, in seconds since the begin, step by step."""
        while self.now + STEP <= to:
            until = self.now + STEP
            while self._due and self._due[0][0] <= until:
                self.now, _, what = heapq.heappop(self._due)
                what()
            self.now = until
            for step in self.steppers:
                step(STEP)
