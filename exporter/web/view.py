"""What the web room is told by the rest of the exporter: the page, readiness, and what people see of each target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from exporter.core.types import Advice
from exporter.text.negotiate import Format

State = Literal["down", "waiting", "up"]
"""In the order in which people should see them: what is wrong first."""


@dataclass(frozen=True, slots=True)
class TargetView:
    """What the landing page shows of one target.

    `error` is the last one, '' where there was none; `interval` the one in force and `read_seconds` the last read's,
    both in seconds; `last_success` is Unix time in seconds; `series` counts what the target has on the page;
    `version` is the upstream's own, where it says one. None means: not yet, or not known. `recognised` says that the
    source was told by what the target answers, `experimental` that it was made from documentation alone.
    """

    name: str
    source: str
    url: str
    state: State
    error: str
    interval: float
    read_seconds: float | None
    last_success: float | None
    series: int
    version: str | None
    advice: tuple[Advice, ...]
    recognised: bool = False
    experimental: bool = False


class View(Protocol):
    """The exporter as the web room sees it."""

    def page(self, format: Format) -> bytes:  # noqa: A002 - the field's word
        """The newest page. Called for each scrape, so the implementer keeps it for as long as nothing changes."""
        ...

    def ready(self) -> bool:
        """Whether the first read of every target has ended, however it ended."""
        ...

    def targets(self) -> Sequence[TargetView]:
        """Every target, in the order in which people should see them."""
        ...

    def looked_for(self) -> Sequence[str]:
        """What detection looks for and has not found, each as a sentence."""
        ...

    async def reload(self) -> str | None:
        """Read the configuration again: None where it is now in force, else its problems as text."""
        ...
