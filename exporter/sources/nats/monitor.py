"""What a NATS server says at its monitoring port, as rows under the names that map.yaml has."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any

from exporter.core.errors import ReadError
from exporter.core.fetch import Upstream, refuse
from exporter.core.source import Row

PAGE = 256
"""Connections asked for at once: with what each subscribes some hundred kilobytes, which take milliseconds to parse."""
PAGES = 256
"""Pages at most: more connections than a server has by default."""

LARGEST = 2**64
"""What no number of a server's reaches."""

REQUESTS = re.compile(r"[^.$\s][^.\s]*_[^.\s]+\.[^.\s]+-[0-9a-f]{6,16}")
"""Subject of an instance: `{namespace}_{component}.{endpoint}-{lease in hexadecimal}`."""
EVENTS = re.compile(r"namespace\.[^.\s]+\.\S+")
"""Subject of events: `namespace.{namespace}.component.{component}…`."""

_VARZ = ("in_msgs", "out_msgs", "in_bytes", "out_bytes", "connections", "subscriptions", "slow_consumers", "mem")
_JSZ = ("streams", "consumers", "messages", "bytes", "memory", "storage")
_JSZ_PARTS = (("api", "total"), ("api", "errors"), ("config", "max_memory"), ("config", "max_storage"))

_SEE_PORT = "write its monitoring port: -m 8222"

Json = dict[str, Any]


async def server(upstream: Upstream) -> Json:
    """/varz. Raises ReadError where no NATS server answers."""
    said = await _ask(upstream, "/varz")
    if said is None or not {"server_id", "version", "in_msgs"} <= said.keys():
        raise ReadError("content", f"{upstream.at('/varz')} is not what NATS answers ({_SEE_PORT})")
    return said


async def jetstream(upstream: Upstream) -> Json | None:
    """/jsz; None where JetStream is off."""
    said = await _ask(upstream, "/jsz")
    return None if said is None or said.get("disabled") else said


async def health(upstream: Upstream) -> tuple[bool, float] | None:
    """Whether /healthz says that all is well, and its seconds; None where the server is too old to have it."""
    began = time.monotonic()
    status = await upstream.status("/healthz")
    return None if status == 404 else (status == 200, time.monotonic() - began)


async def connections(upstream: Upstream) -> list[Json]:
    """Each connection of /connz, once. Raises ReadError where not all are told."""
    found: dict[str, Json] = {}
    for offset in range(0, PAGE * PAGES, PAGE):
        said = await _ask(upstream, "/connz", subs="1", limit=str(PAGE), offset=str(offset)) or {}
        page, total = said.get("connections") or [], said.get("total")
        if not isinstance(page, list) or not isinstance(total, int):
            raise ReadError("content", f"{upstream.at('/connz')} is not what NATS answers ({_SEE_PORT})")
        found.update((str(entry.get("cid")), entry) for entry in page if isinstance(entry, dict))
        if not page or offset + PAGE >= total:
            break
    return list(found.values())


def subscribed(connection: Json) -> list[str]:
    """The subjects that a connection subscribes."""
    listed = connection.get("subscriptions_list")
    return [subject for subject in listed if isinstance(subject, str)] if isinstance(listed, list) else []


async def _ask(upstream: Upstream, endpoint: str, **query: str) -> Json | None:
    """What an endpoint answers; None where the server has no such endpoint."""
    async with upstream.get(endpoint, tuple(query.items())) as answer:
        if answer.status == 404:
            return None
        refuse(answer)
        said = await answer.json()
    if not isinstance(said, dict):
        raise ReadError("content", f"{answer.url} is not what NATS answers ({_SEE_PORT})")
    return said


def subjects(connections: Iterable[Json]) -> dict[str, int]:
    """How many of Dynamo's subjects are subscribed, by plane."""
    every = {subject for connection in connections for subject in subscribed(connection)}
    planes = {"request": REQUESTS, "event": EVENTS}
    return {name: sum(plane.fullmatch(subject) is not None for subject in every) for name, plane in planes.items()}


def rows(varz: Json, used: dict[str, int], jsz: Json | None) -> Iterator[Row]:
    """What was answered, as rows. What is missing, or no number, is left out."""
    yield "varz", {"version": varz["version"]}, 1.0
    if (start := _time(varz.get("start"))) is not None:
        yield "varz_start", {}, start
    for plane, count in used.items():
        yield "connz_dynamo_subjects", {"plane": plane}, float(count)
    found = [(f"varz_{field}", varz.get(field)) for field in _VARZ]
    if jsz is not None:
        found += [(f"jsz_{field}", jsz.get(field)) for field in _JSZ]
        parts = [(part, field, jsz.get(part)) for part, field in _JSZ_PARTS]
        found += [(f"jsz_{part}_{field}", said.get(field)) for part, field, said in parts if isinstance(said, dict)]
    for name, value in found:
        if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < LARGEST:
            yield name, {}, float(value)


def _time(text: object) -> float | None:
    """Unix seconds of a time as Go writes it, with up to nine digits behind the second."""
    try:
        return datetime.fromisoformat(text).timestamp() if isinstance(text, str) else None
    except (ValueError, OverflowError):
        return None
