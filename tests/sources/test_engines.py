"""What model servers answer becomes exactly the exposition expected of it, whatever the version called things."""

import asyncio
import re
import subprocess
import time
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.parser import text_string_to_metric_families as parsed
from served import Routes, exposition, read, serving, values, watching

from exporter.core.fetch import Answer
from exporter.core.source import Context
from exporter.core.types import Reading
from exporter.text.negotiate import Format
from exporter.text.render import Sheet, page

HERE = Path(__file__).parents[1] / "captures"
KINDS = {"vllm": "vllm", "vllm-sim": "vllm", "sglang": "sglang"}
CAPTURES = sorted(
    str(body.relative_to(HERE))[: -len("_metrics.body")]
    for name in KINDS
    for body in HERE.glob(f"{name}/*/*_metrics.body")
)
VLLM, SGLANG = "vllm/0.32/load2", "sglang/0.5.23/load2"
LLAMA = "meta-llama/Llama-3.1-8B-Instruct"


def body(name: str) -> bytes:
    return (HERE / f"{name}_metrics.body").read_bytes()


def captured(name: str) -> Routes:
    routes: Routes = {"/metrics": body(name)}
    models = HERE / f"{name.rpartition('/')[0]}/ready_v1_models.body"
    if models.exists():
        routes["/v1/models"] = models.read_bytes()
    return routes


def kind_of(name: str) -> str:
    return KINDS[name.partition("/")[0]]


@pytest.mark.parametrize("name", CAPTURES)
async def test_a_capture_becomes_exactly_the_exposition_expected_of_it(name: str, accept: bool) -> None:
    reading = await read(kind_of(name), captured(name))
    assert reading.ok, reading.error
    assert not reading.advice
    expected = HERE / f"{name}.prom"
    if accept:
        expected.write_bytes(exposition(reading))
    assert exposition(reading) == expected.read_bytes()


def promtool(text: bytes) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, check=False)


@pytest.mark.parametrize("name", CAPTURES)
async def test_promtool_finds_nothing_in_an_exposition_and_prometheus_client_reads_it(name: str) -> None:
    reading = await read(kind_of(name), captured(name))
    found = await asyncio.to_thread(promtool, exposition(reading))
    assert (found.returncode, found.stdout, found.stderr) == (0, b"", b"")
    families = list(text_string_to_metric_families(page([Sheet(reading.samples)], Format.OPENMETRICS).decode()))
    assert sum(len(family.samples) for family in families) == len(reading.samples)


# -- against prometheus-client's parser, which knows nothing of the map ------------------------------------------


def summed(text: bytes, name: str, **where: str) -> float:
    return sum(
        sample.value
        for family in parsed(text.decode())
        for sample in family.samples
        if sample.name == name and where.items() <= sample.labels.items()
    )


