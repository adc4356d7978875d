"""Rules, alerts and the configuration of Prometheus: promtool takes them, their words are ours, each alert is tried."""

from __future__ import annotations

import re
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from promql import ALERTS, REPLICA, ROOT, RULES, BrokenRuleError, checker, entries, family_of, selectors

from exporter.core.source import source_map

HOUSE = ROOT / "prometheus"
RUNBOOK = ROOT / "docs" / "runbook.md"
TESTS = sorted(HOUSE.glob("tests/*.yml"))
CASES = ("fires", "is silent", "is absent")


def alerts() -> list[Any]:
    return [pytest.param(rule, id=rule["alert"]) for rule in entries()["alert"]]


@pytest.mark.parametrize(
    "arguments",
    [["check", "rules", *map(str, (*RULES, *ALERTS))], ["check", "config", str(HOUSE / "prometheus.yml")]],
    ids=["rules", "config"],
)
def test_promtool_takes(arguments: list[str]) -> None:
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.stem)
def test_promtool_agrees(path: Path) -> None:
    done = subprocess.run(["promtool", "test", "rules", str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_configuration_loads_every_rule_and_scrapes_the_exporter() -> None:
    written = yaml.safe_load((HOUSE / "prometheus.yml").read_text("utf-8"))
    loaded = {path for pattern in written["rule_files"] for path in HOUSE.glob(pattern)}
    assert loaded == {*RULES, *ALERTS}
    assert [job["static_configs"][0]["targets"] for job in written["scrape_configs"]] == [["localhost:9400"]]


def test_recordings_speak_our_words_and_are_named_by_what_they_keep() -> None:
    checker()
    for rule in entries()["record"]:
        level, *rest = rule["record"].split(":")
        assert len(rest) == 2, f"{rule['record']}: level:metric:operation"
        if level != "llm_objective":
            kept = checker().known[rule["record"]]
            assert set(re.split("_(?!instance)", level)) - {"quantile"} <= kept, (
                f"{rule['record']} has only {set(kept)}"
            )


@pytest.mark.parametrize("rule", alerts())
def test_an_alert_speaks_our_words(rule: dict[str, Any]) -> None:
    labels = checker().labels(rule["expr"])
    own = (
        all(
            family_of(one.name) is None or "source" not in family_of(one.name).labels
            for one in selectors(rule["expr"])
            if one.name.startswith("llm_")
        )
        and ":" not in rule["expr"]
    )
    assert own or not labels & REPLICA, "one for each replica"
    texts = rule["annotations"]
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert set(texts) == {"summary", "description", "runbook_url"}
    used = set(re.findall(r"\$labels\.(\w+)", texts["summary"] + texts["description"]))
    assert used <= labels, f"no such label: {used - labels}"


@cache
def sections() -> dict[str, str]:
    """The runbook's sections by the anchor of their heading."""
    parts = re.split(r"^## (.+)$", RUNBOOK.read_text("utf-8"), flags=re.MULTILINE)
    return {
        re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-"): text
        for title, text in zip(parts[1::2], parts[2::2], strict=True)
    }


@pytest.mark.parametrize("rule", alerts())
def test_a_runbook_url_leads_to_a_heading_that_helps(rule: dict[str, Any]) -> None:
    page, _, anchor = rule["annotations"]["runbook_url"].partition("#")
    assert (ROOT / page) == RUNBOOK
    assert anchor == rule["alert"].lower()
    assert anchor in sections()
    for part in ("**Means.**", "**Look.**", "**Do.**"):
        assert part in sections()[anchor], f"{part} is missing"


def test_the_runbook_has_no_heading_without_an_alert() -> None:
    assert set(sections()) == {rule["alert"].lower() for rule in entries()["alert"]}


@pytest.mark.parametrize("page", ["runbook.md", "prometheus.md"])
def test_the_documentation_speaks_our_words(page: str) -> None:
    text = (ROOT / "docs" / page).read_text("utf-8")
    queries = [line for block in re.findall(r"```promql\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    assert queries
    for query in queries:
        checker().labels(query)
    names = set(re.findall(r"`((?:\w+:)?llm_[a-z0-9_]*[a-z0-9](?::\w+)?)`", text))
    assert names <= checker().known.keys(), f"no such series: {names - checker().known.keys()}"


def test_what_is_to_be_dropped_of_the_upstreams_own_pages_is_all_that_is_mapped() -> None:
    text = (ROOT / "docs" / "prometheus.md").read_text("utf-8")
    (block,) = re.findall(r"```yaml\n(scrape_configs:\n  - job_name: litellm\n.*?)```", text, re.DOTALL)
    rules = [rule for job in yaml.safe_load(block)["scrape_configs"] for rule in job["metric_relabel_configs"]]
    dropped = [re.compile(rule["regex"]) for rule in rules if rule["action"] == "drop"]
    kept = {
        name
        for kind in ("litellm", "vllm", "sglang", "trtllm", "triton", "tgi", "llamacpp", "etcd", "dcgm")
        for name in source_map(kind).sample_names
        if name != source_map(kind).identity and not any(pattern.fullmatch(name) for pattern in dropped)
    }
    assert kept == set()


STACK = (
    "litellm/1.106.2/metrics_t1",
    *(f"dynamo/1.6.1/B_nats/2_load_t0/{one}" for one in ("frontend", "registry", "system_18081", "system_18082")),
    *("dynamo/engines/vllm_0.32", "dynamo/engines/sglang_0.5.23", "etcd/0.4.1/expected", "nats/0.4.1/expected"),
    *("gpu/eight", "dcgm/plain", "llamacpp/b10434-router/15b_models_after_unload", "ollama/0.33.0-rc2/ps_2models"),
)
"""Captures that make a page like that of an exporter beside a whole stack."""


def test_every_rule_can_be_worked_out_over_a_whole_stack_with_replicas(tmp_path: Path) -> None:
    """An expression that matches many series to many fails only where there are many."""
    lines = dict.fromkeys(
        line.rsplit(" ", 1)[0]
        for capture in STACK
        for line in (ROOT / "tests" / "captures" / f"{capture}.prom").read_text("utf-8").splitlines()
        if not line.startswith("#")
    )
    scraped = [f'{line[:-1]},job="llm",instance="a",replica="{one}"}}' for line in lines for one in "12"]
    watched = "layer_provider_model:llm_requests:rate5m{source='litellm',model='claude'}"
    case = {
        "interval": "1m",
        "input_series": [{"series": one, "values": "0+1x8"} for one in scraped],
        "promql_expr_test": [
            {
                "expr": f"round(60 * {watched})",
                "eval_time": "8m",
                "exp_samples": [
                    {
                        "labels": '{job="llm",source="litellm",layer="gateway",model="claude",provider="anthropic"}',
                        "value": 1,
                    }
                ],
            }
        ],
    }
    path = tmp_path / "stack.yml"
    rules = [str(one) for one in (*RULES, *ALERTS)]
    path.write_text(yaml.safe_dump({"rule_files": rules, "evaluation_interval": "1m", "tests": [case]}), "utf-8")
    done = subprocess.run(["promtool", "test", "rules", str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[:4000]


@cache
def cases() -> dict[str, dict[str, Any]]:
    """promtool's tests of alerts, by name."""
    found: dict[str, dict[str, Any]] = {}
    for path in TESTS:
        for case in yaml.safe_load(path.read_text("utf-8"))["tests"]:
            if "alert_rule_test" in case:
                assert case["name"] not in found, f"{case['name']}: there twice"
                found[case["name"]] = case
    return found


def given(case: dict[str, Any]) -> set[str]:
    """The series that a case has and that a rule of ours would take, by name."""
    names = set()
    for one in case["input_series"]:
        name = one["series"].partition("{")[0]
        if (family := family_of(name)) is None or "source" not in family.labels or 'source="' in one["series"]:
            names.add(name)
    return names


@pytest.mark.parametrize("rule", alerts())
def test_an_alert_is_seen_to_fire_to_be_silent_and_to_be_absent(rule: dict[str, Any]) -> None:
    name = rule["alert"]
    fires, silent, absent = (cases().get(f"{name} {kind}") for kind in CASES)
    assert fires, "no case in which it fires"
    assert silent, "no case in which it is silent"
    assert absent, "no case in which what it reads is absent"
    expected = [one.get("exp_alerts") for case in (fires, silent, absent) for one in case["alert_rule_test"]]
    assert [bool(one) for one in expected] == [True, False, False]
    assert all(one["alertname"] == name for case in (fires, silent, absent) for one in case["alert_rule_test"])
    assert given(fires) <= given(silent), "silent for want of series, not for their values"
    assert given(absent), "nothing at all proves little: the target or its neighbours are there"
    assert not given(fires) <= given(absent), "what it reads is there"


def test_no_case_is_of_an_alert_that_is_gone() -> None:
    assert set(cases()) == {f"{rule['alert']} {kind}" for rule in entries()["alert"] for kind in CASES}


@pytest.mark.parametrize(
    ("expression", "reason"),
    [
        ("llm_request_total", "no series of ours"),
        ('llm_requests_total{source!="",modell="m"}', "no label modell"),
        ('llm_nats_connection_state{source!="",state="gone"}', "never gone"),
        ("llm_requests_total", "does not select source"),
        ('llm_requests_total{source=~".*"}', "does not select source"),
        ('sum without (instance, replica, pod) (rate(llm_requests_total{source!=""}[5m]))', "each replica"),
        ('sum by (source, model) (max without (replica, pod) (llm_requests_running{source!=""}))', "crosses layers"),
        (
            'sum by (layer, le) (max without (replica, pod) (llm_request_duration_seconds_bucket{source!=""}))',
            "different sources",
        ),
        (
            'sum without (le) (max without (replica, pod) (llm_request_duration_seconds_bucket{source!=""}))',
            "to another",
        ),
        (
            'llm_target_up{source!=""} * on (workload) llm_target_interval_seconds{source!=""}',
            "neither side has workload",
        ),
        ('max without (rank) (llm_target_up{source!=""})', "no rank to aggregate"),
        ('llm_deployment_up{source!=""} * llm_deployment_info{source!=""}', "sides differ"),
    ],
)
def test_what_breaks_a_rule_is_found(expression: str, reason: str) -> None:
    with pytest.raises(BrokenRuleError, match=reason):
        checker().labels(expression)


def test_a_sum_over_the_one_layer_that_is_selected_crosses_none() -> None:
    running = 'max without (replica, pod) (llm_requests_running{source!="",layer="gateway"})'
    assert checker().labels(f"sum by (model) ({running})") == {"model"}
