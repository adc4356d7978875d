# ruff: noqa: INP001 - it stands beside make.py, which is a program
"""The tables of docs/prometheus.md: series by kind of target, from the captures; rules and alerts, from their files."""

from __future__ import annotations

import re
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

import yaml

from exporter.catalogue import families

ROOT = Path(__file__).resolve().parent.parent
CAPTURES = ROOT / "tests" / "captures"
_MODEL = re.compile(r'[{,]model="([^"]*)"')
_GPU = re.compile(r'[{,]uuid="([^"]*)"')


def _lines(path: Path) -> list[str]:
    """The lines of an exposition that are series."""
    return [line for line in path.read_text("utf-8").splitlines() if line and not line.startswith("#")]


def _own_page(expected: Path) -> Path | None:
    """The upstream's own page beside the exposition expected of it, where it has one in that format."""
    stem = expected.with_suffix("")
    for page in (stem.with_suffix(".body"), Path(f"{stem}_metrics.body"), expected.parent / "metrics.txt"):
        if page.is_file() and "# TYPE" in page.read_text("utf-8", errors="replace"):
            return page
    return None


def health_series() -> int:
    """Series that the exporter shows of every target."""
    kept = [
        family for name, family in families().items() if name.startswith("llm_target_") and "layer" not in family.labels
    ]
    return sum(prod(len(values) for values in family.closed.values()) for family in kept)


def series_table() -> str:
    """For each kind of target the capture with the most series."""
    fullest: dict[str, Path] = {}
    for path in sorted(CAPTURES.rglob("*.prom")):
        place = path.relative_to(CAPTURES)
        kind = place.parts[0]
        if kind == "dynamo":
            kind = {"frontend": "dynamo, a frontend", "registry": "dynamo, what is registered"}.get(
                path.stem, "dynamo, a worker" if path.stem.startswith("system") else "dynamo, a worker with its engine"
            )
        if kind not in fullest or len(_lines(path)) > len(_lines(fullest[kind])):
            fullest[kind] = path
    rows = [
        "| Target | Series of ours | Lines of its own page | Models | GPUs | Capture |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for kind, path in sorted(fullest.items()):
        lines, page = _lines(path), _own_page(path)
        things = [len({found[1] for line in lines if (found := pattern.search(line))}) for pattern in (_MODEL, _GPU)]
        shown = [f"{count:,}" if count else "" for count in things]
        own = f"{len(_lines(page)):,}" if page else ""
        place = path.relative_to(CAPTURES).with_suffix("")
        rows.append(f"| {kind} | {len(lines) + health_series():,} | {own} | {shown[0]} | {shown[1]} | `{place}` |")
    return "\n".join(rows) + "\n"


def _rules(folder: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for path in sorted((ROOT / "prometheus" / folder).glob("*.yml")):
        for group in yaml.safe_load(path.read_text("utf-8"))["groups"]:
            for rule in group["rules"]:
                yield path.name, rule


def recordings_table() -> str:
    """The names that are recorded, those that differ in their window alone on one line."""
    names: dict[tuple[str, str], list[str]] = {}
    for file, rule in _rules("rules"):
        stem = re.sub(r"\d+[mhd]$", "", rule["record"])
        window = rule["record"].removeprefix(stem)
        windows = names.setdefault((file, stem), [])
        if window not in windows:
            windows.append(window)
    rows = ["| Recorded | Windows | File |", "| --- | --- | --- |"]
    rows += [f"| `{stem}{windows[0]}` | {', '.join(windows)} | {file} |" for (file, stem), windows in names.items()]
    return "\n".join(rows) + "\n"


def alerts_table() -> str:
    """The alerts, each with its heading in the runbook."""
    rows = ["| Alert | Severity | After | File |", "| --- | --- | --- | --- |"]
    for file, rule in _rules("alerts"):
        page = rule["annotations"]["runbook_url"].removeprefix("docs/")
        rows.append(
            f"| [{rule['alert']}]({page}) | {rule['labels']['severity']} | {rule.get('for', 'at once')} | {file} |"
        )
    return "\n".join(rows) + "\n"


def page() -> str:
    """docs/prometheus.md: its tables made anew, its text as it stands."""
    text = (ROOT / "docs" / "prometheus.md").read_text("utf-8")
    for name, table in (("series", series_table), ("recordings", recordings_table), ("alerts", alerts_table)):
        begin, end = f"<!-- made by docs/make.py: {name} -->\n", "<!-- end -->"
        before, _, rest = text.partition(begin)
        text = before + begin + "\n" + table() + "\n" + end + rest.partition(end)[2]
    return text