@pytest.mark.parametrize(
    ("capture", "ours", "theirs"),
    [
        *(
            (VLLM, ours, f"vllm:{theirs}")
            for ours, theirs in {
                "llm_requests_total": "request_success_total",
                "llm_request_finishes_total": "request_success_total",
                "llm_requests_running": "num_requests_running",
                "llm_requests_waiting": "num_requests_waiting",
                "llm_prompt_tokens_total": "prompt_tokens_total",
                "llm_cached_prompt_tokens_total": "prompt_tokens_cached_total",
                "llm_output_tokens_total": "generation_tokens_total",
                "llm_kv_cache_usage_ratio": "kv_cache_usage_perc",
                "llm_prefix_cache_query_tokens_total": "prefix_cache_queries_total",
                "llm_prefix_cache_hit_tokens_total": "prefix_cache_hits_total",
                "llm_preemptions_total": "num_preemptions_total",
                "llm_request_duration_seconds": "e2e_request_latency_seconds",
                "llm_time_to_first_token_seconds": "time_to_first_token_seconds",
                "llm_time_per_output_token_seconds": "request_time_per_output_token_seconds",
                "llm_inter_token_latency_seconds": "inter_token_latency_seconds",
                "llm_request_queue_seconds": "request_queue_time_seconds",
                "llm_request_prefill_seconds": "request_prefill_time_seconds",
                "llm_request_decode_seconds": "request_decode_time_seconds",
                "llm_prompt_length_tokens": "request_prompt_tokens",
                "llm_output_length_tokens": "request_generation_tokens",
            }.items()
        ),
        *(
            (SGLANG, ours, f"sglang:{theirs}")
            for ours, theirs in {
                "llm_requests_total": "num_requests_total",
                "llm_requests_running": "num_running_reqs",
                "llm_requests_waiting": "num_queue_reqs",
                "llm_prompt_tokens_total": "prompt_tokens_total",
                "llm_cached_prompt_tokens_total": "cached_tokens_total",
                "llm_output_tokens_total": "generation_tokens_total",
                "llm_kv_cache_usage_ratio": "token_usage",
                "llm_prefix_cache_query_tokens_total": "prompt_tokens_total",
                "llm_prefix_cache_hit_tokens_total": "cached_tokens_total",
                "llm_request_duration_seconds": "e2e_request_latency_seconds",
                "llm_time_per_output_token_seconds": "request_time_per_output_token_seconds",
                "llm_inter_token_latency_seconds": "inter_token_latency_seconds",
                "llm_request_queue_seconds": "queue_time_seconds",
                "llm_prompt_length_tokens": "prompt_tokens_histogram",
                "llm_output_length_tokens": "generation_tokens_histogram",
            }.items()
        ),
    ],
)
def test_each_number_is_its_body_s(capture: str, ours: str, theirs: str) -> None:
    expected, told = (HERE / f"{capture}.prom").read_bytes(), body(capture)
    parts = ("_bucket", "_count", "_sum") if f"# TYPE {ours} histogram" in expected.decode() else ("",)
    for part in parts:
        assert f"\n{theirs}{part}{{" in told.decode()
        assert summed(expected, ours + part) == pytest.approx(summed(told, theirs + part), rel=1e-12)


def test_of_sglang_the_time_to_the_first_token_is_that_of_streams_alone() -> None:
    expected, told = (HERE / f"{SGLANG}.prom").read_bytes(), body(SGLANG)
    name = "sglang:time_to_first_token_seconds_count"
    streams = summed(told, name, is_streaming="true")
    assert 0.0 < streams < summed(told, name)
    assert summed(expected, "llm_time_to_first_token_seconds_count") == streams


async def test_counters_gain_what_happened_between_two_captures() -> None:
    async with serving(captured("vllm/0.32/load1")) as server, watching("vllm", server.url) as watch:
        first = await watch.read()
        server.routes = captured(VLLM)
        second = await watch.read()
    for reading, finished in ((first, 80.0), (second, 200.0)):
        assert values(reading, "llm_requests_total", "rank") == {("0",): finished}
    assert values(second, "llm_request_failures_total", "reason") == {("cancelled",): 60.0, ("server_error",): 0.0}


@pytest.mark.parametrize(
    ("capture", "state"), [(VLLM, "loaded"), ("vllm/0.32/startup", "loaded"), ("vllm/0.32/sleeping", "sleeping")]
)
async def test_a_sleeping_engine_is_shown_as_sleeping(capture: str, state: str) -> None:
    reading = await read("vllm", captured(capture))
    told = values(reading, "llm_model_state", "state")
    assert told == {(each,): float(each == state) for each in ("loaded", "sleeping")}


# -- versions and spellings --------------------------------------------------------------------------------------

OLD_VLLM = {
    b"vllm:kv_cache_usage_perc": b"vllm:gpu_cache_usage_perc",
    b"vllm:inter_token_latency_seconds": b"vllm:time_per_output_token_seconds",
    b"vllm:prefix_cache_": b"vllm:gpu_prefix_cache_",
    b"vllm:request_queue_time_seconds": b"vllm:time_in_queue_requests",
    b"finished_reason=": b"finish_reason=",
}


