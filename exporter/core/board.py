"""The board: the newest reading of each target, its health apart from its data, and the page made of both."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from exporter.catalogue import families
from exporter.core.errors import REASONS
from exporter.core.types import Reading, Sample, Series, SeriesTable
from exporter.text.negotiate import Format
from exporter.text.render import page


@dataclass(slots=True)
class Health:
    """How the exporter fares with one target; lives as long as the target is configured."""

    source: str
    target: str
    labels: Mapping[str, str] = field(default_factory=dict)
    interval: float = 0.0  # seconds between reads, in force now
    reading: Reading | None = None
    success: float | None = None  # Unix seconds
    samples: int = 0  # in the upstream's last answer
    dropped: Mapping[str, int] = field(default_factory=dict)
    failures: Counter[str] = field(default_factory=Counter)
    carried: int = 0  # pages that carried the target's data
    _table: SeriesTable | None = None

    def rows(self) -> Iterable[Sample]:
        """The `llm_target_*` samples."""
        if self._table is None:
            self._table = SeriesTable({**self.labels, "source": self.source, "target": self.target})
        known = families()

        def series(name: str, **labels: str) -> Series:
            assert self._table is not None  # noqa: S101 - made above
            return self._table(known[name], labels.items())

        reading = self.reading
        if reading is None:
            return
        yield series("llm_target_up"), float(reading.ok)
        yield series("llm_target_read_duration_seconds"), reading.seconds
        yield series("llm_target_interval_seconds"), self.interval
        yield series("llm_target_series"), float(len(reading.samples))
        if reading.ok:
            yield series("llm_target_samples"), float(self.samples)
        if reading.version:
            yield series("llm_target_info", version=reading.version), 1.0
        if self.success is not None:
            yield series("llm_target_last_success_timestamp_seconds"), self.success
        for reason in REASONS:
            yield series("llm_target_read_failures_total", reason=reason), float(self.failures[reason])
        for reason in known["llm_target_series_dropped_total"].closed["reason"]:
            yield series("llm_target_series_dropped_total", reason=reason), float(self.dropped.get(reason, 0))


class Board:
    """Holds what is shown. A page is made when something was published since the last one, else given again."""

    def __init__(
        self,
        own: Callable[[], list[Sample]] = list,
        process: Callable[[Format], bytes] = lambda _: b"",
    ) -> None:
        self._own = own
        self._process = process
        self._targets: dict[str, Health] = {}
        self._pages: dict[Format, bytes] = {}

    def watch(self, health: Health) -> None:
        """A target is configured."""
        self._targets[health.target] = health
        self._pages.clear()

    def drop(self, target: str) -> None:
        """A target is configured no more."""
        self._targets.pop(target, None)
        self._pages.clear()

    def publish(self, reading: Reading) -> None:
        """The newest reading of a target: a failed one takes the target's values off the page at once."""
        health = self._targets[reading.target]
        health.reading = reading
        if reading.reason is None:
            health.success = reading.at
        else:
            health.failures[reading.reason] += 1
        self._pages.clear()

    def refresh(self) -> None:
        """Something beside the readings has changed."""
        self._pages.clear()

    def page(self, form: Format) -> bytes:
        """The page, the same bytes for the same readings. Targets stand in the order of their names."""
        made = self._pages.get(form)
        if made is None:
            targets = [self._targets[name] for name in sorted(self._targets)]
            parts: list[Sequence[Sample]] = [health.reading.samples for health in targets if health.reading]
            parts += [list(health.rows()) for health in targets]
            parts.append(self._own())
            end = b"# EOF\n" if form is Format.OPENMETRICS else b""
            made = self._pages[form] = page(parts, form).removesuffix(end) + self._process(form) + end
        for health in self._targets.values():
            if health.reading is not None and health.reading.ok:
                health.carried += 1
        return made
