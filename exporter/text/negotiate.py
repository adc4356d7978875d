"""Which exposition format a client asked for, and whether it takes gzip.

What a stranger writes into a header never raises: whatever cannot be read is passed over.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from enum import Enum


class Format(Enum):
    """The formats a page can have; `content_type` is what the answer says of itself."""

    TEXT = "text/plain; version=0.0.4; charset=utf-8"
    OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"

    @property
    def content_type(self) -> str:
        return self.value


# What may be asked for by name, and in which versions ("" is none named): those of Prometheus' expfmt. OpenMetrics
# 0.0.1 is the draft that became 1.0.0 and is read by the same parser.
_OFFERED = {
    "text/plain": (Format.TEXT, ("", "0.0.4")),
    "application/openmetrics-text": (Format.OPENMETRICS, ("", "0.0.1", "1.0.0")),
}
_Q = re.compile(r"[01]?\.[0-9]{1,9}|[01]\.?")
_LONGEST = 4096
"""Of a longer header only this many characters are read: a client that means it is done by then."""


def _clauses(header: str) -> Iterator[tuple[str, float, Mapping[str, str]]]:
    """What a header lists, in its order: name, q-value in 0 to 1, parameters. An unreadable clause is left out."""
    for clause in header[:_LONGEST].split(","):
        name, *rest = clause.split(";")
        pairs = (pair.partition("=") for pair in rest)
        parameters = {key.strip().lower(): value.strip().strip('"') for key, _, value in pairs}
        q = parameters.pop("q", "1")
        if _Q.fullmatch(q) and float(q) <= 1:
            yield name.strip().lower(), float(q), parameters


def choose(accept: str | None) -> Format:
    """The format for a request's Accept header; TEXT where nothing better can be read from it.

    The highest q-value wins, and q=0 refuses. Of equal ones the first named wins, as in Prometheus' expfmt. A
    wildcard speaks for TEXT alone, and only where TEXT is not named: OpenMetrics is for those who name it.
    """
    named: dict[Format, float] = {}
    anything: float | None = None
    for name, q, parameters in _clauses(accept or ""):
        if name in _OFFERED:
            offered, versions = _OFFERED[name]
            if parameters.get("version", "") in versions:
                named[offered] = max(q, named.get(offered, 0.0))
        elif name in ("*/*", "text/*"):
            anything = max(q, anything or 0.0)
    if anything is not None:
        named.setdefault(Format.TEXT, anything)
    best = max(named, key=named.__getitem__, default=Format.TEXT)
    return best if named.get(best) else Format.TEXT


def accepts_gzip(accept_encoding: str | None) -> bool:
    """Whether a request's Accept-Encoding takes gzip, and likes it no less than the bare page."""
    q = {name: q for name, q, _ in _clauses(accept_encoding or "")}
    anything = q.get("*", 0.0)
    gzip = q.get("gzip", q.get("x-gzip", anything))
    return gzip > 0 and gzip >= q.get("identity", 0.0)
