"""The parts that watch one target, put together: from what is configured to what reads, adds up and publishes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from exporter.config.model import Config, TargetConfig
from exporter.config.secret import SecretError
from exporter.core.board import Board, Health
from exporter.core.errors import ReadError
from exporter.core.fetch import Client, Upstream
from exporter.core.poll import Watch
from exporter.core.source import Context, own_map, source_map
from exporter.core.state import Store
from exporter.core.tcp import Trust
from exporter.core.total import Totals
from exporter.core.types import SeriesTable
from exporter.insight import Insight, Settings
from exporter.sources import sources
from exporter.text.difference import Difference, Limits

if TYPE_CHECKING:
    from ssl import SSLContext


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


def way_to(client: Client, target: TargetConfig) -> Upstream:
    """The way on which a target is looked for, without its key."""
    return Upstream(client, target.url, tls=_tls_of(target))


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