def renamed(text: bytes, names: dict[bytes, bytes]) -> bytes:
    for new, old in names.items():
        assert new in text
        text = text.replace(new, old)
    return text


@pytest.mark.parametrize(
    ("kind", "capture", "other"),
    [
        ("vllm", VLLM, renamed(body(VLLM), OLD_VLLM)),
        ("vllm", VLLM, body(VLLM).replace(b"vllm:", b"vllm_")),
        ("vllm", VLLM, renamed(body(VLLM), OLD_VLLM).replace(b"vllm:", b"vllm_")),
        ("vllm", VLLM, body(VLLM).replace(b"vllm:", b"ray_vllm_")),
        ("sglang", SGLANG, body(SGLANG).replace(b"sglang:", b"sglang_")),
        ("sglang", SGLANG, renamed(body(SGLANG), {b":inter_token_latency_s": b":time_per_output_token_s"})),
    ],
)
async def test_old_names_and_other_spellings_give_the_same_exposition(kind: str, capture: str, other: bytes) -> None:
    assert other != body(capture)
    reading = await read(kind, {"/metrics": other})
    assert exposition(reading) == (HERE / f"{capture}.prom").read_bytes()


@pytest.mark.parametrize("both", [body(VLLM) + renamed(body(VLLM), OLD_VLLM), body(VLLM).replace(b"vllm:", b"vllm_")])
async def test_where_old_and_new_names_are_there_they_are_never_added(both: bytes) -> None:
    lines = re.sub(rb"(?m)^(# .*|(python|process)_.*)\n", b"", body(VLLM) + both)
    reading = await read("vllm", {"/metrics": b"\n".join(dict.fromkeys(lines.splitlines())) + b"\n"})
    for name in ("llm_inter_token_latency_seconds_count", "llm_prefix_cache_hit_tokens_total", "llm_requests_running"):
        assert values(reading, name) == values(await read("vllm", captured(VLLM)), name)


async def test_an_upgrade_that_renames_goes_on_where_the_old_names_were() -> None:
    old = renamed(body(VLLM), OLD_VLLM).replace(b"process_start_time_seconds", b"p")  # the same process
    new = body(VLLM).replace(b"process_start_time_seconds", b"p")
    async with serving({"/metrics": old}) as server, watching("vllm", server.url) as watch:
        before = await watch.read()
        server.routes = {"/metrics": new}
        after = await watch.read()
    name = "llm_prefix_cache_hit_tokens_total"
    assert values(before, name) == values(after, name) == {(): 40000.0}


# -- models, paths, adapters -------------------------------------------------------------------------------------

SIM = "vllm-sim/0.10.2/after"


async def test_the_list_of_models_tells_their_lengths_and_which_adapter_belongs_to_which() -> None:
    reading = await read("vllm", captured(SIM))
    assert values(reading, "llm_model_info", "model", "parent") == {
        ("llama-8b", None): 1.0,
        ("lora-a", "llama-8b"): 1.0,
    }
    assert values(reading, "llm_model_context_tokens", "model") == {("llama-8b",): 4096.0, ("lora-a",): 4096.0}
    assert b"/tmp/x" not in exposition(reading)  # where the adapter lies


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("/models/llama-8b", "llama-8b"),
        ("/models/llama-8b/", "llama-8b"),
        ("./llama-8b", "llama-8b"),
        ("~/models/llama-8b", "llama-8b"),
        ("C:\\\\models\\\\llama-8b", "llama-8b"),
        ("s3://bucket/llama-8b", "llama-8b"),
        (
            "/home/ann/.cache/huggingface/hub/models--meta-llama--Llama-3.1-8B/snapshots/0e9e39f2",
            "meta-llama/Llama-3.1-8B",
        ),
        ("meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-8B"),
        ("team/llm/prod", "team/llm/prod"),
    ],
)
async def test_a_model_is_shown_by_its_served_name_and_never_by_a_path(path: str, shown: str) -> None:
    models = f'{{"data":[{{"id":"{path}","max_model_len":5,"root":"/secret"}}]}}'.encode()
    routes: Routes = {"/metrics": body(VLLM).replace(LLAMA.encode(), path.encode()), "/v1/models": models}
    reading = await read("vllm", routes)
    for name in ("llm_requests_total", "llm_model_info", "llm_model_context_tokens"):
        assert list(values(reading, name, "model")) == [(shown,)]
    assert b"secret" not in exposition(reading)


