"""The simulated stack, put together: who serves what, on which ports, and the configuration that reads all of it."""

from __future__ import annotations

import asyncio
import secrets
import socket
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from exporter.config.load import configured_kinds
from exporter.config.model import Config
from exporter.demo.book import Book
from exporter.demo.brokers import Nats, Redis
from exporter.demo.dynamo import Frontend, Worker
from exporter.demo.engine import Engine
from exporter.demo.etcd import Etcd
from exporter.demo.gateway import Deployment, Gateway
from exporter.demo.machine import Gpu, Gpus, Service
from exporter.demo.ports import HasPort, Made, Port, Speaker, There
from exporter.demo.providers import Provider
from exporter.demo.servers import LlamaRouter, Model, Vllm
from exporter.demo.world import World

TICK = 0.25
"""Seconds between two looks at the clock."""
CATCH_UP = 5.0
"""Seconds that are simulated at once at most, so that the exporter goes on answering after the machine has slept."""

DEMAND = {
    "gpt-4o": (1.6, 900.0, 220.0),
    "claude-sonnet-4": (0.9, 2400.0, 380.0),
    "gemini-2.5-flash": (1.4, 1500.0, 180.0),
    "llama-3.3-70b": (1.6, 1200.0, 260.0),
    "qwen3-32b": (1.5, 800.0, 300.0),
    "gemma-3-12b": (0.25, 400.0, 150.0),
    "phi-4-mini": (0.006, 300.0, 120.0),
}
"""Requests a second at full load, and the usual tokens of prompt and answer, by the name that clients use."""
FALLBACK = {
    "gpt-4o": "claude-sonnet-4",
    "claude-sonnet-4": "gpt-4o",
    "qwen3-32b": "llama-3.3-70b",
    "llama-3.3-70b": "gemini-2.5-flash",
}
CACHED = {"gpt-4o": 0.12, "gemini-2.5-flash": 0.2}
"""The share of requests that the gateway answers from its cache."""


PORTS = (
    *("litellm", "frontend", "worker-0", "worker-1", "worker-2", "etcd", "nats-monitor", "nats", "redis"),
    *("vllm-a", "vllm-b", "llamacpp", "dcgm", "search", "chat-ui"),
)
"""What answers, each on a port of its own."""


