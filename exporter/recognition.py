"""What answers at a URL: looked at without a key, by each source in its own way."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import structlog

from exporter.config.model import TargetConfig
from exporter.core.errors import ReadError
from exporter.core.fetch import Client, Upstream
from exporter.core.source import Source
from exporter.sources import sources
from exporter.wiring import way_to

LOOK_TIMEOUT = 3.0
"""Seconds in which an upstream that is looked for must answer."""

log = structlog.get_logger(__name__)


async def recognised(client: Client, target: TargetConfig) -> TargetConfig | str:
    """The target as one of the source that it is by what it answers; else why it is none."""
    upstream = way_to(client, target)  # one for all, so that what several look at is asked for once
    problems = {kind: await problem_with(source, upstream, target) for kind, source in sources().items()}
    kind = next((kind for kind, problem in problems.items() if problem is None), None)
    if kind is None:
        return f"not recognised: {_summed_up(problems, target)} (say what it is with `source:`)"
    return sources()[kind].Config(**{**target.model_dump(), "source": kind})


async def problem_with(source: type[Source], upstream: Upstream, target: TargetConfig) -> str | None:
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