@pytest.mark.parametrize(
    "said",
    [
        b"[]", b"{}", b'{"data":{}}', b'{"data":[1,{},{"id":5},{"id":""},null]}', b"not JSON",
        b'{"data":[{"id":"%b"}]}' % (b"x" * 600),
    ],
)  # fmt: skip
async def test_a_list_of_models_that_is_none_is_no_failure(said: bytes) -> None:
    reading = await read("vllm", {**captured(VLLM), "/v1/models": (200, "application/json", said)})
    assert exposition(reading) == (HERE / f"{VLLM}.prom").read_bytes()


async def test_a_list_that_wants_a_key_is_asked_for_with_it_and_missed_without() -> None:
    refused = (401, "application/json", b"{}")
    reading = await read("vllm", {**captured(VLLM), "/v1/models": refused})
    assert reading.ok
    assert "api_key_file" in reading.advice[0].remedy


async def test_the_version_is_vllm_s_own() -> None:
    reading = await read("vllm", {**captured(VLLM), "/version": b'{"version":"0.32.0"}'})
    assert reading.version == "0.32.0"
    odd = await read("vllm", {**captured(VLLM), "/version": b'{"version":["a"]}'})
    assert odd.ok
    assert odd.version is None


async def test_adapters_are_those_of_the_newest_line() -> None:
    lines = [
        'vllm:lora_requests_info{max_lora="4",running_lora_adapters="",waiting_lora_adapters=""} 1.0e9',
        'vllm:lora_requests_info{max_lora="4",running_lora_adapters="a,b",waiting_lora_adapters="c"} 1.2e9',
        'vllm:lora_requests_info{max_lora="4",running_lora_adapters="a",waiting_lora_adapters=""} 1.1e9',
    ]
    for kind, path in (("vllm", "/metrics"), ("nim", "/v1/metrics")):
        reading = await read(kind, {path: "\n".join([*lines, ""]).encode()})
        assert values(reading, "llm_lora_slots", "model") == {(None,): 4.0}
        assert values(reading, "llm_lora_slots_used") == {(): 2.0}


# -- ranks -------------------------------------------------------------------------------------------------------


async def test_ranks_of_vllm_stand_side_by_side() -> None:
    told = body(VLLM)
    more = b"".join(line + b"\n" for line in told.splitlines() if line.startswith(b"vllm:") and b'engine="0"' in line)
    reading = await read("vllm", {"/metrics": told + more.replace(b'engine="0"', b'engine="1"')})
    for name in ("llm_requests_running", "llm_requests_total", "llm_kv_cache_usage_ratio"):
        one = values(await read("vllm", captured(VLLM)), name, "rank")[("0",)]
        assert values(reading, name, "rank") == {("0",): one, ("1",): one}


def sglang(*rows: tuple[str, str, float]) -> bytes:
    return "".join(f'sglang:{name}{{model_name="m",{labels}}} {value}\n' for name, labels, value in rows).encode()


