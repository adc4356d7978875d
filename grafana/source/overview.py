"""llm-overview: five questions on the first screen, and where to go on from each."""

from __future__ import annotations

from grafana_foundation_sdk.builders import statetimeline
from grafana_foundation_sdk.builders import table as tables

from grafana.source import models, providers
from grafana.source.page import FIRING, Page, choice
from grafana.source.panels import SAME, THIRD, Column, Panel, Size, coloured, number, series, spread, table, timeline
from grafana.source.query import (
    AT,
    Query,
    called,
    highest,
    joined,
    mean,
    once,
    pick,
    quantile,
    rate,
    select,
    share,
    total,
)
from grafana.source.style import BAD, GOOD, PARTS, RATIO_GOOD, WARN, severities

GATEWAY, ENGINE = 'layer="gateway"', 'layer="engine"'
JOB = 'job=~"$job"'  # recordings are over all exporters of a job
WHERE = "layer, source"
FIFTH = Size(5, 4)
QUARTER = Size(6, 7)
STREAMED = "llm_time_to_first_token_seconds"


def page() -> Page:
    """The dashboard."""
    made = Page(
        "llm-overview",
        "LLM / Overview",
        "Is it served now, whose slowness is it, what is frozen or next to fail, which model to unload, what does it"
        " cost?",
        choice("layer", "Layer (heatmap)", "llm_requests_total"),
        choice("source", "Source (heatmap)", "llm_requests_total", 'layer="$layer"'),
    )
    made.row("Now: is it served?", *_served())
    made.row("Now: whose slowness? What is frozen, or next to fail?", *_slow(), _frozen(), _next())
    made.row("Now: which model to unload? What does it cost?", models.idle(Size(12, 7)), *_money())
    made.row(
        "Over time",
        targets(THIRD),
        providers.deployments(THIRD),
        spread(
            "Time to first token",
            "How the requests' TTFT spreads, of one layer and source (see above): buckets are the upstream's own.",
            "s",
            total("le", rate(f"{STREAMED}_bucket", 'layer="$layer"', 'source="$source"')),
        ),
    )
    made.row("Parts: who serves, and what fires", providers.scorecard(Size(14, 9)), _alerts())
    return made


def _served() -> list[Panel]:
    """Whether it is served now."""
    known = f"{rate('llm_requests_total')} and on ({AT}) {select('llm_request_failures_total')}"
    failed = share(total(WHERE, rate("llm_request_failures_total")), total(WHERE, known))
    ttft = pick("llm_provider_window_ttft_seconds", GATEWAY, 'stat="p95"')
    objective = pick("llm_provider_objective_seconds", GATEWAY, 'stat="ttft"')
    up, stalled = pick("llm_target_up"), highest(AT, "llm_target_stalled")
    return [
        number(
            "Served: requests that did not fail",
            "Part of the requests that finished now, by layer. The same request passes several layers: each answers for"
            " itself. A layer that tells no failures, as most engines, is not here.",
            "percentunit",
            Query(f"1 - {failed}", "{{layer}} ({{source}})"),
            empty="no requests",
            size=FIFTH,
            base=BAD,
            steps=RATIO_GOOD,
            links={"Failures by provider": f"/d/llm-providers?{SAME}"},
        ).decimals(2),
        number(
            "Burn of the objectives, 1 h",
            "How many times faster than the objectives (prometheus/rules/objectives.yml) allow do requests fail, or"
            " first tokens come late? At 1 the budget lasts its 30 days; at 14.4 it is gone in two. The worst model of"
            " each layer, as the alerts see it: the objectives stand in the rules alone.",
            "none",
            Query(f"max by (layer) (layer_model:llm_availability:burn1h{{{JOB}}})", "{{layer}} errors"),
            Query(f"max by (layer) (layer_model:llm_time_to_first_token:burn1h{{{JOB}}})", "{{layer}} TTFT"),
            empty="no requests, or no rules",
            size=FIFTH,
            base=GOOD,
            steps=((1, WARN), (6, BAD)),
        ),
        number(
            "TTFT p95",
            "95 of 100 requests have their first token within this time, by layer.",
            "s",
            Query(quantile(0.95, STREAMED, WHERE), "{{layer}} ({{source}})"),
            empty="no stream was timed",
            size=FIFTH,
            links={"Latency": f"/d/llm-latency?{SAME}"},
        ),
        number(
            "TTFT p95 over its objective",
            "Of each provider, within the window of its score. Above 1 the objective is missed.",
            "percentunit",
            Query(f"max by (provider) ({ttft} / on ({AT}, layer, provider) {objective})", "{{provider}}"),
            empty="no stream was timed",
            size=FIFTH,
            base=GOOD,
            steps=((0.8, WARN), (1, BAD)),
            links={"Providers": f"/d/llm-providers?{SAME}"},
        ),
        number(
            "Targets",
            "Targets that were read, that could not be read, and those with requests on which nothing moves.",
            "none",
            Query(f"count({up} == 1) or 0 * count({up})", "up"),
            Query(f"count({up} == 0) or 0 * count({up})", "down", BAD),
            Query(f"count({stalled} == 1) or 0 * count({up})", "stalled", WARN),
            empty="no exporter is scraped",
            size=Size(4, 4),
            base=GOOD,
            links={"The exporter": f"/d/llm-exporter?{SAME}"},
        ),
    ]


