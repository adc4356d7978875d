"""LiteLLM's own corrections, each by itself: time per output token, deployments' states, /model/info."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.catalogue import families
from exporter.core.source import source_map
from exporter.core.total import Totals
from exporter.core.types import SeriesTable
from exporter.sources.litellm import LiteLLM
from exporter.sources.litellm.deployments import Deployments, Listing
from exporter.sources.litellm.tpot import APART, Tpot
from exporter.text.difference import Difference


class Proxy:
    """A proxy whose metrics are what is set."""

    def __init__(self) -> None:
        self.table = SeriesTable({"source": "litellm", "target": "t"})
        self.totals = Totals(source_map("litellm"), self.table)
        self.reader = Difference(self.totals)
        self.values: dict[str, float] = {}

    def read(self, **changes: float) -> None:
        labels = 'model_id="d",model_group="m",requested_model="m",api_provider="p",litellm_model_name="u"'
        for name, value in changes.items():
            self.values[name] = self.values.get(name, 0.0) + value
        body = "# a body\n" + "".join(f"litellm_{name}{{{labels}}} {value!r}\n" for name, value in self.values.items())
        self.reader.begin()
        self.reader.feed(body.encode())
        self.reader.end()

    def shown(self, family: str) -> dict[str, float]:
        self.totals.samples(0)
        return {s.family.name + s.suffix: v for s, v in self.totals.samples(99) if s.family.name == family}


def streams(count: int, tokens: int, first: float, each: float, whole: int = 0) -> dict[str, float]:
    """What answers of so many tokens leave behind: streams, and whole answers that take as long."""
    answers = count + whole
    return {
        "llm_api_latency_metric_sum": answers * (first + (tokens - 1) * each),
        "llm_api_latency_metric_count": answers,
        "llm_api_time_to_first_token_metric_sum": count * first,
        "llm_api_time_to_first_token_metric_count": count,
        "output_tokens_metric_total": answers * tokens,
    }


TPOT = "llm_time_per_output_token_mean_seconds"


def tpot(*reads: dict[str, float]) -> tuple[float, float]:
    proxy, corrected = Proxy(), Tpot()
    for turn, changes in enumerate(reads):
        proxy.read(**changes)
        corrected.observe(proxy.totals, turn * APART)
    shown = proxy.shown(TPOT)
    return shown.get(f"{TPOT}_sum", 0.0), shown.get(f"{TPOT}_count", 0.0)


@given(st.integers(1, 20), st.integers(0, 20), st.integers(2, 500), st.floats(0.001, 2), st.floats(0.001, 0.2))
def test_time_per_output_token_is_what_streams_really_took(
    count: int, whole: int, tokens: int, first: float, each: float
) -> None:
    seconds, counted = tpot(streams(1, 2, 1.0, 1.0), streams(count, tokens, first, each, whole))
    assert counted == (count + whole) * (tokens - 1)
    assert seconds / counted == pytest.approx(each, rel=1e-6)


@pytest.mark.parametrize(
    "changes",
    [
        streams(0, 20, 0.5, 0.02, whole=5),  # no stream ended: nothing says when answers begin
        {**streams(5, 20, 0.5, 0.02), "cache_hits_metric_total": 1.0},  # tokens that took no time
        streams(5, 1, 0.5, 0.02),  # no token after the first
        {**streams(5, 20, 0.5, 0.02), "llm_api_latency_metric_sum": 0.1},  # torn between two counters
    ],
)
def test_where_nothing_can_be_said_of_time_per_output_token_nothing_is(changes: dict[str, float]) -> None:
    assert tpot(streams(1, 2, 1.0, 1.0), changes) == (0.0, 0.0)


def test_what_was_before_the_first_read_says_nothing_of_time_per_output_token() -> None:
    assert tpot(streams(100, 20, 0.5, 0.02)) == (0.0, 0.0)


def up(deployments: Deployments, proxy: Proxy, at: float, listing: Listing | None = None) -> float:
    found = [
        value
        for series, value in deployments.observe(proxy.totals, listing, at)
        if series.family is families()["llm_deployment_up"] and series.get("deployment") == "d"
    ]
    return found[0]


def test_a_deployment_is_down_after_a_failure_and_up_after_a_success_or_a_minute() -> None:
    proxy = Proxy()
    deployments = Deployments(proxy.table)
    proxy.read(deployment_total_requests_total=5, deployment_failure_responses_total=2)
    assert up(deployments, proxy, 0.0) == 1.0  # what was before the first read says nothing
    proxy.read(deployment_total_requests_total=1, deployment_failure_responses_total=1)
    assert up(deployments, proxy, 5.0) == 0.0
    proxy.read()
    assert up(deployments, proxy, 10.0) == 0.0
    proxy.read(deployment_total_requests_total=1)
    assert up(deployments, proxy, 15.0) == 1.0
    proxy.read(deployment_cooled_down_total=1)
    assert up(deployments, proxy, 20.0) == 0.0
    proxy.read()
    assert up(deployments, proxy, 81.0) == 1.0


def entry(**changes: Any) -> dict[str, Any]:
    info = {"id": "d", "litellm_provider": "openai", "input_cost_per_token": 1e-6, "output_cost_per_token": None}
    return {"model_name": "m", "litellm_params": {"model": "openai/u/v"}, "model_info": info, **changes}


def test_model_info_is_taken_as_litellm_writes_it_and_nothing_else() -> None:
    odd = [
        None,
        5,
        {},
        {"model_info": 1},
        entry(model_name=None),
        entry(model_info={}),
        entry(litellm_params={"model": 5}),
    ]
    listing = Listing.of({"data": [*odd, entry()]})
    assert len(listing.deployments) == 1
    only = listing.deployments[0]
    assert (only.id, only.model, only.provider, only.upstream_model) == ("d", "m", "openai", "u/v")
    assert only.prices == {"input": 1e-6}
    assert Listing.of([]).deployments == Listing.of({"data": {}}).deployments == ()


@pytest.mark.parametrize("price", [10**400, float("inf"), float("nan"), -1.0, True, "1"])
def test_a_price_that_can_be_none_is_none(price: object) -> None:
    info = {"id": "d", "input_cost_per_token": price, "output_cost_per_token": 0}
    (only,) = Listing.of({"data": [entry(model_info=info)]}).deployments
    assert only.prices == {"output": 0.0}


def test_a_price_on_which_deployments_of_one_name_differ_is_left_out() -> None:
    other = entry(model_info={"id": "e", "input_cost_per_token": 2e-6})
    proxy = Proxy()
    proxy.read()
    shown = {
        series.family.name: value
        for series, value in Deployments(proxy.table).observe(proxy.totals, Listing.of({"data": [entry(), other]}), 0.0)
    }
    assert "llm_price_usd_per_token" not in shown
    assert shown["llm_provider_models"] == 1.0


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("", "http://127.0.0.1:4000"),
        ("gw", "http://gw:4000"),
        ("gw:8080", "http://gw:8080"),
        ("https://gw", "https://gw"),
        ("http://gw:1/base", "http://gw:1/base"),
    ],
)
def test_the_environment_says_where_the_proxy_is_and_how_to_ask_it(host: str, url: str) -> None:
    environ = {
        "LITELLM_HOST": host,
        "LITELLM_API_KEY": "sk-1",
        "LITELLM_METRICS_ENDPOINT": "http://gw:9/metrics/",
        "LITELLM_HEALTH_ENDPOINT": "/alive",
    }
    (target,) = LiteLLM.candidates(environ)
    assert (target.url, target.target_name) == (url, "litellm")
    assert (target.metrics_endpoint, target.health_endpoint) == ("http://gw:9/metrics/", "/alive")
    assert target.secret(environ) == "sk-1"
