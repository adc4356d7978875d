"""The processes that Ollama runs its models in: llama-servers of its own, with llama.cpp's metrics on a local port.

They have them where Ollama was started with `LLAMA_ARG_ENDPOINT_METRICS=1`. Port and file of the model stand in such a
process's command line alone, of which nothing else is taken; which model the file is of, `/api/show` says. Ollama's own
clock decides when a model leaves: a read of its process keeps none in memory.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise

import psutil

from exporter.core.errors import ReadError
from exporter.core.fetch import refuse
from exporter.core.source import Context, Row
from exporter.core.types import Advice
from exporter.sources.llamacpp.turns import Turn

OLLAMA = "ollama"
LOOK_AGAIN = 60.0
"""Seconds after which processes are looked for again, though the same models are in memory: a thread takes 20 ms."""
SHARE = 0.5
"""What all of them may take of the time for a read: a process that is at work answers when it has the time."""

_BLOB = re.compile(r"sha256-[0-9a-f]{64}")
_FROM = re.compile(r"^FROM .*?(sha256-[0-9a-f]{64})\s*$", re.MULTILINE)

NO_METRICS = Advice(
    "requests and tokens: Ollama's processes expose no metrics",
    "LLAMA_ARG_ENDPOINT_METRICS=1 in the environment of `ollama serve`",
)
NOT_SEEN = Advice(
    "requests and tokens: no process of Ollama's for a model in memory is seen here",
    "run the exporter on Ollama's machine, outside of a container that hides its processes (or take out `runners`)",
)


@dataclass(frozen=True, slots=True)
class Runner:
    """A process with a model: where it listens, the file of the model, and what tells it from the next one."""

    port: int
    blob: str
    life: str


def look() -> Iterator[Runner]:
    """Those of any Ollama that runs on this machine and lets its processes be seen."""
    for pid in psutil.pids():
        with suppress(psutil.Error, OSError):
            process = psutil.Process(pid)
            arguments = process.cmdline()
            said = dict(pairwise(arguments))
            blob, port = _BLOB.search(said.get("--model", "")), said.get("--port", "")
            if blob is None or not re.fullmatch(r"[1-9]\d{0,4}", port):
                continue
            parent = process.parent()
            if parent is not None and parent.name() == OLLAMA:
                yield Runner(int(port), blob[0], f"{process.pid}-{process.create_time():.2f}")


class Runners:
    """Reads the processes of the models that an Ollama has in memory."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._blobs: dict[str, frozenset[str]] = {}  # by model
        self._turns: dict[Runner, Turn] = {}
        self._looked = float("-inf")
        self._lost = False  # one did not answer as it did before
        self.worked: set[str] = set()  # models that were at work when they were last read
        self.loading: set[str] = set()  # and those that were not yet in memory as a whole
        self.advice: tuple[Advice, ...] = ()

    async def read(self, models: AbstractSet[str]) -> None:
        """Read what the processes of these models say."""
        self.loading.clear()
        for turn in self._turns.values():
            turn.now = {}
        with suppress(TimeoutError):
            async with asyncio.timeout(self._context.timeout * SHARE):
                await self._find(models)
                self.advice = (NOT_SEEN,) if models and not self._turns else ()
                self._lost = False
                async with asyncio.TaskGroup() as group:
                    for runner, turn in self._turns.items():
                        group.create_task(self._ask(runner, turn))
        self.worked = {turn.name for turn in self._turns.values() if turn.worked}
        for turn in self._turns.values():
            turn.worked = False

    def rows(self) -> Iterator[Row]:
        """What they have said, as samples with llama.cpp's names."""
        for turn in self._turns.values():
            yield from turn.rows()

    async def _find(self, models: AbstractSet[str]) -> None:
        """Find the processes, where others may be there than when they were looked for last."""
        now = self._context.clock()
        if not self._lost and set(models) == self._blobs.keys() and now - self._looked < LOOK_AGAIN:
            return
        self._blobs = {name: blobs for name, blobs in self._blobs.items() if blobs and name in models}
        for name in models - self._blobs.keys():
            self._blobs[name] = await self._blobs_of(name)
        names = {blob: name for name, blobs in self._blobs.items() for blob in blobs}
        found = [runner for runner in await asyncio.to_thread(lambda: list(look())) if runner.blob in names]
        self._turns = {
            runner: self._turns.get(runner) or Turn(names[runner.blob], runner.life, None, new=True) for runner in found
        }
        self._looked = now

    async def _blobs_of(self, name: str) -> frozenset[str]:
        """The files that a model is made of; none where Ollama does not say."""
        with suppress(ReadError):
            async with self._context.upstream.post("/api/show", {"model": name}) as answer:
                refuse(answer)
                said = await answer.json()
            modelfile = said.get("modelfile") if isinstance(said, dict) else None
            return frozenset(_FROM.findall(modelfile)) if isinstance(modelfile, str) else frozenset()
        return frozenset()

    async def _ask(self, runner: Runner, turn: Turn) -> None:
        place = self._context.upstream.elsewhere(f"http://127.0.0.1:{runner.port}")
        try:
            async with place.get("/metrics") as answer:
                if answer.status == 501:
                    self.advice = (NO_METRICS,)
                elif answer.status == 503:
                    self.loading.add(turn.name)
                else:
                    refuse(answer)
                    await turn.take(answer, self._context.clock())
        except ReadError:
            self._lost = True
