"""llm-providers: who serves well, who fails, what is left of limits and budgets."""

from __future__ import annotations

from grafana_foundation_sdk.builders import statetimeline
from grafana_foundation_sdk.builders import table as tables

from grafana.source.page import Page, variable
from grafana.source.panels import HALF, SAME, Column, Panel, Size, series, table, timeline
from grafana.source.query import AT, Query, gain, highest, lowest, percentiles, pick, rate, share, total
from grafana.source.style import BAD, ESTIMATE, GOOD, LIMIT, WARN

GATEWAY = 'layer="gateway"'
P95 = 'stat="p95"'
MINE = (GATEWAY, 'provider=~"$provider"', 'model=~"$model"')


def page() -> Page:
    """The dashboard."""
    made = Page(
        "llm-providers",
        "LLM / Providers",
        "The providers behind a gateway: a scorecard, what is left of limits and budgets, and each by itself.",
        variable("provider", "Provider", "llm_provider_requests_total"),
        variable("model", "Model", "llm_provider_requests_total", 'provider=~"$provider"', absent=True),
    )
    made.row("Now", scorecard(Size(24, 9), 'provider=~"$provider"'))
    made.row("Over time", _score(), deployments(HALF))
    made.row(
        "Failures",
        series(
            "Failures by reason",
            "Attempts at providers that failed, retries and fallbacks included.",
            "reqps",
            Query(total("reason", rate("llm_provider_failures_total", *MINE)), "{{reason}}"),
            empty="no attempt was made",
            stacked=True,
        ),
        series(
            "Fallbacks",
            "Requests that went on to another model after failing, by the model that was asked for and how that ended.",
            "reqps",
            Query(
                total("model, outcome", rate("llm_fallbacks_total", GATEWAY, 'model=~"$model"')),
                "{{model}}: {{outcome}}",
            ),
            empty="no fallback is told of",
        ),
        series(
            "Taken out of rotation",
            "Times that the gateway took a deployment out of rotation, within a step.",
            "none",
            Query(total(f"{AT}, deployment", gain("llm_deployment_cooldowns_total", GATEWAY)), "{{deployment}}"),
            empty="no deployment was taken out",
        ),
    )
    made.row("Load: what is left", *_left())
    made.row("Money", *_money())
    made.row("Each: $provider", *_each(), repeat="provider")
    return made


def scorecard(size: Size, *matchers: str) -> tables.Panel:
    """All providers, one a line."""
    by = "provider"
    requests, failures = (rate(f"llm_provider_{what}_total", GATEWAY, *matchers) for what in ("requests", "failures"))
    limited = rate("llm_provider_failures_total", GATEWAY, 'reason="rate_limited"', *matchers)
    latency, ttft = (
        highest(by, f"llm_provider_window_{what}_seconds", GATEWAY, P95, *matchers) for what in ("latency", "ttft")
    )
    score = lowest(by, "llm_provider_score", GATEWAY, *matchers)
    return table(
        "Scorecard",
        "Providers as the gateway meets them. Score (0 to 1), error ratio and percentiles are of the score's window, 15"
        " minutes unless configured; a provider with too few requests has no score.",
        {by: "Provider"},
        Column("Score", "none", score, ((0.5, WARN), (0.8, GOOD)), BAD),
        Column("Attempts", "reqps", total(by, requests)),
        Column("Failed", "percentunit", share(total(by, failures), total(by, requests)), ((0.01, WARN), (0.05, BAD))),
        Column("Rate-limited", "reqps", total(by, limited), ((0.001, WARN),)),
        Column("Latency p95", "s", latency),
        Column("TTFT p95", "s", ttft),
        Column("USD/h", "currencyUSD", f"3600 * {total(by, rate('llm_spend_usd_total', GATEWAY, *matchers))}"),
        empty="no gateway tells of providers",
        size=size,
        order="Score",
        falling=False,
        links={"This provider": f"/d/llm-providers?var-provider=${{__value.raw}}&{SAME}"},
    )


