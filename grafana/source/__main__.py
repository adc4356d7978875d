"""Writes grafana/dashboards/ anew, or says with `--check` which files there are stale."""

from __future__ import annotations

import sys
from pathlib import Path

from grafana.source import cache, dynamo, exporter, gpu_host, latency, models, nats, overview, providers, services

DASHBOARDS = Path(__file__).parents[1] / "dashboards" / "LLM"
PAGES = (overview, providers, latency, cache, dynamo, nats, services, gpu_host, models, exporter)


def made() -> dict[str, str]:
    """Every dashboard as it should be, by the name of its file."""
    pages = (module.page() for module in PAGES)
    return {f"{page.uid}.json": page.text() for page in pages}


def stale() -> list[str]:
    """Names of files that are not what the source makes, missing or left over."""
    wanted = made()
    found = {file.name: file.read_text("utf-8") for file in DASHBOARDS.glob("*")}
    return sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))


def write() -> None:
    """Make every dashboard anew, and remove what is made no more."""
    DASHBOARDS.mkdir(parents=True, exist_ok=True)
    wanted = made()
    for file in DASHBOARDS.glob("*"):
        if file.name not in wanted:
            file.unlink()
    for name, text in wanted.items():
        (DASHBOARDS / name).write_text(text, "utf-8")


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        old = stale()
        sys.exit(f"stale: {', '.join(old)} (run python -m grafana.source)" if old else 0)
    write()
