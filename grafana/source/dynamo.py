"""llm-dynamo: what is registered, in which state, who works, and over which way requests go."""

from __future__ import annotations

from grafana_foundation_sdk.builders import nodegraph

from grafana.source.page import Page, variable
from grafana.source.panels import Column, Panel, Size, graph, number, series, states, table, timeline
from grafana.source.query import (
    BY,
    NAME,
    Query,
    called,
    highest,
    joined,
    lowest,
    percentiles,
    pick,
    quantile,
    rate,
    renamed,
    share,
    state,
    total,
)
from grafana.source.style import ANY_BAD, BAD, GOOD, IN, WARN, named

NAMESPACE = 'dynamo_namespace=~"$namespace"'
FRONTEND, ENGINE = 'layer="frontend"', 'layer="engine"'
OF_DYNAMO = (ENGINE, 'source="dynamo"')
LEVELS = ("dynamo_namespace", "dynamo_component", "dynamo_endpoint")
ENDPOINT = ", ".join(LEVELS)
PATH = "{{dynamo_component}}/{{dynamo_endpoint}}"
WORKER = "dynamo_component, dynamo_instance"
QUARTER = Size(6, 8)


def page() -> Page:
    """The dashboard."""
    made = Page(
        "llm-dynamo",
        "LLM / Dynamo",
        "NVIDIA Dynamo: namespaces, components and endpoints, the instances that serve them, and how they fare.",
        variable("dynamo_namespace", "Namespace", "llm_dynamo_endpoint_state").name("namespace"),
    )
    made.row("Now", *_now())
    made.row(
        "Over time: what is registered",
        _map(),
        states(
            "Endpoints over time",
            "The state of each endpoint. suspect: registered, and no instance can be reached; unknown: etcd cannot be"
            " asked.",
            "llm_dynamo_endpoint_state",
            ENDPOINT,
            "{{dynamo_namespace}} " + PATH,
            NAMESPACE,
            empty="nothing is registered",
            size=Size(12, 11),
        ),
        _models(),
        states(
            "Instances over time",
            "The state of each instance, one process that serves an endpoint.",
            "llm_dynamo_instance_state",
            f"{ENDPOINT}, dynamo_instance",
            PATH + " {{dynamo_instance}}",
            NAMESPACE,
            empty="nothing is registered",
        ),
    )
    made.row("Traffic", *_traffic())
    made.row("Latency", *_latency())
    made.row("Load", *_load())
    made.row("Parts: instances", *_instances())
    return made


def _now() -> list[Panel]:
    instances = pick("llm_dynamo_endpoint_instances", NAMESPACE)
    suspect = pick("llm_dynamo_instance_state", NAMESPACE, 'state="suspect"')
    bad = pick("llm_dynamo_endpoint_state", NAMESPACE, 'state=~"suspect|offline"')
    return [
        number(
            "Endpoints",
            "Endpoints that something is known of.",
            "none",
            Query(f"count({highest(ENDPOINT, 'llm_dynamo_endpoint_state', NAMESPACE)})", "endpoints"),
            empty="nothing is registered",
        ),
        number(
            "Instances",
            "Instances that are registered for all endpoints, and those of them that cannot be reached; a process that"
            " serves several endpoints counts with each.",
            "none",
            Query(f"sum({instances})", "registered"),
            Query(f"sum({suspect})", "suspect", WARN),
            empty="nothing is registered",
        ),
        number(
            "Suspect or offline",
            "Endpoints that no instance serves, or none that can be reached.",
            "none",
            Query(f"sum({bad})", "endpoints"),
            empty="nothing is registered",
            base=GOOD,
            steps=ANY_BAD,
        ),
        number(
            "Requests that failed",
            "Part of the frontends' requests that failed, now.",
            "percentunit",
            Query(
                share(
                    total("layer", rate("llm_request_failures_total", FRONTEND)),
                    total("layer", rate("llm_requests_total", FRONTEND)),
                ),
                "failed",
            ),
            empty="no requests",
            base=GOOD,
            steps=((0.001, WARN), (0.01, BAD)),
        ),
    ]


def _map() -> nodegraph.Panel:
    """Namespaces, their components and their endpoints; the figure is the number of registered instances."""
    registered = pick("llm_dynamo_endpoint_instances", NAMESPACE)
    nodes, edges = [], []
    for depth, level in enumerate(LEVELS, 1):
        path = LEVELS[:depth]
        each = f"sum by ({', '.join(path)}) ({registered})"
        name = joined(renamed(each, "title", level), "id", *path, by="/")
        nodes.append(called(name, subtitle=level.removeprefix("dynamo_")))
        if depth > 1:
            edge = joined(joined(each, "target", *path, by="/"), "source", *path[:-1], by="/")
            edges.append(joined(edge, "id", *path, by="/"))
    return graph(
        "Namespaces, components, endpoints",
        "What is registered in etcd, as it is now. The figure in a node is the number of instances below it.",
        f'count_values by (id, title, subtitle) ("mainstat", {" or ".join(nodes)})',
        f"max by (id, source, target) ({' or '.join(edges)})",
        empty="nothing is registered",
        size=Size(12, 11),
    )


def _models() -> Panel:
    return timeline(
        "Models",
        "Whether the frontends can route a request for each model.",
        Query(lowest(f"{BY}, model", "llm_dynamo_model_ready"), "{{model}} ({{instance}} {{target}})"),
        {"1": "served", "0": "not served"},
        empty="no frontend is read, or it has no model",
    )


