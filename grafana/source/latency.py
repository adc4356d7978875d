"""llm-latency: TTFT, TPOT, queue, phases and the whole, of one layer and source at a time."""

from __future__ import annotations

from grafana.source.page import Page, choice, variable
from grafana.source.panels import HALF, THIRD, Panel, Size, number, series, spread
from grafana.source.query import Query, mean, percentiles, quantile, rate, total
from grafana.source.style import PERCENTILES, TODAY, YESTERDAY

SHOWN = ('layer="$layer"', 'source="$source"', 'model=~"$model"')
NONE = "this source times none, or nothing was asked"


def page() -> Page:
    """The dashboard."""
    made = Page(
        "llm-latency",
        "LLM / Latency",
        "How long requests take, of one layer and source at a time: buckets are the upstream's own and add up only"
        " there.",
        choice("layer", "Layer", "llm_requests_total"),
        choice("source", "Source", "llm_requests_total", 'layer="$layer"'),
        variable("model", "Model", "llm_requests_total", 'layer="$layer"', 'source="$source"', absent=True),
    )
    made.row("Now", *_now())
    made.row("Over time: yesterday beside today", *_yesterday())
    made.row(
        "Latency: time to first token (TTFT)",
        *_three(
            "llm_time_to_first_token_seconds",
            "TTFT",
            "Time from a request's arrival to its first token; where an upstream times only streams, of those.",
        ),
    )
    made.row(
        "Latency: time per output token (TPOT)",
        *_three(
            "llm_time_per_output_token_seconds",
            "TPOT",
            "Time per output token after the first, the mean of each request.",
        ),
    )
    made.row("Latency: between tokens", *_tokens())
    made.row(
        "Latency: end to end",
        *_three(
            "llm_request_duration_seconds",
            "End to end",
            "Time from a request's arrival to its last token.",
        ),
    )
    made.row(
        "Latency: queue",
        *_three("llm_request_queue_seconds", "Queue", "Time from a request's arrival until work on it began."),
    )
    made.row("Latency: prefill and decode", *_phases())
    made.row("Load: lengths of requests", *_lengths())
    return made


def _now() -> list[Panel]:
    shown = {
        "TTFT p95": ("llm_time_to_first_token_seconds", "Time to the first token"),
        "TPOT p95": ("llm_time_per_output_token_seconds", "Time per output token after the first"),
        "End to end p95": ("llm_request_duration_seconds", "Time to the last token"),
        "Queue p95": ("llm_request_queue_seconds", "Time until work began"),
    }
    return [
        number(
            title,
            f"{text}, that 95 of 100 requests keep within, now.",
            "s",
            Query(quantile(0.95, family, "", *SHOWN), "p95"),
            empty="not timed",
            base=PERCENTILES[0.95],
        )
        for title, (family, text) in shown.items()
    ]


def _three(family: str, name: str, text: str) -> list[Panel]:
    """A distribution: its percentiles, how it spreads, and the models beside each other."""
    return [
        series(f"{name}: percentiles", text, "s", *percentiles(family, "", *SHOWN), empty=NONE),
        spread(
            f"{name}: spread", f"{text} How the requests spread.", "s", total("le", rate(f"{family}_bucket", *SHOWN))
        ),
        series(
            f"{name}: p95 by model",
            f"{text} 95 of 100 requests to a model keep within this.",
            "s",
            Query(quantile(0.95, family, "model", *SHOWN), "{{model}}"),
            empty=NONE,
        ),
    ]


def _yesterday() -> list[Panel]:
    def both(title: str, text: str, unit: str, today: str, yesterday: str) -> Panel:
        return series(
            title,
            text,
            unit,
            Query(today, "today", TODAY),
            Query(yesterday, "yesterday", YESTERDAY),
            empty=NONE,
        )

    family, day = "llm_time_to_first_token_seconds", "1d"
    whole = "llm_request_duration_seconds"
    return [
        both(
            "Requests: today and yesterday",
            "Requests that finished, now and a day before.",
            "reqps",
            total("layer", rate("llm_requests_total", *SHOWN)),
            total("layer", rate("llm_requests_total", *SHOWN, offset=day)),
        ),
        both(
            "TTFT p95: today and yesterday",
            "95 of 100 requests had their first token within this, now and a day before.",
            "s",
            quantile(0.95, family, "", *SHOWN),
            quantile(0.95, family, "", *SHOWN, offset=day),
        ),
        both(
            "End to end p95: today and yesterday",
            "95 of 100 requests were answered within this, now and a day before.",
            "s",
            quantile(0.95, whole, "", *SHOWN),
            quantile(0.95, whole, "", *SHOWN, offset=day),
        ),
    ]


def _tokens() -> list[Panel]:
    return [
        series(
            "TPOT: mean",
            "Mean time per output token after the first, of upstreams that tell sums only (LiteLLM, corrected;"
            " llama.cpp).",
            "s",
            Query(mean("llm_time_per_output_token_mean_seconds", "model", *SHOWN), "{{model}}"),
            empty="this source tells a distribution, or nothing was asked",
            size=THIRD,
        ),
        series(
            "ITL: percentiles",
            "Time between two output tokens of a request.",
            "s",
            *percentiles("llm_inter_token_latency_seconds", "", *SHOWN),
            empty=NONE,
        ),
        spread(
            "ITL: spread",
            "Time between two output tokens of a request. How the gaps spread.",
            "s",
            total("le", rate("llm_inter_token_latency_seconds_bucket", *SHOWN)),
        ),
    ]


def _phases() -> list[Panel]:
    texts = {
        "prefill": "Time from the begin of work on a request to its first token.",
        "decode": "Time from a request's first token to its last.",
    }
    return [
        series(
            f"{phase.capitalize()}: percentiles",
            text,
            "s",
            *percentiles(f"llm_request_{phase}_seconds", "", *SHOWN),
            empty="this source tells of no phases, or nothing was asked",
            size=HALF,
        )
        for phase, text in texts.items()
    ]


def _lengths() -> list[Panel]:
    return [
        series(
            f"{what.capitalize()} tokens of a request",
            text,
            "short",
            *percentiles(f"llm_{what}_length_tokens", "", *SHOWN),
            empty="this source tells no lengths, or nothing was asked",
            size=Size(12, 7),
        )
        for what, text in {
            "prompt": "Prompt tokens of a request, those read from a prompt cache included.",
            "output": "Output tokens of a request.",
        }.items()
    ]
