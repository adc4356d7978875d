"""Ollama: which models it has, which of them are in memory, for how long yet, and how much they take.

It has no metrics. Its lists are read, which loads nothing and keeps nothing in memory; where that is configured, the
metrics of the processes that it runs its models in are read, too (`runners.py`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from itertools import islice
from math import inf
from typing import Any, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import Field

from exporter.config.secret import WithKey
from exporter.core.errors import ReadError
from exporter.core.fetch import Upstream, refuse
from exporter.core.source import Context, Result, waited
from exporter.sources.llamacpp.models import MOST, NAME, Fact, Models, text, whole
from exporter.sources.llamacpp.turns import Mean
from exporter.sources.ollama.runners import Runners

PORT = 11434
VERSION, RUNNING, STORED = "/api/version", "/api/ps", "/api/tags"
LISTED = 60.0
"""Seconds for which the list of stored models and the version are kept: Ollama reads a file for each model."""
NEVER = 10 * 365 * 86400.0
"""Seconds ahead from which on a model never expires: Ollama writes the year 2319 for `keep_alive: -1`."""
MOVED = 0.5
"""Seconds by which `expires_at` must have moved to be a request's doing."""

Entry = Mapping[str, Any]


class Server(WithKey):
    """An Ollama server."""

    source: Literal["ollama"] = "ollama"
    runners: bool = Field(
        default=False,
        description="Read requests and tokens of each model in memory from the process that Ollama runs it in, on this "
        "machine: Ollama must have been started with `LLAMA_ARG_ENDPOINT_METRICS=1`.",
    )


class Ollama:
    """Reads one Ollama server."""

    kind: ClassVar[str] = "ollama"
    Config: ClassVar[type[Server]] = Server

    def __init__(self, config: Server, context: Context) -> None:
        self._context = context
        self._runners = Runners(context) if config.runners else None
        self._mean = Mean()
        states = ("loaded", "loading", "unloaded") if config.runners else ("loaded", "unloaded")
        self._models = Models(context.table, context.totals, states)
        self._stored: dict[str, Entry] = {}
        self._version: str | None = None
        self._listed = float("-inf")
        self._expires: dict[str, float] = {}  # Unix seconds, of the models in memory
        self._told = False  # something was read: what is loaded from now on was asked for

    @staticmethod
    def at(url: str, _: Mapping[str, str]) -> Server:
        return Server(url=url)

    @staticmethod
    def candidates(environ: Mapping[str, str]) -> Sequence[Server]:
        """The server that `OLLAMA_HOST` names, as Ollama reads it, else the one on its port here."""
        return [Server(url=_url(environ.get("OLLAMA_HOST", "")), name="ollama")]

    @staticmethod
    async def recognise(upstream: Upstream, _: object) -> bool:
        """By two answers: others have a version at the same place."""
        try:
            async with upstream.get(VERSION) as answer:
                said = await answer.json() if answer.status == 200 else None
            if not isinstance(said, dict) or not isinstance(said.get("version"), str):
                return False
            async with upstream.get(RUNNING) as answer:
                said = await answer.json() if answer.status == 200 else None
        except ReadError as error:
            if error.reason == "content":
                return False
            raise
        return isinstance(said, dict) and "models" in said

    async def read(self) -> Result:
        began, waiting = self._context.clock(), waited()
        running = await self._list(RUNNING)
        if not running.keys() <= self._stored.keys() or began - self._listed > LISTED:
            self._stored = await self._list(STORED)
            self._version = text((await self._json(VERSION)).get("version"))[:64] or None
            self._listed = began
        took, runners = waited() - waiting, self._runners
        if runners is not None:
            await runners.read(running.keys())
        models, now = self._models, time.time()
        for name in self._stored.keys() - running.keys():
            models.see(name, "unloaded")
        for name in running:
            models.see(name, "loading" if runners is not None and name in runners.loading else "loaded")
        models.keep(self._stored.keys() | running.keys())
        expires = {name: expiry for name, entry in running.items() if (expiry := _unix(entry.get("expires_at")))}
        for name in self._stored.keys() | running.keys():
            if name in models:
                entry = running.get(name, {})
                models[name].facts = _facts(entry, self._stored.get(name, entry), expires.get(name), now)
                moved = abs(expires.get(name, inf) - self._expires.get(name, -inf)) > MOVED
                asked = name in running and moved and (name in self._expires or self._told)
                if asked or (runners is not None and name in runners.worked):
                    models[name].requested = now
        self._expires = expires
        self._told = True
        self._context.tell(() if runners is None else runners.rows())
        self._mean.add(self._context.totals)
        advice = () if runners is None else runners.advice
        return Result(models.samples(), advice, self._version, seconds=took)

    async def _json(self, path: str) -> Mapping[str, Any]:
        async with self._context.upstream.get(path) as answer:
            refuse(answer)
            said = await answer.json()
        if not isinstance(said, dict):
            raise ReadError("content", f"{answer.url} answers with something that Ollama does not say")
        return said

    async def _list(self, path: str) -> dict[str, Entry]:
        """The models of a list by name. Raises ReadError where it is none."""
        listed = (await self._json(path)).get("models")
        if listed is None:
            return {}
        if not isinstance(listed, list):
            raise ReadError("content", f"{self._context.upstream.at(path)} answers with no list of models")
        await asyncio.sleep(0)
        entries = (entry for entry in listed if isinstance(entry, dict) and isinstance(entry.get("name"), str))
        return {entry["name"]: entry for entry in islice(entries, MOST) if 0 < len(entry["name"]) <= NAME}


def _facts(running: Entry, stored: Entry, expires: float | None, now: float) -> list[Fact]:
    facts: list[Fact] = []
    size, vram = whole(running.get("size")), whole(running.get("size_vram")) or 0.0
    if size is not None:  # 0 is what some versions say without a GPU
        facts.append(("llm_model_memory_bytes", (("device", "ram"),), max(0.0, size - vram)))
        facts.append(("llm_model_memory_bytes", (("device", "vram"),), vram))
    if expires is not None:
        facts.append(("llm_model_expires_timestamp_seconds", (), inf if expires > now + NEVER else expires))
    if (context := whole(running.get("context_length"))) is not None:
        facts.append(("llm_model_context_tokens", (("layer", "engine"),), context))
    details = stored.get("details")
    if isinstance(details, dict):
        said = (("family", "family"), ("parameters", "parameter_size"), ("quantization", "quantization_level"))
        labels = tuple((label, word) for label, key in said if (word := text(details.get(key))))
        facts.append(("llm_model_info", labels, 1.0))
    return facts


def _unix(value: Any) -> float | None:
    """Unix seconds of an RFC 3339 time; None where there is none, or Go's zero time."""
    try:
        at = datetime.fromisoformat(value).timestamp()
    except (TypeError, ValueError, OverflowError, OSError):
        return None
    return at if at > 0 else None


def _url(host: str) -> str:
    """The URL that `OLLAMA_HOST` means: host, port or both, with or without a scheme, which has ports of its own."""
    host = host.strip().strip("\"'")
    scheme, colons, rest = host.partition("://")
    if not colons:
        scheme, rest, port = "http", host, PORT
    else:
        port = 443 if scheme == "https" else 80
    try:
        parts = urlsplit(f"//{rest}")
        name, port = parts.hostname or "", parts.port or port
    except ValueError:
        name, parts = "", urlsplit("")
    if name in ("", "0.0.0.0", "::"):  # noqa: S104 - it listens there, not we
        name = "127.0.0.1"
    return f"{scheme}://{f'[{name}]' if ':' in name else name}:{port}{parts.path.rstrip('/')}"


SOURCE = Ollama
