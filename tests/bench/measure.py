"""What a running process costs, from outside: CPU to the nanosecond, peak memory, and the latency of its page."""

from __future__ import annotations

import http.client
import os
import re
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TICK = os.sysconf("SC_CLK_TCK")


class Process:
    """A process that was started to be measured."""

    def __init__(self, popen: subprocess.Popen[bytes], log: Path) -> None:
        self.pid = popen.pid
        self._popen = popen
        self._log = log
        self._proc = Path("/proc", str(popen.pid))

    @property
    def ended(self) -> bool:
        return self._popen.poll() is not None

    def cpu(self) -> float:
        """CPU seconds of all its threads, those that ended included: its own CPU clock, which clock_getcpuclockid(3)
        names."""
        return time.clock_gettime(~self._popen.pid << 3 | 2)

    def ticks(self) -> float:
        """CPU seconds by the kernel's other account, utime and stime: coarse, to compare with."""
        fields = (self._proc / "stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / TICK

    def peak(self) -> float:
        """The most memory it ever had resident, in MB of 10**6 bytes."""
        found = re.search(r"VmHWM:\s+(\d+) kB", (self._proc / "status").read_text())
        return int(found[1]) * 1024 / 1e6 if found else 0.0

    def said(self) -> str:
        """The end of what it printed."""
        return self._log.read_text(errors="replace")[-500:]


@contextmanager
def started(command: list[str], log: Path) -> Iterator[Process]:
    """Run a command in the background until the block ends."""
    with log.open("wb") as output:
        popen = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        yield Process(popen, log)
    finally:
        popen.terminate()
        try:
            popen.wait(10)
        except subprocess.TimeoutExpired:
            popen.kill()
            popen.wait()


def free_port() -> int:
    """A port of this machine that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Page:
    """A page that is asked for again and again, over one connection where the server keeps it."""

    def __init__(self, port: int, path: str) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        self._path = path

    def ask(self) -> bytes:
        """The page. Raises OSError where it answers with anything but 200."""
        self._connection.request("GET", self._path)
        answer = self._connection.getresponse()
        body = answer.read()
        if answer.status != 200:
            raise OSError(f"{self._path} answers {answer.status}")
        return body

    def latencies(self, count: int, pause: float) -> tuple[list[float], bytes]:
        """Milliseconds of each of so many requests, and the last page."""
        self.ask()
        taken, body = [], b""
        for _ in range(count):
            time.sleep(pause)
            began = time.perf_counter()
            body = self.ask()
            taken.append((time.perf_counter() - began) * 1000)
        return taken, body


def percentile(values: list[float], share: float) -> float:
    """The value that `share` of the values do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]
