"""A real LiteLLM proxy over providers of known behaviour: what is shown is what was sent and what was answered."""

import asyncio
import json
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import stack
from stack import Exporter, LiteLLM, Server, drive

PLAN = [("good", 6, False), ("good", 5, True), ("slow", 3, True), ("flaky", 8, False), ("broken", 3, False),
        ("limited", 4, False), ("badkey", 3, True), ("hang", 2, False)]  # fmt: skip
REASONS = {503: "unavailable", 500: "server_error", 429: "rate_limited", 401: "auth", 408: "timeout"}


READ, INSIGHT = 3.0, 17.0
"""Seconds after which all that belongs to a value is on the page, too; what is worked out from it, every 15 s."""


async def settled(exporter: Exporter, name: str, value: float, wait: float = READ, **labels: str) -> stack.Page:
    """The page once the sum has reached the value, some time later, and two reads: a slow proxy is read seldom."""
    await exporter.until(name, value, **labels)
    await asyncio.sleep(wait)
    read = "llm_target_last_success_timestamp_seconds"
    for _ in range(2):  # the page between them carries as 0 what is new since the page before
        page = await asyncio.to_thread(exporter.page)
        await exporter.until_above(read, exporter.sum(read, page, target="litellm"), target="litellm")
    return await asyncio.to_thread(exporter.page)


async def test_totals_equal_what_was_sent_and_answered(exporter: Exporter, proxy: LiteLLM) -> None:
    before = exporter.page()
    books: dict[str, stack.Books] = {}
    for model, count, stream in PLAN:
        sent = await drive(proxy.url, model, count, stream=stream)
        if model in books:
            for name in ("sent", "prompt_tokens", "cached_tokens", "output_tokens"):
                setattr(sent, name, getattr(sent, name) + getattr(books[model], name))
            sent.statuses += books[model].statuses
        books[model] = sent
    total = sum(book.sent for book in books.values())
    after = await settled(exporter, "llm_requests_total", exporter.sum("llm_requests_total", before) + total, INSIGHT)

    def grew(name: str, **labels: str) -> float:
        return exporter.sum(name, after, **labels) - exporter.sum(name, before, **labels)

    for model, book in books.items():
        assert grew("llm_requests_total", model=model) == book.sent, model
        assert grew("llm_request_failures_total", model=model) == book.sent - book.ok, model
        for status, count in book.statuses.items():
            if status != 200:
                assert grew("llm_request_failures_total", model=model, reason=REASONS[status]) == count, (model, status)
        assert grew("llm_prompt_tokens_total", model=model) == book.prompt_tokens, model
        assert grew("llm_output_tokens_total", model=model) == book.output_tokens, model
        assert grew("llm_cached_prompt_tokens_total", model=model) == book.cached_tokens, model
        assert grew("llm_request_duration_seconds_count", model=model) == book.ok, model
        assert grew("llm_upstream_duration_seconds_count", model=model) == book.ok, model
        # no retries and no fallbacks here: an attempt for each request
        assert grew("llm_provider_requests_total", model=model) == book.sent, model
        assert grew("llm_provider_failures_total", model=model) == book.sent - book.ok, model
        assert grew("llm_deployment_requests_total", deployment=f"{model}-1") == book.sent, model
        assert grew("llm_deployment_failures_total", deployment=f"{model}-1") == book.sent - book.ok, model
        price = stack.MODELS[model][2]
        spent = grew("llm_spend_usd_total", model=model)
        if price is None:
            assert spent == 0.0
        else:
            assert spent > 0.0 or book.ok == 0
    slow, price = books["slow"], stack.MODELS["slow"][2]
    assert price is not None
    expected = slow.prompt_tokens * price[0] + slow.output_tokens * price[1]
    assert abs(grew("llm_spend_usd_total", model="slow") - expected) < 1e-9
    known = {model: exporter.sum("llm_price_known", after, model=model) for model in ("good", "slow", "flaky")}
    assert known == {"good": 1.0, "slow": 1.0, "flaky": 0.0}
    assert exporter.sum("llm_requests_running", after) == 0.0


async def test_providers_books_are_the_same(exporter: Exporter, proxy: LiteLLM, providers: Server) -> None:
    def ledger() -> dict[str, Any]:
        return dict(json.loads(providers.text("/ledger")))

    before, books = exporter.page(), ledger()
    await drive(proxy.url, "flaky", 12)
    after = await settled(exporter, "llm_requests_total", exporter.sum("llm_requests_total", before) + 12)
    asked = ledger()["flaky"]["requests"] - books["flaky"]["requests"]
    grew = exporter.sum("llm_provider_requests_total", after, provider="deepseek")
    assert grew - exporter.sum("llm_provider_requests_total", before, provider="deepseek") == asked == 12


