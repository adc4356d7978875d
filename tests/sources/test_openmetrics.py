"""A user's own map: the form of our own, checked as they are, with the line of each mistake."""

from pathlib import Path

import pytest
from served import exposition, read, serving, values, watching
from test_engines import HERE, VLLM, body

from exporter.cli import _read
from exporter.config.load import ConfigError, load

BODY = b"""\
# TYPE my_calls_total counter
my_calls_total{model_name="/models/m",code="200"} 10
my_calls_total{model_name="/models/m",code="503"} 2
# TYPE my_latency_ms histogram
my_latency_ms_bucket{le="500"} 9
my_latency_ms_bucket{le="+Inf"} 12
my_latency_ms_sum 6000
my_latency_ms_count 12
# TYPE my_kv_percent gauge
my_kv_percent{pool="a"} 25
my_kv_percent{pool="b"} 75
# TYPE my_wait_seconds_sum counter
my_wait_seconds_sum 3
# TYPE my_wait_seconds_count counter
my_wait_seconds_count 12
"""

GOOD = """\
targets:
  - source: openmetrics
    url: URL
    name: mine
    metrics_endpoint: /stats
    map:
      families:
        llm_requests_total:
          from: [my_requests_total, my_calls_total]
          labels: &model {model: {served: model_name}}
        llm_request_failures_total:
          from: [my_calls_total]
          only: [{code: "5??"}]
          labels: *model
          constant: {reason: server_error}
        llm_request_duration_seconds: {from: [my_latency_ms], scale: 0.001}
        llm_kv_cache_usage_ratio: {from: [my_kv_percent], scale: 0.01, merge: max}
        llm_request_queue_mean_seconds:
          - {from: [my_wait_seconds_sum], part: sum}
          - {from: [my_wait_seconds_count], part: count}
"""


def written(folder: Path, text: str) -> Path:
    file = folder / "llm.yaml"
    file.write_text(text)
    return file


async def test_what_a_map_in_the_configuration_says_is_read(tmp_path: Path) -> None:
    async with serving({"/stats": BODY}) as server:
        target = load(written(tmp_path, GOOD.replace("URL", server.url))).targets[0]
        options = target.model_dump(exclude={"source", "url", "name"}, exclude_unset=True)
        reading = await read("openmetrics", {"/stats": BODY}, **options)
    assert not reading.advice
    assert values(reading, "llm_requests_total", "layer", "model") == {("engine", "m"): 12.0}
    assert values(reading, "llm_request_failures_total", "reason") == {("server_error",): 2.0}
    assert values(reading, "llm_request_duration_seconds_sum") == {(): 6.0}
    assert values(reading, "llm_request_duration_seconds_bucket", "le") == {(None,): 12.0}
    assert b'le="0.5"} 9.0' in exposition(reading)
    assert values(reading, "llm_kv_cache_usage_ratio") == {(): 0.75}
    assert values(reading, "llm_request_queue_mean_seconds_sum") == {(): 3.0}
    assert values(reading, "llm_request_queue_mean_seconds_count") == {(): 12.0}