def _slow() -> list[Panel]:
    """Whose slowness it is."""
    parts = {"gateway": "llm_gateway_overhead_seconds", "queue": "llm_request_queue_seconds"}
    parts["provider"] = "llm_upstream_duration_seconds"
    phases = {phase: f"llm_request_{phase}_seconds" for phase in ("queue", "prefill", "decode")}
    return [
        series(
            "Slowness: the gateway's view",
            "Where the mean request spends its time: in the gateway itself, in its queue, at the provider. Means,"
            " because they add up; percentiles do not.",
            "s",
            *(Query(mean(family, "layer", GATEWAY), part, PARTS[part]) for part, family in parts.items()),
            empty="no gateway, or no requests",
            size=QUARTER,
            stacked=True,
        ),
        series(
            "Slowness: the engines' view",
            "Where the mean request spends its time in the engines. The gateway's provider time contains it: it stands"
            " beside that and is never added to it.",
            "s",
            *(Query(mean(family, "layer", ENGINE), phase, PARTS[phase]) for phase, family in phases.items()),
            empty="no engine tells of phases",
            size=QUARTER,
            stacked=True,
        ),
    ]


def _frozen() -> tables.Panel:
    """What is frozen."""
    bad = {
        "exporter down": (pick("up"), "== 0", ("job", "instance")),
        "stalled": (pick("llm_target_stalled"), "== 1", ("target", "model", "instance")),
        "down": (pick("llm_target_up"), "== 0", ("target", "instance")),
        "unit failed": (pick("llm_unit_state", 'state="failed"'), "== 1", ("unit", "instance")),
        "service down": (pick("llm_probe_up"), "== 0", ("target", "probe", "instance")),
        "GPU lost": (pick("llm_gpu_up"), "== 0", ("gpu", "instance", "uuid")),
        "out of rotation": (pick("llm_deployment_up", GATEWAY), "== 0", ("deployment", "target")),
    }
    endpoint = ("dynamo_namespace", "dynamo_component", "dynamo_endpoint")
    bad["suspect"] = (pick("llm_dynamo_instance_state", 'state="suspect"'), "== 1", (*endpoint, "dynamo_instance"))
    bad["offline"] = (pick("llm_dynamo_endpoint_state", 'state="offline"'), "== 1", endpoint)
    now = " or ".join(
        called(joined(f"{series} {test}", "thing", *labels), what=what) for what, (series, test, labels) in bad.items()
    )
    since = {
        "stalled": f"{pick('llm_target_last_progress_timestamp_seconds')} and ({pick('llm_target_stalled')} == 1)",
        "down": f"{pick('llm_target_last_success_timestamp_seconds')} and ({pick('llm_target_up')} == 0)",
    }
    ago = " or ".join(called(joined(f"time() - ({x})", "thing", *bad[what][2]), what=what) for what, x in since.items())
    return table(
        "Frozen, or gone",
        "What does not move or does not answer now, and for how long where that can be told.",
        {"what": "What", "thing": "Which"},
        Column("", "none", f"count by (what, thing) ({now})"),
        Column("For", "s", f"max by (what, thing) ({ago})"),
        empty="nothing is frozen or gone",
        size=QUARTER,
        order="For",
    )


def _slope(family: str, *matchers: str) -> str:
    """What a gauge gains each second, over what is shown."""
    return once(f"deriv({select(family, *matchers)}[$__range])")