def cached(redis: Server) -> set[str]:
    """The keys of the answers that the response cache holds."""
    listed = subprocess.run(
        ["redis-cli", "-p", str(redis.port), "keys", "*"], capture_output=True, text=True, check=True
    )
    return {key for key in listed.stdout.split() if re.fullmatch("[0-9a-f]{64}", key)}


async def test_hits_of_the_response_cache_are_counted_over_what_it_could_answer(
    exporter: Exporter, proxy: LiteLLM, redis: Server
) -> None:
    before, held, end = exporter.page(), cached(redis), time.monotonic() + stack.PATIENCE
    question = f"the same question at {time.monotonic_ns()}"
    await drive(proxy.url, "good", 1, same=question)
    while cached(redis) <= held:  # LiteLLM writes an answer there after it has given it
        assert time.monotonic() < end
        await asyncio.sleep(0.1)
    for _ in range(4):
        await drive(proxy.url, "good", 1, same=question)
    for saved in ("llm_cache_saved_seconds_total", "llm_cache_saved_usd_total"):
        await exporter.until_above(saved, 0.0, model="good", cache="response")
    after = await settled(exporter, "llm_requests_total", exporter.sum("llm_requests_total", before) + 5)

    def grew(name: str) -> float:
        return exporter.sum(name, after, model="good") - exporter.sum(name, before, model="good")

    assert grew("llm_response_cache_hits_total") == 4
    assert grew("llm_response_cache_tokens_total") == 4 * (5 + 10)
    assert grew("llm_upstream_duration_seconds_count") == 1
    assert grew("llm_spend_usd_total") > 0.0
    requests = exporter.sum("llm_response_cache_requests_total", after, model="good")
    assert requests >= 5


async def test_a_fallback_is_counted_where_it_happened(exporter: Exporter, proxy: LiteLLM) -> None:
    before = exporter.page()
    sent = await drive(proxy.url, "rescued", 3)
    assert sent.ok == 3
    after = await settled(exporter, "llm_requests_total", exporter.sum("llm_requests_total", before) + 3)

    def grew(name: str, **labels: str) -> float:
        return exporter.sum(name, after, **labels) - exporter.sum(name, before, **labels)

    assert grew("llm_fallbacks_total", model="rescued", outcome="success") == 3
    assert grew("llm_fallbacks_total", outcome="failure") == 0
    assert grew("llm_request_failures_total") == 0
    assert grew("llm_provider_failures_total", provider="mistral", reason="server_error") == 3
    assert grew("llm_provider_requests_total", provider="openai") == 3


async def test_time_to_first_token_and_per_output_token_are_what_the_providers_did(
    exporter: Exporter, proxy: LiteLLM, providers: Server
) -> None:
    def ledger() -> dict[str, Any]:
        return dict(json.loads(providers.text("/ledger")))

    async def off() -> dict[str, float]:
        """How far what is shown is from what the providers did: parts of a time per token, buckets of a first token."""
        await asyncio.sleep(5.0)  # so that what others asked for has been looked at
        first, before = ledger(), exporter.page()
        for _ in range(3):  # several reads, each with streams and whole answers
            for model in ("good", "slow"):
                await asyncio.gather(
                    drive(proxy.url, model, 5, stream=True, tokens=60), drive(proxy.url, model, 1, tokens=60)
                )
        after = await settled(exporter, "llm_requests_total", exporter.sum("llm_requests_total", before) + 36, INSIGHT)
        last = ledger()
        tpot, found = "llm_time_per_output_token_mean_seconds", {}
        for model in ("good", "slow"):
            did = {name: last[model][name] - first[model][name] for name in ("token_seconds", "later_tokens")}
            seconds, tokens = (
                exporter.sum(f"{tpot}_{part}", after, model=model) - exporter.sum(f"{tpot}_{part}", before, model=model)
                for part in ("sum", "count")
            )
            assert tokens > 0
            found[model] = abs(seconds / tokens / (did["token_seconds"] / did["later_tokens"]) - 1.0)
        name = "llm_time_to_first_token_seconds_bucket"
        buckets = sorted(
            (float(dict(labels)["le"]), value - before.get((sample, labels), 0.0))
            for (sample, labels), value in after.items()
            if sample == name and ("model", "slow") in labels
        )
        middle = next(place for place, (_, count) in enumerate(buckets) if count >= buckets[-1][1] / 2)
        injected = next(place for place, (bound, _) in enumerate(buckets) if bound >= 0.7)
        return {**found, "first token": abs(middle - injected)}

    # LiteLLM's own times are late where the machine stands still after a provider's clock has been read
    for _ in range(4):
        if (told := await off())["first token"] <= 1 and max(told["good"], told["slow"]) < 0.1:
            return
    raise AssertionError(told)


