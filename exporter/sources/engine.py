"""What the model servers have in common: metrics at one path, the models that they list, and how they are told apart.

A server is recognised by the names of its metrics alone. Its `/health` is never asked: SGLang's runs a generation.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from operator import itemgetter
from typing import Any, ClassVar

from pydantic import Field

from exporter.catalogue import families
from exporter.config.model import TargetConfig
from exporter.config.secret import WithKey
from exporter.core.errors import ReadError
from exporter.core.fetch import Glance, Upstream, refuse
from exporter.core.rule import alias
from exporter.core.source import Context, Result, waited
from exporter.core.types import Advice, Sample
from exporter.sources import sources

LISTED = 60.0
"""Seconds for which the list of models and the version are kept: a LoRA adapter may come and go at any time."""
PATIENCE = 2.0
"""Seconds that each of them may take: the metrics are shown all the same."""
MODELS = 1000
"""Models of a list that are taken, each with a name of NAME characters at most."""
NAME = 512

_TYPE = re.compile(rb"^# TYPE ([a-zA-Z_:][a-zA-Z0-9_:]*) ", re.MULTILINE)
_LAYER = ("layer", "engine")


class Server(WithKey):
    """A model server."""

    metrics_endpoint: str = Field("/metrics", description="Path, or URL, of the metrics.")


def exposes(glance: Glance) -> bool:
    """Whether an answer may be an exposition."""
    return glance.status == 200 and not glance.content_type.startswith(("text/html", "application/json"))


def names(glance: Glance) -> frozenset[str]:
    """The metrics whose TYPE an answer tells; none where it is no exposition."""
    return frozenset(name.decode() for name in _TYPE.findall(glance.start)) if exposes(glance) else frozenset()


def speakers(told: Iterable[str]) -> list[str]:
    """The sources whose words are among these names of metrics. Behind a port of Dynamo's its engine speaks, too."""
    known = tuple(told)
    found = [
        kind
        for kind, source in sources().items()
        if any(name.startswith(getattr(source, "speaks", ())) for name in known)
    ]
    return ["dynamo"] if "dynamo" in found else found


