"""The job that every participant of the benchmark has: which families of a body it keeps, and what it sums them by."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Job:
    """Families as they are called on the wire: histograms without, others with their suffix."""

    histograms: tuple[str, ...]
    others: tuple[str, ...]
    labels: tuple[str, ...]

    @property
    def families(self) -> tuple[str, ...]:
        return self.histograms + self.others

    @property
    def samples(self) -> str:
        """A regular expression of the names of samples that are kept."""
        return "|".join((f"({'|'.join(self.histograms)})_(bucket|count|sum)", *self.others))


_LITELLM = Job(
    histograms=(
        "litellm_request_total_latency_metric",
        "litellm_llm_api_latency_metric",
        "litellm_llm_api_time_to_first_token_metric",
        "litellm_deployment_latency_per_output_token",
    ),
    others=(
        "litellm_proxy_total_requests_metric_total",
        "litellm_proxy_failed_requests_metric_total",
        "litellm_spend_metric_total",
        "litellm_total_tokens_metric_total",
        "litellm_input_tokens_metric_total",
        "litellm_output_tokens_metric_total",
    ),
    labels=("api_provider", "model"),
)

JOBS = {
    "S": Job(
        histograms=(
            "vllm:time_to_first_token_seconds",
            "vllm:inter_token_latency_seconds",
            "vllm:e2e_request_latency_seconds",
            "vllm:request_queue_time_seconds",
            "vllm:request_prefill_time_seconds",
            "vllm:request_decode_time_seconds",
            "vllm:request_prompt_tokens",
            "vllm:request_generation_tokens",
        ),
        others=(
            "vllm:prompt_tokens_total",
            "vllm:generation_tokens_total",
            "vllm:request_success_total",
            "vllm:num_preemptions_total",
            "vllm:prefix_cache_queries_total",
            "vllm:prefix_cache_hits_total",
            "vllm:num_requests_running",
            "vllm:num_requests_waiting",
            "vllm:kv_cache_usage_perc",
        ),
        labels=("model_name",),
    ),
    "M": _LITELLM,
    "L": _LITELLM,
}
"""By size of the body (bodies.py)."""
