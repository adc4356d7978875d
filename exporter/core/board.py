"""The board: the newest reading of each target, its health apart from its data, and the page made of both."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from exporter.catalogue import families
from exporter.core.errors import REASONS
from exporter.core.types import Reading, Sample, Series, SeriesTable
from exporter.text.negotiate import Format
from exporter.text.render import Sheet, page


@dataclass(slots=True)
class Health:
    """How the exporter fares with one target; lives as long as the target is configured."""

    source: str
    target: str
    labels: Mapping[str, str] = field(default_factory=dict)
    configured: Mapping[str, float] = field(default_factory=dict)  # families whose values the configuration says
    interval: float = 0.0  # seconds between reads, in force now
    reading: Reading | None = None
    success: float | None = None  # Unix seconds
    samples: int = 0  # in the upstream's last answer
    dropped: Mapping[str, int] = field(default_factory=dict)
    failures: Counter[str] = field(default_factory=Counter)
    carried: int = 0  # pages that carried the target's data
    _sheet: Sheet = field(default_factory=Sheet)
    _shown: Reading | None = None  # what the sheet says
    _made: dict[tuple[str, str], Series] = field(default_factory=dict)

    @property
    def sheet(self) -> Sheet:
        """The target's part of the page."""
        if self.reading is not None and self._shown is not self.reading:
            self._shown = self.reading
            rows = list(self.rows())
            series = [*self.reading.samples.series, *(series for series, _ in rows)]
            self._sheet.update(series, [*self.reading.samples.values, *(value for _, value in rows)])
        return self._sheet

    def rows(self) -> Iterable[Sample]:
        """The `llm_target_*` samples, and what the configuration says."""
        known = families()

        def series(name: str, label: str = "", value: str = "") -> Series:
            made = self._made.get((name, value))
            if made is None:
                table = SeriesTable({**self.labels, "source": self.source, "target": self.target})
                made = table(known[name], ((label, value),))
                if label != "version":
                    self._made[name, value] = made
            return made

        reading = self.reading
        if reading is None:
            return
        yield series("llm_target_up"), float(reading.ok)
        yield series("llm_target_read_duration_seconds"), reading.seconds
        yield series("llm_target_interval_seconds"), self.interval
        for name, value in self.configured.items():
            yield series(name), value
        yield series("llm_target_series"), float(len(reading.samples))
        if reading.ok:
            yield series("llm_target_samples"), float(self.samples)
        if reading.version:
            yield series("llm_target_info", "version", reading.version), 1.0
        if self.success is not None:
            yield series("llm_target_last_success_timestamp_seconds"), self.success
        for reason in REASONS:
            yield series("llm_target_read_failures_total", "reason", reason), float(self.failures[reason])
        for reason in known["llm_target_series_dropped_total"].closed["reason"]:
            yield series("llm_target_series_dropped_total", "reason", reason), float(self.dropped.get(reason, 0))


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
        self._own_sheet = Sheet()

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

    def newest(self, target: str) -> Reading | None:
        """The newest reading of a target, None where there is none yet."""
        health = self._targets.get(target)
        return health.reading if health is not None else None

    def refresh(self) -> None:
        """Something beside the readings has changed."""
        self._pages.clear()

    def page(self, form: Format) -> bytes:
        """The page, the same bytes for the same readings. Targets stand in the order of their names."""
        made = self._pages.get(form)
        if made is None:
            sheets = [self._targets[name].sheet for name in sorted(self._targets)]
            own = self._own()
            self._own_sheet.update([series for series, _ in own], [value for _, value in own])
            made = self._pages[form] = page([*sheets, self._own_sheet], form, more=self._process(form))
        for health in self._targets.values():
            if health.reading is not None and health.reading.ok:
                health.carried += 1
        return made
