"""A Dynamo deployment: a frontend, workers for prefill and decode that register in etcd and listen on NATS."""

from __future__ import annotations

from aiohttp import web

from exporter.demo.book import Book
from exporter.demo.engine import Call, Engine
from exporter.demo.etcd import Etcd
from exporter.demo.world import World

NAMESPACE, ENDPOINT = "dynamo", "generate"
FIRST = (0.0022, 0.0047, 0.01, 0.022, 0.047, 0.1, 0.22, 0.47, 1.0, 2.2, 4.7, 10.0, 22.0, 48.0, 100.0)
TOKEN = (0.0018, 0.0033, 0.0059, 0.011, 0.02, 0.035, 0.064, 0.12, 0.21, 0.38, 0.69, 1.2, 2.3)
WHOLE = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 130.0, 260.0, 510.0)
LENGTH = (100.0, 210.0, 430.0, 870.0, 1800.0, 3600.0, 7400.0, 15000.0, 31000.0)
WORK = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0)
SHARE = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""Dynamo's boundaries."""
LEASE = 12.0
"""Seconds for which etcd remembers a worker that was killed."""
STARTING = 10.0
"""Seconds in which a worker that begins loads its model."""
BLOCK = 16
"""Tokens of a block of the KV cache."""


class Worker:
    """A worker with an engine. `port` is its system port."""

    def __init__(self, world: World, component: str, engine: Engine, etcd: Etcd, port: int) -> None:
        self.component, self.engine = component, engine
        self.alive, self.starting = False, False
        self.id = 0
        self.messages = {"in": 0, "out": 0, "in_bytes": 0, "out_bytes": 0}  # over NATS
        self._world, self._etcd, self._port = world, etcd, port
        self.start()

    def start(self) -> None:
        """Be a new process: with a lease, counters and names of its own."""
        self.alive = True
        self.id = self._etcd.grant()
        book = Book()
        self.engine.begin(book)
        self.engine.stands = self.starting = False
        self.messages = dict.fromkeys(self.messages, 0)
        for name in ("requests", "errors", "cancellation", "request_bytes", "response_bytes"):
            book.add(f"dynamo_component_{name}_total", 0, **self._labels)
        about = {"namespace": NAMESPACE, "component": self.component, "endpoint": ENDPOINT, "instance_id": self.id}
        self._etcd.put(
            f"v1/instances/{self._key}", {"type": "Endpoint", **about, "transport": {"nats_tcp": self.subject}}, self.id
        )
        metadata = f"http://127.0.0.1:{self._port}/v1/metadata/{NAMESPACE}/{self.component}/{ENDPOINT}"
        card = {
            "display_name": self.engine.model,
            "model_info": {"hf_config_json": {"path": f"{metadata}/config.json"}},
        }
        self._etcd.put(f"v1/mdc/{self._key}", {"type": "Model", **about, "card_json": card}, self.id)

    def restart(self) -> None:
        """Begin again, and take a while until the model is loaded."""
        self.start()
        self.starting = True
        self._world.later(STARTING, self._loaded)

    def _loaded(self) -> None:
        self.starting = False

    def die(self) -> None:
        """Be killed: what was in work is lost, etcd remembers it until its lease has run out."""
        self.alive = False
        self.engine.kill()
        lease = self.id
        self._world.later(LEASE, lambda: self._etcd.revoke(lease))

    def is_alive(self) -> bool:
        return self.alive

    @property
    def subject(self) -> str:
        return f"{NAMESPACE}_{self.component}.{ENDPOINT}-{self.id:x}"

    @property
    def _key(self) -> str:
        return f"{NAMESPACE}/{self.component}/{ENDPOINT}/{self.id:x}"

    @property
    def _labels(self) -> dict[str, str]:
        return {
            "dynamo_namespace": NAMESPACE,
            "dynamo_component": self.component,
            "dynamo_endpoint": ENDPOINT,
            "worker_id": f"{self.id:x}",
        }

    def submit(self, call: Call) -> None:
        """Take a request from the frontend, by NATS."""
        done, life = call.done, self.id

        def ended(call: Call) -> None:
            if life == self.id and self.alive:
                self._ended(call)
            done(call)

        call.done = ended
        self.messages["in"] += 1
        self.messages["in_bytes"] += call.prompt * 5
        self.engine.submit(call)

    def _ended(self, call: Call) -> None:
        book, labels = self.engine.book, self._labels
        book.add("dynamo_component_requests_total", **labels)
        book.add("dynamo_component_request_bytes_total", call.prompt * 5, **labels)
        book.add("dynamo_component_response_bytes_total", call.output * 40, **labels)
        if call.given_up:
            book.add("dynamo_component_cancellation_total", **labels)
            return
        took = self._world.now - call.arrived
        book.observe("dynamo_component_request_duration_seconds", WORK, took, **labels)
        self.messages["out"] += call.output
        self.messages["out_bytes"] += call.output * 40

    def application(self) -> web.Application:
        """Its system port."""
        app = web.Application()
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/health", self._health)
        return app

    async def _metrics(self, _: web.Request) -> web.Response:
        book = self.engine.book
        running = len(self.engine.running) + len(self.engine.waiting)
        book.set("dynamo_component_inflight_requests", float(running), **self._labels)
        book.set("dynamo_component_uptime_seconds", self._world.now, worker_id=f"{self.id:x}")
        return web.Response(text=book.text())

    async def _health(self, _: web.Request) -> web.Response:
        state = "notready" if self.starting else "ready"
        return web.json_response(
            {"status": state, "endpoints": {ENDPOINT: state}}, status=503 if self.starting else 200
        )


