"""llama.cpp's llama-server: one model, or a router over many.

A router loads, evicts and wakes models when it is asked for something of theirs, and so do reads that are not careful.
So it is asked for its list first, which does none of it, then for the metrics of those that are awake (`turns.py`).
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, ClassVar, Literal

from pydantic import Field, SecretStr

from exporter.catalogue import families
from exporter.config.secret import WithKey
from exporter.config.values import Duration
from exporter.core.errors import ReadError
from exporter.core.fetch import Upstream, refuse
from exporter.core.source import Context, Result
from exporter.core.types import Advice, Sample
from exporter.sources.llamacpp.listing import Listed, listed, served_as
from exporter.sources.llamacpp.models import Fact, Models, text, whole
from exporter.sources.llamacpp.turns import Mean, Turn

PORT = "8080"
HEALTH, PROPS, METRICS = "/health", "/props", "/metrics"
MODELS, LIST, EVENTS = "/models", "/v1/models", "/models/sse"
AT_ONCE = 4
"""Models of a router whose metrics are asked for at a time."""
SHARE = 0.7
"""What their metrics may take of the time for a read: a model that is at work answers when it has the time."""
READS = 3
"""Reads in a row that must be slow until a server is asked more rarely: a router that starts a process is slow."""
LISTEN_AGAIN = 5.0
"""Seconds after which a stream of events that broke is opened again."""

NO_METRICS = Advice("requests and tokens: llama-server exposes no metrics", "llama-server --metrics")
SLEEPS = Advice(
    "sleep: this server falls asleep when idle, and some builds of llama.cpp stay awake while their metrics are read",
    "sleep_after: 300s  # in this target's configuration: what llama-server's --sleep-idle-seconds says",
)


class Server(WithKey):
    """A llama-server: with one model, or a router."""

    source: Literal["llamacpp"] = "llamacpp"
    sleep_after: Duration | None = Field(
        default=None,
        description="Of a server with one model: its `--sleep-idle-seconds`, which it does not tell and a router does. "
        "While it is idle its metrics are then read seldom: some builds of llama.cpp stay awake while they are read.",
    )


class LlamaCpp:
    """Reads one llama-server."""

    kind: ClassVar[str] = "llamacpp"
    Config: ClassVar[type[Server]] = Server

    def __init__(self, config: Server, context: Context) -> None:
        self._config = config
        self._context = context
        self._models = Models(context.table, context.totals)
        self._single = Models(context.table, context.totals, ("loaded", "loading", "sleeping"))
        self._turns: dict[tuple[str, str], Turn] = {}  # by model and life
        self._name = ""  # of a single server's model, as it was last told
        self._mean = Mean()
        self._health: Sequence[Sample] = ()
        self._advice: tuple[Advice, ...] = ()
        self._version: str | None = None
        self._took = deque([0.0] * READS, maxlen=READS)  # seconds, of the last reads
        self._told = False  # something was read: what comes from now on is new
        self._routes = asyncio.Event()  # it is a router, and its list has been read
        self._heard: set[str] = set()  # models that events have told of since the list was asked for

    @staticmethod
    def at(url: str, environ: Mapping[str, str]) -> Server:
        keys = environ.get("LLAMA_API_KEY", "")
        if "," in keys:  # llama-server takes several
            return Server(url=url, api_key=SecretStr(keys.partition(",")[0].strip()))
        return Server(url=url, api_key_env="LLAMA_API_KEY" if keys else None)

    @staticmethod
    def candidates(environ: Mapping[str, str]) -> Sequence[Server]:
        """Where llama-server's own variables say that it listens, else on its port here."""
        host = environ.get("LLAMA_ARG_HOST", "")
        if host in ("", "0.0.0.0", "::") or host.endswith(".sock"):  # noqa: S104 - it listens there, not we
            host = "127.0.0.1"
        host = f"[{host}]" if ":" in host else host
        url = f"http://{host}:{environ.get('LLAMA_ARG_PORT') or PORT}"
        return [LlamaCpp.at(url, environ).model_copy(update={"name": "llamacpp"})]

    @staticmethod
    async def recognise(upstream: Upstream, _: object) -> bool:
        """By what it answers without a key: its list of models, or that it is loading."""
        try:
            status, said = await _asked(upstream, LIST)
            if _is_loading(status, said):
                return True
            entries = said.get("data") if isinstance(said, dict) else None
            if entries == []:  # a router without models
                _, said = await _asked(upstream, PROPS)
                return isinstance(said, dict) and said.get("role") == "router"
        except ReadError as error:
            if error.reason == "content":
                return False
            raise
        first = entries[0] if isinstance(entries, list) else None
        return isinstance(first, dict) and first.get("owned_by") == "llamacpp"

    # -- reading -------------------------------------------------------------------------------------------------

    async def read(self) -> Result:
        self._advice = ()
        upstream = self._context.upstream
        began = time.monotonic()
        if await self._is_loading():
            self._single.see(self._name, "loading")
            self._single.keep([self._name])
            loading = ReadError("status", f"{upstream.url} is loading its model, and tells nothing else meanwhile")
            return Result([*self._health, *self._single.samples()], (), self._version, loading)
        async with upstream.get(PROPS) as answer:
            refuse(answer)
            props = await answer.json()
        if not isinstance(props, dict):
            raise ReadError("content", f"{upstream.at(PROPS)} answers with something that llama-server does not say")
        self._version = text(props.get("build_info"))[:64] or None
        for turn in self._turns.values():
            turn.now = {}
        failure = None
        if props.get("role") == "router":
            entries = await self._list()
            # waiting for a model that is at work costs the server nothing: what comes now is not counted
            self._took.append(time.monotonic() - began)
            failure = await self._read_models(entries)
        else:
            self._took.append(time.monotonic() - began)
            await self._read_single(props)
        self._tell()
        return replace(self._result(), failure=failure, seconds=min(self._took))

    async def _is_loading(self) -> bool:
        """Ask how the server is, and whether it is loading its one model."""
        began = time.monotonic()
        status, said = await _asked(self._context.upstream, HEALTH)
        known, labels = families(), [("probe", "health")]
        self._health = (
            (self._context.table(known["llm_probe_up"], labels), float(status == 200)),
            (self._context.table(known["llm_probe_duration_seconds"], labels), time.monotonic() - began),
        )
        return _is_loading(status, said)

    async def _read_single(self, props: Mapping[str, Any]) -> None:
        self._routes.clear()
        self._name = name = served_as(props.get("model_alias"), props.get("model_path"))
        life = text(props.get("media_marker"))
        asleep = props.get("is_sleeping") is True
        settings = props.get("default_generation_settings")
        context = whole(settings.get("n_ctx")) if isinstance(settings, dict) else None
        turn = self._turn(name, life, self._config.sleep_after)
        self._turns = {(name, life): turn}
        self._single.see(name, "sleeping" if asleep else "loaded", life or None)
        self._single.keep([name])
        if name in self._single:
            self._single[name].facts = _facts(context, whole(props.get("total_slots")), text(props.get("model_ftype")))
        if asleep and self._config.sleep_after is None:
            self._advice = (SLEEPS,)
        failure = None if asleep else await self._ask(turn, ())
        if failure is not None:
            raise failure
        self._seen(self._single)

    async def _list(self) -> Sequence[Listed]:
        """Read a router's list: how its models are."""
        self._heard.clear()
        async with self._context.upstream.get(MODELS) as answer:
            refuse(answer)
            entries = listed(await answer.json())
        for entry in entries:
            if entry.name not in self._heard:  # an event is newer
                self._models.see(entry.name, entry.state, entry.life or None)
        self._models.keep({entry.name for entry in entries} | self._heard)
        self._routes.set()
        return entries

    async def _read_models(self, entries: Sequence[Listed]) -> ReadError | None:
        """Read the metrics of a router's models that are awake. Returns what fails of them."""
        self._turns = {
            (entry.name, entry.life): self._turn(entry.name, entry.life, entry.timer)
            for entry in entries
            if entry.state in ("loaded", "sleeping") and entry.name in self._models
        }
        awake = [entry for entry in entries if entry.state == "loaded" and (entry.name, entry.life) in self._turns]
        failures: list[ReadError] = []
        gate = asyncio.Semaphore(AT_ONCE)

        async def ask(entry: Listed) -> None:
            async with gate:
                if self._models[entry.name].state != "loaded":
                    return  # by an event that came meanwhile
                turn = self._turns[entry.name, entry.life]
                query = (("model", entry.name), ("autoload", "false"))
                failure = await self._ask(turn, query)
                if failure is None and turn.slots is None:
                    failure = await self._ask_slots(turn, query)
                if failure is not None:
                    failures.append(ReadError(failure.reason, f"{failure} (model {entry.name})"))

        with suppress(TimeoutError):
            async with asyncio.timeout(self._context.timeout * SHARE), asyncio.TaskGroup() as group:
                for entry in awake:
                    group.create_task(ask(entry))
        for entry in entries:
            turn = self._turns.get((entry.name, entry.life))
            if entry.name in self._models:
                slots = None if turn is None else turn.slots
                self._models[entry.name].facts = _facts(entry.context, slots, entry.quantization)
        self._seen(self._models)
        return failures[0] if failures else None

    def _turn(self, name: str, life: str, timer: float | None) -> Turn:
        return self._turns.get((name, life)) or Turn(name, life, timer, new=self._told)

    async def _ask(self, turn: Turn, query: Sequence[tuple[str, str]]) -> ReadError | None:
        """Read the metrics of one model that is awake, unless that would keep it from falling asleep."""
        if not turn.is_due(self._context.clock()):
            return None
        try:
            async with self._context.upstream.get(METRICS, query) as answer:
                if answer.status == 501:
                    self._advice = (NO_METRICS,)
                    return None
                if answer.status == 400 and query:
                    return None  # unloaded since the list was read
                refuse(answer)
                await turn.take(answer, self._context.clock())
        except ReadError as error:
            return error
        return None

    async def _ask_slots(self, turn: Turn, query: Sequence[tuple[str, str]]) -> ReadError | None:
        """Once for each process: it is told without the model's doing, asleep or not."""
        try:
            async with self._context.upstream.get(PROPS, query) as answer:
                if answer.status == 400:
                    return None
                refuse(answer)
                said = await answer.json()
        except ReadError as error:
            return error
        turn.slots = whole(said.get("total_slots")) if isinstance(said, dict) else None
        return None

    def _seen(self, models: Models) -> None:
        """Note which models were asked for something."""
        for turn in self._turns.values():
            if turn.worked and turn.name in models:
                models[turn.name].requested = time.time()
            turn.worked = False

    def _tell(self) -> None:
        """Take what was read, and go on with the mean time per output token."""
        rows = [row for turn in self._turns.values() for row in turn.rows()]
        if not self._routes.is_set():
            rows += [("llamacpp_process", {"life": life}, 1.0) for _, life in self._turns if life]
        self._context.tell(rows)
        self._told = True
        self._mean.add(self._context.totals)

    def _result(self) -> Result:
        models = self._models if self._routes.is_set() else self._single
        return Result([*self._health, *models.samples()], self._advice, self._version)

    # -- events --------------------------------------------------------------------------------------------------

    async def follow(self) -> AsyncIterator[Result]:
        """What a router says of its models as it happens."""
        while True:
            await self._routes.wait()
            with suppress(ReadError):
                async with self._context.upstream.get(EVENTS) as answer:
                    refuse(answer)
                    async for line in answer.lines():
                        if self._hear(line):
                            yield self._result()
            await asyncio.sleep(LISTEN_AGAIN)

    def _hear(self, line: bytes) -> bool:
        """Take one line of the stream; whether a model's state has changed."""
        if not line.startswith(b"data:") or not self._routes.is_set():
            return False
        try:
            said = json.loads(line[5:])
        except (ValueError, RecursionError):
            return False
        name, event = (said.get("model"), said.get("event")) if isinstance(said, dict) else (None, None)
        data = said.get("data") if isinstance(said, dict) else None
        if not isinstance(name, str) or not name:
            return False
        if event == "model_remove":
            self._models.forget(name)
            return True
        status = data.get("status") if isinstance(data, dict) else None
        state = "downloading" if event == "download_progress" else _state(status, data)
        if state is None:
            return False
        news = self._models.see(name, state)
        if name in self._models:  # no more are remembered than are shown
            self._heard.add(name)
        return news


def _state(status: object, data: Any) -> str | None:
    """The state that an event tells; None where it tells none that we know."""
    if status == "unloaded":
        return "failed" if data.get("exit_code") else "unloaded"
    return status if status in ("loading", "loaded", "sleeping", "downloading") and isinstance(status, str) else None


def _is_loading(status: int, said: object) -> bool:
    """Whether a server with one model says that it is loading it: with the same answer at every path."""
    error = said.get("error") if isinstance(said, dict) else None
    return status == 503 and isinstance(error, dict) and error.get("type") == "unavailable_error"


def _facts(context: float | None, slots: float | None, quantization: str) -> list[Fact]:
    facts: list[Fact] = []
    if context is not None:
        facts.append(("llm_model_context_tokens", (("layer", "engine"),), context))
    if slots is not None:
        facts.append(("llm_model_slots", (), slots))
    if quantization:
        facts.append(("llm_model_info", (("quantization", quantization),), 1.0))
    return facts


async def _asked(upstream: Upstream, path: str) -> tuple[int, Any]:
    """Status and JSON of an answer, whatever the status."""
    async with upstream.get(path) as answer:
        return answer.status, await answer.json()


SOURCE = LlamaCpp
