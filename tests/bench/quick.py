"""What reading costs beside what everybody knows, in one run: `python tests/bench/quick.py [--gate]`.

CPU milliseconds of the reader and its totals for bodies of 20,425 series (bodies.py), as ratios to `bytes.split` of the
same body and to prometheus-client's parser, and to the last release where the repository has one (a tag `v*`). With
`--gate` it fails where a ratio is worse than it must be: a half more than was measured when the gate was set. A
neighbour on the machine makes everything slower for a while, caches and memory most of all, so each reading has its
splits right before and after it, and what is compared is the median of these ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import NamedTuple

from bodies import Bodies
from reading import pieces, read, reader

from exporter.catalogue import families
from exporter.core.types import SeriesTable
from exporter.text.negotiate import Format
from exporter.text.render import Sheet, page

HERE = Path(__file__).resolve().parent
FIRSTS, READS = 3, 20
SPLITS = {"first read": 52.0, "1 % changed": 1.25, "10 % changed": 3.4, "100 % changed": 9.8}
"""What a reading may cost at most, in `bytes.split` of the same body."""
CLIENT = 80.0
"""How often a body of which a tenth changed can be read at least while prometheus-client parses it once."""
PAGE = 0.35
"""What a page of which a tenth changed may cost at most, in pages written anew."""
RELEASE = 1.25
"""What a reading may cost at most, in the same of the last release."""


def cpu(step: Callable[[], object]) -> float:
    """CPU milliseconds of a step."""
    began = time.process_time()
    step()
    return (time.process_time() - began) * 1000


class Cost(NamedTuple):
    """What a reading costs."""

    milliseconds: float
    splits: float


def split(body: bytes) -> float:
    """CPU milliseconds of splitting a body as it would arrive, at best of three: whole, it would take twice as long
    where the allocator has just given memory back."""
    arriving = pieces(body)

    def each() -> None:
        for piece in arriving:
            piece.split(b"\n")

    return min(cpu(each) for _ in range(3))


def beside(body: bytes, reading: Callable[[bytes], float]) -> Cost:
    """What a reading of a body costs, and how much that is in splits of the same moment."""
    before, took, after = split(body), reading(body), split(body)
    return Cost(took, took / ((before + after) / 2))


def typical(costs: list[Cost]) -> Cost:
    """Their medians."""
    return Cost(median(cost.milliseconds for cost in costs), median(cost.splits for cost in costs))


def readings() -> dict[str, Cost]:
    """What each kind of reading costs."""
    taken: dict[str, list[Cost]] = {}
    for percent in (1, 10, 100):
        for _ in range(FIRSTS):
            bodies = Bodies("M", percent)
            _, difference = reader()
            taken.setdefault("first read", []).append(beside(bodies.next(), partial(read, difference)))
        taken[f"{percent} % changed"] = [beside(bodies.next(), partial(read, difference)) for _ in range(READS)]
    return {what: typical(costs) for what, costs in taken.items()}


def pages() -> tuple[float, float]:
    """CPU milliseconds of a page of 5,000 series of which a tenth changed, and of one that is written anew."""
    family = families()["llm_request_duration_seconds"]
    table = SeriesTable({"source": "bench", "target": "t"})
    series = [
        table(family, (("model", f"model-{child}"),), "_bucket", float(le)) for child in range(125) for le in range(40)
    ]
    values = [float(number) for number in range(len(series))]
    sheet = Sheet(zip(series, values, strict=True))
    changed = []
    for turn in range(20):
        start = turn * 200 % len(values)
        values[start : start + 500] = [value + 1.0 for value in values[start : start + 500]]
        began = time.process_time()
        sheet.update(series, list(values))
        page([sheet], Format.TEXT)
        changed.append((time.process_time() - began) * 1000)
    anew = iter([(series, [value + turn for value in values]) for turn in range(1, 6)])
    return min(changed), min(cpu(lambda: (sheet.update(*next(anew)), page([sheet], Format.TEXT))) for _ in range(5))


def prometheus_client(body: bytes) -> float:
    """What most exporters in Python do with a body; CPU milliseconds."""
    from prometheus_client.parser import text_string_to_metric_families

    return cpu(lambda: [len(family.samples) for family in text_string_to_metric_families(body.decode())])


def last_release() -> tuple[str, dict[str, Cost]] | None:
    """The newest tag `v*` and its readings, by the same benchmark over its code; None where there is none yet."""
    tags = subprocess.run(
        ["git", "tag", "--list", "v*", "--sort=-v:refname"], cwd=HERE, capture_output=True, text=True, check=False
    )
    if not tags.stdout.strip():
        return None
    tag = tags.stdout.split()[0]
    with tempfile.TemporaryDirectory() as folder:
        archive = subprocess.run(
            ["git", "archive", tag, "exporter"], cwd=HERE.parents[1], capture_output=True, check=True
        )
        subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)
        told = subprocess.run(
            [sys.executable, __file__, "--json"],
            env={**os.environ, "PYTHONPATH": folder},
            capture_output=True,
            check=True,
        )
    return tag, {what: Cost(*cost) for what, cost in json.loads(told.stdout).items()}


def main() -> int:
    """Measure, print the table, and say what is worse than it must be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gate", action="store_true", help="fail where a ratio is worse than it must be")
    parser.add_argument("--json", action="store_true", help="the readings alone")
    given = parser.parse_args()
    figures = readings()
    if given.json:
        print(json.dumps(figures))
        return 0
    body = Bodies("M", 10).next()
    client = median(prometheus_client(body) for _ in range(3))
    release = last_release()
    named = f"to {release[0]}" if release else "to the last release (none yet)"
    worse = []
    print(f"| M, 20,425 series, 7.9 MB | CPU ms | to bytes.split | prometheus-client to it | {named} |")
    print("| --- | --- | --- | --- | --- |")
    for what, took in figures.items():
        line = f"| {what} | {took.milliseconds:.2f} | {took.splits:.2f} | {client / took.milliseconds:.0f} |"
        before = took.splits / release[1][what].splits if release else None
        print(f"{line} {before:.2f} |" if before else f"{line} – |")
        if took.splits > SPLITS[what]:
            worse.append(f"{what}: {took.splits:.2f} times bytes.split, must be at most {SPLITS[what]}")
        if before and before > RELEASE:
            worse.append(f"{what}: {before:.2f} times the last release's, must be at most {RELEASE}")
    print(f"| prometheus-client | {client:.0f} | | 1 | |")
    if (times := client / figures["10 % changed"].milliseconds) < CLIENT:
        worse.append(f"prometheus-client takes {times:.0f} times as long, must be {CLIENT:.0f}")
    changed, anew = pages()
    print(f"\nA page of 5,000 series: {changed:.2f} ms with a tenth changed, {anew:.2f} ms written anew")
    if changed / anew > PAGE:
        worse.append(f"a page with a tenth changed: {changed / anew:.2f} of one written anew, must be at most {PAGE}")
    print("\n".join(worse), file=sys.stderr)
    return int(given.gate and bool(worse))


if __name__ == "__main__":
    sys.exit(main())
