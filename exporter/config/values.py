"""The words that configuration is written in: durations, sizes, URLs, addresses, label names.

Each is an annotated type: it checks what was written, says what to write instead, and knows its JSON Schema.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, PlainSerializer, WithJsonSchema
from pydantic.config import JsonDict

SHOWN = 60
"""Characters of a mistaken value that are shown."""

OWN_LABELS = frozenset(["source", "target", "layer", "provider", "model", "rank", "deployment", "le", "quantile"])
"""Labels that we give ourselves."""

RESERVED_LABELS = frozenset(
    ["job", "instance", "namespace", "endpoint", "service", "pod", "container", "node", "env", "cluster"]
)
"""Labels that Prometheus, or what deploys us, attaches to a target: an exposed one would be renamed `exported_…`."""


class PlacedError(ValueError):
    """A mistake that only the whole shows, and the key that it is told of."""

    def __init__(self, text: str, key: str) -> None:
        super().__init__(text)
        self.path = (key,)


def shown(value: object) -> str:
    """A mistaken value as a message may show it: short, on one line, without userinfo or query.

    Of lists and mappings only the kind is named: what is in them could be anybody's secret.
    """
    match value:
        case None:
            return "nothing"
        case bool():
            return "true" if value else "false"
        case list() | tuple():
            return "a list"
        case dict():
            return "a mapping"
        case str():
            value = re.sub(r"^([a-zA-Z]*://)?.*@", r"\1…@", value, flags=re.DOTALL)
            head, *query = re.split(r"[?#]", value, maxsplit=1)
            if query and ("://" in head or "=" in query[0]):
                value = head + "?…"
            return repr(value if len(value) <= SHOWN else value[: SHOWN - 1] + "…")
        case _:
            return str(value)[:SHOWN]


def nearest(word: str, known: Iterable[str], otherwise: str | None = None) -> str:
    """What to write instead of `word`: the nearest known word, else `otherwise`, else all that is known."""
    known = sorted(known)
    near = get_close_matches(word.lower(), known, n=1) if len(word) <= SHOWN else []
    return f"write {near[0]}" if near else otherwise or f"known: {', '.join(known)}"


# -- durations -----------------------------------------------------------------------------------------------------

_UNITS = {"d": 86_400_000, "h": 3_600_000, "m": 60_000, "s": 1_000, "ms": 1}
_DURATION = "".join(f"(?:([0-9]{{1,9}}){unit})?" for unit in _UNITS)
DURATION_PATTERN = r"^([0-9]{1,9}d)?([0-9]{1,9}h)?([0-9]{1,9}m)?([0-9]{1,9}s)?([0-9]{1,9}ms)?$"


def seconds(text: str) -> float:
    """Seconds in '500ms', '2s' or '1m30s'. Raises ValueError saying how to write it."""
    found = re.fullmatch(_DURATION, text) if isinstance(text, str) and text else None
    if found is None:
        raise ValueError(f"not a duration: {shown(text)} (write 500ms, 2s, 1m30s)")
    return sum(int(count or 0) * unit for count, unit in zip(found.groups(), _UNITS.values(), strict=True)) / 1000


def duration_text(seconds: float) -> str:
    """A number of seconds as people write it, to the millisecond: '1m30s'."""
    rest = round(seconds * 1000)
    text = ""
    for name, unit in _UNITS.items():
        count, rest = divmod(rest, unit)
        if count:
            text += f"{count}{name}"
    return text or "0s"


def _duration(value: Any) -> float:
    found = seconds(value)
    if found <= 0:
        raise ValueError(f"no time at all: {shown(value)} (write 500ms, 2s, 1m30s)")
    return found


Duration = Annotated[
    float,
    BeforeValidator(_duration),
    PlainSerializer(duration_text, return_type=str),
    WithJsonSchema({"title": "duration", "type": "string", "minLength": 2, "pattern": DURATION_PATTERN}),
]
"""Seconds, more than 0; written `500ms`, `2s`, `1m30s`."""


# -- sizes ---------------------------------------------------------------------------------------------------------

_SIZES = {"GiB": 2**30, "MiB": 2**20, "KiB": 2**10, "B": 1}


def _size(value: Any) -> int:
    found = re.fullmatch(r"([1-9][0-9]{0,8})([KMG]iB|B)", value) if isinstance(value, str) else None
    if found is None:
        raise ValueError(f"not a size: {shown(value)} (write 64KiB, 128MiB, 1GiB)")
    return int(found[1]) * _SIZES[found[2]]


def size_text(size: int) -> str:
    """A number of bytes in the largest unit that divides it: '256MiB'."""
    name, unit = next((name, unit) for name, unit in _SIZES.items() if size % unit == 0)
    return f"{size // unit}{name}"


Size = Annotated[
    int,
    BeforeValidator(_size),
    PlainSerializer(size_text, return_type=str),
    WithJsonSchema({"title": "size", "type": "string", "pattern": r"^[1-9][0-9]{0,8}([KMG]i)?B$"}),
]
"""Bytes; written `64KiB`, `128MiB`, `1GiB`."""


# -- addresses -----------------------------------------------------------------------------------------------------

_HOST = r"(?:[\w.-]+|\[[0-9a-fA-F:.]+(?:%[\w.-]+)?\])"


def _url(value: Any) -> str:
    wrong = f"not a URL: {shown(value)} (write http://host:port or https://host:port)"
    if isinstance(value, str) and re.search(r",\s*https?://", value):
        raise ValueError("several URLs in one text (write a list: [http://a:1, http://b:1])")
    # white space and controls first: urlsplit would drop some of them without a word
    if not isinstance(value, str) or re.search(r"[\s\\\x00-\x20\x7f-\x9f]", value):
        raise ValueError(wrong)
    try:
        parts = urlsplit(value)
    except ValueError:
        raise ValueError(wrong) from None
    if parts.scheme in ("http", "https") and "@" in value:  # anywhere: a password may hold a / or a ?
        raise ValueError("a user or password in a URL (put the secret in a file, and write api_key_file)")
    found = re.fullmatch(rf"{_HOST}(?::([0-9]+))?", parts.netloc)
    if parts.scheme not in ("http", "https") or found is None:
        raise ValueError(wrong)
    if found[1] is not None and not 0 < int(found[1][:6]) < 65536:
        raise ValueError(f"not a port: {shown(found[1])} (write 1 to 65535)")
    if "?" in value or "#" in value:
        raise ValueError(f"a URL with a query or fragment: {shown(value)} (write it without what follows ? or #)")
    return f"{parts.scheme}://{parts.netloc}{parts.path}".rstrip("/")


URL_SCHEMA: JsonDict = {"title": "URL", "type": "string", "pattern": r"^https?://[^\s/@?#]+(/[^\s@?#]*)?$"}

Url = Annotated[str, BeforeValidator(_url), WithJsonSchema(URL_SCHEMA)]
"""An http or https URL without userinfo, query, fragment or slash at its end."""


def _base(value: str) -> str:
    if value.endswith("/metrics"):
        raise ValueError(f"the URL of its metrics: {shown(value)} (write it without /metrics)")
    return value


BaseUrl = Annotated[Url, AfterValidator(_base)]
"""Where an upstream's paths begin."""