class Frontend:
    """Sends each request to a worker for its prefill, then to one for the rest."""

    def __init__(self, world: World, model: str, prefill: list[Worker], decode: list[Worker], context: int) -> None:
        self.book = Book()
        self.model = model
        self._world = world
        self._prefill, self._decode = prefill, decode
        self._running = 0
        self._tokens = 0
        self._labels = {"model": model}
        self._lost = False
        for status, error in (
            ("success", ""),
            ("error", "backend_error"),
            ("error", "cancelled"),
            ("error", "unavailable"),
        ):
            self._count(status, error, 0)
        for name, value in (
            ("context_length", context),
            ("kv_cache_block_size", BLOCK),
            ("max_num_seqs", sum(worker.engine.slots for worker in decode)),
            ("total_kv_blocks", sum(worker.engine.kv for worker in decode) // BLOCK),
        ):
            self.book.set(f"dynamo_frontend_model_{name}", float(value), **self._labels)
        self.book.add("dynamo_frontend_disconnected_clients", 0)
        world.steppers.append(self._step)

    def _count(self, status: str, error: str, amount: float = 1.0) -> None:
        labels = {"endpoint": "chat_completions", "request_type": "stream", "status": status, "error_type": error}
        self.book.add("dynamo_frontend_requests_total", amount, **labels, **self._labels)

    @property
    def workers(self) -> list[Worker]:
        return [*self._prefill, *self._decode]

    def submit(self, call: Call) -> None:
        """Take a request from the gateway."""
        self._running += 1
        done, book = call.done, self.book

        def ended(call: Call) -> None:
            if call.given_up:
                self._gone()
            done(call)

        call.done = ended
        book.observe("dynamo_frontend_input_sequence_tokens", LENGTH, float(call.prompt), **self._labels)
        worker = self._idlest(self._prefill)
        if worker is None:
            self._end(call, None, 503)
            return
        labels = {"dynamo_namespace": NAMESPACE, "dynamo_component": worker.component}
        book.observe("dynamo_component_router_kv_hit_rate", SHARE, call.cached / call.prompt, **labels)
        part = Call(call.model, call.prompt, call.cached, 1, self._world.now, lambda part: self._decoding(call, part))
        self._follow(call, part)
        worker.submit(part)

    def _follow(self, call: Call, part: Call) -> None:
        """Once a client has gone, its request is no longer worked on."""
        done = call.done

        def heard(call: Call) -> None:
            if call.given_up:
                part.give_up()
            done(call)

        call.done = heard

    def _gone(self) -> None:
        """A client waits no longer."""
        self._running -= 1
        self._count("error", "cancelled")
        self.book.add("dynamo_frontend_disconnected_clients")

    @staticmethod
    def _idlest(workers: list[Worker]) -> Worker | None:
        def work(worker: Worker) -> tuple[int, int]:
            return len(worker.engine.running) + len(worker.engine.waiting), worker.messages["in"]

        return min((one for one in workers if one.alive and not one.starting), key=work, default=None)

    def _decoding(self, call: Call, part: Call) -> None:
        """The prompt is understood, or its worker was lost."""
        worker = self._idlest(self._decode)
        if call.given_up or part.failure or worker is None:
            if not call.given_up:
                self._end(call, None, part.failure or 503)
            return
        rest = Call(
            call.model,
            call.prompt,
            call.prompt,
            call.output,
            self._world.now,
            lambda rest: self._end(call, rest, rest.failure),
        )
        self._follow(call, rest)
        worker.submit(rest)

    def _end(self, call: Call, rest: Call | None, failure: int) -> None:
        if call.given_up:
            return
        self._running -= 1
        book, labels = self.book, self._labels
        call.end, call.failure = self._world.now, failure
        if failure:
            self._count("error", "unavailable" if failure == 503 else "backend_error")
        else:
            assert rest is not None  # noqa: S101 - it ended well
            assert rest.first is not None  # noqa: S101 - the same
            assert rest.end is not None  # noqa: S101 - the same
            call.first, call.end = rest.first, rest.end
            each = (rest.end - rest.first) / max(1, call.output)
            self._count("success", "")
            for name, bounds, value in (
                ("request_duration_seconds", WHOLE, call.end - call.arrived),
                ("time_to_first_token_seconds", FIRST, call.first - call.arrived),
                ("output_sequence_tokens", LENGTH, float(call.output)),
                ("cached_tokens", LENGTH, float(call.cached)),
            ):
                book.observe(f"dynamo_frontend_{name}", bounds, value, **labels)
            book.observe("dynamo_frontend_inter_token_latency_seconds", TOKEN, each, max(1, call.output - 1), **labels)
        call.done(call)

    def _step(self, _: float) -> None:
        lost = self._world.troubled("worker")
        if lost and not self._lost:
            self._decode[-1].die()
        elif self._lost and not lost:
            self._decode[-1].restart()
        self._lost = lost
        book, labels = self.book, self._labels
        book.set("dynamo_frontend_active_requests", float(self._running), **labels)
        book.set("dynamo_frontend_inflight_requests", float(self._running), **labels)
        book.set(
            "dynamo_frontend_queued_requests", float(sum(len(one.engine.waiting) for one in self.workers)), **labels
        )
        book.set("dynamo_frontend_model_ready", float(any(one.alive for one in self._decode)), **labels)
        tokens = sum(one.engine.tokens for one in self._decode)
        book.add("dynamo_frontend_output_tokens_total", tokens - self._tokens, **labels)
        self._tokens = tokens

    def application(self) -> web.Application:
        """Its HTTP port."""
        app = web.Application()
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/health", self._health)
        app.router.add_get("/v1/models", self._models)
        return app

    async def _metrics(self, _: web.Request) -> web.Response:
        text = self.book.text()
        routed = Book()
        for worker in self.workers:
            if worker.alive:
                labels = {"worker_id": str(worker.id), "dp_rank": "0", "worker_type": worker.component}
                tokens = sum(slot.call.prompt for slot in worker.engine.running)
                routed.set("dynamo_frontend_worker_active_decode_blocks", float(tokens // BLOCK), **labels)
                waiting = sum(call.prompt for call in worker.engine.waiting)
                routed.set("dynamo_frontend_worker_active_prefill_tokens", float(waiting), **labels)
        return web.Response(text=text + routed.text())

    async def _health(self, _: web.Request) -> web.Response:
        alive = [worker for worker in self.workers if worker.alive]
        endpoints = sorted({f"dyn://{NAMESPACE}.{worker.component}.{ENDPOINT}" for worker in alive})
        instances = [{"component": worker.component, "instance_id": worker.id} for worker in alive]
        return web.json_response({"status": "healthy", "endpoints": endpoints, "instances": instances})

    async def _models(self, _: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": self.model, "object": "model"}]})
