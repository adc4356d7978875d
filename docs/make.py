#!/usr/bin/env python3
# ruff: noqa: E501 - tables in Markdown have no other lines than long ones
"""Makes the documentation that is derived: `python docs/make.py` writes it, `--check` says what is stale."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core.core_schema import NullableSchema, WithDefaultSchema

from exporter.catalogue import chapters, families, maps, rules_of
from exporter.config.load import configured_kinds
from exporter.config.model import Config, TargetConfig, Tls
from exporter.config.values import DURATION_PATTERN, URL_SCHEMA, duration_text, size_text
from exporter.core.mapping import SourceMap
from exporter.core.source import source_map
from exporter.core.types import Family
from exporter.sources import sources

HERE = Path(__file__).resolve().parent
SOURCES = HERE.parent / "exporter" / "sources"
sys.path.insert(0, str(HERE))  # also where this file is loaded and not run

import tables  # noqa: E402

SCHEMA_FILE = "llm-exporter.schema.json"

EXAMPLE = """\
# yaml-language-server: $schema=./llm-exporter.schema.json
# llm-exporter.yaml: everything is optional; with no file at all, what runs on this machine is found

listen: 0.0.0.0:9400                       # :9400 when left out, on all addresses
interval: 5s                               # between two reads of a target
intervals: {nats: 1s}                      # of all targets of a source
timeout: 10s                               # for one read, in all
stalled_after: 2m                          # requests that run, and nothing moves: the target is stalled
detect: false                              # true: also find what runs on this machine
reload: true                               # POST /-/reload reads this file anew
state_directory: /var/lib/llm-exporter     # where totals are kept over restarts
log_level: info                            # debug, info, warning, error
log_format: text                           # text, json

targets:
  - http://gpu-1:8000                      # recognised by what it answers
  - source: litellm
    url: http://127.0.0.1:4000
    name: router-a                         # the label `target`; host:port when left out
    api_key_file: litellm-key              # a file in $CREDENTIALS_DIRECTORY; or a path: /run/secrets/litellm
    interval: 15s                          # of this target
    timeout: 1m30s
    stalled_after: 5m
    labels: {team: search}                 # added
    keep: [team_alias]                     # an upstream label to keep: top 20, the rest `other`
    exclude: [llm_gateway_overhead_seconds]
  - source: litellm
    url: [https://gw-1:4000, https://gw-2:4000]   # one target each
    tls: {ca_file: ca.pem, cert_file: exporter.pem, key_file: exporter.key}   # what is trusted, and who we are
    api_key_env: LITELLM_API_KEY
    compression: true                      # gzip, where the network is what is scarce
  - source: http                           # any service: up, latency, up since
    name: search
    url: http://127.0.0.1:7700/health
    status: [200, 204]                     # 200 to 299 when left out
    text: available                        # what the answer must hold
    thresholds: {restart_failures: 3}      # of this target
  - {source: http, name: ssh, host: 127.0.0.1, port: 22}   # or anything that takes TCP connections

limits:                                    # of each target
  body: 256MiB                             # largest answer, after decompression
  series: 100000

score:                                     # what llm_provider_score is computed with
  window: 15m
  minimum_requests: 10
  latency: 30s                             # objective of the p95 of the whole answer
  ttft: 2s                                 # objective of the p95 of the first token

thresholds:                                # exposed as llm_threshold_*, for alerts; nothing else is done
  restart_failures: 5
  cpu_max: 90                              # percent
  mem_max: 90
"""

HEAD = f"""\
<!-- Made by `python docs/make.py` from exporter/config: change it there. -->
# Configuration

Everything is optional. Without a file, `llm-exporter` finds what runs on this machine; with `--config FILE` it reads
what the file names, and finds more only where the file says `detect: true`. `llm-exporter check FILE` checks a file:
every mistake is listed at once, with its line and what to write instead.

```yaml
{EXAMPLE}```

Editors complete and check the file with [{SCHEMA_FILE}]({SCHEMA_FILE}), made from the same model.

## How values are written

| What | Written |
| --- | --- |
| duration | `500ms`, `2s`, `1m30s`, `1h`, `2d`: whole numbers with units, the largest first |
| size | `64KiB`, `128MiB`, `1GiB` |
| URL | `http://…` or `https://…`, without user, password, query or fragment; of a target whose metrics are read, without `/metrics` at its end |
| address | `:9400`, `127.0.0.1:9400`, `[::1]:9400` |
| label name | letters, digits and `_`, no digit first; not one that the exporter gives itself, \
and, to add one, not one that Prometheus or what deploys the exporter gives |
| text | as it is; in quotes where YAML would read a number, `true` or `false` |

YAML is read as 1.2 has it: `yes`, `on` and dates are text. Anchors, aliases and `<<` may be used. A file has at
most 1 MiB.

A secret stands in a file, in systemd's credentials (`LoadCredential=`) or in the environment. Files are read again each
time, so a key can be changed while the exporter runs. No secret is ever logged, shown or printed.
"""


_WRITTEN: dict[str, Callable[[Any], str]] = {"duration": duration_text, "size": size_text}
"""How the defaults of values with a form of their own are written, by the title of their schema."""


class _Schema(GenerateJsonSchema):
    """JSON Schema of what is written: nothing is ever `null`, and titles are the model's own."""

    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002 - pydantic's own signature
        return False

    def nullable_schema(self, schema: NullableSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])

    def default_schema(self, schema: WithDefaultSchema) -> JsonSchemaValue:
        made = super().default_schema(schema)
        if made.get("default", "") in (None, [], {}):
            del made["default"]
        elif (write := _WRITTEN.get(made.get("title", ""))) is not None:
            made["default"] = write(made["default"])
        return made


