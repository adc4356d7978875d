"""Which process of the upstream answers: the same as before, the one that followed it, or two that take turns."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection

from exporter.core.errors import ReadError

STEADY = 10
"""Bodies of one process, in a row, after which two that took turns count as one again."""


class Process:
    """What has been told of the processes behind one target.

    What tells them apart is when they began, or, where it is not `ordered`, a number that each has for itself.
    """

    def __init__(self, *, ordered: bool = True) -> None:
        self.start: float | None = None  # Unix seconds, or the process's own number, where the upstream tells
        self._ordered = ordered
        self._former: deque[float] = deque(maxlen=16)
        self._stranger = False
        self._settling = 0
        self._newest_created = 0.0
        self._workers: frozenset[str] = frozenset()

    def tell(self, start: float) -> bool:
        """A body says which process it is from. True: it is another one, that followed the one before."""
        before, self.start = self.start, start
        if before is None or start == before:
            return False
        # no process starts before the one that it follows
        self._stranger |= self._settling > 0 or (self._ordered and start < before) or start in self._former
        self._former.append(before)
        return not self._stranger

    def guess(self, created: Collection[float], workers: frozenset[str], most_fell: Callable[[], bool]) -> bool:
        """Whether a body without a start time comes from another process than the one before.

        By the times at which its series were `created`, else by the process ids of its `workers`, else by its counters.
        """
        newest, self._newest_created = self._newest_created, max(created, default=self._newest_created)
        known, self._workers = self._workers, workers or self._workers
        if created and newest:
            return min(created) > newest
        if workers and known:
            return not workers & known
        return most_fell()

    def end(self) -> bool:
        """A whole body has been read. True: it was a stranger's, and nothing of it counts."""
        if self._stranger:
            self._stranger = False
            self._settling = STEADY
            return True
        self._settling = max(0, self._settling - 1)
        return False

    def verify(self) -> None:
        """Raises ReadError("identity") while two processes take turns."""
        if self._settling:
            raise ReadError(
                "identity",
                "two processes take turns behind this URL, so no counter can be right: give each its own target, or "
                "let its workers share their metrics (PROMETHEUS_MULTIPROC_DIR)",
            )
