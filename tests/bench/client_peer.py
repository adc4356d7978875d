"""The ordinary exporter in Python: `python tests/bench/client_peer.py PORT SECONDS SIZE URL`.

It does the job of job.py with prometheus-client: parses each body with its parser, adds the samples up by labels, and
serves the sums with its own server.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Iterable
from urllib.request import urlopen

from job import JOBS, Job
from prometheus_client import CollectorRegistry, Metric, start_http_server
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector


class Sums(Collector):
    """The sums of the last body."""

    def __init__(self, job: Job) -> None:
        self._labels = frozenset((*job.labels, "le"))
        self._wanted = frozenset(name.removesuffix("_total") for name in job.families)
        self._families: list[Metric] = []

    def take(self, text: str) -> None:
        """Add a body up."""
        families = []
        for family in text_string_to_metric_families(text):
            if family.name not in self._wanted:
                continue
            sums: dict[tuple[str, tuple[tuple[str, str], ...]], float] = defaultdict(float)
            for sample in family.samples:
                labels = tuple(item for item in sample.labels.items() if item[0] in self._labels)
                sums[sample.name, labels] += sample.value
            summed = Metric(family.name, family.documentation, family.type)
            for (name, labels), value in sums.items():
                summed.add_sample(name, dict(labels), value)
            families.append(summed)
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def main() -> None:
    """Read and serve until killed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("port", type=int)
    parser.add_argument("seconds", type=float, help="between two reads")
    parser.add_argument("size", choices=sorted(JOBS))
    parser.add_argument("url", help="of the metrics")
    given = parser.parse_args()
    registry = CollectorRegistry()
    sums = Sums(JOBS[given.size])
    registry.register(sums)
    start_http_server(given.port, "127.0.0.1", registry)
    while True:
        began = time.monotonic()
        with urlopen(given.url, timeout=60) as answer:
            sums.take(answer.read().decode())
        time.sleep(max(0.0, began + given.seconds - time.monotonic()))


if __name__ == "__main__":
    main()