def _next() -> tables.Panel:
    """What is next to fail."""
    kv = ("llm_kv_cache_usage_ratio", ENGINE)
    requests = pick("llm_rate_limit_remaining", GATEWAY, 'unit="requests"')
    attempts = total(f"{AT}, layer, model, provider", rate("llm_provider_requests_total", GATEWAY))
    left = {
        "KV cache full": (f"(1 - {pick(*kv)}) / ({_slope(*kv)} > 0)", ("target", "model", "rank", "instance")),
        # its window is a minute: what lasts longer is given anew before
        "rate limit": (f"{requests} / on ({AT}, layer, model, provider) ({attempts} > 0) < 60", ("provider", "model")),
    }
    gone = {
        "budget spent": (("llm_budget_remaining_usd", GATEWAY), ("scope", "provider")),
        "disk full": (("llm_host_filesystem_avail_bytes",), ("mountpoint", "instance")),
        "memory full": (("llm_host_memory_available_bytes",), ("instance",)),
    }
    for what, (rest, labels) in gone.items():
        left[what] = (f"{pick(*rest)} / (-{_slope(*rest)} > 0)", labels)
    each = " or ".join(called(joined(expr, "thing", *labels), what=what) for what, (expr, labels) in left.items())
    return table(
        "Next to fail",
        "How long until a limit, a budget, a disk or a KV cache is used up at the pace of the time range shown; what"
        " lasts longer than a day is left out.",
        {"what": "What", "thing": "Which"},
        Column("In", "s", f"bottomk(12, min by (what, thing) ({each}) < 86400)", ((900, WARN), (3600, GOOD)), base=BAD),
        empty="nothing runs out within a day at this pace",
        size=QUARTER,
        order="In",
        falling=False,
    )


def _money() -> list[Panel]:
    """What it costs."""
    spend, saved, filling = (
        total("layer", rate(f"llm_{what}_usd_total", GATEWAY)) for what in ("spend", "cache_saved", "cache_write_cost")
    )
    tokens = rate("llm_output_tokens_total", GATEWAY)
    unknown = f"{tokens} and on ({AT}, layer, model, provider) {select('llm_price_known', GATEWAY)} == 0"
    every = total("layer", tokens)
    return [
        number(
            "Spend an hour",
            "Money that goes to providers at the pace of now, in USD an hour, as far as prices are known.",
            "currencyUSD",
            Query(f"3600 * {spend}", "USD/h"),
            empty="no gateway tells of money",
            size=Size(4, 7),
            links={"Providers": f"/d/llm-providers?{SAME}"},
        ),
        number(
            "Caches save an hour",
            "What the response and the prompt cache save at the pace of now, less what filling the prompt cache costs"
            " beyond the ordinary price, in USD an hour.",
            "currencyUSD",
            Query(f"3600 * ({saved} - ({filling} or 0 * {saved}))", "USD/h"),
            empty="no cache, or no price is known",
            size=Size(4, 7),
            base=BAD,
            steps=((0, GOOD),),
            links={"Caches": f"/d/llm-cache?{SAME}"},
        ),
        number(
            "Tokens without a price",
            "Part of the output tokens that come from models whose price the gateway does not know: what they cost is"
            " not in the spend.",
            "percentunit",
            Query(share(f"({total('layer', unknown)} or 0 * {every})", every), "of output tokens"),
            empty="no tokens",
            size=Size(4, 7),
            base=GOOD,
            steps=((0.001, WARN), (0.1, BAD)),
            links={"Providers": f"/d/llm-providers?{SAME}"},
        ),
    ]


def targets(size: Size) -> statetimeline.Panel:
    """Every target: up, down, or stalled."""
    by = "instance, source, target"
    up, stalled = (highest(by, family) for family in ("llm_target_up", "llm_target_stalled"))
    return timeline(
        "Targets over time",
        "Whether each target was read, and whether it has requests on which nothing moves.",
        Query(f"{up} + ({stalled} or 0 * {up})", "{{instance}} {{source}} {{target}}"),
        {"1": "up", "2": "stalled", "0": "down"},
        empty="no exporter is scraped",
        size=size,
    )


def _alerts() -> tables.Panel:
    firing = f"count by (severity, alertname, target, model) ({FIRING})"
    return table(
        "Firing alerts",
        "Alerts of the rules in prometheus/alerts that fire now.",
        {"alertname": "Alert", "severity": "Severity", "target": "Target", "model": "Model"},
        Column("Series", "none", firing),
        empty="no alert fires",
        size=Size(10, 9),
    ).override_by_name("Severity", coloured(severities()))