def deployments(size: Size) -> statetimeline.Panel:
    """Whether each deployment answers, by the names it goes by."""
    names = pick("llm_deployment_info", GATEWAY)
    up = f"{pick('llm_deployment_up', GATEWAY)} * on ({AT}, deployment) group_left (provider, model) {names}"
    return timeline(
        "Deployments",
        "Whether the deployments of a model at a provider answer: down as soon as one of them does not, after a failure"
        " or cooldown that no success followed.",
        Query(f"min by (provider, model) ({up})", "{{provider}} {{model}}"),
        {"1": "up", "0": "down"},
        empty="no gateway tells of deployments",
        size=size,
    )


def _score() -> Panel:
    return series(
        "Score",
        "How well each provider serves, 0 to 1, from errors, latency and TTFT within the window.",
        "none",
        Query(lowest("provider", "llm_provider_score", GATEWAY, MINE[1]), "{{provider}}"),
        empty="no provider had enough requests for a score",
        size=HALF,
        most=1,
    )


def _left() -> list[Panel]:
    def rest(unit: str, title: str) -> Panel:
        wanted = f'unit="{unit}"'
        return series(
            title,
            f"{unit.capitalize()} left in the provider's current window, as its last answer said.",
            "short",
            Query(
                lowest("provider, model", "llm_rate_limit_remaining", *MINE, wanted),
                "{{provider}} {{model}}",
            ),
            empty="no provider tells what is left of its limits",
        )

    return [
        rest("requests", "Requests left of the rate limit"),
        rest("tokens", "Tokens left of the rate limit"),
        series(
            "Budgets",
            "Money left, by scope; of keys, teams, users and organisations the least that any of them has.",
            "currencyUSD",
            Query(lowest("scope, provider", "llm_budget_remaining_usd", GATEWAY), "{{scope}} {{provider}}"),
            empty="no budget is set",
        ),
    ]


def _money() -> list[Panel]:
    spend = total("provider", rate("llm_spend_usd_total", *MINE))
    tokens = total("provider", rate("llm_output_tokens_total", *MINE))
    price = highest("provider", "llm_price_usd_per_token", *MINE, 'kind="output"')
    return [
        series(
            "Spend an hour",
            "Money that goes to each provider, in USD an hour.",
            "currencyUSD",
            Query(f"3600 * {spend}", "{{provider}}"),
            empty="no money is spent, or no price is known",
            stacked=True,
        ),
        series(
            "Cost of a million output tokens",
            "All that was spent for each million of output tokens, the prompts included; and the list price of the"
            " output alone.",
            "currencyUSD",
            Query(f"1e6 * {share(spend, tokens)}", "{{provider}}"),
            Query(f"1e6 * {price}", "{{provider}}, list price", LIMIT),
            empty="no money is spent, or no price is known",
        ),
        series(
            "Caches save an hour",
            "What the response and prompt caches save of each provider's bill, in USD an hour: an estimate.",
            "currencyUSD",
            Query(f"3600 * {total('provider', rate('llm_cache_saved_usd_total', *MINE))}", "{{provider}}", ESTIMATE),
            empty="no cache, or no price is known",
        ),
    ]


def _each() -> list[Panel]:
    return [
        series(
            "Attempts by model: $provider",
            "Attempts at this provider, retries and fallbacks included.",
            "reqps",
            Query(total("model", rate("llm_provider_requests_total", *MINE)), "{{model}}"),
            empty="no attempt was made",
            size=Size(6, 7),
            stacked=True,
        ),
        series(
            "Failures by reason: $provider",
            "Attempts at this provider that failed.",
            "reqps",
            Query(total("reason", rate("llm_provider_failures_total", *MINE)), "{{reason}}"),
            empty="no attempt was made",
            size=Size(6, 7),
            stacked=True,
        ),
        series(
            "Latency: $provider",
            "Time this provider took to answer, of attempts that succeeded.",
            "s",
            *percentiles("llm_upstream_duration_seconds", "source", *MINE),
            empty="no answer was timed",
            size=Size(6, 7),
        ),
        series(
            "TTFT: $provider",
            "Time from a request's arrival at the gateway to the first token from this provider, of streams.",
            "s",
            *percentiles("llm_time_to_first_token_seconds", "source", *MINE),
            empty="no stream was timed",
            size=Size(6, 7),
        ),
    ]
