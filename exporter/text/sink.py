"""What the reader needs of whoever takes its numbers: a `Sink` gives each line a `Known`, its destination.

The reader knows bytes and nothing of what they mean; the sink (`exporter.core.total.Totals`) knows numbers and nothing
of bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

from exporter.text.parse import Line


class Known(Protocol):
    """The destination of one line, or of the lines of one block, in their order.

    `read` is the reader's: the number of the read that last saw the lines. `stale` is set by the sink where the values
    it had are no longer those behind the bytes: the reader then gives them again, although the bytes are the same.
    Lines of one `kind` can stand in one block; those of kind None stand by themselves. One that `waits` only stands for
    what `settle` gives.
    """

    read: int
    stale: bool
    waits: bool

    @property
    def kind(self) -> object: ...

    def take(self, values: Sequence[float], places: Sequence[int] | None = None) -> None:
        """The lines have these values now: those at these places, None for all of them."""

    def join(self, others: Sequence[Any]) -> Known:
        """One destination for this one's lines and those of `others`, of the same kind, in this order."""

    def split(self, lines: int) -> Sequence[Known]:
        """The destinations of the `lines` one by one; this one is used no more."""

    def each(self, lines: int) -> Sequence[object]:
        """What stands for each of the `lines`, for people who ask why one is left out."""

    def vanished(self) -> float:
        """A whole body came without the lines. For how many seconds they are worth remembering; 0: forget them."""

    def returned(self) -> None:
        """The lines, vanished and remembered, are there again."""

    def forgotten(self, identities: Iterable[bytes]) -> None:
        """The lines, vanished and remembered until now, are forgotten."""


class Ignored:
    """The destination of lines that are there, and that is all."""

    waits = False
    stale = False

    def __init__(self) -> None:
        self.read = 0

    @property
    def kind(self) -> object:
        return self

    def take(self, values: Sequence[float], places: Sequence[int] | None = None) -> None:
        """They were looked at only to be certain that they are well-formed."""

    def join(self, others: Sequence[Any]) -> Known:  # noqa: ARG002 - see Known
        return self

    def split(self, lines: int) -> Sequence[Known]:
        return [self] * lines

    def each(self, lines: int) -> Sequence[object]:
        return [self] * lines

    def vanished(self) -> float:
        return 0.0

    def returned(self) -> None:
        """Never remembered."""

    def forgotten(self, identities: Iterable[bytes]) -> None:
        """Never remembered."""


class Sink(Protocol):
    """Where lines go. Each body is a `begin`, then lines, then `settle` and `end`, or `abort`."""

    @property
    def anew(self) -> bool:
        """Whether the body has turned out to be another process's: destinations not read yet may be stale."""

    def wants(self, name: str) -> bool:
        """Whether lines of this metric can have a destination at all."""

    def begin(self) -> None:
        """A body begins."""

    def open(self, line: Line, upstream_type: str | None) -> Known:
        """A line that is not known by its bytes: its destination, which has its value."""

    def model(self, known: Known) -> Any:
        """What `open_like` must know of a histogram child, from its destination; None where it cannot be a model."""

    def open_like(self, model: Any, line: Line, values: Sequence[float]) -> Known | None:
        """The destination of a whole child, which has its `values`, from its first line and the model of another one.

        The lines are named as those of the model, with the labels of `line` (but `le`). None where each line must be
        opened by itself.
        """

    def drop(self, reason: str, samples: int) -> None:
        """So many samples were left out."""

    def settle(self) -> Iterator[tuple[Known, Known]]:
        """At the end of a body: each destination that waited, and the one that its line has now."""

    def abort(self) -> bool:
        """The body was cut; lines that waited will be opened again. False: no line is known any more."""

    def end(self) -> bool:
        """The body was whole, its lines are settled, vanished ones were told. False: no line is known any more."""

    def verify(self) -> None:
        """Raises ReadError where what was read cannot be right."""