async def test_schedulers_of_one_rank_of_sglang_say_the_same_and_are_not_added() -> None:
    rows = [
        (name, f'tp_rank="{tp}",pp_rank="{pp}",moe_ep_rank="0"', value)
        for tp, pp in (("0", "0"), ("1", "0"), ("0", "1"), ("1", "1"))
        for name, value in (("num_running_reqs", 7.0), ("token_usage", 0.5), ("num_retracted_requests_total", 3.0))
    ]
    reading = await read("sglang", {"/metrics": sglang(*rows)})
    assert values(reading, "llm_requests_running", "rank") == {(None,): 7.0}
    assert values(reading, "llm_kv_cache_usage_ratio", "rank") == {(None,): 0.5}
    assert values(reading, "llm_preemptions_total", "rank") == {(None,): 3.0}


async def test_data_parallel_ranks_of_sglang_stand_side_by_side() -> None:
    rows = [
        (name, f'tp_rank="{rank}",pp_rank="0",dp_rank="{rank}"', value + rank)
        for rank in (0, 1)
        for name, value in (("num_running_reqs", 7.0), ("num_retracted_requests_total", 3.0))
    ]
    reading = await read("sglang", {"/metrics": sglang(*rows)})
    assert values(reading, "llm_requests_running", "rank") == {("0",): 7.0, ("1",): 8.0}
    assert values(reading, "llm_preemptions_total", "rank") == {("0",): 3.0, ("1",): 4.0}


async def test_cached_tokens_of_sglang_are_added_up_whatever_they_came_from() -> None:
    rows = [("prompt_tokens_total", 'is_streaming="true"', 10.0)]
    rows += [("cached_tokens_total", f'cache_source="{source}"', 2.0) for source in ("device", "host", "storage_file")]
    reading = await read("sglang", {"/metrics": sglang(*rows)})
    assert values(reading, "llm_cached_prompt_tokens_total") == {(): 6.0}
    assert values(reading, "llm_prefix_cache_hit_tokens_total") == {(): 6.0}


async def test_what_an_engine_behind_dynamo_cannot_tell_is_absent_there_too() -> None:
    reading = await read("dynamo", {"/metrics": body(SGLANG), "/health": b'{"status":"ready","endpoints":{}}'})
    assert values(reading, "llm_requests_total", "layer") == {("engine",): 150.0}
    assert values(reading, "llm_request_failures_total", "reason") == {("cancelled",): 0.0}
    assert not values(reading, "llm_request_finishes_total")


# -- from documentation alone ------------------------------------------------------------------------------------


def told(reading: Reading) -> dict[str, float]:
    """The page without the labels that all have, one line a series."""
    text = exposition(reading).decode()
    lines = [line for line in text.splitlines() if not line.startswith("#") and "_bucket" not in line]
    return {
        re.sub(r'source="\w+",target="\w+",(layer="engine",?)?', "", line.rpartition(" ")[0]): float(
            line.rpartition(" ")[2]
        )
        for line in lines
    }


TRITON = """\
# TYPE nv_inference_request_success counter
nv_inference_request_success{model="ensemble",version="1"} 40
# TYPE nv_inference_request_failure counter
nv_inference_request_failure{model="ensemble",version="1",reason="REJECTED"} 3
nv_inference_request_failure{model="ensemble",version="1",reason="OTHER"} 1
# TYPE nv_inference_request_duration_us counter
nv_inference_request_duration_us{model="ensemble",version="1"} 8000000
# TYPE nv_inference_queue_duration_us counter
nv_inference_queue_duration_us{model="ensemble",version="1"} 500000
# TYPE nv_inference_first_response_histogram_ms histogram
nv_inference_first_response_histogram_ms_count{model="ensemble",version="1"} 40
nv_inference_first_response_histogram_ms_sum{model="ensemble",version="1"} 2000
nv_inference_first_response_histogram_ms_bucket{model="ensemble",version="1",le="100"} 39
nv_inference_first_response_histogram_ms_bucket{model="ensemble",version="1",le="+Inf"} 40
# TYPE nv_trt_llm_request_metrics gauge
nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="waiting",version="1"} 2
nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="scheduled",version="1"} 5
nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="max",version="1"} 512
# TYPE nv_trt_llm_kv_cache_block_metrics gauge
nv_trt_llm_kv_cache_block_metrics{model="tensorrt_llm",kv_cache_block_type="fraction",version="1"} 0.25
nv_trt_llm_kv_cache_block_metrics{model="tensorrt_llm",kv_cache_block_type="used",version="1"} 25
"""


