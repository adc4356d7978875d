"""The harness itself, without the exporter: the client's books and the frontend's own metrics agree."""

from pathlib import Path

import pytest
from dynamo_stack import PLANES, drive, dynamo, near
from prometheus_client.parser import text_string_to_metric_families


@pytest.mark.parametrize("planes", PLANES)
async def test_client_and_frontend_count_the_same(tmp_path: Path, planes: str) -> None:
    with dynamo(tmp_path, planes) as stack:
        books = await drive(stack.frontend.url, 12, 40)
        told = {
            sample.name.removeprefix("dynamo_frontend_"): sample.value
            for family in text_string_to_metric_families(stack.frontend.text("/metrics"))
            for sample in family.samples
            if sample.name.startswith("dynamo_frontend_") and "le" not in sample.labels
        }
    assert told["requests_total"] == books.requests == 12
    assert told["output_tokens_total"] == books.output_tokens == 480
    assert told["input_sequence_tokens_sum"] == books.prompt_tokens
    assert told["cached_tokens_sum"] == books.cached_tokens
    for name, times in (
        ("time_to_first_token_seconds", books.first),
        ("inter_token_latency_seconds", books.gaps),
        ("request_duration_seconds", books.durations),
    ):
        assert told[f"{name}_count"] == len(times), name
        assert near(told[f"{name}_sum"], times, books.requests), (name, told[f"{name}_sum"], sum(times))
