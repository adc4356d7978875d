"""What is registered: Dynamo's endpoints, their instances and model cards, out of keys of four layouts.

    instances/NS/COMPONENT/ENDPOINT:HEX     to 0.5    models/UUID, mdc/SLUG
    v1/instances/NS/COMPONENT/ENDPOINT/HEX  from 0.7  v1/mdc/NS/COMPONENT/ENDPOINT/HEX[/LORA]

HEX is the lease of the worker's process, and names its instances.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from exporter.core.types import Labels

PREFIXES = ("v1/instances/", "v1/mdc/", "instances/", "models/", "mdc/")
"""Asked for one by one: a user may be allowed no more than one of them."""

INTERNAL = ("worker_kv_query_source_*", "worker_kv_indexer_query_dp*", "load_metrics", "clear_kv_blocks")
"""Endpoints that workers keep for themselves; some have a new name at each start."""

PORT = 65536
"""What no port reaches."""

_SYSTEM = re.compile(r"(https?://(?:[\w.-]{1,253}|\[[0-9a-fA-F:.]+\])(?::([0-9]{1,5}))?)/v1/metadata/", re.ASCII)
"""A worker that serves its model's files does so on its system port."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A name that requests are sent to."""

    namespace: str
    component: str
    name: str

    @property
    def internal(self) -> bool:
        return any(fnmatchcase(self.name, pattern) for pattern in INTERNAL)

    @property
    def labels(self) -> Labels:
        return (
            ("dynamo_namespace", self.namespace),
            ("dynamo_component", self.component),
            ("dynamo_endpoint", self.name),
        )


@dataclass(frozen=True, slots=True)
class Instance:
    """A worker that serves an endpoint: by TCP at an address, or by a NATS subject."""

    endpoint: Endpoint
    id: str  # hexadecimal
    transport: str
    address: tuple[str, int] | None = None
    subject: str | None = None


@dataclass(frozen=True, slots=True)
class Card:
    """A worker's word that its model is served at an endpoint. `system` is the URL of the worker's system port."""

    endpoint: Endpoint
    id: str
    system: str | None = None


@dataclass(slots=True)
class Registry:
    """The keys as they are, and what was there before. Times are Unix seconds."""

    instances: dict[str, Instance] = field(default_factory=dict)
    cards: dict[str, Card] = field(default_factory=dict)
    activity: dict[Endpoint, float] = field(default_factory=dict)
    """When something was last put, deleted or asked."""
    gone: dict[Endpoint, float] = field(default_factory=dict)
    """Endpoints that were there and have neither instance nor card now, with when that was seen."""
    _known: dict[str, int] = field(default_factory=dict)  # keys with their revisions
    _held: Counter[Endpoint] = field(default_factory=Counter)  # endpoints with their instances and cards

    def put(self, key: str, value: bytes, revision: int, lease: int, at: float) -> bool:
        """Take a key as it is now; False where it is as it was. What is none of Dynamo's is ignored."""
        if self._known.get(key) == revision:
            return False
        self._known[key] = revision
        before, record = self._remove(key, at), read_record(key, value, lease)
        if isinstance(record, Instance):
            self.instances[key] = record
        elif isinstance(record, Card):
            self.cards[key] = record
        else:
            return before
        self._held[record.endpoint] += 1
        self.gone.pop(record.endpoint, None)
        self.activate(record.endpoint, at)
        return True

    def delete(self, key: str, at: float) -> bool:
        """A key is gone; False where it was none of interest."""
        self._known.pop(key, None)
        return self._remove(key, at)

    def _remove(self, key: str, at: float) -> bool:
        """Take out what stands under a key; False where nothing does."""
        record = self.instances.pop(key, None) or self.cards.pop(key, None)
        if record is None:
            return False
        self.activate(record.endpoint, at)
        self._held[record.endpoint] -= 1
        if not self._held[record.endpoint]:
            del self._held[record.endpoint]
            self.gone[record.endpoint] = at
        return True

    def replace(self, keys: Iterable[tuple[str, bytes, int, int]], at: float, *, first: bool) -> None:
        """Take all keys as they are now. At the `first` look nobody can say when they were put."""
        seen = set()
        for key, value, revision, lease in keys:
            seen.add(key)
            self.put(key, value, revision, lease, 0.0 if first else at)
        for key in self._known.keys() - seen:
            self.delete(key, at)

    def endpoints(self) -> Collection[Endpoint]:
        """Those that have an instance or a card."""
        return self._held.keys()

    def forget(self, before: float) -> None:
        """Leave out endpoints that have been gone since before a time."""
        for endpoint in [endpoint for endpoint, since in self.gone.items() if since <= before]:
            del self.gone[endpoint]
            self.activity.pop(endpoint, None)

    def systems(self) -> dict[str, str]:
        """The URLs of workers' system ports by the workers' ids."""
        return {card.id: card.system for card in self.cards.values() if card.system is not None}

    def activate(self, endpoint: Endpoint, at: float) -> None:
        """Something was asked of an endpoint, or put, or deleted; at 0 nobody can say when."""
        if at:
            self.activity[endpoint] = max(at, self.activity.get(endpoint, 0.0))


def read_record(key: str, value: bytes, lease: int) -> Instance | Card | None:
    """What a key with its value says, None where it is neither instance nor card, or not to be understood."""
    kind, *place = key.removeprefix("v1/").split("/")
    if len(place) == 3:  # the id stands behind a colon
        place[2:] = place[2].split(":")
    try:
        said = json.loads(value)
        if not isinstance(said, dict):
            return None
        if kind == "instances" and len(place) == 4:
            return _instance(Endpoint(*place[:3]), place[3].lower(), said.get("transport"))
        if kind == "mdc" and len(place) >= 4:
            return Card(Endpoint(*place[:3]), place[3].lower(), _system(said.get("card_json")))
        if kind == "models":
            at = said["endpoint"]
            return Card(Endpoint(at["namespace"], at["component"], at["name"]), f"{lease:x}")
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return None


def _instance(endpoint: Endpoint, id_: str, transport: object) -> Instance:
    """Of a transport that is not known nothing is told but that it is there."""
    told = {str(kind): str(where) for kind, where in transport.items()} if isinstance(transport, dict) else {}
    if "nats_tcp" in told:
        return Instance(endpoint, id_, "nats", subject=told["nats_tcp"])
    if "tcp" in told:
        host, _, port = told["tcp"].partition("/")[0].rpartition(":")
        address = (host.strip("[]"), int(port)) if host and port.isdecimal() and 0 < int(port) < PORT else None
        return Instance(endpoint, id_, "tcp", address=address)
    return Instance(endpoint, id_, next(iter(told), ""))


def _system(card: object) -> str | None:
    """A heuristic: where the worker lets others fetch its model's configuration."""
    where = card
    for step in ("model_info", "hf_config_json", "path"):
        where = where.get(step) if isinstance(where, dict) else None
    found = _SYSTEM.match(where) if isinstance(where, str) else None
    return found[1] if found and 0 < int(found[2] or 80) < PORT else None
