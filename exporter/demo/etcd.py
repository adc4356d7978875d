"""An etcd of one member: keys with leases, and its HTTP gateway."""

from __future__ import annotations

import asyncio
import json
from base64 import b64decode, b64encode
from collections.abc import Iterator
from typing import Any

from aiohttp import web

from exporter.demo.book import Book
from exporter.demo.ports import always
from exporter.demo.world import World

SYNC = (0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.024)
"""etcd's boundaries."""
LEASES = 0x1234500000000000
"""Where the numbers of leases begin: as long as etcd's own."""


class Etcd:
    """The member. Revisions count up, as each key is written or goes."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._book = Book()
        self._revision = 1
        self._keys: dict[str, dict[str, str]] = {}
        self._leases: dict[int, set[str]] = {}
        self._events: list[tuple[int, str, dict[str, Any]]] = []  # all there were
        self._watchers: set[asyncio.Event] = set()
        for name in ("granted", "revoked"):
            self._book.add(f"etcd_debugging_lease_{name}_total", 0)
        self._book.add("etcd_debugging_server_lease_expired_total", 0)
        self._book.add("etcd_server_leader_changes_seen_total")
        self._book.add("etcd_server_proposals_failed_total", 0)
        self._book.add("etcd_server_slow_apply_total", 0)
        for name, value in (
            ("process_start_time_seconds", world.began - 86400.0),
            ("etcd_server_has_leader", 1.0),
            ("etcd_server_is_leader", 1.0),
            ("etcd_server_quota_backend_bytes", 2.0 * 2**30),
            ("etcd_debugging_mvcc_slow_watcher_total", 0.0),
        ):
            self._book.set(name, value)
        self._book.set("etcd_server_version", 1.0, server_version="3.6.16")
        world.steppers.append(self._step)

    # -- keys ----------------------------------------------------------------------------------------------------

    def grant(self) -> int:
        """A new lease."""
        lease = LEASES + self._world.random.getrandbits(40)
        self._leases[lease] = set()
        self._book.add("etcd_debugging_lease_granted_total")
        return lease

    def put(self, key: str, value: Any, lease: int) -> None:
        self._revision += 1
        text, revision = b64encode(json.dumps(value).encode()).decode(), str(self._revision)
        self._keys[key] = {"key": _coded(key), "value": text, "mod_revision": revision, "lease": str(lease)}
        self._leases[lease].add(key)
        self._changed(key, {"kv": self._keys[key]})

    def revoke(self, lease: int) -> None:
        """A lease has run out: its keys go."""
        self._book.add("etcd_debugging_lease_revoked_total")
        self._book.add("etcd_debugging_server_lease_expired_total")
        for key in sorted(self._leases.pop(lease, ())):
            self._revision += 1
            del self._keys[key]
            self._changed(key, {"type": "DELETE", "kv": {"key": _coded(key), "mod_revision": str(self._revision)}})

    def _changed(self, key: str, event: dict[str, Any]) -> None:
        self._events.append((self._revision, key, event))
        self._write()
        for watcher in self._watchers:
            watcher.set()

    def _write(self) -> None:
        """Each write goes to the disk's log, then to the database."""
        world = self._world
        self._book.observe("etcd_disk_wal_fsync_duration_seconds", SYNC, world.about(0.0012, 0.5))
        self._book.observe("etcd_disk_backend_commit_duration_seconds", SYNC, world.about(0.002, 0.5))

    def _step(self, seconds: float) -> None:
        for _ in range(self._world.happens(len(self._leases) * seconds)):  # leases are kept alive
            self._write()
        keys = float(len(self._keys))
        self._book.set("etcd_debugging_mvcc_keys_total", keys)
        self._book.set("etcd_debugging_mvcc_watcher_total", 4.0 + len(self._watchers))
        self._book.set("etcd_server_proposals_pending", float(self._world.happens(0.05)))
        self._book.set("etcd_mvcc_db_total_size_in_bytes", 1_200_000.0 + self._revision * 4096.0)
        self._book.set("etcd_mvcc_db_total_size_in_use_in_bytes", 600_000.0 + keys * 4096.0)

    # -- its port ------------------------------------------------------------------------------------------------

    def application(self) -> web.Application:
        """The clients' port."""
        app = web.Application()
        app.router.add_get("/version", always({"etcdserver": "3.6.16", "etcdcluster": "3.6.0"}))
        app.router.add_get("/health", always({"health": "true", "reason": ""}))
        app.router.add_get("/metrics", self._metrics)
        app.router.add_post("/v3/kv/range", self._range)
        app.router.add_post("/v3/lease/leases", self._lease_list)
        app.router.add_post("/v3/watch", self._watch)
        return app

    @property
    def _header(self) -> dict[str, str]:
        return {"cluster_id": "1", "member_id": "1", "revision": str(self._revision), "raft_term": "2"}

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(text=self._book.text())

    async def _range(self, request: web.Request) -> web.Response:
        begin, end = _asked(await request.json())
        found = [pair for key, pair in sorted(self._keys.items()) if begin <= key.encode() < end]
        return web.json_response({"header": self._header, "kvs": found, "count": str(len(found))})

    async def _lease_list(self, _: web.Request) -> web.Response:
        return web.json_response({"header": self._header, "leases": [{"ID": str(lease)} for lease in self._leases]})

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        """What changes under the prefixes asked for, a line for each revision, for as long as the client listens."""
        requests = [json.loads(line)["create_request"] for line in (await request.text()).splitlines()]
        ranges = [_asked(each) for each in requests]
        after = min(int(each["start_revision"]) for each in requests) - 1
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        news = asyncio.Event()
        self._watchers.add(news)
        try:
            await response.write(_line({"header": self._header, "created": True}))
            while True:
                for revision, event in self._since(after, ranges):
                    after = revision
                    await response.write(_line({"header": self._header, "events": [event]}))
                news.clear()
                await news.wait()
        finally:
            self._watchers.discard(news)

    def _since(self, after: int, ranges: list[tuple[bytes, bytes]]) -> Iterator[tuple[int, dict[str, Any]]]:
        for revision, key, event in list(self._events):
            if revision > after and any(begin <= key.encode() < end for begin, end in ranges):
                yield revision, event


def _asked(said: dict[str, str]) -> tuple[bytes, bytes]:
    """The range of keys that a request is about."""
    return b64decode(said["key"]), b64decode(said["range_end"])


def _coded(text: str) -> str:
    return b64encode(text.encode()).decode()


def _line(result: dict[str, Any]) -> bytes:
    return json.dumps({"result": result}).encode() + b"\n"
