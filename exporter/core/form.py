"""What a map looks like: its keys and the kinds of its values, checked before anything is made of it.

One check for the maps of our own sources and for the one that a user writes, so that both are told the same, and where.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from typing import Any, get_args

from exporter.core.types import Kind

Path = tuple[str | int, ...]
Check = Callable[[Any, Path], None]

LAYERS = ("gateway", "frontend", "engine")
MERGES = ("sum", "max", "min", "none")


class MapError(ValueError):
    """A map that cannot be right: what is wrong and what to write, and where in the map that is."""

    def __init__(self, text: str, path: Path = (), what: str = "") -> None:
        super().__init__(": ".join(filter(None, (what, ".".join(map(str, path)), text))))
        self.text = text
        self.path = path


def plain(given: Any) -> Any:
    """The same data with lists for tuples, as YAML's own reader gives it."""
    if isinstance(given, Mapping):
        return {key: plain(value) for key, value in given.items()}
    return [plain(item) for item in given] if isinstance(given, list | tuple) else given


def _text(given: Any, path: Path) -> None:
    if isinstance(given, bool):
        raise MapError("true or false where text is wanted (write it in quotes)", path)
    if not isinstance(given, str | int | float):
        raise MapError("not text (write a word)", path)


def _text_or_nothing(given: Any, path: Path) -> None:
    if given is not None:
        _text(given, path)


def _yes_or_no(given: Any, path: Path) -> None:
    if not isinstance(given, bool):
        raise MapError("neither true nor false (write true or false, without quotes)", path)


def _factor(given: Any, path: Path) -> None:
    if isinstance(given, bool) or not isinstance(given, int | float) or not isfinite(given) or given <= 0:
        raise MapError("not a factor (write a number: 0.001 makes seconds of milliseconds)", path)


def _begins_again(given: Any, path: Path) -> None:
    if isinstance(given, bool) or not isinstance(given, int) or given <= 0:
        raise MapError("no number at which a counter begins again (write 4294967296 for one of 32 bits)", path)


def _name(given: Any, path: Path) -> None:
    _text(given, path)
    if "*" in str(given) and not re.fullmatch(r"\*(_[a-zA-Z0-9]+)+", str(given)):
        raise MapError(f"{given} (a pattern is * and how names end: *_seconds)", path)
    if not re.fullmatch(r"\*?[a-zA-Z0-9_:]*", str(given)):
        raise MapError(f"no name of a metric: {given!r} (write it without labels, which go under only:)", path)


def _one_of(*words: str) -> Check:
    def check(given: Any, path: Path) -> None:
        if given not in words:
            raise MapError(f"{given} is no word for it (write one of {', '.join(words)})", path)

    return check


def _list(check: Check, *, least: int = 0) -> Check:
    def checked(given: Any, path: Path) -> None:
        if not isinstance(given, list):
            raise MapError("not a list (write [a, b], or one item a line with - before it)", path)
        if len(given) < least:
            raise MapError("is empty (write the upstream's names, newest first)", path)
        for place, item in enumerate(given):
            check(item, (*path, place))

    return checked


def _one_or_more(check: Check) -> Check:
    several = _list(check)
    return lambda given, path: (several if isinstance(given, list) else check)(given, path)


def _mapping(of: Callable[[str], Check | None], needed: Sequence[str] = (), known: Sequence[str] = ()) -> Check:
    """A mapping in which `of` gives the check of each key; None where the key is not known."""

    def checked(given: Any, path: Path) -> None:
        if not isinstance(given, dict):
            raise MapError("not a mapping (write key: value, one a line)", path)
        for key, value in given.items():
            check = of(key)
            if check is None:
                raise MapError(f"unknown key {key} (known: {', '.join(sorted(known))})", (*path, key))
            check(value, (*path, key))
        for key in needed:
            if key not in given:
                raise MapError(f"{key}: is missing (write {key}: …)", path)

    return checked


def _record(fields: Mapping[str, Check], *needed: str) -> Check:
    return _mapping(fields.get, needed, tuple(fields))


def _named(check: Check) -> Check:
    return _mapping(lambda _: check)


_TEXTS = _one_or_more(_text)
_CONDITIONS = _list(_named(_TEXTS))
_CASE = _mapping(lambda key: _text if key == "is" else _TEXTS, ("is",))

_PICKS = {
    "hex": _record({"hex": _TEXTS}),
    "served": _record({"served": _TEXTS}),
    "lookup": _record({"lookup": _text, "by": _text, "else": _TEXTS}, "by"),
    "cases": _record({"cases": _list(_CASE), "else": _text}),
}


def _pick(given: Any, path: Path) -> None:
    if not isinstance(given, dict):
        _TEXTS(given, path)
        return
    way = next((way for way in _PICKS if way in given), None)
    if way is None:
        raise MapError(f"no way to find a label (write an upstream label, or {', '.join(_PICKS)})", path)
    _PICKS[way](given, path)


_RULE = {
    "from": _list(_name, least=1),
    "labels": _named(_pick),
    "constant": _named(_text),
    "scale": _factor,
    "merge": _one_of(*MERGES),
    "part": _one_of("sum", "count"),
    "copies": _list(_text),
    "only": _CONDITIONS,
    "drop": _CONDITIONS,
    "when": _list(_name),
    "type": _one_of("counter", "gauge", "histogram"),
    "declared": _one_or_more(_one_of(*get_args(Kind))),
    "lazy": _yes_or_no,
    "wraps": _begins_again,
    "progress": _one_of("running", "end", "none"),
}

_IDENTITY = _record({"name": _name, "label": _text}, "name", "label")

_MAP = {
    "identity": lambda given, path: (_IDENTITY if isinstance(given, dict) else _name)(given, path),
    "layer": _one_of(*LAYERS),
    "experimental": _yes_or_no,
    "include": _list(_text),
    "prefixes": _named(_list(_text)),
    "absent": _list(_text_or_nothing),
    "copies": _list(_text),
    "drop": _CONDITIONS,
    "not": _one_or_more(_text),
    "tables": _named(_record({"key": _text, "value": _TEXTS}, "key", "value")),
    "families": _named(_one_or_more(_record(_RULE, "from"))),
    "internal": _named(_record(_RULE, "from")),
}

check: Check = _record(_MAP, "families")
"""Raises MapError unless the map has the form of one."""