class Engine:
    """Reads one model server."""

    kind: ClassVar[str]
    Config: ClassVar[type[Server]]
    ports: ClassVar[tuple[int, ...]] = ()
    """Where it usually listens."""
    speaks: ClassVar[tuple[str, ...]] = ()
    """What the names of its metrics begin with, and no other server's."""
    switch: ClassVar[str] = "see whether its metrics are on, and where"
    """What makes it answer with metrics."""
    models: ClassVar[str] = "/v1/models"
    """Where it lists its models; empty where nowhere."""
    versions: ClassVar[str] = ""
    """Where it tells its version, as {"version": "…"}; empty where nowhere."""

    def __init__(self, config: Server, context: Context) -> None:
        self._config = config
        self._context = context
        self._listed = float("-inf")
        self._models: tuple[Sample, ...] = ()
        self._version: str | None = None
        self._refused = False

    @classmethod
    def at(cls, url: str, environ: Mapping[str, str]) -> Server:
        given: dict[str, Any] = {"url": url}
        variable = f"{cls.kind.upper()}_API_KEY"
        if environ.get(f"{variable}_FILE"):
            given["api_key_file"] = environ[f"{variable}_FILE"]
        elif environ.get(variable):
            given["api_key_env"] = variable
        return cls.Config(**given)

    @classmethod
    def candidates(cls, environ: Mapping[str, str]) -> Sequence[Server]:
        """The server on each of its usual ports here."""
        urls = [f"http://127.0.0.1:{port}" for port in cls.ports]
        return [cls.at(url, environ).model_copy(update={"name": cls.kind}) for url in urls]

    @classmethod
    async def recognise(cls, upstream: Upstream, target: TargetConfig) -> bool:
        """Whether the metrics there are its own alone. Raises ReadError where several servers speak."""
        endpoint = target.metrics_endpoint if isinstance(target, cls.Config) else "/metrics"
        found = speakers(names(await upstream.glance(endpoint)))
        if cls.kind in found and len(found) > 1:
            raise ReadError("content", f"{upstream.at(endpoint)} has metrics of {' and '.join(found)} (write source:)")
        return found == [cls.kind]

    async def read(self) -> Result:
        began = waited()
        async with self._context.upstream.get(self._config.metrics_endpoint) as answer:
            if answer.status == 404:
                raise ReadError("status", f"{answer.url} answers 404: no metrics are there ({self.switch})")
            if answer.status in (401, 403):
                what = "a key is missing or wrong (write api_key_file)"
                raise ReadError("auth", f"{answer.url} answers {answer.status}: {what}")
            refuse(answer)
            await self._context.take(answer)
        took = waited() - began
        if self._context.clock() - self._listed > LISTED:
            self._listed = self._context.clock()
            await self._list()
        return Result((*self._models, *self._adapters()), tuple(self._advice()), self._version, seconds=took)

    async def _list(self) -> None:
        """The models and the version: no failure where they are missing."""
        self._refused = False
        self._models = tuple(self._samples(_entries(await self._json(self.models))))
        said = await self._json(self.versions)
        version = said.get("version") if isinstance(said, dict) else None
        self._version = version[:64] if isinstance(version, str) and version.isprintable() and version else None

    async def _json(self, endpoint: str) -> Any:
        """What an endpoint answers, None where it does not."""
        if not endpoint:
            return None
        with suppress(ReadError, TimeoutError):
            async with asyncio.timeout(PATIENCE), self._context.upstream.get(endpoint) as answer:
                self._refused |= answer.status in (401, 403)
                return await answer.json() if answer.status == 200 else None
        return None

    def _samples(self, entries: Iterable[Mapping[str, Any]]) -> Iterable[Sample]:
        """What is listed of models: which there are, what they belong to, how long a request may be."""
        known, table = families(), self._context.table
        made: dict[str, Sample] = {}
        for entry in entries:
            model = alias(entry["id"])
            parent = entry.get("parent")
            labels = [("model", model)]
            more = [("parent", alias(parent))] if isinstance(parent, str) and len(parent) <= NAME else []
            made[f"{model} info"] = table(known["llm_model_info"], [*labels, *more]), 1.0
            length = entry.get("max_model_len")
            if isinstance(length, int) and not isinstance(length, bool) and 0 < length < 2**53:
                made[f"{model} context"] = table(known["llm_model_context_tokens"], [_LAYER, *labels]), float(length)
        return made.values()

    def _adapters(self) -> Iterable[Sample]:
        """LoRA adapters of vLLM: the newest line, which has them as labels, and its value is when that was."""
        totals = self._context.totals
        told = totals.internal("adapters") if "adapters" in totals.map.internal else None
        if not told:
            return
        newest = dict(max(told.items(), key=itemgetter(1))[0])
        known, table = families(), self._context.table
        running = [name for name in newest.get("running", "").split(",") if name.strip()]
        yield table(known["llm_lora_slots_used"]), float(len(running))
        with suppress(ValueError):
            yield table(known["llm_lora_slots"]), float(int(newest.get("most", "")))

    def _advice(self) -> Iterable[Advice]:
        if not any(self._context.totals.present.values()) and not self._speaks():
            what = f"every number: {self._config.metrics_endpoint} has no metric of {self.kind}'s"
            yield Advice(what, f"see whether it is one, and serves a model ({self.switch})")
        if self._refused:
            remedy = "give the server's key: api_key_file in the configuration"
            yield Advice(f"the models and their lengths ({self.models} wants a key)", remedy)

    def _speaks(self) -> bool:
        """Whether any of its metrics is there, mapped or not: before the first request it may be none that is."""
        words = tuple(word.encode() for word in self.speaks)
        return any(identity.startswith(words) for identity, _ in self._context.reader.lines())


def _entries(said: Any) -> Iterable[Mapping[str, Any]]:
    """The models of a list as OpenAI's interface has it, each with a name that can be shown."""
    entries = said.get("data") if isinstance(said, dict) else None
    for entry in islice(entries, MODELS) if isinstance(entries, list) else ():
        if isinstance(entry, dict) and isinstance(entry.get("id"), str) and 0 < len(entry["id"]) <= NAME:
            yield entry