async def test_microseconds_and_milliseconds_of_triton_become_seconds() -> None:
    reading = await read("triton", {"/metrics": TRITON.encode()})
    assert told(reading) == {
        'llm_requests_total{model="ensemble"}': 44.0,
        'llm_request_failures_total{model="ensemble",reason="unavailable"}': 3.0,
        'llm_request_failures_total{model="ensemble",reason="cancelled"}': 0.0,
        'llm_request_failures_total{model="ensemble",reason="server_error"}': 0.0,
        'llm_request_failures_total{model="ensemble",reason="other"}': 1.0,
        'llm_requests_running{model="tensorrt_llm"}': 5.0,
        'llm_requests_waiting{model="tensorrt_llm"}': 2.0,
        'llm_request_duration_mean_seconds_count{model="ensemble"}': 40.0,
        'llm_request_duration_mean_seconds_sum{model="ensemble"}': pytest.approx(8.0),
        'llm_request_queue_mean_seconds_count{model="ensemble"}': 40.0,
        'llm_request_queue_mean_seconds_sum{model="ensemble"}': pytest.approx(0.5),
        'llm_time_to_first_token_seconds_count{model="ensemble"}': 40.0,
        'llm_time_to_first_token_seconds_sum{model="ensemble"}': pytest.approx(2.0),
        'llm_kv_cache_usage_ratio{model="tensorrt_llm"}': 0.25,
    }
    assert b'le="0.1"} 39.0' in exposition(reading)
    found = await asyncio.to_thread(promtool, exposition(reading))
    assert (found.returncode, found.stdout, found.stderr) == (0, b"", b"")


async def test_a_model_that_triton_loads_later_is_shown_with_both_parts_of_its_means() -> None:
    first = TRITON.encode()
    added = re.sub(rb'(?m)^(nv_inference_\w+\{model=")ensemble', rb"\1other", first)
    samples = b"".join(line + b"\n" for line in added.splitlines() if b"other" in line)
    async with serving({"/metrics": first}) as server, watching("triton", server.url) as watch:
        for text in (
            first,
            first.replace(b" 8000000", b" 9000000"),
            (first + samples).replace(b" 8000000", b" 9000000"),
        ):
            server.routes = {"/metrics": text}
            watch.health.carried += 1
            await watch.read()
        watch.health.carried += 1
        reading = await watch.read()
    duration = values(reading, "llm_request_duration_mean_seconds_sum", "model")
    assert duration == {("ensemble",): pytest.approx(9.0), ("other",): pytest.approx(9.0)}
    assert values(reading, "llm_request_duration_mean_seconds_count", "model") == {
        ("ensemble",): 40.0,
        ("other",): 40.0,
    }


TGI = """\
# TYPE tgi_batch_inference_success counter
tgi_batch_inference_success{method="prefill"} 50
tgi_batch_inference_success{method="decode"} 900
# TYPE tgi_request_count counter
tgi_request_count 60
# TYPE tgi_request_success counter
tgi_request_success{method="generate"} 30
tgi_request_success{method="generate_stream"} 20
# TYPE tgi_request_failure counter
tgi_request_failure{err="overloaded"} 4
tgi_request_failure{err="incomplete_generation"} 1
# TYPE tgi_batch_current_size gauge
tgi_batch_current_size 6
# TYPE tgi_queue_size gauge
tgi_queue_size 2
# TYPE tgi_request_input_length histogram
tgi_request_input_length_bucket{le="100"} 50
tgi_request_input_length_bucket{le="+Inf"} 50
tgi_request_input_length_sum 4000
tgi_request_input_length_count 50
# TYPE tgi_request_generated_tokens histogram
tgi_request_generated_tokens_bucket{le="+Inf"} 50
tgi_request_generated_tokens_sum 900
tgi_request_generated_tokens_count 50
# TYPE tgi_request_skipped_tokens histogram
tgi_request_skipped_tokens_bucket{le="+Inf"} 850
tgi_request_skipped_tokens_sum 120
tgi_request_skipped_tokens_count 850
# TYPE tgi_request_mean_time_per_token_duration histogram
tgi_request_mean_time_per_token_duration_bucket{le="+Inf"} 50
tgi_request_mean_time_per_token_duration_sum 1
tgi_request_mean_time_per_token_duration_count 50
"""
INFO = b'{"model_id":"/data/llama-8b","max_total_tokens":2048,"version":"3.3.4","docker_label":"x"}'


