"""NATS, with its monitoring port and one that clients connect to; and the Redis in which the gateway keeps answers."""

from __future__ import annotations

import json
from asyncio import StreamReader, StreamWriter
from datetime import UTC, datetime
from typing import Any

from aiohttp import web

from exporter.demo.dynamo import ENDPOINT, NAMESPACE, Frontend
from exporter.demo.gateway import Gateway
from exporter.demo.ports import always
from exporter.demo.world import World

EVENTS = ("kv-events", "kv_metrics", "active_sequences_events")
EVENT_BYTES = 600
"""Bytes of an event that a worker publishes."""


class Nats:
    """A server over which Dynamo's requests and events go."""

    def __init__(self, world: World, frontend: Frontend) -> None:
        self._world = world
        self._frontend = frontend
        self._gone = dict.fromkeys(("in", "out", "in_bytes", "out_bytes"), 0)  # with connections that ended
        self._seen: dict[int, dict[str, int]] = {}
        self._events = 0
        self._slow = 0
        self._clients = 0
        self._lost = False
        world.steppers.append(self._step)

    def _step(self, seconds: float) -> None:
        lost = self._world.troubled("worker")
        self._slow += lost and not self._lost
        self._lost = lost
        self._events += self._world.happens(4.0 * self._world.load * seconds)
        alive = {worker.id: worker.messages for worker in self._frontend.workers if worker.alive}
        for id_ in self._seen.keys() - alive.keys():
            for name, value in self._seen[id_].items():
                self._gone[name] += value
        self._seen = {id_: dict(messages) for id_, messages in alive.items()}

    def _sum(self, name: str) -> int:
        return self._gone[name] + sum(messages[name] for messages in self._seen.values())

    def application(self) -> web.Application:
        """The monitoring port."""
        app = web.Application()
        app.router.add_get("/healthz", always({"status": "ok"}))
        app.router.add_get("/varz", self._varz)
        app.router.add_get("/connz", self._connz)
        app.router.add_get("/jsz", self._jsz)
        return app

    async def _varz(self, _: web.Request) -> web.Response:
        requests, answers = self._sum("in") + self._events, self._sum("out")
        bytes_ = self._sum("in_bytes") + self._events * EVENT_BYTES
        workers = len(self._seen)
        return web.json_response(
            {
                "server_id": "DEMO",
                "version": "2.15.2",
                "start": datetime.fromtimestamp(self._world.began - 86400.0, UTC).isoformat(),
                "mem": 18_000_000 + 40_000 * int(100 * self._world.load),
                "connections": workers + 1 + self._clients,
                "subscriptions": 2 + workers * (1 + len(EVENTS)),
                "slow_consumers": self._slow,
                "in_msgs": requests + answers,
                "out_msgs": requests + answers,
                "in_bytes": bytes_ + self._sum("out_bytes"),
                "out_bytes": bytes_ + self._sum("out_bytes"),
            }
        )

    async def _connz(self, _: web.Request) -> web.Response:
        connections: list[dict[str, Any]] = [
            {
                "cid": worker.id % 10_000,
                "in_msgs": worker.messages["out"],
                "out_msgs": worker.messages["in"],
                "in_bytes": worker.messages["out_bytes"],
                "out_bytes": worker.messages["in_bytes"],
                "subscriptions_list": [
                    worker.subject,
                    *(
                        f"namespace.{NAMESPACE}.component.{worker.component}.endpoint.{ENDPOINT}.{each}"
                        for each in EVENTS
                    ),
                ],
            }
            for worker in self._frontend.workers
            if worker.alive
        ]
        return web.json_response({"connections": connections, "total": len(connections)})

    async def _jsz(self, _: web.Request) -> web.Response:
        kept = min(self._events, 5000)
        limits = {"max_memory": 2**30, "max_storage": 10 * 2**30}
        return web.json_response(
            {
                "streams": 1,
                "consumers": 1,
                "messages": kept,
                "bytes": kept * EVENT_BYTES,
                "memory": 0,
                "storage": kept * EVENT_BYTES,
                "api": {"total": self._events // 50, "errors": 0},
                "config": limits,
            }
        )

    async def talk(self, reader: StreamReader, writer: StreamWriter) -> None:
        """The clients' port: as much of the protocol as a client needs that only asks whether all is well."""
        self._clients += 1
        info = {"server_id": "DEMO", "server_name": "demo", "version": "2.15.2", "max_payload": 2**20, "headers": True}
        writer.write(b"INFO " + json.dumps(info).encode() + b"\r\n")
        try:
            while line := await reader.readline():
                writer.write(b"PONG\r\n" if line.startswith(b"PING") else b"+OK\r\n")  # as who is verbose wants it
        except ConnectionError:
            pass
        finally:
            self._clients -= 1
            writer.close()


class Redis:
    """The gateway's cache. It answers INFO and PING, and nobody while there is trouble with it."""

    def __init__(self, world: World, gateway: Gateway) -> None:
        self._world = world
        self._gateway = gateway

    def _info(self) -> str:
        hits, misses = self._gateway.hits, self._gateway.misses
        keys = min(4000, misses)
        said = {
            "redis_version": "7.0.15",
            "run_id": "demo",
            "role": "master",
            "connected_clients": 6,
            "blocked_clients": 0,
            "maxclients": 10000,
            "used_memory": 1_500_000 + keys * 9000,
            "maxmemory": 64_000_000,
            "total_commands_processed": (hits + misses) * 4,
            "rejected_connections": 0,
            "keyspace_hits": hits,
            "keyspace_misses": misses,
            "evicted_keys": misses - keys,
            "expired_keys": misses // 3,
            "db0": f"keys={keys},expires={keys},avg_ttl=600000",
        }
        return "".join(f"{name}:{value}\r\n" for name, value in said.items())

    async def talk(self, reader: StreamReader, writer: StreamWriter) -> None:
        """RESP, as far as INFO and PING go."""
        try:
            while line := await reader.readline():
                words = []
                for _ in range(int(line[1:])):
                    await reader.readline()
                    words.append((await reader.readline()).strip().upper())
                if self._world.troubled("cache"):
                    break
                text = self._info().encode() if words[0] == b"INFO" else b"PONG"
                writer.write(b"$%d\r\n%b\r\n" % (len(text), text))
        except (ConnectionError, ValueError, IndexError):
            pass
        finally:
            writer.close()
