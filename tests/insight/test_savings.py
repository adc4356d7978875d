"""What caches saved, worked out by hand beside the code."""

import pytest

from exporter.catalogue import families
from exporter.core.types import Family, Sample, SeriesTable
from exporter.insight.savings import Savings
from exporter.insight.words import Words

TABLE = SeriesTable({"source": "s", "target": "t"})
LABELS = [("layer", "gateway"), ("model", "m"), ("provider", "p")]


def samples(prices: dict[str, float] | None = None, **values: float) -> list[Sample]:
    known = families()
    made = []
    for name, value in values.items():
        base = name.removesuffix("_sum").removesuffix("_count")
        family = known[f"llm_{base}"]
        made.append((TABLE(family, LABELS, name.removeprefix(base)), value))
    for kind, price in (prices or {}).items():
        made.append((TABLE(known["llm_price_usd_per_token"], [*LABELS, ("kind", kind)]), price))
    return made


class Books:
    def __init__(self) -> None:
        self.savings = Savings(TABLE, 900.0)
        self.saved: dict[tuple[str, str], float] = {}
        self.now = 0.0

    def add(self, family: Family, labels: object, gain: float) -> None:
        assert gain >= 0.0
        cache = dict(labels)["cache"]  # type: ignore[call-overload]
        self.saved[family.name, cache] = self.saved.get((family.name, cache), 0.0) + gain

    def read(self, prices: dict[str, float] | None = None, **values: float) -> list[float]:
        self.now += 10.0
        words = Words(samples(prices, **values))
        return [value for _, value in self.savings.observe(words, self.add, self.now)]


def test_the_response_cache_saved_what_paid_tokens_cost_and_what_the_provider_took() -> None:
    books = Books()
    books.read(
        prompt_tokens_total=0,
        output_tokens_total=0,
        spend_usd_total=0,
        response_cache_hits_total=0,
        response_cache_tokens_total=0,
        upstream_duration_seconds_sum=0,
        upstream_duration_seconds_count=0,
    )
    # 10 paid answers of 100 tokens for 2 USD, 1.5 s each; 4 hits of 100 tokens
    books.read(
        prompt_tokens_total=1000,
        output_tokens_total=400,
        spend_usd_total=2.0,
        response_cache_hits_total=4,
        response_cache_tokens_total=400,
        upstream_duration_seconds_sum=15,
        upstream_duration_seconds_count=10,
    )
    assert books.saved["llm_cache_saved_usd_total", "response"] == pytest.approx(400 * 2.0 / 1000)
    assert books.saved["llm_cache_saved_seconds_total", "response"] == pytest.approx(4 * 1.5)


def test_hits_before_the_first_paid_answer_are_counted_when_the_price_is_told() -> None:
    books = Books()
    rest = {"prompt_tokens_total": 0.0, "output_tokens_total": 0.0, "spend_usd_total": 0.0}
    books.read(**rest, response_cache_hits_total=0, response_cache_tokens_total=0)
    books.read(**{**rest, "prompt_tokens_total": 100.0}, response_cache_hits_total=1, response_cache_tokens_total=100)
    assert ("llm_cache_saved_usd_total", "response") not in books.saved
    books.read(
        prompt_tokens_total=200,
        output_tokens_total=0,
        spend_usd_total=1.0,
        response_cache_hits_total=1,
        response_cache_tokens_total=100,
    )
    assert books.saved["llm_cache_saved_usd_total", "response"] == pytest.approx(1.0)


def test_without_a_price_nothing_is_claimed_and_the_price_is_said_to_be_unknown() -> None:
    books = Books()
    assert books.read(spend_usd_total=0.0, output_tokens_total=0.0, response_cache_hits_total=0.0) == []
    known = books.read(
        spend_usd_total=0.0, output_tokens_total=50.0, response_cache_hits_total=3.0, response_cache_tokens_total=20.0
    )
    assert known == [0.0]
    assert not [name for name, _ in books.saved if name.endswith("usd_total")]


def test_the_prompt_cache_saved_the_difference_of_prices_and_its_filling_cost_money() -> None:
    prices = {"input": 3e-6, "cache_read": 1e-6, "cache_write": 4e-6}
    books = Books()
    books.read(prices, cached_prompt_tokens_total=1000, prompt_cache_write_tokens_total=10)
    books.read(prices, cached_prompt_tokens_total=3000, prompt_cache_write_tokens_total=110)
    assert books.saved["llm_cache_saved_usd_total", "prompt"] == pytest.approx(2000 * 2e-6)
    assert books.saved["llm_cache_write_cost_usd_total", "prompt"] == pytest.approx(100 * 1e-6)


def test_a_listed_price_is_a_known_price() -> None:
    assert Books().read({"input": 1e-6}, spend_usd_total=0.0) == [1.0]
