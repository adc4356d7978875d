"""A real systemd for tests, as PID 1 of a namespace of its own, with D-Bus, journald and a user's manager."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from stack import HERE

SCRIPT = str(HERE / "namespace.sh")
USER = 2001
"""The user, by the name of llm, that has a manager."""


@dataclass(frozen=True)
class Systemd:
    """A running one. `folder` is the same inside and out."""

    folder: Path

    @property
    def environ(self) -> dict[str, str]:
        """How an exporter outside finds its bus."""
        return {"DBUS_SYSTEM_BUS_ADDRESS": f"unix:path={self.folder}/run/dbus/system_bus_socket"}

    @property
    def user_environ(self) -> dict[str, str]:
        return {"XDG_RUNTIME_DIR": f"{self.folder}/run/user/{USER}"}

    @property
    def journal(self) -> Path:
        return self.folder / "journal"

    def home(self) -> Path:
        """A folder of the user's."""
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        os.chown(folder, USER, USER)
        return folder

    def run(self, *command: str, user: bool = False) -> str:
        """Run a command inside, as root or as the user; what it printed."""
        ids = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups"]
        as_user = [*ids, "env", f"XDG_RUNTIME_DIR=/run/user/{USER}"] if user else []
        done = subprocess.run([SCRIPT, "exec", str(self.folder), *as_user, *command], capture_output=True, text=True)
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        return done.stdout.strip()

    def systemctl(self, *command: str, user: bool = False) -> str:
        return self.run("systemctl", *(["--user"] if user else []), *command, user=user)

    def write(self, user: bool = False, **units: str) -> None:
        """Make units, each by its name without `.service`, from what stands in [Service]."""
        for name, service in units.items():
            head, mark, rest = service.partition("[Unit]")
            text = f"[Unit]{rest}\n[Service]\n{head}\n" if mark else f"[Service]\n{service}\n"
            file = self.folder / ("user-units" if user else "units") / f"{name.replace('_', '-')}.service"
            file.write_text(text)
        self.systemctl("daemon-reload", user=user)

    def show(self, unit: str, name: str, user: bool = False) -> str:
        return self.systemctl("show", "--value", f"--property={name}", unit, user=user)


@contextmanager
def booted() -> Iterator[Systemd]:
    if os.geteuid() != 0:
        pytest.skip("a systemd in a namespace takes root")
    folder = Path(tempfile.mkdtemp(prefix="sd-"))  # the user may enter it, and paths of sockets are short
    folder.chmod(0o755)
    started = subprocess.run([SCRIPT, "start", str(folder), f"llm:{USER}"], capture_output=True, text=True)
    assert started.returncode == 0, started.stderr
    try:
        yield Systemd(folder)
    finally:
        subprocess.run([SCRIPT, "stop", str(folder)], check=True)
        shutil.rmtree(folder)