class Stack:
    """All that is simulated. Its parts have their ports before they begin, so that they can tell each other."""

    def __init__(self, world: World, ports: Mapping[str, int], key: str) -> None:
        self.world = world
        self._ports = ports
        self._key = key

        self.etcd = Etcd(world)
        prefill = [self._worker("prefill", "worker-0", slots=4, each=0.01, kv=16_000)]
        decode = [self._worker("backend", f"worker-{number}", slots=12, each=0.024, kv=20_000) for number in (1, 2)]
        self.frontend = Frontend(world, "llama-3.3-70b", prefill, decode, context=131072)

        def qwen(*, draft: bool) -> Engine:
            return Engine(world, "qwen3-32b", Book(), slots=10, prefill=9000.0, each=0.02, kv=18_000, draft=draft)

        self.vllm_a = Vllm(world, qwen(draft=True), adapters=("qwen3-sql", "qwen3-support"))
        self.vllm_b = Vllm(world, qwen(draft=False), trouble="engine")

        def local(name: str, each: float) -> Engine:
            return Engine(world, name, Book(), slots=4, prefill=2500.0, each=each, kv=65_536)

        gemma, phi, coder = local("gemma-3-12b", 0.02), local("phi-4-mini", 0.01), local("qwen3-coder-30b", 0.02)
        self.router = LlamaRouter(world, [Model(gemma, stays=False), Model(phi, stays=False), Model(coder, stays=True)])

        self.gateway = Gateway(world, self._deployments(), DEMAND, FALLBACK, CACHED, key)
        self.nats = Nats(world, self.frontend)
        self.redis = Redis(world, self.gateway)
        self.gpus = Gpus(
            world,
            [
                Gpu(prefill[0].engine, 72_000.0),
                Gpu(decode[0].engine, 74_000.0),
                Gpu(decode[1].engine, 74_000.0),
                Gpu(decode[1].engine, 74_000.0),
                Gpu(self.vllm_a.engine, 71_000.0),
                Gpu(self.vllm_b.engine, 71_000.0, trouble="gpu"),
                Gpu(gemma, 24_000.0),
                Gpu(coder, 31_000.0),
            ],
        )
        self.services = {"search": Service(world, "service"), "chat-ui": Service(world)}

    def _worker(self, component: str, port: str, *, slots: int, each: float, kv: int) -> Worker:
        engine = Engine(
            self.world,
            "llama-3.3-70b",
            Book(),
            slots=slots,
            prefill=14_000.0,
            each=each,
            kv=kv,
            prefix=component == "prefill",
        )
        return Worker(self.world, component, engine, self.etcd, self._ports[port])

    def _deployments(self) -> list[Deployment]:
        world = self.world
        openai = Provider(world, first=0.45, each=0.011)
        azure = Provider(world, first=0.38, each=0.012, trouble="provider")
        anthropic = Provider(world, first=0.7, each=0.014, trouble="limits", status=429)
        gemini = Provider(world, first=0.3, each=0.006)
        gpt, flash, sonnet = (2.5, 10.0, 1.25, None), (0.3, 2.5, 0.075, None), (3.0, 15.0, 0.3, 3.75)
        return [
            Deployment("openai-1", "gpt-4o", "openai", "gpt-4o", openai.submit, gpt, 600, budget=True),
            Deployment("azure-1", "gpt-4o", "azure", "gpt-4o-eu", azure.submit, gpt, 300),
            Deployment(
                "anthropic-1",
                "claude-sonnet-4",
                "anthropic",
                "claude-sonnet-4",
                anthropic.submit,
                sonnet,
                120,
                budget=True,
            ),
            Deployment("vertex-1", "gemini-2.5-flash", "vertex_ai", "gemini-2.5-flash", gemini.submit, flash),
            Deployment("dynamo-1", "llama-3.3-70b", "openai_like", "llama-3.3-70b", self.frontend.submit),
            Deployment("vllm-a", "qwen3-32b", "hosted_vllm", "qwen3-32b", self.vllm_a.engine.submit),
            Deployment("vllm-b", "qwen3-32b", "hosted_vllm", "qwen3-32b", self.vllm_b.engine.submit),
            Deployment("llama-1", "gemma-3-12b", "llamafile", "gemma-3-12b", self.router.submit),
            Deployment("llama-2", "phi-4-mini", "llamafile", "phi-4-mini", self.router.submit),
        ]

    # -- ports ---------------------------------------------------------------------------------------------------

    def speakers(self) -> dict[str, Speaker]:
        """What speaks a protocol of its own, by the name of its port."""
        return {"nats": self.nats.talk, "redis": self.redis.talk}

    def applications(self) -> dict[str, tuple[Made, There]]:
        """What answers over HTTP, by the name of its port: how it is made, and whether it is there now."""
        others: dict[str, HasPort] = {
            "litellm": self.gateway,
            "frontend": self.frontend,
            "etcd": self.etcd,
            "nats-monitor": self.nats,
            "vllm-a": self.vllm_a,
            "vllm-b": self.vllm_b,
            "llamacpp": self.router,
            "dcgm": self.gpus,
            **self.services,
        }
        workers = {f"worker-{number}": worker for number, worker in enumerate(self.frontend.workers)}
        return {
            **{name: (part.application, lambda: True) for name, part in others.items()},
            **{name: (worker.application, worker.is_alive) for name, worker in workers.items()},
        }

    def configuration(self) -> Config:
        """What reads all of it: nothing but what anyone could write into a file."""
        kinds = configured_kinds()
        at = {name: f"http://127.0.0.1:{port}" for name, port in self._ports.items()}
        written: list[dict[str, Any]] = [
            {"source": "litellm", "name": "litellm", "url": at["litellm"], "api_key": self._key},
            {
                "source": "dynamo",
                "name": "dynamo",
                "etcd": (at["etcd"],),
                "frontends": (at["frontend"],),
                "nats": at["nats-monitor"],
            },
            {"source": "etcd", "name": "etcd", "url": at["etcd"]},
            {"source": "nats", "name": "nats", "url": at["nats-monitor"], "server": at["nats"].replace("http", "nats")},
            {"source": "redis", "name": "redis", "server": at["redis"].replace("http", "redis")},
            {"source": "vllm", "name": "vllm-a", "url": at["vllm-a"]},
            {"source": "vllm", "name": "vllm-b", "url": at["vllm-b"]},
            {"source": "llamacpp", "name": "llamacpp", "url": at["llamacpp"]},
            {"source": "dcgm", "name": "gpus", "url": at["dcgm"]},
            *({"source": "http", "name": name, "url": f"{at[name]}/health"} for name in self.services),
            {"source": "host", "name": "this-machine"},
        ]
        targets = [kinds[target["source"]](**target) for target in written]
        return Config(targets=tuple(part for target in targets for part in target.parts()))


@asynccontextmanager
async def running(seed: int, speed: float) -> AsyncIterator[Stack]:
    """The stack, answering on free ports of this machine for as long as the context lasts."""
    sockets = {name: socket.create_server(("127.0.0.1", 0)) for name in PORTS}
    numbers = {name: one.getsockname()[1] for name, one in sockets.items()}
    stack = Stack(World(seed, speed, time.time()), numbers, f"sk-{secrets.token_hex(8)}")
    async with AsyncExitStack() as leaving:
        for name, talk in stack.speakers().items():
            server = await asyncio.start_server(talk, sock=sockets[name])
            leaving.callback(server.close)
        ports = [Port(made, there, sockets[name]) for name, (made, there) in stack.applications().items()]
        for port in ports:
            leaving.push_async_callback(port.close)
            await port.follow()
        ticking = asyncio.create_task(_tick(stack.world, ports))
        leaving.callback(ticking.cancel)
        yield stack


async def _tick(world: World, ports: Sequence[Port]) -> None:
    """Let the time pass, and open and close ports as it goes."""
    began = time.monotonic()
    while True:
        world.advance(min(time.monotonic() - began, world.now + CATCH_UP))
        for port in ports:
            await port.follow()
        await asyncio.sleep(TICK)
