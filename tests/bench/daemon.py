"""The whole exporter as the benchmark runs it: `python tests/bench/daemon.py PORT SECONDS URL...`.

The command line's own `main` with a configuration file, its state in a folder that is removed at the end. What is not
the exporter's is one source of the benchmark's own kind, `bench`, whose map (map.yaml) does the job of job.py.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import yaml

from exporter import catalogue, cli
from exporter.config.model import TargetConfig
from exporter.core import source as core
from exporter.core.fetch import Upstream, refuse
from exporter.core.source import Context, Result
from exporter.sources import sources

MAP = Path(__file__).with_name("map.yaml")


class Target(TargetConfig):
    """A server of upstream.py: the URL of one of its instances."""

    source: Literal["bench"] = "bench"


class Bench:
    """Reads one instance, and asks for nothing but its metrics."""

    kind: ClassVar[str] = "bench"
    Config: ClassVar[type[TargetConfig]] = Target

    def __init__(self, config: Target, context: Context) -> None:
        self._context = context

    @staticmethod
    def at(url: str, environ: Mapping[str, str]) -> Target:
        return Target(url=url)

    @staticmethod
    def candidates(environ: Mapping[str, str]) -> Sequence[Target]:
        return ()

    @staticmethod
    async def recognise(upstream: Upstream, _: TargetConfig) -> bool:
        return False

    async def read(self) -> Result:
        async with self._context.upstream.get("/metrics") as answer:
            refuse(answer)
            await self._context.take(answer)
        return Result()


def add_source() -> None:
    """Let the exporter know the kind `bench` and its map, as if it stood in a folder of exporter/sources."""
    given = yaml.safe_load(MAP.read_text("utf-8"))

    def with_ours() -> dict[str, dict[str, Any]]:
        return {**catalogue.maps(), Bench.kind: given}

    core.maps = with_ours  # type: ignore[attr-defined]  # where source_map() looks a map up
    sources()[Bench.kind] = Bench


def main() -> int:
    """Run until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("port", type=int)
    parser.add_argument("seconds", type=float, help="between two reads of a target")
    parser.add_argument("url", nargs="+", help="of an instance, without /metrics")
    given = parser.parse_args()
    add_source()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "bench.yaml")
        config = {
            "listen": f"127.0.0.1:{given.port}",
            "interval": f"{given.seconds:g}s",
            "timeout": "60s",
            "state_directory": str(Path(folder, "state")),
            "log_level": "warning",
            "targets": [{"source": Bench.kind, "url": url, "name": url.rsplit("/", 1)[1]} for url in given.url],
        }
        file.write_text(yaml.safe_dump(config), "utf-8")
        return cli.main(["--config", str(file)])


if __name__ == "__main__":
    sys.exit(main())
