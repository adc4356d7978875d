"""Which workload a process belongs to: a unit, a container, or itself. Told by its cgroup; nothing private is read."""

from __future__ import annotations

import re
from pathlib import Path

PROC = "/proc"

_UNIT = re.compile(r"(?!user@).+\.service")
_CONTAINER = re.compile(r"(?:docker-|libpod-|cri-containerd-|crio-)?([0-9a-f]{64})(?:\.scope)?")
_ESCAPE = re.compile(r"\\x([0-9a-f]{2})")


def workload_of(pid: int, proc: Path | str = PROC) -> str | None:
    """`vllm.service`, a container as `0123456789ab`, or a process's short name; None where there is no such process."""
    found = cgroup_of(pid, proc)
    return found[0] if found is not None else name_of(pid, proc)


def name_of(pid: int, proc: Path | str = PROC) -> str | None:
    """The short name of a process (15 letters, no path); None where there is no such process."""
    try:
        return Path(proc, str(pid), "comm").read_text(errors="replace").strip() or None
    except OSError:
        return None


def cgroup_of(pid: int, proc: Path | str = PROC) -> tuple[str, str] | None:
    """The unit or container that a process is in, and its cgroup, as `system.slice/vllm.service`; None without one.

    A container in a unit is the unit (Podman's quadlets), one in a pod is itself.
    """
    try:
        text = Path(proc, str(pid), "cgroup").read_text(errors="replace")
    except OSError:
        return None
    lines = [line.split(":", 2) for line in text.splitlines() if line.count(":") >= 2]
    paths = [path for _, controllers, path in lines if controllers in ("", "name=systemd") and path != "/"]
    if not paths:
        return None
    steps = paths[0].strip("/").split("/")
    last = len(steps)
    units = [place for place in range(last) if _UNIT.fullmatch(_plain(steps[place]))]
    containers = [place for place in range(last) if _CONTAINER.fullmatch(steps[place])]
    if units and not (containers and "kubepods" in paths[0]):
        return _plain(steps[units[-1]]), "/".join(steps[: units[-1] + 1])
    if containers:
        found = _CONTAINER.fullmatch(steps[containers[-1]])
        assert found is not None  # noqa: S101 - it has just matched
        return found[1][:12], "/".join(steps[: containers[-1] + 1])
    return None


def _plain(step: str) -> str:
    """A unit's name without systemd's escapes."""
    return _ESCAPE.sub(lambda found: chr(int(found[1], 16)), step)