def _traffic() -> list[Panel]:
    requests, failures = (rate(f"llm_dynamo_worker_{what}_total", NAMESPACE) for what in ("requests", "failures"))
    running = pick("llm_requests_running", FRONTEND)
    waiting = pick("llm_requests_waiting", FRONTEND)
    tokens = "llm_output_tokens_total"
    return [
        series(
            "Requests: frontends",
            "Requests that finished at the frontends, failures included.",
            "reqps",
            Query(total("model", rate("llm_requests_total", FRONTEND)), "{{model}}"),
            empty="no frontend is read",
            size=QUARTER,
            stacked=True,
        ),
        series(
            "Output tokens: frontends",
            "Tokens that the frontends sent each second.",
            "cps",
            Query(total("model", rate(tokens, FRONTEND)), "{{model}}"),
            empty="no frontend is read",
            size=QUARTER,
            stacked=True,
        ),
        series(
            "Running and waiting: frontends",
            "Requests that are worked on, and those that nothing works on yet.",
            "none",
            Query(f"sum by (layer) ({running})", "running", IN),
            Query(f"sum by (layer) ({waiting})", "waiting", WARN),
            empty="no frontend is read",
            size=QUARTER,
        ),
        series(
            "Requests and errors: workers",
            "Requests that the workers of each endpoint took, and their errors in taking and answering them. A request"
            " that goes through a prefill and a decode worker counts with both.",
            "reqps",
            Query(total(ENDPOINT, requests), PATH),
            Query(total(ENDPOINT, failures), PATH + " errors", BAD),
            empty="no worker's system port is read",
            size=QUARTER,
        ),
    ]


def _latency() -> list[Panel]:
    worker = "llm_dynamo_worker_request_duration_seconds"
    return [
        series(
            "TTFT: frontends",
            "Time from a request's arrival at a frontend to its first token.",
            "s",
            *percentiles("llm_time_to_first_token_seconds", "source", FRONTEND),
            empty="no frontend is read, or nothing was asked",
        ),
        series(
            "Between tokens: frontends",
            "Time between two output tokens.",
            "s",
            *percentiles("llm_inter_token_latency_seconds", "source", FRONTEND),
            empty="no frontend is read, or nothing was asked",
        ),
        series(
            "p95 by endpoint: workers",
            "95 of 100 requests to the workers of an endpoint end within this time: prefill beside decode.",
            "s",
            Query(quantile(0.95, worker, f"source, {ENDPOINT}", NAMESPACE), PATH),
            empty="no worker's system port is read, or nothing was asked",
        ),
    ]


def _load() -> list[Panel]:
    routed = "{{dynamo_instance}} {{rank}}"
    return [
        series(
            "Running: workers",
            "Requests that each worker answers now.",
            "none",
            Query(
                f"sum by ({WORKER}) ({pick('llm_dynamo_worker_requests_running', NAMESPACE)})",
                "{{dynamo_component}} {{dynamo_instance}}",
            ),
            empty="no worker's system port is read",
            size=QUARTER,
        ),
        series(
            "Prompt tokens to prefill",
            "Prompt tokens that each worker has yet to prefill, as the frontends count them.",
            "short",
            Query(f"sum by (dynamo_instance, rank) ({pick('llm_dynamo_worker_active_prefill_tokens')})", routed),
            empty="no frontend tells",
            size=QUARTER,
        ),
        series(
            "KV blocks held",
            "Blocks of KV cache that the requests given to each worker hold there, as the frontends count them.",
            "short",
            Query(f"sum by (dynamo_instance, rank) ({pick('llm_dynamo_worker_active_decode_blocks')})", routed),
            empty="no frontend tells",
            size=QUARTER,
        ),
        series(
            "KV cache in use",
            "Used part of the workers' KV cache.",
            "percentunit",
            Query(
                highest(f"{BY}, model, rank", "llm_kv_cache_usage_ratio", *OF_DYNAMO),
                NAME + " {{model}} {{rank}}",
            ),
            empty="no worker tells",
            size=QUARTER,
            most=1,
        ),
    ]


def _instances() -> list[Panel]:
    info, family = pick("llm_dynamo_instance_info", NAMESPACE), "llm_dynamo_instance_state"
    by = f"{ENDPOINT}, dynamo_instance, transport, subject"
    carried = total("dynamo_component, direction", rate("llm_dynamo_instance_nats_bytes_total", NAMESPACE))
    last = highest(ENDPOINT, "llm_dynamo_endpoint_last_activity_timestamp_seconds", NAMESPACE)
    return [
        table(
            "Instances and their subjects",
            "Each instance, its state, how it takes its requests, and under which subject where that is NATS.",
            {
                "dynamo_namespace": "Namespace",
                "dynamo_component": "Component",
                "dynamo_endpoint": "Endpoint",
                "dynamo_instance": "Instance",
                "transport": "Over",
                "subject": "Subject",
            },
            Column("", "none", f"count by ({by}) ({info})"),
            Column("State", "none", state(family, f"{ENDPOINT}, dynamo_instance", NAMESPACE), words=named(family)),
            empty="nothing is registered",
            size=Size(12, 9),
        ),
        table(
            "Last activity",
            "How long ago something was last seen of each endpoint: an instance that came or went, a request.",
            {"dynamo_namespace": "Namespace", "dynamo_component": "Component", "dynamo_endpoint": "Endpoint"},
            Column("Ago", "s", f"time() - {last}", ((3600, WARN),)),
            empty="nothing is registered",
            size=Size(6, 9),
            order="Ago",
        ),
        series(
            "Bytes over NATS",
            "What the instances' connections to NATS carry, as NATS sees it: in is what it had from them.",
            "Bps",
            Query(carried, "{{dynamo_component}} {{direction}}"),
            empty="requests do not go over NATS",
            size=Size(6, 9),
        ),
    ]
