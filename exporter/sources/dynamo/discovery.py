"""Which endpoints Dynamo has and how they are: from etcd, or from the folder that stands for it.

A key in etcd outlives a killed worker by its lease, half a minute. So an instance that is registered is also looked at:
whether its address still takes connections, its NATS subject is still subscribed, its system port still answers. One
that did and no longer does is suspect. What never answered says nothing: the exporter may stand where it cannot reach.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from exporter.catalogue import families
from exporter.config.model import TargetConfig
from exporter.core.errors import ReadError
from exporter.core.source import Context, Result, Row
from exporter.core.types import Advice, Labels, Reading, Sample, Series
from exporter.sources.dynamo import folder
from exporter.sources.dynamo.registry import PREFIXES, Endpoint, Instance, Registry
from exporter.sources.etcd.gateway import Change, Gateway
from exporter.sources.nats import monitor

if TYPE_CHECKING:
    from exporter.sources.dynamo import Deployment

CONNECT = 1.0
"""Seconds in which an address must take a connection."""
AT_ONCE = 50
"""Connections that are tried at a time."""
WATCH_AGAIN = 5.0
"""Seconds after which a watch that broke is tried again."""
WATCH_ANEW = 60.0
"""Seconds after which a watch is begun anew, from where it was: one whose member was cut off would never say so."""
GATHER = 0.05
"""Seconds in which changes are gathered before they are shown: workers come and go in crowds, and a worker's keys go
one after the other, though with one lease."""

READS = 3
"""Reads in a row that must be slow until etcd is asked more rarely: one that waits for an election is none of it."""

ORDER = ("ready", "provisioning", "suspect", "offline")
"""The state of an endpoint is that of its best instance."""

NO_SYSTEM_PORT = Advice("the workers' own numbers, and whether they are ready", "DYN_SYSTEM_PORT=8081   # each worker")


class Discovery:
    """Reads what is registered, and how it is. `wall` gives Unix seconds."""

    def __init__(self, config: Deployment, context: Context, wall: Callable[[], float] = time.time) -> None:
        self._config = config
        self._context = context
        self._wall = wall
        self._registry = Registry()
        self._revision = 0  # of etcd: the newest that was told
        self._ranged = 0  # and that of the last range
        self._looked = False
        self._took = deque([0.0] * READS, maxlen=READS)  # seconds, of the last reads
        self._heard = asyncio.Event()  # a range was read: changes from there on can be watched
        self._answered: set[object] = set()  # addresses, subjects and system ports that once did
        self._silent: set[object] = set()  # those of them that do not now
        self._starting: set[str] = set()  # workers whose system port says that they are not ready
        self._seen: dict[str, Reading] = {}  # the newest reading of each worker
        self._served: dict[tuple[str, Labels], float] = {}  # requests by worker and endpoint, in that reading
        self._children: dict[str, TargetConfig] = {}  # targets at system ports, by the worker's id
        self._advice: tuple[Advice, ...] = ()
        self._made: dict[tuple[str, Labels], Series] = {}
        members = [context.upstream.elsewhere(url) for url in config.etcd or ()]
        self._etcd = Gateway(members, config.login) if members else None

    # -- reading -------------------------------------------------------------------------------------------------

    async def read(self) -> Result:
        """Read the registry and look at what it names. Where it cannot be read, all that was known is unknown."""
        try:
            began = time.monotonic()
            async with asyncio.timeout(self._context.timeout * 0.6):
                await self._look()
            self._took.append(time.monotonic() - began)
        except (ReadError, TimeoutError) as error:
            self._heard.clear()
            if not self._looked:
                raise
            failure = error if isinstance(error, ReadError) else ReadError("timeout", f"{self._config.place}: too slow")
            return Result(self._unknown(), failure=failure, seconds=0.0)
        self._registry.forget(self._wall() - self._config.forget)
        self._find_children()
        with suppress(TimeoutError):
            async with asyncio.timeout(self._context.timeout * 0.3):
                await self._check()
        known = self._registry.instances and not self._children
        self._advice = (NO_SYSTEM_PORT,) if known else ()
        return replace(self._result(), seconds=min(self._took))

    async def follow(self) -> AsyncGenerator[Result, None]:
        """What etcd says has changed, as it happens."""
        if self._etcd is None:
            return
        changed = asyncio.Event()
        watching = asyncio.create_task(self._watch(self._etcd, changed))
        try:
            while True:
                await changed.wait()
                await asyncio.sleep(GATHER)
                changed.clear()
                if self._heard.is_set():
                    yield self._result()
        finally:
            watching.cancel()

    async def _watch(self, etcd: Gateway, changed: asyncio.Event) -> None:
        while True:
            await self._heard.wait()
            try:
                async with asyncio.timeout(WATCH_ANEW), aclosing(etcd.watch(PREFIXES, self._revision + 1)) as watched:
                    async for changes in watched:
                        self._take(changes, changed)
            except ReadError:
                await asyncio.sleep(WATCH_AGAIN)
            except TimeoutError:
                continue

    def _take(self, changes: Sequence[Change], changed: asyncio.Event) -> None:
        """Bring what the watch says into the registry, unless a range was read that is newer."""
        at = self._wall()
        for change in changes:
            if change.revision <= self._ranged:
                continue  # what changes at once may come in several parts, so no part is newer than another
            self._revision = max(self._revision, change.revision)
            if change.pair is None:
                news = self._registry.delete(change.key, at)
            else:
                news = self._registry.put(change.key, change.pair.value, change.revision, change.pair.lease, at)
            if news:
                changed.set()

    async def _look(self) -> None:
        """Bring the registry up to date."""
        keys: Iterable[tuple[str, bytes, int, int]]
        if self._etcd is not None:
            before = self._revision
            pairs, revision = await self._etcd.ranges(PREFIXES)
            if self._looked and self._revision != before:
                return  # the watch went ahead meanwhile; the next look will do
            self._revision = self._ranged = revision
            keys = ((pair.key, pair.value, pair.revision, pair.lease) for pair in pairs)
        else:
            assert self._config.directory is not None  # noqa: S101 - one of both is configured
            keys = await asyncio.to_thread(lambda directory: list(folder.keys(directory)), self._config.directory)
        self._registry.replace(keys, self._wall(), first=not self._looked)
        self._looked = True
        self._heard.set()

    # -- looking at what is registered -----------------------------------------------------------------------------

    def _shown(self) -> list[Instance]:
        internal = self._config.internal
        return [one for one in self._registry.instances.values() if internal or not one.endpoint.internal]

    def _note(self, what: object, answers: bool) -> None:
        """Whether something answers now. What never did says nothing."""
        if answers:
            self._answered.add(what)
            self._silent.discard(what)
        elif what in self._answered:
            self._silent.add(what)

    async def _check(self) -> None:
        """Ask the addresses, the subscriptions and the system ports of all instances."""
        instances = self._shown()
        self._ask_children()
        known: set[object] = {("system", id_) for id_ in self._children}
        known |= {one.address for one in instances} | {one.subject for one in instances}
        self._answered &= known
        self._silent &= known
        turn = asyncio.Semaphore(AT_ONCE)

        async def ask(address: tuple[str, int]) -> None:
            async with turn:
                self._note(address, await _takes_connections(address))

        async with asyncio.TaskGroup() as group:
            group.create_task(self._ask_nats(instances))
            for address in {one.address for one in instances if one.address is not None}:
                group.create_task(ask(address))

    async def _ask_nats(self, instances: Sequence[Instance]) -> None:
        """Which subjects are subscribed, and what went over the connections that did."""
        subjects = {one.subject: one for one in instances if one.subject is not None}
        if self._config.nats is None:
            return
        if not subjects:
            self._context.tell(())  # what went over connections that were, vanishes
            return
        try:
            connections = await monitor.connections(self._context.upstream.elsewhere(self._config.nats))
        except ReadError:
            self._silent -= subjects.keys()  # nobody can say
            return
        subscribed: set[str] = set()
        rows: list[Row] = []
        for connection in connections:
            mine = subjects.keys() & set(monitor.subscribed(connection))
            subscribed |= mine
            if mine:
                rows += _connection_rows(connection, subjects[min(mine)])
        for subject in subjects:
            self._note(subject, subject in subscribed)
        self._context.tell(rows)

    # -- the workers' system ports ---------------------------------------------------------------------------------

    def _find_children(self) -> None:
        """Have the workers' system ports read, as targets of their own."""
        self._children = {id_: self._config.at_port(url) for id_, url in self._registry.systems().items()}
        self._context.found(list({target.target_name: target for target in self._children.values()}.values()))

    def _ask_children(self) -> None:
        """What the newest reading of each worker says: whether it answers, is ready, and has been asked."""
        for id_, target in self._children.items():
            reading = self._context.newest(target.target_name)
            if reading is None or self._seen.get(id_) is reading:
                continue
            self._seen[id_] = reading
            self._note(("system", id_), reading.reason not in ("connect", "timeout", "truncated"))
            self._starting.discard(id_)
            for series, value in reading.samples:
                name = series.family.name
                if name == "llm_probe_up" and not value:
                    self._starting.add(id_)
                elif name == "llm_dynamo_worker_requests_total":
                    place = id_, series.own
                    moved = self._served.get(place, value) != value
                    self._served[place] = value
                    if moved:
                        self._registry.activate(_endpoint_of(series), reading.at)
                elif name == "llm_dynamo_worker_requests_running" and value:
                    self._registry.activate(_endpoint_of(series), reading.at)
        self._seen = {id_: reading for id_, reading in self._seen.items() if id_ in self._children}
        self._served = {place: value for place, value in self._served.items() if place[0] in self._children}
        self._starting &= self._children.keys()

    # -- what is shown ---------------------------------------------------------------------------------------------

    def _state(self, instance: Instance) -> str:
        signs = {instance.address, instance.subject, ("system", instance.id)}
        if not self._silent.isdisjoint(signs):
            return "suspect"
        return "provisioning" if instance.id in self._starting else "ready"

    def _result(self) -> Result:
        by_endpoint: dict[Endpoint, Counter[str]] = {}
        rows: list[tuple[str, Labels, float]] = []
        for instance in self._shown():
            state = self._state(instance)
            by_endpoint.setdefault(instance.endpoint, Counter())[state] += 1
            labels = (*instance.endpoint.labels, ("dynamo_instance", instance.id))
            rows += _states("llm_dynamo_instance_state", labels, state)
            told = (("transport", instance.transport), ("subject", instance.subject or ""))
            rows.append(("llm_dynamo_instance_info", (*labels, *told), 1.0))
        for card in self._registry.cards.values():
            if self._config.internal or not card.endpoint.internal:
                by_endpoint.setdefault(card.endpoint, Counter())
        for endpoint in self._registry.gone:
            if self._config.internal or not endpoint.internal:
                by_endpoint.setdefault(endpoint, Counter({"offline": 0}))
        for endpoint, states in by_endpoint.items():
            best = next((state for state in ORDER if state in states), "provisioning")
            rows += _states("llm_dynamo_endpoint_state", endpoint.labels, best)
            rows.append(("llm_dynamo_endpoint_instances", endpoint.labels, float(states.total())))
            if endpoint in self._registry.activity:
                at = self._registry.activity[endpoint]
                rows.append(("llm_dynamo_endpoint_last_activity_timestamp_seconds", endpoint.labels, at))
        return Result(self._samples(rows), self._advice)

    def _unknown(self) -> list[Sample]:
        endpoints = {*self._registry.endpoints(), *self._registry.gone}
        rows: list[tuple[str, Labels, float]] = []
        for endpoint in endpoints:
            if self._config.internal or not endpoint.internal:
                rows += _states("llm_dynamo_endpoint_state", endpoint.labels, "unknown")
        return self._samples(rows)

    def _samples(self, rows: Sequence[tuple[str, Labels, float]]) -> list[Sample]:
        """The rows with their series, which are made once."""
        known, made = families(), {}
        for name, labels, _ in rows:
            key = name, labels
            made[key] = self._made.get(key) or self._context.table(known[name], labels)
        self._made = made
        return [(made[name, labels], value) for name, labels, value in rows]


