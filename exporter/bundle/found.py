"""What runs on this machine, as a configuration that a person can go on with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from pydantic import SecretStr

from exporter.config.model import TargetConfig
from exporter.core.fetch import session
from exporter.recognition import problem_with
from exporter.sources import sources
from exporter.wiring import way_to

HEAD = """\
# What llm-exporter found on this machine. `llm-exporter check llm-exporter.yaml` reads each target once.
# Every key: docs/configuration.md. Secrets are not written here: name the file or the variable that has them.
detect: true # what is started later is found, too; false reads what stands here and nothing else
"""


async def look(environ: Mapping[str, str]) -> list[TargetConfig]:
    """The targets that answer where they usually are. Nothing is asked for with a key."""
    found: list[TargetConfig] = []
    async with session() as client:
        for source in sources().values():
            for target in source.candidates(environ):
                if any(other.target_name == target.target_name for other in found):
                    continue
                if await problem_with(source, way_to(client, target), target) is None:
                    found.append(target)
    return found


def configuration(targets: Sequence[TargetConfig]) -> str:
    """The file that reads these targets."""
    entries = [_entry(target) for target in targets]
    text = HEAD + "targets:\n" + "".join(f"  - {_flow(entry)}\n" for entry in entries) if entries else HEAD
    for target in targets:
        for name, value in target:
            if isinstance(value, SecretStr):
                text += f"  # {target.target_name}: {name} was given, and is left out: write {name}_file\n"
    return text


def _entry(target: TargetConfig) -> dict[str, Any]:
    """The keys that were set, without secrets."""
    said = target.model_dump(mode="json", exclude_unset=True, exclude_none=True)
    secret = {name for name, value in target if isinstance(value, SecretStr)}
    return {"source": target.source, **{name: value for name, value in said.items() if name not in {"source", *secret}}}


def _flow(entry: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(entry), default_flow_style=True, sort_keys=False, width=10_000).strip()
