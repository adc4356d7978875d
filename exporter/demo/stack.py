"""The simulated stack, put together: who serves what, on which ports, and the configuration that reads all of it."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from exporter.config.load import configured_kinds
from exporter.config.model import Config
from exporter.demo import certificate
from exporter.demo.book import Book
from exporter.demo.brokers import Nats, Redis
from exporter.demo.dbus import Manager
from exporter.demo.dynamo import Frontend, Worker
from exporter.demo.engine import Engine
from exporter.demo.etcd import Etcd
from exporter.demo.gateway import Deployment, Gateway
from exporter.demo.machine import Gpu, Gpus, Held, Service
from exporter.demo.ports import HasPort, Made, Port, Process, Speaker, There
from exporter.demo.providers import Provider
from exporter.demo.servers import LlamaRouter, Model, Ollama, Stored, Vllm
from exporter.demo.units import Unit, Units
from exporter.demo.world import MORNING, World

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
    "llama-3.2-3b": (0.03, 300.0, 100.0),
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
    *("vllm-a", "vllm-b", "llamacpp", "ollama", "search", "chat-ui", "reranker"),
)
"""What answers, each on a port of its own."""
PROCESSES = {
    "worker-0": "dynamo-prefill",
    "worker-1": "dynamo-decode-1",
    "worker-2": "dynamo-decode-2",
    "vllm-a": "vllm-a",
    "vllm-b": "vllm-b",
    "llamacpp": "llama-server",
    "ollama": "ollama",
    "reranker": "reranker",
}
"""What uses a GPU, by its port: it has a process of its own, with 15 letters at most, as Linux has it."""
BUS, JOURNAL, CERTIFICATE = "bus", "journal", "certificate.pem"
"""Files: where systemd's bus listens, the pipe from which the journal comes, and what `chat-ui` shows."""
PRINTS = ("/bin/sh", "-c", 'exec cat "$0"')
"""Prints what comes from a pipe, in place of journalctl."""


class Stack:
    """All that is simulated. Its parts have their ports before they begin, so that they can tell each other."""

    def __init__(self, world: World, ports: Mapping[str, int], key: str, folder: Path) -> None:
        self.world = world
        self._ports = ports
        self._key = key
        self._folder = folder

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
        models = [Model(gemma, stays=False), Model(phi, stays=False), Model(coder, stays=True)]
        self.router = LlamaRouter(world, models)
        llama, asleep = local("llama3.2:3b", 0.012), local("qwen2.5-coder:7b", 0.02)
        stored = [Stored(llama, 3.4, "llama", "3.2B"), Stored(asleep, 6.1, "qwen2", "7.6B", stays=True)]
        self.ollama = Ollama(world, stored)

        self.gateway = Gateway(world, self._deployments(), DEMAND, FALLBACK, CACHED, key)
        self.nats = Nats(world, self.frontend)
        self.redis = Redis(world, self.gateway)
        self.services = {"search": Service(world, "service"), "chat-ui": Service(world), "reranker": Service(world)}
        self.units = Units(world, self._units())
        self.processes = {port: Process(name) for port, name in PROCESSES.items()}

        def gpu(port: str, held: Held, *engines: Engine, **more: Any) -> Gpu:
            return Gpu(engines, {PROCESSES[port]: held}, **more)

        small = {
            PROCESSES["llamacpp"]: lambda: 24_000.0 if models[0].state == "loaded" else 520.0,
            PROCESSES["ollama"]: lambda: self.ollama.held,
            PROCESSES["reranker"]: lambda: 2_300.0,
        }
        self.gpus = Gpus(
            world,
            [
                gpu("worker-0", lambda: 72_000.0, prefill[0].engine),
                gpu("worker-1", lambda: 74_000.0, decode[0].engine),
                gpu("worker-2", lambda: 74_000.0, decode[1].engine, spread=True),
                gpu("worker-2", lambda: 74_000.0, decode[1].engine, spread=True),
                gpu("vllm-a", lambda: 71_000.0, self.vllm_a.engine),
                gpu("vllm-b", lambda: 71_000.0, self.vllm_b.engine, trouble="gpu"),
                Gpu((gemma, llama), small),
                gpu("llamacpp", lambda: 31_000.0, coder),
            ],
            lambda: {process.name: process.pid for process in self.processes.values() if process.pid is not None},
        )
        self.units.broke.append(lambda unit: self.gpus.fail(unit.name.removesuffix(".service")))

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
        anthropic = Provider(world, first=0.7, each=0.014, trouble="limits", status=429, refused=1.0)
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
            Deployment("ollama-1", "llama-3.2-3b", "ollama_chat", "llama3.2:3b", self.ollama.submit),
        ]

    def _units(self) -> list[Unit]:
        """What systemd starts, each with its part of this machine's CPUs and memory, which are those of the host."""
        cpus, memory = psutil.cpu_count() or 1, psutil.virtual_memory().total

        def unit(name: str, held: float, tasks: int, work: Callable[[], float], **more: Any) -> Unit:
            return Unit(f"{name}.service", held=held * memory, tasks=tasks, work=lambda: work() * cpus, **more)

        def serves(name: str, engine: Engine, **more: Any) -> Unit:
            return unit(name, 0.07, 90, lambda: 0.06 * engine.busy, **more)

        world, workers = self.world, enumerate(self.frontend.workers)
        return [
            unit("litellm", 0.03, 26, lambda: 0.08 * world.load, talks=1.5, complains="provider"),
            unit("dynamo-frontend", 0.01, 34, lambda: 0.03 * world.load, talks=0.6, complains="worker"),
            *(serves(f"dynamo-worker@{each}", worker.engine, there=worker.is_alive) for each, worker in workers),
            serves("vllm@a", self.vllm_a.engine),
            serves("vllm@b", self.vllm_b.engine, complains="engine"),
            unit("llama-server", 0.04, 20, lambda: 0.01),
            unit("ollama", 0.02, 18, lambda: 0.005),
            unit("reranker", 0.02, 12, lambda: 0.01 * world.load, trouble="unit"),
        ]

    # -- ports ---------------------------------------------------------------------------------------------------

    def speakers(self) -> dict[str, Speaker]:
        """What speaks a protocol of its own, by the name of its port."""
        return {"nats": self.nats.talk, "redis": self.redis.talk}

    def manager(self) -> Speaker:
        """What speaks D-Bus."""
        return Manager(self.world, self.units).talk

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
            "ollama": self.ollama,
            **self.services,
        }
        workers = {f"worker-{number}": worker for number, worker in enumerate(self.frontend.workers)}
        return {
            **{name: (part.application, lambda: True) for name, part in others.items()},
            **{name: (worker.application, worker.is_alive) for name, worker in workers.items()},
            "reranker": (self.services["reranker"].application, self.units.all["reranker.service"].is_active),
        }

    def configuration(self) -> Config:
        """What reads all of it: nothing but what anyone could write into a file."""
        kinds = configured_kinds()
        at = {name: f"http://127.0.0.1:{port}" for name, port in self._ports.items()}
        trusts: dict[str, dict[str, Any]] = {}
        if (self._folder / CERTIFICATE).exists():
            at["chat-ui"] = at["chat-ui"].replace("http", "https")
            trusts["chat-ui"] = {"tls": {"ca_file": str(self._folder / CERTIFICATE)}}
        units = ("litellm", "llama-server", "ollama", "reranker", "dynamo-frontend", "dynamo-worker@*", "vllm@*")
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
            {"source": "ollama", "name": "ollama", "url": at["ollama"]},
            {"source": "gpu", "name": "gpus", "sysfs": str(self._folder)},
            {"source": "systemd", "name": "units", "bus": f"unix:path={self._folder / BUS}", "units": units},
            {"source": "journal", "name": "journal", "command": (*PRINTS, str(self._folder / JOURNAL)), "units": units},
            *(
                {"source": "http", "name": name, "url": f"{at[name]}/health", **trusts.get(name, {})}
                for name in self.services
            ),
            {"source": "host", "name": "this-machine", "workloads": ("reranker",)},
        ]
        targets = [kinds[target["source"]](**target) for target in written]
        return Config(targets=tuple(part for target in targets for part in target.parts()))


