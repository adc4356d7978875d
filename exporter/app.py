"""The exporter, wired together: what is configured or found is watched, and the board is served."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, get_args
from urllib.parse import urlsplit

import structlog
from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector
from prometheus_client import exposition as classic
from prometheus_client.openmetrics import exposition as openmetrics

from exporter import __version__
from exporter.catalogue import families
from exporter.config.load import ConfigError
from exporter.config.model import Config, TargetConfig
from exporter.config.values import SecretError
from exporter.core.board import Board, Health
from exporter.core.errors import ReadError
from exporter.core.fetch import Client, Upstream, session
from exporter.core.poll import Watch
from exporter.core.source import Context, Source, own_map, source_map
from exporter.core.state import Store
from exporter.core.tcp import Trust
from exporter.core.total import Totals
from exporter.core.types import Reading, Sample, SeriesTable
from exporter.insight import Insight, Settings
from exporter.notify import Notifier, given_sockets
from exporter.sources import sources
from exporter.text.difference import Difference, Limits
from exporter.text.negotiate import Format
from exporter.web.server import application, serve
from exporter.web.view import State, TargetView

if TYPE_CHECKING:
    from ssl import SSLContext

LOOK_AGAIN = 15.0
"""Seconds between two looks for upstreams that were not found on this machine."""
LOCAL = ("localhost", "127.0.0.1", "::1")
LOOK_TIMEOUT = 3.0
"""Seconds in which an upstream that is looked for must answer."""

log = structlog.get_logger(__name__)


def assemble(
    config: Config,
    target: TargetConfig,
    client: Client,
    board: Board,
    store: Store | None,
    *,
    everything: bool = False,
    found: Callable[[Sequence[TargetConfig]], None] = lambda _: None,
    ports: Callable[[], Mapping[int, str]] = dict,
) -> Watch:
    """The parts that watch a target, put together; the target is on the board from now on.

    Without a store nothing is remembered, as at a first start. With `everything` the upstream is asked for all that it
    has, also what is not mapped. `found` is told the targets that the target's own upstream knows of; `ports` says
    where on this machine which targets are watched.
    """
    kind = sources()[target.source]
    table = SeriesTable({**target.labels, "source": target.source, "target": target.target_name})
    saved, from_zero = store.load(target.target_name, target.place) if store is not None else (None, False)
    written: Mapping[str, Any] | None = getattr(target, "map", None)
    totals = Totals(
        source_map(target.source) if written is None else own_map(written),
        table,
        keep=target.keep,
        max_series=config.limits.series,
        saved=saved,
        from_zero=from_zero,
    )
    reader = Difference(totals, Limits(body=config.limits.body))
    upstream = Upstream(client, target.url, _key_of(target), compression=target.compression, tls=_tls_of(target))
    score = config.score
    stalled_after = target.stalled_after or config.stalled_after
    settings = Settings(score.window, score.minimum_requests, score.latency, score.ttft, stalled_after)
    health = Health(target.source, target.target_name, target.labels, config.thresholds_of(target))
    board.watch(health)
    return Watch(
        kind(
            target,
            Context(
                upstream,
                table,
                totals,
                reader,
                everything,
                timeout=target.timeout or config.timeout,
                found=found,
                newest=board.newest,
                ports=ports,
            ),
        ),
        totals,
        reader,
        Insight(settings, table),
        url=target.place,
        interval=config.interval_of(target),
        timeout=target.timeout or config.timeout,
        exclude=frozenset(target.exclude),
        max_series=config.limits.series,
        health=health,
        board=board,
        store=store,
    )


def _key_of(target: TargetConfig) -> Callable[[], str | None]:
    """How the target's key is had, anew each time; one that cannot be had is the target's failure."""
    secret: Callable[[], str | None] = getattr(target, "secret", lambda: None)

    def key() -> str | None:
        try:
            return secret()
        except SecretError as error:
            raise ReadError("auth", str(error)) from None

    return key


def _tls_of(target: TargetConfig) -> Callable[[], SSLContext | None]:
    """What TLS is done with, None for what the machine trusts; files that cannot be used are the target's failure."""
    return Trust(target.tls) if target.tls is not None else lambda: None