def _states(name: str, labels: Labels, state: str) -> list[tuple[str, Labels, float]]:
    """All states of a family, 1 for the one it is in."""
    return [(name, (*labels, ("state", each)), float(each == state)) for each in families()[name].closed["state"]]


def _endpoint_of(series: Series) -> Endpoint:
    told = dict(series.labels)
    return Endpoint(told["dynamo_namespace"], told["dynamo_component"], told["dynamo_endpoint"])


def _connection_rows(connection: Mapping[str, Any], instance: Instance) -> Iterator[Row]:
    """What went over one worker's connection, as NATS counts it."""
    labels = {**dict(instance.endpoint.labels[:2]), "instance": instance.id, "cid": connection.get("cid", "")}
    for direction in ("in", "out"):
        for unit, key in (("bytes", "bytes"), ("messages", "msgs")):
            count = connection.get(f"{direction}_{key}")
            if isinstance(count, int) and 0 <= count < monitor.LARGEST:
                yield f"nats_connection_{unit}_total", {**labels, "direction": direction}, float(count)


async def _takes_connections(address: tuple[str, int]) -> bool:
    try:
        async with asyncio.timeout(CONNECT):
            _, writer = await asyncio.open_connection(*address)
    except (OSError, TimeoutError, ValueError):  # the last one: a host that cannot be one
        return False
    writer.close()
    return True
