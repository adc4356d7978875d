"""What the servers on this machine cost: CPU, memory, threads and files of each unit, container or process."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from math import inf
from pathlib import Path

import psutil

from exporter.core.source import Row
from exporter.core.workload import cgroup_of, name_of

KNOWN = re.compile(
    r"(^|[^a-z])(litellm|ollama|llama|vllm|sglang|dynamo(?!db)|tritonserver|trtllm|text-generation|lmdeploy)",
    re.IGNORECASE,
)
"""Names of units and processes that serve models."""
CGROUP = Path("/sys/fs/cgroup")

SLACK = 2.0
"""Seconds by which a process may seem to have begun too early: it is counted from the machine's, which is rounded."""


@dataclass(slots=True)
class Workload:
    """One unit, container or process; `cgroup` is its folder, where there is one whose numbers can be read."""

    name: str
    cgroup: Path | None
    processes: list[psutil.Process] = field(default_factory=list)
    serves: set[str] = field(default_factory=set)  # targets


class Workloads:
    """The workloads that serve models, and what each has used since it was first seen.

    Of a process that began before the last look, and was not one of them then, what it used before does not count: it
    would be shown as used at once.
    """

    def __init__(self, patterns: Sequence[str]) -> None:
        self._patterns = patterns
        self._found: list[Workload] = []
        self._looked, self._before = inf, inf  # Unix seconds of the last look, and of the one before
        self._last: dict[object, float] = {}  # CPU seconds of each cgroup or process
        self._used: dict[str, float] = {}

    def look(self, ports: Mapping[int, str]) -> None:
        """Find them: by their names, or because they listen on one of these ports, where a target is watched.

        Costs 3 ms for 100 processes, and 11 ms where there are ports.
        """
        self._looked, self._before = time.time(), self._looked
        listening = _listening(ports) if ports else {}
        found: dict[str, Workload] = {}
        rest: list[tuple[str, psutil.Process]] = []
        for process in psutil.process_iter():
            placed, short = cgroup_of(process.pid), name_of(process.pid)
            name, cgroup = placed or (short or "", None)
            if short and (process.pid in listening or any(_wanted(known, self._patterns) for known in (name, short))):
                workload = found.setdefault(name, Workload(name, _folder(cgroup)))
                workload.processes.append(process)
                workload.serves |= listening.get(process.pid, set())
            elif placed is not None:
                rest.append((name, process))
        for name, process in rest:  # the others of the same unit or container
            if name in found:
                found[name].processes.append(process)
        self._found = list(found.values())

    def rows(self) -> Iterator[Row]:
        """What each costs now; nothing of one whose processes are gone."""
        last, self._last = self._last, {}
        for workload in self._found:
            yield from self._rows(workload, last)

    def _rows(self, workload: Workload, last: Mapping[object, float]) -> Iterator[Row]:
        threads = files = resident = 0
        seen, oldest = True, inf
        cpu, memory = _of_cgroup(workload.cgroup)
        for process in workload.processes:
            try:
                with process.oneshot():
                    times, born = process.cpu_times(), process.create_time()
                    resident += process.memory_info().rss
                    threads += process.num_threads()
                oldest = min(oldest, born)
                if cpu is None:
                    self._use(workload.name, (process.pid, born), times.user + times.system, born, last)
                files += process.num_fds() if seen else 0
            except psutil.NoSuchProcess:
                continue
            except psutil.AccessDenied:
                seen = False
        if oldest == inf:
            return
        if cpu is not None:
            self._use(workload.name, workload.cgroup, cpu, oldest, last)
        name = {"workload": workload.name}
        for target in workload.serves:
            yield "workload_info", {**name, "serves": target}, 1.0
        yield "workload_cpu", name, self._used[workload.name]
        yield "workload_memory", name, float(resident) if memory is None else memory
        yield "workload_threads", name, float(threads)
        if seen:
            yield "workload_fds", name, float(files)

    def _use(self, name: str, meter: object, seconds: float, born: float, last: Mapping[object, float]) -> None:
        """Count what a meter gained; one that fell has begun anew."""
        before = last.get(meter, seconds if born < self._before - SLACK else 0.0)
        self._used[name] = self._used.get(name, 0.0) + (seconds - before if seconds >= before else seconds)
        self._last[meter] = seconds


def _wanted(name: str, patterns: Sequence[str]) -> bool:
    return KNOWN.search(name) is not None or any(fnmatchcase(name, pattern) for pattern in patterns)


def _listening(ports: Mapping[int, str]) -> dict[int, set[str]]:
    """Which process listens for which targets, as far as the exporter may see that."""
    found: dict[int, set[str]] = {}
    for socket in psutil.net_connections("tcp"):
        if socket.status == psutil.CONN_LISTEN and socket.laddr and socket.laddr.port in ports and socket.pid:
            found.setdefault(socket.pid, set()).add(ports[socket.laddr.port])
    return found


def _folder(cgroup: str | None) -> Path | None:
    """The folder of a cgroup of version 2, also where both versions are mounted."""
    folders = [] if cgroup is None else [CGROUP / cgroup, CGROUP / "unified" / cgroup]
    return next((folder for folder in folders if (folder / "cpu.stat").exists()), None)


def _of_cgroup(folder: Path | None) -> tuple[float | None, float | None]:
    """CPU seconds and bytes of memory, each None where the cgroup does not tell."""
    if folder is None:
        return None, None
    try:
        cpu = float(dict(line.split() for line in (folder / "cpu.stat").read_text().splitlines())["usage_usec"]) / 1e6
    except (OSError, ValueError, KeyError):
        cpu = None
    try:
        memory = float((folder / "memory.current").read_text())
    except (OSError, ValueError):
        memory = None
    return cpu, memory