def _model_schema() -> dict[str, Any]:
    """The schema of the whole file: that of the model, and in its place for targets the one of every source."""
    whole = Config.model_json_schema(schema_generator=_Schema)
    definitions = whole.setdefault("$defs", {})
    definitions.pop(TargetConfig.__name__, None)
    kinds: dict[str, type[TargetConfig]] = {"auto": TargetConfig, **configured_kinds()}
    common: dict[str, Any] = {}
    choices: list[dict[str, Any]] = [URL_SCHEMA]
    for kind, model in kinds.items():
        made = model.model_json_schema(schema_generator=_Schema)
        definitions.update(made.pop("$defs", {}))
        properties = made["properties"]
        properties["source"] |= {"const": kind}
        for key in [key for key in common if properties[key] == common[key]]:
            properties[key] = {"$ref": f"#/$defs/target_auto/properties/{key}"}
        if model is TargetConfig:
            common = properties
        else:
            made.setdefault("required", []).append("source")
        definitions[f"target_{kind}"] = made | {"title": f"target {kind}"}
        choices.append({"$ref": f"#/$defs/target_{kind}"})
    whole["properties"]["targets"]["items"] = {"anyOf": choices}
    return whole


def schema() -> str:
    """The JSON Schema of a configuration file."""
    whole = {"$schema": "https://json-schema.org/draft/2020-12/schema", **_model_schema(), "title": "llm-exporter"}
    return json.dumps(whole, indent=2, ensure_ascii=False) + "\n"


def _form(schema: Mapping[str, Any]) -> str:
    """How a value is written, in words: `duration`, `true` or `false`, list of family."""
    if "anyOf" in schema:
        return " or ".join(_form(choice) for choice in schema["anyOf"])
    if "enum" in schema and len(schema["enum"]) < 8:
        return ", ".join(f"`{word}`" for word in schema["enum"])
    if "$ref" in schema:
        return "mapping"
    if schema.get("pattern") == DURATION_PATTERN:  # also where it has no title, as a value of a mapping
        return "duration"
    if "title" in schema:
        return str(schema["title"])
    match schema.get("type"):
        case "array":
            return f"list of {_form(schema['items'])}"
        case "object":
            values = schema.get("additionalProperties")
            return f"mapping of text to {_form(values)}" if values else "mapping of label name to text"
        case "boolean":
            return "`true`, `false`"
        case "integer":
            return "whole number"
        case "number":
            return "number"
        case _:
            return "text"


