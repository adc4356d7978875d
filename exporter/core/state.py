"""What is kept over a restart of the exporter: one small file for each target, written atomically."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any
from urllib.parse import quote

import structlog

from exporter.core.saved import Dump, as_json

FORMAT = 1
DIGEST = 16

SAVE = 10.0
"""Seconds between two writes of a target's state."""
SAVES = 5.0
"""Writes a second, of all targets together, at most: each takes a file system a millisecond. What is lost where the
exporter ends without a word is what lines counted that since then have vanished or begun anew."""

log = structlog.get_logger(__name__)


def default_directory(environ: Mapping[str, str]) -> Path:
    """`$STATE_DIRECTORY` as systemd gives it, else the user's state folder."""
    if given := environ.get("STATE_DIRECTORY"):
        return Path(given.partition(":")[0])
    base = environ.get("XDG_STATE_HOME") or Path(environ.get("HOME") or Path.home()) / ".local" / "state"
    return Path(base) / "llm-exporter"


class Store:
    """The state folder. Where it cannot be had (no right, no space, another exporter has it) nothing is kept."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._lock: int | None = None
        self._targets = 0
        try:
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self.close()
            taken = isinstance(error, BlockingIOError)
            log.warning(
                "no state is kept: totals begin at 0 whenever the exporter starts",
                directory=str(directory),
                error="another llm-exporter uses it" if taken else str(error),
                remedy="give each exporter its own --state-directory" if taken else "give a writable --state-directory",
            )

    @property
    def kept(self) -> bool:
        """Whether state can be kept at all."""
        return self._lock is not None

    @contextmanager
    def keeping(self) -> Iterator[None]:
        """While a target's state is kept up to date."""
        self._targets += 1
        try:
            yield
        finally:
            self._targets -= 1

    @property
    def interval(self) -> float:
        """Seconds between two writes of one target's state."""
        return max(SAVE, self._targets / SAVES)

    def close(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _file(self, target: str) -> Path:
        name = quote(target, safe="")
        if len(name) > 200:
            name = name[:160] + blake2b(target.encode(), digest_size=16).hexdigest()
        return self.directory / f"{name}.json"

    def load(self, target: str, url: str) -> tuple[dict[str, Any] | None, bool]:
        """The target's state, or None; and whether totals must begin at 0: nothing is kept, or what was is unfit."""
        if not self.kept:
            return None, True
        file = self._file(target)
        try:
            text = file.read_text("utf-8")
        except FileNotFoundError:
            return None, False
        except (OSError, UnicodeDecodeError) as error:
            return self._unfit(target, file, str(error))
        try:
            whole = json.loads(text)
            state = whole["state"]
            if whole["format"] != FORMAT or whole["digest"] != _digest(state):
                return self._unfit(target, file, "it is damaged or of another version")
            if whole["url"] != url:
                return self._unfit(target, file, "the target has another URL now")
        except (ValueError, KeyError, TypeError):
            return self._unfit(target, file, "it is damaged")
        return state, False

    @staticmethod
    def _unfit(target: str, file: Path, error: str) -> tuple[None, bool]:
        log.warning("saved state is of no use: totals begin at 0", target=target, file=str(file), error=error)
        return None, True

    def save(self, target: str, url: str, dump: Dump) -> Iterator[None]:
        """Write a target's state, a small step each time; a failure is logged, and the file before stays."""
        if not self.kept:
            return
        file = self._file(target)
        fresh = file.with_suffix(".new")
        digest = blake2b(digest_size=DIGEST)
        try:
            fresh.unlink(missing_ok=True)  # of a save that was given up, and may still have it open
            with open(fresh, "xb", opener=_private) as out:

                def write(piece: str) -> None:
                    digest.update(piece.encode())
                    out.write(piece.encode())

                out.write(f'{as_json({"format": FORMAT, "target": target, "url": url})[:-1]},"state":'.encode())
                write(f'{as_json(dump.head)[:-1]},"slots":[')
                comma = ""
                for rows in dump.rows:
                    if rows:
                        write(comma + rows)
                        comma = ","
                    yield
                write("]}")
                out.write(f',"digest":"{digest.hexdigest()}"}}'.encode())
            fresh.replace(file)
        except OSError as error:
            log.warning("state was not saved", target=target, file=str(file), error=str(error))


def _private(file: str, flags: int) -> int:
    return os.open(file, flags, 0o600)


def _digest(state: Any) -> str:
    return blake2b(as_json(state).encode(), digest_size=DIGEST).hexdigest()
