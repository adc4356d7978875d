"""Our words: every family we expose, declared once in the YAML files beside this one.

HELP, TYPE, `docs/metrics.md` and the checks of maps, captures, dashboards and rules are made from here. What a
family is computed from is not written down a second time: for a mapped family it is read from the sources' maps,
for the others it is the `from` of its declaration.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

from exporter.core.types import Family

COMMON = ("source", "target")
"""Every family but the exporter's own carries these labels, in front of its own."""


@dataclass(frozen=True, slots=True)
class Chapter:
    """One file of the catalogue: a subject with its families."""

    title: str
    text: str
    families: tuple[Family, ...]


@cache
def maps() -> dict[str, dict[str, Any]]:
    """The map of each source that has one, by kind: the YAML as written, not yet checked."""
    found = {}
    for folder in sorted(files("exporter.sources").iterdir(), key=lambda entry: entry.name):
        file = folder / "map.yaml"
        if folder.is_dir() and file.is_file():
            found[folder.name] = yaml.safe_load(file.read_text("utf-8"))
    return found


def rules_of(entry: Any) -> Iterator[Mapping[str, Any]]:
    """A map's entry for one of our families: one rule, or a list of rules that add up."""
    yield from entry if isinstance(entry, list) else [entry]


def _origins() -> dict[str, str]:
    """For each mapped family, the newest upstream name of each rule of each source, as text."""
    origins: dict[str, list[str]] = {}
    for kind, given in maps().items():
        for family, entry in given["families"].items():
            names = dict.fromkeys(rule["from"][0] for rule in rules_of(entry))
            origins.setdefault(family, []).append(f"{', '.join(names)} ({kind})")
    return {family: "; ".join(texts) for family, texts in origins.items()}


@cache
def chapters() -> tuple[Chapter, ...]:
    """The catalogue in the order of the page."""
    loaded = [
        yaml.safe_load(file.read_text("utf-8")) for file in files(__name__).iterdir() if file.name.endswith(".yaml")
    ]
    loaded.sort(key=lambda chapter: chapter["place"])
    origins = _origins()
    order = 0
    made = []
    for chapter in loaded:
        families = []
        for name, entry in chapter["families"].items():
            order += 1
            origin = "; ".join(filter(None, (origins.get(name), entry.get("from"))))
            families.append(
                Family(
                    name=name,
                    kind=entry["type"],
                    help=f"{entry['help']} From: {origin}.",
                    labels=(*(COMMON if chapter.get("targets", True) else ()), *entry.get("labels", ())),
                    order=order,
                    closed={label: tuple(values) for label, values in entry.get("closed", {}).items()},
                    parent=entry.get("parent"),
                )
            )
        made.append(Chapter(chapter["title"], chapter["text"], tuple(families)))
    return tuple(made)


@cache
def families() -> dict[str, Family]:
    """Every family by its name."""
    return {family.name: family for chapter in chapters() for family in chapter.families}