def _table(model: type[BaseModel], keys: Iterable[str]) -> str:
    made = model.model_json_schema(schema_generator=_Schema)
    lines = ["| Key | Written | Left out | What it says |", "| --- | --- | --- | --- |"]
    for key in keys:
        entry = made["properties"][key]
        default = entry.get("default", "required" if key in made.get("required", ()) else "")
        shown = f"`{json.dumps(default).strip(chr(34))}`" if default not in ("", "required") else default
        lines.append(f"| `{key}` | {_form(entry)} | {shown} | {entry['description']} |")
    return "\n".join(lines) + "\n"


def configuration() -> str:
    """The page on configuration."""
    fields = Config.model_fields
    sections = {
        key: field.annotation
        for key, field in fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
    }
    pages = [HEAD]
    plain = [key for key in fields if key not in sections and key != "targets"]
    pages.append("## The whole\n\n" + _table(Config, plain))
    for key, section in sections.items():
        pages.append(f"## `{key}`\n\n{section.__doc__}\n\n{_table(section, section.model_fields)}")
    pages.append(
        "## `targets`\n\nA list. An entry is a URL, recognised by what it answers, or a mapping with these keys and "
        f"those of its source. No two targets have the same name.\n\n{_table(TargetConfig, TargetConfig.model_fields)}"
    )
    pages.append(f"### `tls`\n\n{Tls.__doc__}\n\n{_table(Tls, Tls.model_fields)}")
    for kind, model in configured_kinds().items():
        own = [key for key in model.model_fields if key not in TargetConfig.model_fields]
        about = f"### `source: {kind}`\n\n{model.__doc__}\n"
        pages.append(about + ("\n" + _table(model, own) if own else ""))
    return "\n".join(pages)


METRICS = """\
<!-- Made by `python docs/make.py` from exporter/catalogue and the sources' map.yaml: change it there. -->
# Metrics

What dashboards and alerts are written against. Every family but the exporter's own carries the labels `source` (the kind
of thing read) and `target` (its configured name). A label that an upstream does not tell is absent. A counter never
falls, whatever happens to the upstream's own series: see [architecture](architecture.md#totals).

Joins between families are `on (job, instance, target)`: a target's name is unique on one exporter only. Sums never cross
`layer`.
"""

