"""The harness itself, without the exporter: the client's books, the providers' and LiteLLM's own metrics agree."""

import asyncio
import json
from collections import Counter
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from stack import LiteLLM, Server, drive

PLAN = [("good", 4, False), ("slow", 3, True), ("flaky", 8, False), ("broken", 2, False)]


def counted(proxy: LiteLLM) -> Counter[tuple[str, str, str]]:
    """LiteLLM's own counters: name, model asked for and status (empty where it has none) → sum."""
    sums: Counter[tuple[str, str, str]] = Counter()
    for family in text_string_to_metric_families(proxy.metrics()):
        for sample in family.samples:
            if sample.name.endswith("_total") and "requested_model" in sample.labels:
                key = (sample.name, sample.labels["requested_model"], sample.labels.get("status_code", ""))
                sums[key] += int(sample.value) if sample.value.is_integer() else 0
    return sums


async def test_client_providers_and_litellm_count_the_same(proxy: LiteLLM, providers: Server) -> None:
    def ledger() -> dict[str, Any]:
        return dict(json.loads(providers.text("/ledger")))

    did, before = ledger(), counted(proxy)
    books = {model: await drive(proxy.url, model, count, stream=stream) for model, count, stream in PLAN}
    failed = sum(book.sent - book.ok for book in books.values())
    assert failed == 4  # two of flaky's eight, and both of broken
    wanted = {
        ("litellm_proxy_total_requests_metric_total", model, str(status)): count
        for model, book in books.items()
        for status, count in book.statuses.items()
    }
    for model, book in books.items():
        if book.ok:
            wanted["litellm_input_tokens_metric_total", model, ""] = book.prompt_tokens
            wanted["litellm_output_tokens_metric_total", model, ""] = book.output_tokens
    grew: Counter[tuple[str, str, str]] = Counter()
    for _ in range(60):  # LiteLLM counts after it has answered
        grew = counted(proxy)
        grew.subtract(before)
        if all(grew[key] == value for key, value in wanted.items()):
            break
        await asyncio.sleep(0.5)
    assert {key: grew[key] for key in wanted} == wanted

    now = ledger()
    for model, book in books.items():
        for entry in ("prompt_tokens", "cached_tokens", "output_tokens", "streams"):
            assert now[model][entry] - did[model][entry] == getattr(book, entry), (model, entry)
        assert now[model]["requests"] - did[model]["requests"] == book.sent, model
        failures = {status: count - did[model]["failures"].get(status, 0)
                    for status, count in now[model]["failures"].items()}  # fmt: skip
        assert sum(failures.values()) == book.sent - book.ok, model
    # the times are the provider's own: no sooner than told, and later only where the machine stood still
    slow = {name: now["slow"][name] - did["slow"][name] for name in ("first_seconds", "token_seconds", "later_tokens")}
    assert 0.7 <= slow["first_seconds"] / books["slow"].streams < 7.0
    assert 0.039 <= slow["token_seconds"] / slow["later_tokens"] < 0.4
