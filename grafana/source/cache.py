"""llm-cache: what the response, prompt and prefix caches spare, and the servers and memory behind them."""

from __future__ import annotations

from grafana_foundation_sdk.models.dashboard import DynamicConfigValue

from grafana.source.page import Page, variable
from grafana.source.panels import Panel, Size, number, series, timeline
from grafana.source.query import AT, BY, NAME, Query, highest, lowest, mean, percentiles, rate, select, share, total
from grafana.source.style import BAD, BUSY, ESTIMATE, GOOD, IN, LIMIT, OUT

GATEWAY, ENGINE = 'layer="gateway"', 'layer="engine"'
MODEL = 'model=~"$model"'
MINE = (GATEWAY, MODEL)
QUARTER = Size(6, 8)


def page() -> Page:
    """The dashboard."""
    made = Page(
        "llm-cache",
        "LLM / Caches",
        "The gateway's response cache, the providers' prompt caches, the engines' prefix and KV caches, and Redis.",
        variable("model", "Model", "llm_requests_total", absent=True),
    )
    made.row("Now", *_now())
    made.row("Caches: the gateway's answers", *_response())
    made.row("Caches: prompts at providers and in front of engines", *_prompt())
    made.row("Caches: prefix and KV cache of engines", *_prefix())
    made.row("Money", *_money())
    made.row("Beside it: the server behind the gateway's cache", *_backend())
    return made


def _hits(by: str) -> str:
    hits, asked = (total(by, rate(f"llm_response_cache_{what}_total", *MINE)) for what in ("hits", "requests"))
    return share(hits, asked)


def _cached(by: str, *matchers: str) -> str:
    """Cached prompt tokens over all, of those targets that tell of cached ones."""
    prompt = rate("llm_prompt_tokens_total", *matchers)
    telling = f"{prompt} and on ({AT}) {select('llm_cached_prompt_tokens_total', *matchers)}"
    return share(total(by, rate("llm_cached_prompt_tokens_total", *matchers)), total(by, telling))


def _found(by: str, *matchers: str) -> str:
    hit, query = (total(by, rate(f"llm_prefix_cache_{what}_tokens_total", *matchers)) for what in ("hit", "query"))
    return share(hit, query)


def _now() -> list[Panel]:
    shown = {
        "Response cache": (
            _hits("layer"),
            "Requests that the gateway answered from its cache, of those it could have.",
        ),
        "Prompt cache": (_cached("layer", *MINE), "Prompt tokens that providers read from their cache, of all."),
        "Prefix cache": (
            _found("layer", ENGINE, MODEL),
            "Prompt tokens that engines found in their prefix cache, of all.",
        ),
    }
    return [
        *(
            number(title, text, "percentunit", Query(expr, "hits"), empty="not in use", base=BUSY)
            for title, (expr, text) in shown.items()
        ),
        number(
            "Fullest KV cache",
            "The used part of the KV cache that is fullest. At 1 an engine sets requests aside.",
            "percentunit",
            Query(highest("", "llm_kv_cache_usage_ratio", ENGINE, MODEL), "used"),
            empty="no engine tells",
            base=GOOD,
            steps=((0.9, "orange"), (0.98, BAD)),
        ),
    ]


def _response() -> list[Panel]:
    return [
        series(
            "Hit ratio by model",
            "Requests answered from the response cache, of the successful ones that it could have answered.",
            "percentunit",
            Query(_hits("model"), "{{model}}"),
            empty="the response cache is off, or nothing was asked",
            most=1,
        ),
        series(
            "Requests and hits",
            "Requests that the response cache could have answered, and those that it did.",
            "reqps",
            Query(total("layer", rate("llm_response_cache_requests_total", *MINE)), "could", IN),
            Query(total("layer", rate("llm_response_cache_hits_total", *MINE)), "did", OUT),
            empty="the response cache is off, or nothing was asked",
        ),
        series(
            "Waiting saved",
            "Seconds that clients did not wait, for each second that passes: an estimate, from hits and the mean of"
            " what providers take.",
            "none",
            Query(total("model", rate("llm_cache_saved_seconds_total", *MINE)), "{{model}}"),
            empty="nothing was answered from a cache",
            stacked=True,
        ),
    ]


def _prompt() -> list[Panel]:
    return [
        series(
            "Prompt tokens from the cache, by model",
            "Prompt tokens that the provider read from its prompt cache, of all.",
            "percentunit",
            Query(_cached("model, provider", *MINE), "{{provider}} {{model}}"),
            empty="no provider tells of cached tokens, or nothing was asked",
            most=1,
        ),
        series(
            "Prompt tokens from the cache, in front of engines",
            "The same as a frontend or an engine tells it.",
            "percentunit",
            Query(_cached("layer, source, model", 'layer!="gateway"', MODEL), "{{layer}} ({{source}}) {{model}}"),
            empty="no frontend or engine tells of cached tokens",
            most=1,
        ),
        series(
            "Tokens written to prompt caches",
            "Prompt tokens that providers wrote to their caches, which may cost more than reading them anew.",
            "cps",
            Query(
                total("provider, model", rate("llm_prompt_cache_write_tokens_total", *MINE)), "{{provider}} {{model}}"
            ),
            empty="no provider tells of writes to its cache",
        ),
    ]


