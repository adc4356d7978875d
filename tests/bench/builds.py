"""Builds the peers of the benchmark from the registries of Go and Python, once; `.bench-peers/` keeps them.

Of each program only what the benchmark needs is built: `go build` with a go.mod that requires its module fetches no
module beyond the packages built, which Telegraf's and the collector's own lists would.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

VERSIONS = {
    "prometheus": "v0.315.0",  # Prometheus 3.15.0 as a module
    "collector": "v0.155.0",  # the newest of which the module proxy has the Prometheus exporter, too
    "collector-core": "v1.61.0",  # the stable modules that belong to it
    "telegraf": "v1.37.2",
    "vmagent": "v1.150.0",
    "prometheus-client": "0.26.0",
}

ROOT = Path(__file__).parents[2]
CACHE = ROOT / ".bench-peers"

_CONTRIB = "github.com/open-telemetry/opentelemetry-collector-contrib"
_CORE = "go.opentelemetry.io/collector"


class BuildError(Exception):
    """A peer that could not be built. The message has the end of what the compiler said."""


def program(name: str) -> Path:
    """The program of a peer, built where it is not there yet. Raises BuildError."""
    folder = CACHE / f"{name}-{VERSIONS[name]}"
    done = folder / ("bin/python" if name == "prometheus-client" else name)
    if not done.exists():
        print(f"building {name} {VERSIONS[name]}", file=sys.stderr)
        folder.mkdir(parents=True, exist_ok=True)
        _BUILDS[name](folder)
    return done


def _prometheus(folder: Path) -> None:
    module = "github.com/prometheus/prometheus"
    _go_mod(folder, [f"{module} {VERSIONS['prometheus']}"])
    _go_build(folder, "prometheus", f"{module}/cmd/prometheus")


def _vmagent(folder: Path) -> None:
    module = "github.com/VictoriaMetrics/VictoriaMetrics"
    _go_mod(folder, [f"{module} {VERSIONS['vmagent']}"])
    _go_build(folder, "vmagent", f"{module}/app/vmagent", cgo=None)  # as it is released: with zstd in C


def _telegraf(folder: Path) -> None:
    module = "github.com/influxdata/telegraf"
    _go_mod(folder, [f"{module} {VERSIONS['telegraf']}"])
    _go_build(folder, "telegraf", f"{module}/cmd/telegraf", tags="custom,inputs.prometheus,outputs.prometheus_client")


def _collector(folder: Path) -> None:
    version, core = VERSIONS["collector"], VERSIONS["collector-core"]
    parts = {
        "receivers": f"{_CONTRIB}/receiver/prometheusreceiver {version}",
        "processors": f"{_CONTRIB}/processor/metricstransformprocessor {version}",
        "exporters": f"{_CONTRIB}/exporter/prometheusexporter {version}",
        "providers": f"{_CORE}/confmap/provider/fileprovider {core}",
    }
    manifest = f"dist: {{module: bench, name: collector, output_path: {folder}, version: {version[1:]}}}\n"
    manifest += "conf_resolver: {default_uri_scheme: file}\n"
    manifest += "".join(f"{kind}: [{{gomod: {module}}}]\n" for kind, module in parts.items())
    (folder / "manifest.yaml").write_text(manifest)
    builder = ["go", "run", f"{_CORE}/cmd/builder@{version}", f"--config={folder}/manifest.yaml"]
    _run(folder.parent, [*builder, "--skip-get-modules", "--skip-compilation"])  # both want what tests need, too
    _go_mod(folder, [*parts.values(), f"{_CORE}/otelcol {version}"], exclude=f"{_CONTRIB}/pkg/golden {version}")
    _go_build(folder, "collector", ".")


def _client(folder: Path) -> None:
    _run(folder, [sys.executable, "-m", "venv", str(folder)])
    pip = [str(folder / "bin" / "pip"), "install", "-q", "--disable-pip-version-check"]
    _run(folder, [*pip, f"prometheus-client=={VERSIONS['prometheus-client']}"])


_BUILDS: dict[str, Callable[[Path], None]] = {
    "prometheus": _prometheus,
    "collector": _collector,
    "telegraf": _telegraf,
    "vmagent": _vmagent,
    "prometheus-client": _client,
}


def _go_mod(folder: Path, requirements: Iterable[str], exclude: str | None = None) -> None:
    """A module that requires these; what it excludes is a module for tests, of which the proxy has no such version."""
    lines = "".join(f"require {requirement}\n" for requirement in requirements)
    lines += f"exclude {exclude}\n" if exclude else ""
    (folder / "go.mod").write_text(f"module bench\n\ngo 1.26\n\n{lines}")


def _go_build(folder: Path, name: str, package: str, *, tags: str = "", cgo: str | None = "0") -> None:
    """Build `package` as `name`; the module file takes down what it needs."""
    environment = {"CGO_ENABLED": cgo} if cgo else {}
    _run(folder, ["go", "build", "-mod=mod", "-trimpath", f"-tags={tags}", "-o", name, package], **environment)


def _run(folder: Path, command: list[str], **environment: str) -> None:
    """Run a command, with little of the machine: its cores may be busy with others' work."""
    flags = {"GOFLAGS": f"{os.environ.get('GOFLAGS', '')} -p=1 -buildvcs=false".strip()}
    done = subprocess.run(
        ["nice", "-n", "10", *command],
        cwd=folder,
        env={**os.environ, **flags, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    if done.returncode:
        raise BuildError(f"{' '.join(command)}:\n{done.stdout.decode(errors='replace')[-2000:]}")
