"""A small source of our own for tests of mapping and totals: requests by key and model, a histogram, a gauge."""

from collections.abc import Mapping
from typing import Any

import yaml

from exporter.catalogue import families
from exporter.core.mapping import SourceMap
from exporter.core.total import Totals
from exporter.core.types import SeriesTable
from exporter.text.difference import Difference

MAP = """
identity: process_start_time_seconds
layer: gateway
absent: ["", "None"]
copies: [pid]
families:
  llm_requests_total: {from: [up_requests_total, up_calls_total], labels: {model: model}}
  llm_request_duration_seconds: {from: [up_seconds], labels: {model: model}}
  llm_requests_running: {from: [up_running], labels: {model: model}, merge: sum}
"""

MAP_WITH_FAILURES = (
    MAP
    + """
  llm_request_failures_total:
    from: [up_failures_total]
    labels:
      model: model
      reason: {cases: [{is: auth, status: ["401", "403"]}, {is: timeout, status: "5*"}], else: other}
"""
)


class Upstream:
    """Totals and their reader, fed with bodies; a clock that stands until it is moved."""

    def __init__(
        self,
        saved: dict[str, Any] | None = None,
        text: str = MAP,
        others: Mapping[str, Mapping[str, Any]] | None = None,
        **options: Any,
    ) -> None:
        self.time = 0.0
        self.totals = Totals(
            SourceMap("test", yaml.safe_load(text), families(), others),
            SeriesTable({"source": "test", "target": "t"}),
            saved=saved,
            clock=lambda: self.time,
            **options,
        )
        self.reader = Difference(self.totals, clock=lambda: self.time)

    def read(self, body: str | bytes, chunk: int = 1 << 16, **options: Any) -> None:
        data = body.encode() if isinstance(body, str) else body
        self.reader.begin(**options)
        try:
            for start in range(0, len(data), chunk):
                self.reader.feed(data[start : start + chunk])
            self.reader.end()
        except Exception:
            self.reader.abort()
            raise

    def dump(self) -> dict[str, Any] | None:
        """What is kept over a restart of the exporter."""
        dump = self.totals.dump(self.reader.remembered())
        return None if dump is None else dump.whole()

    def cut(self, body: str, at: int) -> None:
        self.reader.begin()
        self.reader.feed(body.encode()[:at])
        self.reader.abort()

    def shown(self, carried: int = 1 << 30) -> dict[str, float]:
        """The page's lines without the labels that all have, once any page has carried them."""
        self.totals.samples(0)
        rest = '{source="test",target="t",layer="gateway"'
        return {
            series.prefix.decode().replace(rest + ",", "{").replace(rest + "}", "").strip(): value
            for series, value in self.totals.samples(carried)
        }


def body(lines: Mapping[str, float], start: float | None = 1000.0) -> str:
    """A body of these lines, with the start time of its process last."""
    text = "".join(f"{identity} {value!r}\n" for identity, value in lines.items())
    return text if start is None else text + f"process_start_time_seconds {start!r}\n"
