"""The reader and its totals alone, with the map that does the benchmark's job."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import yaml

from exporter.catalogue import families
from exporter.core.mapping import SourceMap
from exporter.core.total import Totals
from exporter.core.types import SeriesTable
from exporter.text.difference import Difference

MAP = Path(__file__).with_name("map.yaml")
CHUNK = 1 << 17


def reader(clock: Callable[[], float] = time.monotonic) -> tuple[Totals, Difference]:
    """Totals and their reader, as the exporter makes them for a target of the benchmark."""
    source_map = SourceMap(str(MAP), yaml.safe_load(MAP.read_text("utf-8")), families())
    totals = Totals(source_map, SeriesTable({"source": "bench", "target": "t"}), clock=clock)
    return totals, Difference(totals, clock=clock)


def pieces(body: bytes) -> list[bytes]:
    """A body as it would arrive."""
    return [body[start : start + CHUNK] for start in range(0, len(body), CHUNK)]


def read(difference: Difference, body: bytes) -> float:
    """Read a body in pieces; CPU milliseconds."""
    arriving = pieces(body)
    began = time.process_time()
    difference.begin()
    for piece in arriving:
        more = difference.feed(piece)
        while more:
            more = difference.feed(b"")
    difference.end()
    return (time.process_time() - began) * 1000
