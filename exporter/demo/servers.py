"""Model servers that the gateway asks directly: vLLM; a llama.cpp router and Ollama, which load what is asked for."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from aiohttp import web

from exporter.demo.book import Book
from exporter.demo.engine import Call, Engine
from exporter.demo.ports import always
from exporter.demo.world import World

LOADING = 6.0
"""Seconds in which a router loads a model."""
SLEEP, UNLOAD = 60.0, 180.0
"""Seconds without a request after which a model sleeps, and after which it is unloaded."""
KEEP = 60.0
"""Seconds for which Ollama keeps a model after its last request (`OLLAMA_KEEP_ALIVE`)."""
FOR_EVER = datetime(2319, 1, 1, tzinfo=UTC)
"""When a model expires that is kept for ever, as Ollama writes it."""


class Vllm:
    """A vLLM server, with LoRA `adapters`. With a `trouble` it stands still while that lasts."""

    def __init__(self, world: World, engine: Engine, *, trouble: str = "", adapters: tuple[str, ...] = ()) -> None:
        self.engine = engine
        self._adapters = adapters
        self._world, self._trouble = world, trouble
        engine.book.set("process_start_time_seconds", world.began - 7200.0)
        engine.book.set("vllm:engine_sleep_state", 1.0, model_name=engine.model, engine="0", sleep_state="awake")
        world.steppers.append(self._step)

    def _step(self, _: float) -> None:
        self.engine.stands = bool(self._trouble) and self._world.troubled(self._trouble)

    def application(self) -> web.Application:
        """Its port."""
        app = web.Application()
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/version", always({"version": "0.32.0"}))
        base = {"id": self.engine.model, "object": "model", "max_model_len": 32768}
        adapters = [{"id": name, "object": "model", "parent": self.engine.model} for name in self._adapters]
        app.router.add_get("/v1/models", always({"data": [base, *adapters]}))
        return app

    async def _metrics(self, _: web.Request) -> web.Response:
        if self._adapters:
            running = ",".join(self._adapters[: len(self.engine.running)])
            labels = {"max_lora": "4", "running_lora_adapters": running, "waiting_lora_adapters": ""}
            self.engine.book.set("vllm:lora_requests_info", self._world.wall, **labels)
        return web.Response(text=self.engine.book.text())


@dataclass(slots=True, eq=False)
class Model:
    """One of a router's models. `stays` is never put to sleep nor unloaded."""

    engine: Engine
    stays: bool
    state: str = "unloaded"
    port: int = 0  # of its process: another one each time
    asked: float = 0.0
    waiting: list[Call] = field(default_factory=list)