SCORE = """\

## The score, computed again

`llm_provider_score = (1 - E)² × (0.6 + 0.2 L + 0.2 T)`, over the sliding window of `score.window` (15 min):

| Part | From |
| --- | --- |
| E | `llm_provider_window_error_ratio` |
| L | `llm_provider_objective_seconds{stat="latency"} / llm_provider_window_latency_seconds{stat="p95"}`, at most 1 |
| T | `llm_provider_objective_seconds{stat="ttft"} / llm_provider_window_ttft_seconds{stat="p95"}`, at most 1 |

Where only one of L and T is known it has the weight of both; where neither is, both count as 1. Under
`score.minimum_requests` (10) attempts in the window there is no score. Percentiles are estimated from the buckets as
`histogram_quantile` does.

## Savings, computed again

| Family | Per read |
| --- | --- |
| `llm_cache_saved_usd_total{cache="response"}` | growth of `llm_response_cache_tokens_total` × the window's growth of `llm_spend_usd_total` ÷ that of (`llm_prompt_tokens_total` + `llm_output_tokens_total` − `llm_response_cache_tokens_total`) |
| `llm_cache_saved_seconds_total{cache="response"}` | growth of `llm_response_cache_hits_total` × the window's mean of `llm_upstream_duration_seconds` |
| `llm_cache_saved_usd_total{cache="prompt"}` | growth of `llm_cached_prompt_tokens_total` × (`llm_price_usd_per_token{kind="input"}` − `{kind="cache_read"}`) |
| `llm_cache_write_cost_usd_total{cache="prompt"}` | growth of `llm_prompt_cache_write_tokens_total` × (`{kind="cache_write"}` − `{kind="input"}`) |

Where no price is known nothing is claimed, and `llm_price_known` is 0.

## Standing still

`llm_target_stalled` is 1 where requests are running or waiting and nothing has moved for `stalled_after` (2 minutes): no
token, no step of the engine, no filling KV cache, no served request. It is judged at each read, for each model and rank
that the upstream tells requests of, and 0 again at the first read that sees a move, or nothing left to do. Arrivals,
clients that give up and requests that are turned away are no move, so health checks that answer all the while hide nothing.

Where an upstream shows nothing while a request runs, and all moves only at its end, a long answer looks like a standstill.
There the time is three times what all but one in a thousand requests took (`llm_request_duration_seconds`), or three times
the longest pause that was seen to end; 10 minutes at least until 1,000 requests have been served, an hour at most, and
never less than `stalled_after`.

| Upstream | Seen while a request runs | Allowed |
| --- | --- | --- |
| vLLM | steps that give a token; KV cache, also in a long prefill | `stalled_after` |
| Dynamo's frontend | gaps between tokens, once one was seen | `stalled_after` |
| Dynamo's worker | bytes of answers | `stalled_after` |
| LiteLLM | nothing | by history |
| another engine that tells its tokens at the end | first tokens, gaps and KV cache, where it has them | by history |

What cannot be seen: one request that hangs while others get on; a pause of an upstream that tells no requests, or that has
counted nothing yet; a prefill that takes longer than `stalled_after` in one step, or that a frontend waits for alone, is
taken for a standstill.

## In OpenTelemetry's words

| Here | OpenTelemetry (GenAI) |
| --- | --- |
| `llm_request_duration_seconds` | `gen_ai.server.request.duration` |
| `llm_upstream_duration_seconds` | `gen_ai.client.operation.duration`: the gateway is the client |
| `llm_time_to_first_token_seconds` | `gen_ai.server.time_to_first_token` |
| `llm_time_per_output_token_seconds`; as sum and count `llm_time_per_output_token_mean_seconds` | `gen_ai.server.time_per_output_token` |
| `llm_prompt_length_tokens`, `llm_output_length_tokens`; as sums `llm_prompt_tokens_total`, `llm_output_tokens_total` | `gen_ai.client.token.usage` with `gen_ai.token.type` `input`, `output` |
| label `provider` | `gen_ai.provider.name` |
| label `model` | `gen_ai.request.model` |
| label `reason` of failures | `error.type` |
| label `reason` of finishes | `gen_ai.response.finish_reasons` |
"""


COVERAGE = """\

## What each engine tells

● is among the engine's metrics, ◐ is made of what it lists besides; where nothing stands the engine cannot tell, and the
family is absent. Engines with a * are experimental: made from documentation, not yet seen running. An engine behind a port
of Dynamo's tells what is ● here, as `source="dynamo"`; what is ● of Ollama comes from its processes (`runners`). The names
behind it, and what is to be known of them, stand in the README of each source.

"""


def engines() -> dict[str, SourceMap]:
    """The maps of the model servers, by their kind."""
    made = {kind: source_map(kind) for kind in sources()}
    return {kind: each for kind, each in made.items() if each.layer == "engine"}


def _besides(family: Family, kind: str) -> str:
    """What a family is made of besides the engine's metrics, as the catalogue says it: `… (kind, another)`."""
    origin = family.help.rpartition(" From: ")[2].removesuffix(".")
    parts = (re.fullmatch(r"(.*) \(([\w, ]+)\)", part) for part in origin.split("; "))
    return "; ".join(part[1] for part in parts if part and kind in part[2].split(", "))