def _common(config: Config) -> tuple[object, ...]:
    """What the configuration says of all targets alike."""
    times = config.interval, config.intervals, config.timeout, config.stalled_after
    return *times, config.limits, config.score, config.thresholds


@dataclass(slots=True)
class Watched:
    """A target that is being watched."""

    config: TargetConfig  # as it is written
    watch: Watch
    task: asyncio.Task[None]
    found: bool  # by detection, not by configuration
    parent: str | None = None  # the target whose upstream knows of it


class App:
    """The running exporter. `load` reads the configuration anew, and raises ConfigError where it is bad."""

    def __init__(
        self, config: Config, load: Callable[[], Config], store: Store, environ: Mapping[str, str] = os.environ
    ) -> None:
        self.config = config
        self._load = load
        self._store = store
        self._environ = environ
        self._targets: dict[str, Watched] = {}
        self._unrecognised: dict[str, tuple[TargetConfig, Health]] = {}
        self._missing: dict[str, str] = {}
        self._looked = False
        self._reloaded = (True, time.time())
        self._table = SeriesTable({})
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        self.board = Board(self._own, self._process)
        self._systemd = Notifier(self.ready, self._status, environ)
        self._client: Client | None = None
        self._group: asyncio.TaskGroup | None = None

    # -- what the web room shows ---------------------------------------------------------------------------------

    def page(self, format: Format) -> bytes:  # noqa: A002 - the field's word
        return self.board.page(format)

    def ready(self) -> bool:
        """Whether what was configured and found has been read once, however that ended."""
        return self._looked and all(target.watch.health.reading is not None for target in self._targets.values())

    def targets(self) -> Sequence[TargetView]:
        known = {name: (target.config, target.watch.health) for name, target in self._targets.items()}
        views = [self._view(config, health) for config, health in {**known, **self._unrecognised}.values()]
        return sorted(views, key=lambda view: (get_args(State).index(view.state), view.name))

    def looked_for(self) -> Sequence[str]:
        return list(self._missing.values())

    @staticmethod
    def _view(config: TargetConfig, health: Health) -> TargetView:
        reading = health.reading
        return TargetView(
            name=health.target,
            source=health.source,
            url=config.place,
            state="waiting" if reading is None else "up" if reading.ok else "down",
            error=reading.error if reading else "",
            interval=health.interval,
            read_seconds=reading.seconds if reading else None,
            last_success=health.success,
            series=len(reading.samples) if reading else 0,
            version=reading.version if reading else None,
            advice=reading.advice if reading else (),
            recognised=config.source == "auto" != health.source,
            experimental=source_map(health.source).experimental,
        )

    def _own(self) -> list[Sample]:
        known, table = families(), self._table
        taken, at = self._reloaded
        return [
            (table(known["llm_exporter_build_info"], [("version", __version__)]), 1.0),
            (table(known["llm_exporter_config_last_reload_successful"]), float(taken)),
            (table(known["llm_exporter_config_last_reload_success_timestamp_seconds"]), at),
        ]

    def _process(self, form: Format) -> bytes:
        """prometheus-client's own words about this process, without the end mark."""
        if form is Format.OPENMETRICS:
            made: bytes = openmetrics.generate_latest(self._registry)  # type: ignore[no-untyped-call]  # theirs
            return made.removesuffix(b"# EOF\n")
        return classic.generate_latest(self._registry)

    def _status(self) -> str:
        """How it does, in a line."""
        up = sum(1 for target in self.targets() if target.state == "up")
        return f"{up} of {len(self._targets) + len(self._unrecognised)} targets are up"

    # -- running -------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT. Raises AddressTaken where the port cannot be had."""
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for sign in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(sign, stop.set)
        given = given_sockets(self._environ)
        web = await serve(application(self, reload=self.config.reload, version=__version__), self.config.address, given)
        log.info("listening", address="systemd's" if given else self.config.listen, version=__version__)
        async with session() as self._client:
            with suppress(asyncio.CancelledError):
                async with asyncio.TaskGroup() as self._group:
                    loop.add_signal_handler(signal.SIGHUP, self._hang_up)
                    work = [self._group.create_task(self._work()), self._group.create_task(self._systemd.run())]
                    await stop.wait()
                    log.info("stopping")
                    self._systemd.stopping()
                    await web.cleanup()
                    for task in work:
                        task.cancel()
                    for target in self._targets.values():
                        target.task.cancel()
        self._store.close()

    def _hang_up(self) -> None:
        assert self._group is not None  # noqa: S101 - signals are handled within the group
        self._group.create_task(self.reload())

    async def _work(self) -> None:
        """Start what is configured, then look for what runs here, again and again."""
        self._apply(self.config)
        first = True
        while True:
            async with session() as client:  # for each look one, so that no connection of what is no target is kept
                await self._look(client, first)
            self._looked = True
            first = False
            await asyncio.sleep(LOOK_AGAIN)

    async def reload(self) -> str | None:
        """Read the configuration again. A bad one is refused whole, and the running one stays."""
        self._systemd.reloading()
        try:
            config = self._load()
        except ConfigError as error:
            self._reloaded = (False, self._reloaded[1])
            self.board.refresh()
            log.warning("configuration refused, the one before stays in force", problems=list(error.problems))
            return str(error)
        if config.address != self.config.address:
            log.warning("a changed `listen` takes a restart", listen=config.listen)
        before, self.config = self.config, config
        self._reloaded = (True, time.time())
        self._apply(config, anew=_common(before) != _common(config))
        self.board.refresh()
        log.info("configuration taken", targets=len(config.targets))
        return None

    def _apply(self, config: Config, *, anew: bool = False) -> None:
        """Watch what is configured: what is unchanged goes on, unless all begin `anew`; the rest stops or starts."""
        if not config.targets and not config.detect:
            log.warning("nothing is read: no targets are configured, and detect is off")
        wanted = {target.target_name: target for target in config.targets}
        for name, watched in list(self._targets.items()):
            if watched.parent is not None:
                if name in wanted:
                    self._stop(name)
                continue  # it stays and stops with its parent
            stays = watched.found and config.detect and not _is_among(watched.config, wanted)
            if anew or not (stays or watched.config == wanted.get(name)):
                self._stop(name)
                if stays:
                    self._start(watched.config, found=True)
        for name in list(self._unrecognised):
            del self._unrecognised[name]
            self.board.drop(name)
        for name, target in wanted.items():
            if target.source == "auto" and name not in self._targets:
                health = Health("auto", name, target.labels, interval=LOOK_AGAIN)
                self._unrecognised[name] = (target, health)
                self.board.watch(health)
            elif name not in self._targets:
                self._start(target)

    def _stop(self, name: str) -> None:
        watched = self._targets.pop(name, None)
        if watched is None:
            return  # it was stopped with its parent
        self._children(name, ())
        watched.watch.save()
        watched.task.cancel()
        self.board.drop(name)

    def _children(self, parent: str, targets: Sequence[TargetConfig]) -> None:
        """Watch the targets that another one's upstream knows of, and no longer those that it has forgotten."""
        wanted = {target.target_name: target for target in targets}
        for name, watched in list(self._targets.items()):
            if watched.parent == parent and watched.config != wanted.get(name):
                self._stop(name)
        if parent in self._targets:
            for name, target in wanted.items():
                if name not in self._targets and name not in self._unrecognised:
                    self._start(target, parent=parent)

    def _start(
        self,
        target: TargetConfig,
        *,
        written: TargetConfig | None = None,
        found: bool = False,
        parent: str | None = None,
    ) -> None:
        assert self._client is not None  # noqa: S101 - made before anything is started
        assert self._group is not None  # noqa: S101 - the same
        name = target.target_name
        children = partial(self._children, name)
        watch = assemble(self.config, target, self._client, self.board, self._store, found=children, ports=self._ports)
        task = self._group.create_task(watch.run(), name=name)
        self._targets[name] = Watched(written or target, watch, task, found, parent)

    def _ports(self) -> dict[int, str]:
        """The ports of this machine at which targets are watched, and the targets' names; of two, the first one's."""
        places = [(urlsplit(watched.config.place), name) for name, watched in reversed(self._targets.items())]
        return {place.port: name for place, name in places if place.hostname in LOCAL and place.port is not None}

    # -- finding what runs here ----------------------------------------------------------------------------------

    async def _look(self, client: Client, first: bool) -> None:
        """Look for what is configured by its URL alone, and, where detection is on, for what runs on this machine."""
        self._missing = {}
        async with asyncio.TaskGroup() as group:  # one that hangs delays no other
            for target, health in self._unrecognised.values():
                group.create_task(self._look_at(client, target, health))
        if not self.config.detect:
            return
        ways: dict[str, Upstream] = {}
        for kind, source in sources().items():
            for target in source.candidates(self._environ):
                if self._is_known(target):
                    continue
                upstream = ways.setdefault(target.url, _way_to(client, target))
                problem = await _problem_with(source, upstream, target)
                if problem is not None:
                    self._missing[target.target_name] = f"{kind}: {problem}"
                    log.debug("not found", source=kind, problem=problem)
                elif self.config.detect and not self._is_known(target):  # another configuration may have come meanwhile
                    log.info("found", source=kind, url=target.place)
                    self._missing.pop(target.target_name, None)
                    self._start(target, found=True)
        if first:
            missing = {each.partition(":")[0]: None for each in self._missing.values()}
            log.info("looks again for what is missing, and says why at /", missing=", ".join(missing))

    async def _look_at(self, client: Client, target: TargetConfig, health: Health) -> None:
        """Watch a target that is configured by its URL alone as what it turns out to be; else say why it is nothing."""
        name, began = target.target_name, time.perf_counter()
        found = await recognised(client, target)
        if self._unrecognised.get(name) != (target, health):
            return  # another configuration has come meanwhile
        if isinstance(found, TargetConfig):
            log.info("recognised", target=name, source=found.source, url=target.url)
            del self._unrecognised[name]
            self.board.drop(name)
            self._start(found, written=target)
            return
        if health.reading is None:
            log.warning("target is not recognised", target=name, error=found)
        self.board.publish(Reading(name, time.time(), time.perf_counter() - began, reason="content", error=found))

    def _is_known(self, target: TargetConfig) -> bool:
        """Whether its name is taken, or what is at its place is watched."""
        watched = {name: watched.config for name, watched in self._targets.items()}
        return target.target_name in self._unrecognised or _is_among(target, watched)