class LlamaRouter:
    """A llama-server that has several models."""

    def __init__(self, world: World, models: list[Model]) -> None:
        self._world = world
        self._models = {model.engine.model: model for model in models}
        self._listeners: set[asyncio.Queue[bytes]] = set()
        self._ports = 40000
        for model in models:
            if model.stays:
                self._loaded(model)
        world.steppers.append(self._step)

    def submit(self, call: Call) -> None:
        """Take a request; a model that is not there is loaded first."""
        model = self._models[call.model]
        model.asked = self._world.now
        if model.state in ("loaded", "sleeping"):
            self._become(model, "loaded")
            model.engine.submit(call)
            return
        model.waiting.append(call)
        if model.state != "loading":
            self._become(model, "loading")
            self._world.later(LOADING, lambda: self._loaded(model))

    def _loaded(self, model: Model) -> None:
        self._ports += 1
        model.port, model.asked = self._ports, self._world.now
        model.engine.begin(Book())
        self._become(model, "loaded")
        for call in model.waiting:
            model.engine.submit(call)
        model.waiting.clear()

    def _step(self, _: float) -> None:
        for model in self._models.values():
            idle = 0.0 if model.engine.running or model.engine.waiting else self._world.now - model.asked
            if model.stays or not idle:
                continue
            if model.state == "loaded" and idle > SLEEP:
                self._become(model, "sleeping")
            elif model.state == "sleeping" and idle > UNLOAD:
                self._become(model, "unloaded")

    def _become(self, model: Model, state: str) -> None:
        if model.state == state:
            return
        model.state = state
        data: dict[str, Any] = {"status": state} | ({"exit_code": 0} if state == "unloaded" else {})
        event = {"model": model.engine.model, "event": "status_change", "data": data}
        for listener in self._listeners:
            listener.put_nowait(b"data: " + json.dumps(event).encode() + b"\n\n")

    # -- its port ------------------------------------------------------------------------------------------------

    def application(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/health", always({"status": "ok"}))
        app.router.add_get("/props", self._props)
        app.router.add_get("/models", self._list)
        app.router.add_get("/v1/models", self._list)
        app.router.add_get("/models/sse", self._events)
        app.router.add_get("/metrics", self._metrics)
        return app

    async def _props(self, request: web.Request) -> web.Response:
        about = {"build_info": "b11549-demo", "default_generation_settings": {"n_ctx": 0}}
        model = self._models.get(request.query.get("model", ""))
        if model is None:
            return web.json_response({"role": "router", "model_alias": "llama-server", **about})
        return web.json_response({"total_slots": model.engine.slots, **about})

    async def _list(self, _: web.Request) -> web.Response:
        entries = [
            {
                "id": name,
                "object": "model",
                "owned_by": "llamacpp",
                "status": {
                    "value": model.state,
                    "args": ["llama-server", "--port", str(model.port)]
                    + ([] if model.stays else ["--sleep-idle-seconds", str(int(SLEEP))]),
                },
                "meta": {"n_ctx": 16384, "ftype": "Q4_K - Medium"},
            }
            for name, model in self._models.items()
        ]
        return web.json_response({"data": entries, "object": "list"})

    async def _events(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        queue: asyncio.Queue[bytes] = asyncio.Queue()
        self._listeners.add(queue)
        try:
            while True:
                await response.write(await queue.get())
        finally:
            self._listeners.discard(queue)

    async def _metrics(self, request: web.Request) -> web.Response:
        model = self._models.get(request.query.get("model", ""))
        if model is None or model.state != "loaded":
            return web.json_response({"error": {"message": "model is not loaded"}}, status=400)
        engine, book = model.engine, Book()
        for name, value in (
            ("prompt_tokens_total", engine.spent["prompt"]),
            ("prompt_tokens_cached_total", engine.spent["cached"]),
            ("tokens_predicted_total", engine.spent["output"]),
            ("tokens_predicted_seconds_total", engine.spent["decode_seconds"]),
            ("n_decode_total", engine.spent["iterations"]),
        ):
            book.add(f"llamacpp:{name}", value)
        book.set("llamacpp:requests_processing", float(len(engine.running)))
        book.set("llamacpp:requests_deferred", float(len(engine.waiting)))
        return web.Response(text=book.text())


@dataclass(slots=True, eq=False)
class Stored:
    """One of Ollama's models, with its GiB in memory. One that `stays` was loaded with `keep_alive: -1`."""

    engine: Engine
    size: float
    family: str
    parameters: str
    stays: bool = False
    loaded: bool = False
    asked: float = 0.0
    waiting: list[Call] = field(default_factory=list)

    @property
    def told(self) -> dict[str, Any]:
        details = {"family": self.family, "parameter_size": self.parameters, "quantization_level": "Q4_K_M"}
        return {"name": self.engine.model, "model": self.engine.model, "details": details}


class Ollama:
    """A server that forgets models that nobody asks for."""

    def __init__(self, world: World, models: list[Stored]) -> None:
        self._world = world
        self._models = {model.engine.model: model for model in models}
        for model in models:
            model.loaded = model.stays
        world.steppers.append(self._step)

    @property
    def held(self) -> float:
        """MiB of the models in memory, and of its own."""
        return 420.0 + sum(model.size * 1024.0 for model in self._models.values() if model.loaded)

    def submit(self, call: Call) -> None:
        """Take a request; a model that is not there is loaded first."""
        model = self._models[call.model]
        model.asked = self._world.now
        if model.loaded:
            model.engine.submit(call)
            return
        model.waiting.append(call)
        if len(model.waiting) == 1:
            self._world.later(LOADING, lambda: self._load(model))

    def _load(self, model: Stored) -> None:
        model.loaded, model.asked = True, self._world.now
        for call in model.waiting:
            model.engine.submit(call)
        model.waiting.clear()

    def _step(self, _: float) -> None:
        for model in self._models.values():
            if model.engine.running or model.engine.waiting:
                model.asked = self._world.now
            elif model.loaded and not model.stays and self._world.now - model.asked > KEEP:
                model.loaded = False

    def application(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/api/version", always({"version": "0.13.5"}))
        app.router.add_get("/api/tags", always({"models": [model.told for model in self._models.values()]}))
        app.router.add_get("/api/ps", self._loaded)
        return app

    async def _loaded(self, _: web.Request) -> web.Response:
        said = []
        for model in self._models.values():
            if model.loaded:
                until = FOR_EVER if model.stays else datetime.fromtimestamp(self._world.began + model.asked + KEEP, UTC)
                size = int(model.size * 2**30)
                about = {"size": size, "size_vram": size, "expires_at": until.isoformat(), "context_length": 8192}
                said.append({**model.told, **about})
        return web.json_response({"models": said})
