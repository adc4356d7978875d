"""Anything else that exposes metrics, with a map that the user writes: the same form as the maps of our own sources."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema

from exporter.core.form import plain
from exporter.core.source import own_map
from exporter.core.types import Advice
from exporter.sources import engine

USUAL = {"layer": "engine", "identity": "process_start_time_seconds"}
"""What a map says where the user leaves it out."""


def _map(given: Any) -> Any:
    whole = {**USUAL, **plain(given)} if isinstance(given, Mapping) else given
    own_map(whole)  # raises MapError, which says where
    return whole


Map = Annotated[
    dict[str, Any], BeforeValidator(_map), WithJsonSchema({"title": "map", "type": "object", "required": ["families"]})
]


SMALLEST = """\
targets:
  - source: openmetrics
    url: {url}
    map:
      families:
        llm_requests_total: {{from: [NAME]}}   # a word of docs/metrics.md, and what it is called there"""
"""A configuration with a map."""


class Server(engine.Server):
    """Anything that exposes metrics in Prometheus' or OpenMetrics' format, by a map of your own."""

    source: Literal["openmetrics"] = "openmetrics"
    map: Map = Field(
        description="What its metrics are in our words, as the `map.yaml` of each source says it: "
        "see exporter/sources/openmetrics/README.md."
    )


class OpenMetrics(engine.Engine):
    """Reads one endpoint by the map of its target."""

    kind = "openmetrics"
    Config = Server
    models = ""

    @classmethod
    def at(cls, url: str, _: Mapping[str, str]) -> Server:
        """With an empty map: what is left out is what a map can be written from."""
        return Server(url=url, map={"families": {}})

    @classmethod
    def candidates(cls, _: Mapping[str, str]) -> Sequence[Server]:
        return ()

    def _advice(self) -> Iterable[Advice]:
        if any(self._context.totals.present.values()):
            return
        if self._context.totals.map.rules:
            what = "every number: none of the metrics that the map names is there"
            yield Advice(what, f"llm-exporter read openmetrics {self._config.url}   # lists those that are")
        else:
            yield Advice("every number: nothing is shown without a map", SMALLEST.format(url=self._config.url))

    @classmethod
    async def recognise(cls, *_: object) -> bool:
        """Never: only its map says what it is."""
        return False


SOURCE = OpenMetrics