@asynccontextmanager
async def running(seed: int, speed: float, hour: float = MORNING) -> AsyncIterator[Stack]:
    """The stack, answering on free ports of this machine for as long as the context lasts."""
    sockets = {name: socket.create_server(("127.0.0.1", 0)) for name in PORTS}
    numbers = {name: one.getsockname()[1] for name, one in sockets.items()}
    async with AsyncExitStack() as leaving:
        folder = Path(leaving.enter_context(tempfile.TemporaryDirectory(prefix="llm-exporter-demo-")))
        stack = Stack(World(seed, speed, time.time(), hour), numbers, f"sk-{secrets.token_hex(8)}", folder)
        for name, talk in stack.speakers().items():
            server = await asyncio.start_server(talk, sock=sockets[name])
            leaving.callback(server.close)
        leaving.callback((await asyncio.start_unix_server(stack.manager(), folder / BUS)).close)
        leaving.enter_context(_journal(folder, stack.units))
        secure = certificate.served(folder / CERTIFICATE)
        ports = [
            Port(made, there, sockets[name], stack.processes.get(name), secure if name == "chat-ui" else None)
            for name, (made, there) in stack.applications().items()
        ]
        for port in ports:
            leaving.push_async_callback(port.close)
            await port.follow()
        leaving.enter_context(_imports_from(folder))
        stack.gpus.place(folder)
        ticking = asyncio.create_task(_tick(stack, ports, folder))
        leaving.callback(ticking.cancel)
        yield stack


@contextmanager
def _journal(folder: Path, units: Units) -> Iterator[None]:
    """A pipe that has what is written to the journal; what nobody takes from it is lost."""
    os.mkfifo(folder / JOURNAL)
    pipe = os.open(folder / JOURNAL, os.O_RDWR | os.O_NONBLOCK)  # who only writes must wait for a reader

    def write(line: bytes) -> None:
        with suppress(BlockingIOError):
            os.write(pipe, line)

    units.written.append(write)
    try:
        yield
    finally:
        units.written.remove(write)
        os.close(pipe)


@contextmanager
def _imports_from(folder: Path) -> Iterator[None]:
    """Processes that begin meanwhile find modules in this folder first."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(folder), *([before] if before else [])])
    try:
        yield
    finally:
        del os.environ["PYTHONPATH"]
        os.environ |= {"PYTHONPATH": before} if before is not None else {}


async def _tick(stack: Stack, ports: Sequence[Port], folder: Path) -> None:
    """Let the time pass, open and close ports as it goes, and say how the GPUs are."""
    began = time.monotonic()
    while True:
        stack.world.advance(min(time.monotonic() - began, stack.world.now + CATCH_UP))
        for port in ports:
            await port.follow()
        stack.gpus.write(folder)
        await asyncio.sleep(TICK)