async def test_text_generation_inference_tells_no_model_but_at_its_info() -> None:
    reading = await read("tgi", {"/metrics": TGI.encode(), "/info": INFO})
    assert reading.version == "3.3.4"
    assert told(reading) == {
        "llm_requests_total{}": 55.0,
        'llm_request_failures_total{reason="rate_limited"}': 4.0,
        'llm_request_failures_total{reason="bad_request"}': 0.0,
        'llm_request_failures_total{reason="server_error"}': 1.0,
        'llm_request_failures_total{reason="other"}': 0.0,
        "llm_requests_running{}": 6.0,
        "llm_requests_waiting{}": 2.0,
        "llm_prompt_length_tokens_count{}": 50.0,
        "llm_prompt_length_tokens_sum{}": 4000.0,
        "llm_output_length_tokens_count{}": 50.0,
        "llm_output_length_tokens_sum{}": 900.0,
        "llm_prompt_tokens_total{}": 4000.0,
        "llm_output_tokens_total{}": 900.0,
        "llm_spec_decode_accepted_tokens_total{}": 120.0,
        'llm_model_info{model="llama-8b"}': 1.0,
        'llm_model_context_tokens{model="llama-8b"}': 2048.0,
        "llm_engine_iterations_total{}": 950.0,
        "llm_target_stalled{}": 0.0,
    }


TRTLLM = """\
# TYPE trtllm_request_success_total counter
trtllm_request_success_total{model_name="/models/llama-8b",engine_type="trtllm",finished_reason="stop"} 30
trtllm_request_success_total{model_name="/models/llama-8b",engine_type="trtllm",finished_reason="length"} 10
trtllm_request_success_total{model_name="/models/llama-8b",engine_type="trtllm",finished_reason="cancelled"} 2
# TYPE trtllm_request_error_total counter
trtllm_request_error_total{model_name="/models/llama-8b",engine_type="trtllm"} 1
# TYPE trtllm_num_requests_running gauge
trtllm_num_requests_running{model_name="/models/llama-8b",engine_type="trtllm"} 4
# TYPE trtllm_prompt_tokens_total counter
trtllm_prompt_tokens_total{model_name="/models/llama-8b",engine_type="trtllm"} 1000
# TYPE trtllm_spec_decode_num_draft_tokens_total counter
trtllm_spec_decode_num_draft_tokens_total{model_name="/models/llama-8b",engine_type="trtllm"} 90
# TYPE trtllm_spec_decode_num_accepted_tokens_total counter
trtllm_spec_decode_num_accepted_tokens_total{model_name="/models/llama-8b",engine_type="trtllm"} 60
"""