_WRITE_ADDRESS = "(write :9400, 127.0.0.1:9400 or [::1]:9400)"


def address(text: str) -> tuple[str | None, int]:
    """Host and port of ':9400', '0.0.0.0:9400' or '[::1]:9400'; the host is None for all addresses.

    Raises ValueError saying how to write it.
    """
    found = re.fullmatch(rf"({_HOST})?:([0-9]{{1,5}})", text)
    if found is None or int(found[2]) > 65535:
        raise ValueError(f"not an address: {shown(text)} {_WRITE_ADDRESS}")
    return (found[1].strip("[]") if found[1] else None), int(found[2])


def _address(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"not an address: {shown(value)} {_WRITE_ADDRESS}")  # noqa: TRY004 - pydantic wants ValueError
    address(value)
    return value


Address = Annotated[
    str,
    BeforeValidator(_address),
    WithJsonSchema({"title": "address", "type": "string", "pattern": r"^([\w.-]+|\[[\w:.%-]+\])?:[0-9]{1,5}$"}),
]
"""Where to listen: `:9400`, `127.0.0.1:9400`, `[::1]:9400`."""


def _absolute(value: str) -> str:
    if not value.startswith("/") or not value.isprintable():
        raise ValueError(f"not a whole path: {shown(value)} (write a path that begins with /)")
    return value


AbsolutePath = Annotated[
    str, AfterValidator(_absolute), WithJsonSchema({"title": "path", "type": "string", "pattern": "^/"})
]
"""A path that begins with `/`."""


# -- labels --------------------------------------------------------------------------------------------------------


def _label(taken: frozenset[str]) -> Callable[[str], str]:
    def check(value: str) -> str:
        if not re.fullmatch(r"[a-zA-Z_][a-zA-Z0-9_]*", value):
            raise ValueError(f"not a label name: {shown(value)} (write letters, digits and _, no digit first)")
        if value.startswith("__"):
            raise ValueError(f"labels that begin with __ are Prometheus's own: {shown(value)} (write another name)")
        if value in taken:
            whose = "the exporter" if value in OWN_LABELS else "Prometheus, or what deploys the exporter,"
            raise ValueError(f"a label that {whose} gives itself: {shown(value)} (write another name)")
        return value

    return check


def _label_schema(taken: frozenset[str]) -> dict[str, Any]:
    pattern = r"^(_|_?[a-zA-Z][a-zA-Z0-9_]*|_[0-9][a-zA-Z0-9_]*)$"
    return {"title": "label name", "type": "string", "pattern": pattern, "not": {"enum": sorted(taken)}}


LabelName = Annotated[
    str,
    AfterValidator(_label(OWN_LABELS | RESERVED_LABELS)),
    WithJsonSchema(_label_schema(OWN_LABELS | RESERVED_LABELS)),
]
"""The name of a label to add."""

UpstreamLabelName = Annotated[str, AfterValidator(_label(OWN_LABELS)), WithJsonSchema(_label_schema(OWN_LABELS))]
"""The name of a label that an upstream has and that is kept."""


def _text(value: str) -> str:
    if not value.strip() or not value.isprintable() or len(value) > 200:
        raise ValueError(f"not one line of text: {shown(value)} (write 1 to 200 characters on one line)")
    return value


Text = Annotated[str, AfterValidator(_text), WithJsonSchema({"type": "string", "minLength": 1, "maxLength": 200})]
"""A name, or the value of a label."""
