"""What shows the exporter's numbers, written into a folder: dashboards, rules, alerts, and the stack that runs them."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from importlib.resources import files
from pathlib import Path

from exporter import __version__
from exporter.bundle import kubernetes
from exporter.bundle.found import configuration, look

MARK = "# Dashboards, rules and alerts of llm-exporter"
README = f"""\
{MARK} {__version__}

`llm-exporter.yaml` reads what was found on this machine. In this folder:

    llm-exporter --config llm-exporter.yaml        # the exporter, :9400
    docker compose up -d prometheus grafana        # Prometheus and Grafana, http://localhost:3000

or all of it in containers (Linux): `docker compose up -d`; `.env` says which exporter is installed there, a release or
a wheel in this folder. A Prometheus or a Grafana of your own takes `prometheus/` and `grafana/` as they are.

`llm-exporter bundle` brings a folder up to date: everything is written anew but `llm-exporter.yaml` and `.env`.
"""
ENVIRONMENT = f"""\
# What pip installs in the container: a release, or a wheel in this folder (pip wheel --no-deps -w THIS_FOLDER CLONE):
# PACKAGE=./llm_exporter-{__version__}-py3-none-any.whl
PACKAGE=llm-exporter=={__version__}
"""
CONTAINER = """\
services:
  exporter:
    command: [--config, /etc/llm-exporter/llm-exporter.yaml, --state-directory, /var/lib/llm-exporter]
    volumes: ["./llm-exporter.yaml:/etc/llm-exporter/llm-exporter.yaml:ro"]
"""
KEPT = frozenset(("llm-exporter.yaml", ".env"))
"""What is the user's own once it is there."""


class BundleError(Exception):
    """The folder cannot be written; the message says which and why."""


def write(to: Path, *, for_kubernetes: bool = False) -> list[Path]:
    """Write the bundle, and return what was written, in order. Raises BundleError."""
    try:
        if for_kubernetes:
            made = kubernetes.manifests(shipped())
            _refuse_strangers(to, made, "servicemonitor.yaml", "name: llm-exporter")
            return list(_written(to, made))
        names = [str(file.relative_to(shipped())) for file in _below(shipped())]
        _refuse_strangers(to, [*names, "README.md", "compose.override.yaml"], "README.md", MARK)
        return [*_copied(to), *_written(to, _made())]
    except OSError as error:
        raise BundleError(f"{error.filename or to}: cannot be written: {error.strerror}") from None


def _refuse_strangers(to: Path, names: Iterable[str], sign: str, mark: str) -> None:
    """Raises BundleError where a file would be written over that is no bundle's: its `sign` has no `mark`."""
    there = next((name for name in names if name not in KEPT and (to / name).exists()), None)
    if there is not None and not ((to / sign).is_file() and mark in (to / sign).read_text(errors="replace")):
        raise BundleError(f"{to / there} is there, and is no bundle's (name a folder of its own)")


def shipped() -> Path:
    """The files that the package carries: those of the repository where it is installed from there to be edited."""
    return Path(str(files("exporter.bundle"))) / "files"


def _copied(to: Path) -> Iterator[Path]:
    source = shipped()
    for file in sorted(_below(source)):
        target = to / file.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
        yield target


def _below(folder: Path) -> Iterator[Path]:
    """The files in a folder and those beneath it, through links."""
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from _below(entry)
        elif entry.is_file():
            yield entry


def _made() -> dict[str, str]:
    """What depends on this machine, by its path in the bundle."""
    return {
        "README.md": README,
        "compose.override.yaml": CONTAINER,
        ".env": ENVIRONMENT,
        "llm-exporter.yaml": configuration(asyncio.run(look(os.environ))),
    }


def _written(to: Path, texts: Mapping[str, str]) -> Iterator[Path]:
    for name, text in texts.items():
        file = to / name
        if name in KEPT and file.exists():
            continue
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
        yield file