@pytest.mark.parametrize(("kind", "path"), [("trtllm", "/prometheus/metrics"), ("nim", "/v1/metrics")])
async def test_tensorrt_llm_is_read_at_its_path_for_prometheus_and_behind_nim(kind: str, path: str) -> None:
    async with serving({path: TRTLLM.encode()}) as server, watching(kind, server.url) as watch:
        reading = await watch.read()
        assert "/metrics" not in server.asked  # JSON, and what is read there is gone
    assert told(reading) == {
        'llm_requests_total{model="llama-8b"}': 43.0,
        'llm_request_failures_total{model="llama-8b",reason="timeout"}': 0.0,
        'llm_request_failures_total{model="llama-8b",reason="cancelled"}': 2.0,
        'llm_request_failures_total{model="llama-8b",reason="server_error"}': 1.0,
        'llm_request_finishes_total{model="llama-8b",reason="stop"}': 30.0,
        'llm_request_finishes_total{model="llama-8b",reason="length"}': 10.0,
        'llm_request_finishes_total{model="llama-8b",reason="abort"}': 2.0,
        'llm_request_finishes_total{model="llama-8b",reason="error"}': 1.0,
        'llm_request_finishes_total{model="llama-8b",reason="other"}': 0.0,
        'llm_requests_running{model="llama-8b"}': 4.0,
        'llm_prompt_tokens_total{model="llama-8b"}': 1000.0,
        'llm_spec_decode_draft_tokens_total{model="llama-8b"}': 90.0,
        'llm_spec_decode_accepted_tokens_total{model="llama-8b"}': 60.0,
        'llm_target_stalled{model="llama-8b"}': 0.0,
    }


@pytest.mark.parametrize("prefix", [b"vllm:", b"vllm_", b""])
async def test_nim_s_words_are_vllm_s_with_and_without_their_prefix(prefix: bytes) -> None:
    reading = await read("nim", {"/v1/metrics": body(VLLM).replace(b"vllm:", prefix)})
    plain = await read("vllm", captured(VLLM))
    assert exposition(reading) == exposition(plain).replace(
        b'source="vllm",target="vllm"', b'source="nim",target="nim"'
    )


async def test_of_nim_s_finished_and_successful_requests_the_finished_ones_count() -> None:
    lines = [
        'request_success_total{model_name="m"} 5',
        'request_finish_total{model_name="m",finished_reason="stop"} 5',
        'request_finish_total{model_name="m",finished_reason="abort"} 2',
    ]
    reading = await read("nim", {"/v1/metrics": "\n".join([*lines, ""]).encode()})
    assert values(reading, "llm_requests_total") == {(): 7.0}
    assert values(reading, "llm_request_failures_total", "reason") == {("cancelled",): 2.0, ("server_error",): 0.0}


# -- failures ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "remedy"),
    [
        ("sglang", "--enable-metrics"),
        ("vllm", "--disable-log-stats"),
        ("trtllm", "return_perf_metrics"),
        ("triton", "8002"),
    ],
)
async def test_where_no_metrics_are_the_error_says_what_switches_them_on(kind: str, remedy: str) -> None:
    reading = await read(kind, {})
    assert reading.reason == "status"
    assert remedy in reading.error


@pytest.mark.parametrize(("kind", "path"), [("sglang", "/metrics"), ("litellm", "/metrics/")])
async def test_another_server_s_metrics_are_no_failure_but_advice(kind: str, path: str) -> None:
    reading = await read(kind, {path: body(VLLM)})
    assert reading.ok
    assert not reading.samples
    assert reading.advice[0].missing.startswith("every number: ")


async def test_sglang_s_health_is_never_asked() -> None:
    async with serving(captured(SGLANG)) as server, watching("sglang", server.url) as watch:
        await watch.read()
        assert set(server.asked) == {"/metrics", "/v1/models"}


async def test_what_the_exporter_works_meanwhile_is_no_slowness_of_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    take = Context.take

    async def working(context: Context, answer: Answer, sentinel: bytes = b"") -> bool:
        until = time.thread_time() + 0.2
        while time.thread_time() < until:
            pass
        return await take(context, answer, sentinel)

    monkeypatch.setattr(Context, "take", working)
    async with serving(captured(VLLM)) as server, watching("vllm", server.url) as watch:
        began = time.monotonic()
        result = await watch._source.read()
        assert result.seconds is not None
        assert result.seconds <= time.monotonic() - began - 0.2
