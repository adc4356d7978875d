"""What is read of an entry, whichever way: whose it is, how urgent, and its cursor. Never its text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

FIELDS = ("PRIORITY", "_SYSTEMD_UNIT", "_SYSTEMD_USER_UNIT", "UNIT", "USER_UNIT")
PRIORITIES = ("emerg", "alert", "crit", "err", "warning", "notice", "info", "debug")
_NAMES: dict[str, str] = {str(number): name for number, name in enumerate(PRIORITIES)}
MANAGER = "init.scope"
"""The unit that a manager itself is in: what it writes about a unit names that unit in UNIT or USER_UNIT."""

Kind = tuple[str, str, str]
"""Unit, scope, priority."""
Get = Callable[[str], object]
"""A field of an entry: text, or something else where it is none."""
Wanted = Callable[[str], bool]
"""Whether entries of a unit are counted."""


@dataclass(slots=True)
class Batch:
    """Entries that were read together: how many of each kind, and the cursor of the last one."""

    counts: Counter[Kind] = field(default_factory=Counter)
    cursor: str = ""
    gaps: int = 0


def unit_of(get: Get) -> tuple[str, str] | None:
    """The unit that an entry is of, and its scope.

    Fields that begin with `_` are journald's own and can be trusted; UNIT and USER_UNIT where a manager wrote them.
    """
    for own, named, scope in (("_SYSTEMD_USER_UNIT", "USER_UNIT", "user"), ("_SYSTEMD_UNIT", "UNIT", "system")):
        unit = get(own)
        if unit == MANAGER:
            unit = get(named) or unit
        if unit and isinstance(unit, str):
            return unit, scope
    return None


def priority_of(told: object) -> str:
    """Its name; where none is told, or several are, that of systemd's default."""
    return _NAMES.get(told, "info") if isinstance(told, str) else "info"


def parts_of(cursor: str) -> dict[str, str]:
    """A cursor's parts by their letter; none where it is no cursor."""
    return dict(part.split("=", 1) for part in cursor.split(";") if "=" in part)


def is_same(one: str, other: str) -> bool:
    """Whether two cursors are of one entry, by boot, both clocks and content."""
    a, b = parts_of(one), parts_of(other)
    return len(a) > 1 and all(a.get(part) == b.get(part) for part in "bmtx")


def between(before: str, after: str) -> int | None:
    """How many entries were between two; None where that cannot be told.

    In a boot journald numbers its entries in one row, those of the system and of all users.
    """
    a, b = parts_of(before), parts_of(after)
    try:
        return int(b["i"], 16) - int(a["i"], 16) - 1 if a["b"] == b["b"] else None
    except (KeyError, ValueError):
        return None