async def recognised(client: Client, target: TargetConfig) -> TargetConfig | str:
    """The target as one of the source that it is by what it answers; else why it is none."""
    upstream = _way_to(client, target)  # one for all, so that what several look at is asked for once
    problems = {kind: await _problem_with(source, upstream, target) for kind, source in sources().items()}
    kind = next((kind for kind, problem in problems.items() if problem is None), None)
    if kind is None:
        return f"not recognised: {_summed_up(problems, target)} (say what it is with `source:`)"
    return sources()[kind].Config(**{**target.model_dump(), "source": kind})


async def _problem_with(source: type[Source], upstream: Upstream, target: TargetConfig) -> str | None:
    """Why this is no such source, or None where it is."""
    try:
        async with asyncio.timeout(LOOK_TIMEOUT):
            known = await source.recognise(upstream, target)
    except ReadError as error:
        return str(error)
    except TimeoutError:
        return f"{target.place}: no answer within {LOOK_TIMEOUT:g} s"
    except Exception as error:  # what answers somewhere must not end the exporter
        log.exception("a look failed by a defect of the exporter", source=source.kind)
        return f"{target.place}: a defect of the exporter, please report it: {type(error).__name__}: {error}"
    return None if known else _something_else(target)


def _is_among(target: TargetConfig, others: Mapping[str, TargetConfig]) -> bool:
    """Whether one of the others has its name, or is at its place."""
    return target.target_name in others or any(
        (other.source, other.place) == (target.source, target.place) or (other.url and other.url == target.url)
        for other in others.values()
    )


def _way_to(client: Client, target: TargetConfig) -> Upstream:
    """The way on which a target is looked for, without its key."""
    return Upstream(client, target.url, tls=_tls_of(target))


def _something_else(target: TargetConfig) -> str:
    return f"{target.place}: something else answers there"


def _summed_up(problems: Mapping[str, str | None], target: TargetConfig) -> str:
    """Why a target is none of the sources: what any of them was told, else that it is something else."""
    kinds: dict[str, list[str]] = {}
    for kind, problem in problems.items():
        if problem and problem != _something_else(target):
            kinds.setdefault(problem, []).append(kind)
    if len(kinds) <= 1:
        return next(iter(kinds), _something_else(target))
    return "; ".join(f"{', '.join(names)}: {said}" for said, names in kinds.items())
