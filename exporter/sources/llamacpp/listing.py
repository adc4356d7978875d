"""What llama-server says of its models: a router's list, and the name of a single server's one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from exporter.core.errors import ReadError
from exporter.sources.llamacpp.models import NAME, STATES, text, whole

_FILE = re.compile(r"\.gguf$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Listed:
    """One entry of a router's list. `life` is its process's port; `timer` the idle seconds after which it sleeps."""

    name: str
    state: str
    life: str
    timer: float | None
    context: float | None
    quantization: str


def listed(said: Any) -> list[Listed]:
    """The models of a router's /models. Raises ReadError where it is no such list."""
    entries = said.get("data") if isinstance(said, dict) else None
    if not isinstance(entries, list):
        raise ReadError("content", "/models answers with something that is no list of models")
    return list({entry.name: entry for entry in _sound(entries)}.values())


def _sound(entries: list[Any]) -> Iterator[Listed]:
    for entry in entries:
        if not isinstance(entry, dict) or not isinstance(entry.get("id"), str) or not 0 < len(entry["id"]) <= NAME:
            continue
        status = entry.get("status")
        status = status if isinstance(status, dict) else {}
        state = text(status.get("value"))
        if state == "downloaded":
            state = "unloaded"  # it is about to be listed anew
        if state == "unloaded" and status.get("failed") is True:
            state = "failed"
        if state not in STATES:
            continue
        meta = entry.get("meta")
        meta = meta if isinstance(meta, dict) else {}
        yield Listed(
            entry["id"],
            state,
            _argument(status, "--port"),
            _seconds(_argument(status, "--sleep-idle-seconds")),
            whole(meta.get("n_ctx")),
            text(meta.get("ftype")),
        )


def _argument(status: dict[str, Any], name: str) -> str:
    """What stands behind an argument of the process's command line; of that nothing else is looked at."""
    arguments = status.get("args")
    if not isinstance(arguments, list):
        return ""
    return next((text(value) for key, value in pairwise(arguments) if key == name), "")


def _seconds(value: str) -> float | None:
    return float(value) if re.fullmatch("[0-9]{1,9}", value) else None


def served_as(alias: Any, path: Any) -> str:
    """The name of the one model: its alias, never a path, which llama-server gives where there is none."""
    name = text(alias) or text(path)
    if name == path or _FILE.search(name):
        name = _FILE.sub("", re.split(r"[/\\]", name)[-1])
    return name