def _names(family: Family, kind: str) -> list[str]:
    """The engine's names for a family, as its map and those that it includes write them."""
    given = maps().get(kind, {})
    names = [name for rule in rules_of(given.get("families", {}).get(family.name, [])) for name in rule["from"]]
    return [*names, *(name for other in given.get("include", ()) for name in _names(family, other))]


def _told(family: Family, kind: str) -> str:
    """How an engine tells a family: the names of its metrics, or what it is made of; empty where it cannot."""
    return ", ".join(f"`{name}`" for name in dict.fromkeys(_names(family, kind))) or _besides(family, kind)


def _of_engines() -> list[Family]:
    """The families that any engine tells."""
    models = {family for chapter in chapters() if chapter.title == "Models" for family in chapter.families}
    candidates = (family for family in families().values() if "layer" in family.labels or family in models)
    return [family for family in candidates if any(_told(family, kind) for kind in engines())]


def coverage() -> str:
    """Which families the engines tell: ours by row, theirs by column."""
    head = [kind + ("*" if made.experimental else "") for kind, made in engines().items()]
    rows = [f"| Family | {' | '.join(head)} |", "| --- |" + " --- |" * len(head)]
    for family in _of_engines():
        marks = ["●" if _names(family, kind) else "◐" if _besides(family, kind) else "" for kind in engines()]
        rows.append(f"| `{family.name}` | {' | '.join(marks)} |")
    return "\n".join(rows) + "\n"


BEGIN, END = "<!-- Made by `python docs/make.py` from the map. -->\n", "<!-- Until here. -->\n"


def readme(kind: str) -> str:
    """The README of an engine's source, with the table of what it tells and what not. Raises SystemExit."""
    text = (SOURCES / kind / "README.md").read_text("utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise SystemExit(f"exporter/sources/{kind}/README.md: write {BEGIN.strip()} and {END.strip()}, once each")
    rows = [f"| Family | {kind} |", "| --- | --- |"]
    rows += [f"| `{family.name}` | {_told(family, kind) or '–'} |" for family in _of_engines()]
    before, rest = text.split(BEGIN)
    return before + BEGIN + "\n".join(rows) + "\n" + END + rest.split(END)[1]


def metrics() -> str:
    """The page on metrics."""
    pages = [METRICS]
    for chapter in chapters():
        rows = ["| Family | Type | Labels | Meaning |", "| --- | --- | --- | --- |"]
        for family in chapter.families:
            own = [label for label in family.labels if label not in ("source", "target")]
            labels = ", ".join(
                f"`{label}` ({', '.join(family.closed[label])})" if label in family.closed else f"`{label}`"
                for label in own
            )
            help_text = family.help.replace("|", "\\|")
            rows.append(f"| `{family.name}` | {family.kind} | {labels} | {help_text} |")
        pages.append(f"## {chapter.title}\n\n{chapter.text}\n\n" + "\n".join(rows) + "\n")
    return "\n".join(pages) + COVERAGE + coverage() + SCORE


MADE: dict[Path, Callable[[], str]] = {
    HERE / "configuration.md": configuration,
    HERE / SCHEMA_FILE: schema,
    HERE / "metrics.md": metrics,
    HERE / "prometheus.md": tables.page,
    **{SOURCES / kind / "README.md": partial(readme, kind) for kind in engines()},
}
"""What is made, and by what."""


def stale() -> list[Path]:
    """The files that are not what would be made now."""
    return [path for path, made in MADE.items() if not path.is_file() or path.read_text("utf-8") != made()]


def main(arguments: list[str]) -> int:
    """Write what is stale; with `--check` only name it, and exit with 1 where there is any."""
    found = stale()
    for path in found:
        if "--check" in arguments:
            print(f"{path.relative_to(HERE.parent)}: stale (run python docs/make.py)", file=sys.stderr)
        else:
            path.write_text(MADE[path](), "utf-8")
            print(path.relative_to(HERE.parent))
    return 1 if found and "--check" in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