async def test_a_map_may_take_an_engine_s_and_give_its_names_another_prefix() -> None:
    given = {"include": ["vllm"], "prefixes": {"vllm:": ["myfork:"]}, "families": {}}
    told = body(VLLM).replace(b"vllm:", b"myfork:")
    reading = await read("openmetrics", {"/metrics": told}, map=given)
    expected = (HERE / f"{VLLM}.prom").read_bytes()
    ours = b'source="openmetrics",target="openmetrics"'
    assert exposition(reading) == expected.replace(b'source="vllm",target="vllm"', ours)


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        ("llm_requests_total: {}", "7: targets.0.map.families.llm_requests_total: from: is missing (write from: …)"),
        ("llm_nothing: {from: [a]}", "7: targets.0.map.families.llm_nothing: llm_nothing is not in the catalogue"),
        (
            "llm_requests_total: {from: a}",
            "7: targets.0.map.families.llm_requests_total.from: not a list (write [a, b]",
        ),
        (
            "llm_requests_total: {from: ['a{b=\"c\"}']}",
            "7: targets.0.map.families.llm_requests_total.from.0: no name of",
        ),
        ("llm_requests_total: 5", "7: targets.0.map.families.llm_requests_total: not a mapping (write key: value"),
        ("llm_requests_total: {from: [a], lables: {}}", "total.lables: unknown key lables (known: constant, copies"),
        (
            "llm_requests_total:\n          from: [a]\n          labels: {team: t}",
            "9: targets.0.map.families.llm_requests",
        ),
        ("llm_requests_total: {from: [a], labels: {team: t}}", "llm_requests_total has no label team"),
        (
            "llm_requests_total: {from: [a], labels: {model: {from: t}}}",
            "no way to find a label (write an upstream label",
        ),
        ("llm_requests_total: {from: [a], only: {code: 5}}", "only: not a list"),
        ("llm_requests_total: {from: [a], only: [{code: true}]}", "true or false where text is wanted"),
        ("llm_requests_total: {from: [a], scale: 0}", "scale: not a factor (write a number"),
        ("llm_requests_total: {from: [a], scale: .inf}", "scale: not a factor (write a number"),
        ("llm_requests_total: {from: [a], wraps: 2e9}", "wraps: no number at which a counter begins again (write 42"),
        ("llm_requests_running: {from: [a], wraps: 256}", "wraps: where counters begin again, and this is none"),
        ("llm_requests_running: {from: [a], merge: mean}", "merge: mean is no word for it (write one of sum, max"),
        ("llm_request_failures_total: {from: [a], constant: {reason: bad}}", "reason=['bad'] is not one of"),
        ("llm_requests_total: [{from: [a]}, {from: []}]", "llm_requests_total.1.from: is empty"),
        ("llm_requests_total: {from: [a], part: sum}", "llm_requests_total is a counter (leave part: out)"),
    ],
)
def test_a_mistake_in_a_map_is_told_with_its_line(wrong: str, problem: str, tmp_path: Path) -> None:
    head = "targets:\n  - source: openmetrics\n    url: http://a\n    name: mine\n    map:\n      families:\n        "
    with pytest.raises(ConfigError) as refused:
        load(written(tmp_path, f"{head}{wrong}\n"))
    assert len(refused.value.problems) == 1
    assert problem in refused.value.problems[0]


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ("{}", "5: targets.0.map: families: is missing"),
        ("[]", "5: targets.0.map: not a mapping"),
        ("{families: []}", "5: targets.0.map.families: not a mapping"),
        ("{families: {}, layer: model}", "5: targets.0.map.layer: model is no word for it (write one of gateway"),
        ("{families: {}, include: [vlm]}", "include.0: no map of a source: vlm (known: dcgm, dynamo, "),
        ("{families: {}, identity: {name: a}}", "identity: label: is missing"),
        ("{families: {}, tables: {t: {key: a}}}", "tables.t: value: is missing"),
    ],
)
def test_a_mistake_above_the_families_is_told_too(given: str, problem: str, tmp_path: Path) -> None:
    text = f"targets:\n  - source: openmetrics\n    url: http://a\n    name: mine\n    map: {given}\n"
    with pytest.raises(ConfigError) as refused:
        load(written(tmp_path, text))
    assert problem in str(refused.value)


def test_without_a_map_it_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"llm\.yaml:1: targets\.0\.map: missing \(write map: …\)"):
        load(written(tmp_path, "targets: [{source: openmetrics, url: http://a}]\n"))


async def test_read_without_a_map_lists_what_is_there_and_shows_the_smallest_one(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("exporter.cli._log_to", lambda *_: None)  # it would be for all tests that follow
    said = b"# HELP my_calls_total Calls that were\\nanswered.\n# HELP my_latency_ms " + b"long " * 50 + b"\n"
    async with serving({"/metrics": said + BODY}) as server:
        assert await _read("openmetrics", server.url, None, {}) == 0
        out, err = capsys.readouterr()
        assert "llm_" not in out
        listed = err.partition("left out, no word of ours for it:\n")[2].partition("left out, because")[0]
        calls, kv, latency, *waits = listed.splitlines()
        assert calls == "  my_calls_total (2), counter: Calls that were answered."
        assert kv == "  my_kv_percent (2), gauge"
        assert latency.startswith("  my_latency_ms (4), histogram: long long ")
        assert latency.endswith("…")
        assert waits == ["  my_wait_seconds_count (1), counter", "  my_wait_seconds_sum (1), counter"]
        shown = err.partition("nothing is shown without a map; switch it on with:\n")[2]
        given = load(written(tmp_path, shown.replace("NAME", "my_calls_total"))).targets[0]
        async with watching("openmetrics", server.url, map=given.map) as watch:  # type: ignore[attr-defined]
            reading = await watch.read()
    assert values(reading, "llm_requests_total") == {(): 12.0}
    assert not reading.advice


async def test_where_nothing_is_there_that_the_map_names_the_command_that_lists_it_is_told() -> None:
    reading = await read("openmetrics", {"/metrics": BODY}, map={"families": {"llm_requests_total": {"from": ["a"]}}})
    assert reading.ok
    (advice,) = reading.advice
    assert "the map names" in advice.missing
    assert advice.remedy.startswith("llm-exporter read openmetrics http://127.0.0.1:")