def _prefix() -> list[Panel]:
    return [
        series(
            "Prefix cache: hit ratio",
            "Prompt tokens found in the engine's prefix cache, of those looked for.",
            "percentunit",
            Query(_found(f"source, {BY}, model", ENGINE, MODEL), NAME + " {{model}}"),
            empty="no engine tells of a prefix cache",
            size=QUARTER,
            most=1,
        ),
        series(
            "What Dynamo's router expects",
            "Part of a prompt that the router expected in the KV cache of the worker that it chose.",
            "percentunit",
            *percentiles("llm_dynamo_kv_hit_ratio", "source"),
            empty="no KV router of Dynamo is read",
            size=QUARTER,
            most=1,
        ),
        series(
            "KV cache in use",
            "Used part of the KV cache. Where it is full, requests wait or are set aside.",
            "percentunit",
            Query(
                highest(f"{BY}, model, rank", "llm_kv_cache_usage_ratio", ENGINE, MODEL),
                NAME + " {{model}} {{rank}}",
            ),
            empty="no engine tells",
            size=QUARTER,
            most=1,
        ),
        series(
            "Preemptions",
            "Requests that an engine set aside for want of KV cache, to take them up again later.",
            "reqps",
            Query(
                total(f"source, {BY}, model", rate("llm_preemptions_total", ENGINE, MODEL)),
                NAME + " {{model}}",
            ),
            empty="no engine tells",
            size=QUARTER,
        ),
    ]


def _money() -> list[Panel]:
    saved = total("cache", rate("llm_cache_saved_usd_total", *MINE))
    filling = total("cache", rate("llm_cache_write_cost_usd_total", *MINE))
    return [
        series(
            "Saved an hour",
            "What each cache saves, in USD an hour: an estimate, where prices are known.",
            "currencyUSD",
            Query(f"3600 * {saved}", "{{cache}}", ESTIMATE),
            empty="no cache, or no price is known",
        ),
        series(
            "Filling them costs an hour",
            "What writing to a prompt cache costs beyond the ordinary price, in USD an hour.",
            "currencyUSD",
            Query(f"3600 * {filling}", "{{cache}}", LIMIT),
            empty="no cache costs to fill, or no price is known",
        ),
        series(
            "Net an hour",
            "What is left of the savings, in USD an hour; below 0 a cache costs more than it saves.",
            "currencyUSD",
            Query(f"3600 * ({saved} - ({filling} or 0 * {saved}))", "{{cache}}"),
            empty="no cache, or no price is known",
            least=None,
        ),
    ]


def _backend() -> list[Panel]:
    found, lost = (total(BY, rate(f"llm_redis_{what}_total")) for what in ("hits", "misses"))
    return [
        timeline(
            "Reached by the gateway",
            "Whether the gateway reaches the server behind its cache.",
            Query(
                lowest(f"{BY}, backend", "llm_cache_backend_up", GATEWAY),
                NAME + " {{backend}}",
            ),
            {"1": "up", "0": "down"},
            empty="no gateway tells of a server behind its cache",
            size=QUARTER,
        ),
        series(
            "Operations: mean time",
            "Mean time of one operation of the gateway on that server.",
            "s",
            Query(
                mean("llm_cache_backend_duration_seconds", f"{BY}, backend", GATEWAY),
                NAME + " {{backend}}",
            ),
            empty="no gateway tells of a server behind its cache",
            size=QUARTER,
        ),
        series(
            "Redis: memory",
            "Memory that Redis uses, and the limit at which it evicts or refuses.",
            "bytes",
            Query(highest(BY, "llm_redis_memory_used_bytes"), NAME),
            Query(highest(BY, "llm_redis_memory_limit_bytes"), f"{NAME}, limit", LIMIT),
            empty="no Redis is read",
            size=QUARTER,
        ),
        series(
            "Redis: keys found, and evictions",
            "Part of the keys looked up that were there; and keys a second that were thrown out for want of memory.",
            "percentunit",
            Query(share(found, f"({found} + {lost})"), f"{NAME}, found"),
            Query(
                total(BY, rate("llm_redis_evictions_total")),
                f"{NAME}, evicted",
                LIMIT,
            ),
            empty="no Redis is read",
            size=QUARTER,
        ).override_by_query(
            "B", [DynamicConfigValue("unit", "cps"), DynamicConfigValue("custom.axisPlacement", "right")]
        ),
    ]