async def test_scores_are_ordered_as_the_faults(exporter: Exporter, proxy: LiteLLM) -> None:
    before = exporter.page()
    plan = {"good": 12, "slow": 12, "flaky": 12, "broken": 12}
    await asyncio.gather(*(drive(proxy.url, model, count, stream=model == "slow") for model, count in plan.items()))
    page = await settled(exporter, "llm_requests_total", exporter.sum("llm_requests_total", before) + 48, INSIGHT)
    score = {
        provider: exporter.sum("llm_provider_score", page, provider=provider)
        for provider in ("openai", "hosted_vllm", "deepseek", "mistral")
    }
    assert score["openai"] >= score["hosted_vllm"] > score["deepseek"] > score["mistral"] == 0.0, score
    errors = exporter.sum("llm_provider_window_error_ratio", page, provider="deepseek")
    assert abs(errors - 0.25) < 0.1


async def test_what_others_ask_of_the_proxy_is_no_traffic(exporter: Exporter, proxy: LiteLLM) -> None:
    before = exporter.page()
    key = {"Authorization": f"Bearer {stack.KEY}"}
    for path in ("/metrics/", "/health/readiness", "/model/info", "/v1/models"):
        await asyncio.to_thread(proxy.text, path, key)
    for path in ("/metrics/", "/model/info"):
        with pytest.raises(OSError, match="HTTP Error"):
            await asyncio.to_thread(proxy.text, path)
    await drive(proxy.url, "good", 1)
    after = await settled(exporter, "llm_requests_total", exporter.sum("llm_requests_total", before) + 1)
    assert exporter.sum("llm_request_failures_total", after) == exporter.sum("llm_request_failures_total", before)


async def test_a_dead_cache_backend_is_seen_and_its_return(tmp_path: Path, providers: Server, folder: Path) -> None:
    own = stack.redis(tmp_path)
    server = stack.litellm(tmp_path, stack.litellm_config(providers.url, own.port))
    exporter = stack.exporter(tmp_path, server.url)
    with stack.running(own, server, exporter):
        await drive(server.url, "good", 2)
        await exporter.until("llm_cache_backend_up", 1.0)
        own.stop()
        for _ in range(4):
            await drive(server.url, "good", 2)
        await exporter.until("llm_cache_backend_up", 0.0)
        assert exporter.sum("llm_probe_up", probe="readiness") == 1.0  # LiteLLM itself says that all is well
        own.start()
        deadline = time.monotonic() + 150
        while exporter.sum("llm_cache_backend_up") != 1.0 and time.monotonic() < deadline:
            await drive(server.url, "good", 2)
            await asyncio.sleep(1.0)
        assert exporter.sum("llm_cache_backend_up") == 1.0


async def test_a_cooldown_is_counted_and_a_deployment_that_answers_again_is_up(
    tmp_path: Path, providers: Server, redis: Server
) -> None:
    server = stack.litellm(tmp_path, stack.litellm_config(providers.url, redis.port, cooldowns=True))
    exporter = stack.exporter(tmp_path, server.url)
    with stack.running(server, exporter):
        assert exporter.sum("llm_deployment_up", deployment="flaky-1") == 1.0
        for _ in range(4):
            await drive(server.url, "flaky", 1)
            await drive(server.url, "limited", 1)
        await exporter.until("llm_deployment_up", 0.0, deployment="limited-1")
        await exporter.until_above("llm_deployment_cooldowns_total", 0.0, deployment="limited-1")
        for _ in range(20):
            if (await drive(server.url, "flaky", 1)).ok:
                break
            await asyncio.sleep(2.0)
        await exporter.until("llm_deployment_up", 1.0, deployment="flaky-1")


async def test_a_proxy_without_its_prometheus_callback_says_what_to_switch_on(
    tmp_path: Path, providers: Server, redis: Server
) -> None:
    server = stack.litellm(tmp_path, stack.litellm_config(providers.url, redis.port, prometheus=False))
    exporter = stack.exporter(tmp_path, server.url)
    with stack.running(server, exporter):
        page = exporter.text("/")
        assert re.search(r"callbacks: \[prometheus\]", page), page
        assert exporter.sum("llm_target_up", target="litellm") == 0.0
