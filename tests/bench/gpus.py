"""What polling eight GPUs costs beside nvitop-exporter, in one run: `tests/run gpus [--gate]`.

Both run as they are started by anybody, with the same interval, over the same double of NVIDIA's driver, which answers
at once: what is measured is their own work, all processes of each. The page is asked for every five seconds, as
Prometheus would. With `--gate` it fails where the exporter costs more than SHARE of its peer's CPU.
Wants nvitop-exporter.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.request import urlopen

from measure import Process, free_port, started

HERE = Path(__file__).resolve().parent
DOUBLE = HERE.parent / "sources" / "gpu" / "nvml" / "nvml.c"
SCRIPT = "gpus = 8\ngpu.*.nvlinks = 18\n"
SETTLE = 5.0
"""Seconds before what is counted: both find out what the cards can tell."""
SHARE = 0.7
"""What the exporter may cost at most, in its peer's CPU seconds."""


class Tree:
    """A process that was started, and its children."""

    def __init__(self, process: Process) -> None:
        self._process = process

    def _children(self) -> list[Path]:
        pid = self._process.pid
        return [Path("/proc", child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def cpu(self) -> float:
        """CPU seconds of all of them, to the nanosecond."""
        return self._process.cpu() + sum(time.clock_gettime(~int(child.name) << 3 | 2) for child in self._children())

    def memory(self) -> float:
        """What they have for themselves and their part of what they share, in MB of 10**6 bytes."""
        own = (Path("/proc", str(self._process.pid)), *self._children())
        return sum(int((proc / "smaps_rollup").read_text().split("Pss:")[1].split()[0]) for proc in own) * 1024 / 1e6


def samples(port: int) -> int:
    """Samples of GPUs that the page has."""
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return sum(not line.startswith(("#", "python_", "process_", "llm_target_", "llm_exporter_")) for line in lines)


def main() -> int:
    """Measure, print the table, and say whether it is worse than it must be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gate", action="store_true", help="fail where it costs more than it must")
    parser.add_argument("--seconds", type=int, default=30, help="that are measured (default 30)")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        library = folder / "libnvidia-ml.so.1"
        subprocess.run(
            ["gcc", "-O2", "-w", "-fvisibility=hidden", "-shared", "-fPIC", "-pthread", "-Wl,-soname,libnvidia-ml.so.1",
             "-o", library, DOUBLE], check=True,
        )  # fmt: skip
        script = folder / "nvml.conf"
        script.write_text(SCRIPT)
        os.environ.update(LD_LIBRARY_PATH=name, FAKE_NVML_CONF=str(script))
        ours, theirs = free_port(), free_port()
        config = folder / "gpus.yaml"
        config.write_text(
            f"listen: 127.0.0.1:{ours}\ninterval: 1s\nstate_directory: {folder / 'state'}\nlog_level: error\n"
            "targets: [{source: gpu}]\n"
        )
        with (
            started([sys.executable, "-m", "exporter", "--config", str(config)], folder / "ours.log") as one,
            started(
                [str(Path(sys.executable).with_name("nvitop-exporter")), "--port", str(theirs), "--interval", "1"],
                folder / "theirs.log",
            ) as other,
        ):
            trees = {"llm-exporter": (Tree(one), ours), "nvitop-exporter": (Tree(other), theirs)}
            time.sleep(SETTLE)
            began = {who: tree.cpu() for who, (tree, _) in trees.items()}
            shown: dict[str, int] = {}
            for _ in range(given.seconds // 5):
                time.sleep(5)
                shown = {who: samples(port) for who, (_, port) in trees.items()}
            cpu = {who: (tree.cpu() - began[who]) / given.seconds * 1000 for who, (tree, _) in trees.items()}
            memory = {who: tree.memory() for who, (tree, _) in trees.items()}
    share = cpu["llm-exporter"] / cpu["nvitop-exporter"]
    print("| 8 GPUs every second | CPU ms a second | samples | memory MB |\n| --- | --- | --- | --- |")
    for who, took in cpu.items():
        print(f"| {who} | {took:.2f} | {shown[who]} | {memory[who]:.0f} |")
    print(f"\nThe exporter costs {share:.2f} of nvitop-exporter's CPU")
    if share > SHARE:
        print(f"that must be at most {SHARE}", file=sys.stderr)
    return int(given.gate and share > SHARE)


if __name__ == "__main__":
    sys.exit(main())
