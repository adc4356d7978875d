"""The scorecard: what it shows suffices to compute the score again, and better providers score higher."""

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.catalogue import families
from exporter.core.types import Sample, SeriesTable
from exporter.insight.score import Scorecard, quantile, score
from exporter.insight.words import Window, Words

TABLE = SeriesTable({"source": "s", "target": "t"})
BOUNDS = (0.1, 0.5, 1.0, 5.0, inf)


def provider(name: str, requests: float, failures: float, seconds: float, ttft: float | None = None) -> list[Sample]:
    """A provider whose answers all took `seconds`, and whose streams all began after `ttft`."""
    known = families()
    labels = [("layer", "gateway"), ("model", "m"), ("provider", name)]
    samples = [
        (TABLE(known["llm_provider_requests_total"], labels), requests),
        (TABLE(known["llm_provider_failures_total"], [*labels, ("reason", "other")]), failures),
    ]
    histograms = [("llm_upstream_duration_seconds", seconds)]
    if ttft is not None:
        histograms.append(("llm_time_to_first_token_seconds", ttft))
    for family, took in histograms:
        for bound in BOUNDS:
            count = requests - failures if took <= bound else 0.0
            samples.append((TABLE(known[family], labels, "_bucket", bound), count))
    return samples


def observe(*reads: list[Sample], step: float = 10.0, minimum: int = 10) -> dict[str, float]:
    card = Scorecard(TABLE, 900.0, minimum, 2.0, 0.5)
    shown: dict[str, float] = {}
    for number, samples in enumerate(reads):
        words = Words(samples)
        shown = {series.prefix.decode().strip(): value for series, value in card.observe(words, number * step)}
    return shown


def key(name: str, provider: str = "a", stat: str = "") -> str:
    tail = f',stat="{stat}"' if stat else ""
    return f'{name}{{source="s",target="t",layer="gateway",provider="{provider}"{tail}}}'


def test_a_score_can_be_computed_again_from_what_is_shown() -> None:
    shown = observe(provider("a", 0, 0, 1, 1), provider("a", 100, 10, 4.0, 0.4))
    errors = shown[key("llm_provider_window_error_ratio")]
    assert errors == 0.1
    ratios = [
        min(
            1.0,
            shown[key("llm_provider_objective_seconds", stat=what)]
            / shown[key(f"llm_provider_window_{what}_seconds", stat="p95")],
        )
        for what in ("latency", "ttft")
    ]
    expected = (1 - errors) ** 2 * (0.6 + 0.2 * ratios[0] + 0.2 * ratios[1])
    assert shown[key("llm_provider_score")] == pytest.approx(expected)
    assert shown[key("llm_provider_window_seconds")] == 10.0
    assert shown[key("llm_provider_window_requests")] == 100.0


def test_too_few_requests_have_no_score_and_the_count_says_why() -> None:
    shown = observe(provider("a", 0, 0, 1), provider("a", 9, 0, 1))
    assert key("llm_provider_score") not in shown
    assert shown[key("llm_provider_window_requests")] == 9.0


def test_what_was_before_the_first_read_is_not_in_the_window() -> None:
    assert observe(provider("a", 1000, 500, 1))[key("llm_provider_window_requests")] == 0.0


def test_what_left_the_window_counts_no_more() -> None:
    reads = [
        provider("a", 0, 0, 1),
        provider("a", 100, 100, 1),
        *[provider("a", 100, 100, 1)] * 100,
        provider("a", 120, 100, 1),
    ]
    shown = observe(*reads)
    assert shown[key("llm_provider_window_error_ratio")] == 0.0
    assert shown[key("llm_provider_window_requests")] == 20.0
    assert 900.0 <= shown[key("llm_provider_window_seconds")] <= 930.0


def test_providers_are_ordered_as_their_faults() -> None:
    before = [sample for name in "abcd" for sample in provider(name, 0, 0, 1)]
    after = (
        provider("a", 100, 0, 0.5)
        + provider("b", 100, 0, 5.0)
        + provider("c", 100, 30, 0.5)
        + provider("d", 100, 100, 1)
    )
    shown = observe(before, after)
    scores = [shown[key("llm_provider_score", name)] for name in "abcd"]
    assert scores == sorted(scores, reverse=True)
    assert (scores[0], scores[3]) == (1.0, 0.0)


def test_a_provider_that_told_no_first_token_is_scored_by_its_latency_alone() -> None:
    shown = observe(provider("a", 0, 0, 1), provider("a", 100, 0, 4.0))
    assert shown[key("llm_provider_score")] == pytest.approx(score(0.0, [2.0 / (1.0 + 4.0 * 0.95)]))


@given(st.floats(0, 1), st.floats(0, 1), st.lists(st.floats(0, 1), max_size=2))
def test_a_score_lies_between_0_and_1_and_falls_with_errors(a: float, b: float, parts: list[float]) -> None:
    low, high = sorted((a, b))
    assert 0.0 <= score(high, parts) <= score(low, parts) <= 1.0


@pytest.mark.parametrize(
    ("q", "buckets", "expected"),
    [
        (0.5, [(1.0, 0.0), (2.0, 10.0), (inf, 10.0)], 1.5),
        (0.95, [(1.0, 10.0), (inf, 10.0)], 0.95),
        (0.95, [(1.0, 0.0), (inf, 10.0)], 1.0),  # beyond the last boundary: the boundary
        (0.5, [(1.0, 0.0), (inf, 0.0)], None),
        (0.5, [], None),
    ],
)
def test_a_quantile_is_what_prometheus_estimates(
    q: float, buckets: list[tuple[float, float]], expected: float | None
) -> None:
    assert quantile(q, buckets) == expected


def test_a_window_counts_from_0_what_was_born_within_it() -> None:
    window: Window[str] = Window(100.0)
    window.push(0.0, {"a": 5.0})
    window.push(10.0, {"a": 7.0, "b": 3.0})
    assert (window.gain("a"), window.gain("b"), window.covered) == (2.0, 3.0, 10.0)
