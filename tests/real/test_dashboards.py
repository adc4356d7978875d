"""Every question of every dashboard is put to a real Prometheus that scrapes the demo.

Begins in its evening: soon Redis answers nobody, and the reranker restarts in a loop.
"""

import json
import subprocess
import time
from collections.abc import Iterator

import psutil
import pytest
import stack
import yaml
from ask import Answer, ask, asked
from promql import selectors
from questions import ROOT

HOUR, SPEED = 21.2, 60
DAY = 86400
NO_ANSWER = {"llm-gpu-host: Temperature of the host (A)"} if not psutil.sensors_temperatures() else set()
"""The host is this machine itself: a virtual one tells no temperatures."""


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[stack.Exporter]:
    server = stack.demo(tmp_path_factory.mktemp("demo"), "--hour", f"{HOUR}", "--speed", f"{SPEED}")
    with stack.running(server):
        yield server


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory, demo: stack.Exporter) -> Iterator[stack.Prometheus]:
    """With our rules, worked out every second, alerts at once; the exporter as two replicas and one elsewhere."""
    folder = tmp_path_factory.mktemp("prometheus")
    for file in (ROOT / "prometheus").glob("[ra]*s/*.yml"):
        groups = yaml.safe_load(file.read_text("utf-8"))["groups"]
        for group in groups:
            group["interval"] = "1s"
            for rule in group["rules"]:
                rule.pop("for", None)
        (folder / f"{file.parent.name}-{file.stem}.rules").write_text(yaml.safe_dump({"groups": groups}))
    seen_as = [{"instance": "a", "pod": "1"}, {"instance": "a", "pod": "2"}, {"instance": "b", "pod": "3"}]
    server = stack.prometheus(folder, demo.url, rules=str(folder / "*.rules"), seen_as=seen_as)
    yesterday(demo, server)
    with stack.running(server):
        yield server


def yesterday(demo: stack.Exporter, server: stack.Prometheus) -> None:
    """Give Prometheus what the dashboards ask about the day before: what is now, and had grown meanwhile."""
    names = {each.name for question in asked() if "offset 1d" in question.expr for each in selectors(question.asked)}
    until = time.monotonic() + stack.PATIENCE
    page = demo.page()
    while names - {name for name, _ in page}:
        assert time.monotonic() < until
        time.sleep(0.5)
        page = demo.page()
    begin = time.time() - DAY - 60
    lines = [
        f'{name}{{{",".join(f"{label}={json.dumps(told)}" for label, told in labels)},job="llm",instance="a"}}'
        f" {value * (1 + step / 100)} {begin + 15 * step:.3f}"
        for (name, labels), value in page.items()
        if name in names
        for step in range(24)
    ]
    file = server.log.with_name("yesterday")
    file.write_text("\n".join([*lines, "# EOF\n"]))
    subprocess.run(
        ["promtool", "tsdb", "create-blocks-from", "openmetrics", file, file.with_name(f"tsdb-{server.port}")],
        check=True,
        capture_output=True,
    )


def test_every_question_of_every_dashboard_is_answered(
    prometheus: stack.Prometheus, capsys: pytest.CaptureFixture[str]
) -> None:
    left = [question for question in asked() if question.place not in NO_ANSWER]
    total = len(left)
    until = time.monotonic() + 180
    while True:
        answers: list[Answer] = [ask(prometheus.url, question, minutes=3) for question in left]
        assert [
            f"{each.question.place}: {each.refused} in {each.question.asked}" for each in answers if each.refused
        ] == []
        left = [each.question for each in answers if not each.series]
        if not left:
            break
        places = [question.place for question in left]
        assert time.monotonic() < until, f"of {total} {total - len(left)} are answered, these not: {places}"
        time.sleep(2)
    with capsys.disabled():
        print(f"\n{total} questions of dashboards, {total - len(left)} answered; left out: {NO_ANSWER or 'none'}")


def test_replicas_of_an_exporter_count_once_and_exporters_of_two_machines_each(
    demo: stack.Exporter, prometheus: stack.Prometheus
) -> None:
    instances = {question.place: question for question in asked()}["llm-dynamo: Instances (A)"]

    def registered() -> float:
        return sum(value for (name, _), value in demo.page().items() if name == "llm_dynamo_endpoint_instances")

    until = time.monotonic() + stack.PATIENCE
    while (told := [*prometheus.query(instances.asked).values()]) != [2 * registered()] or not told[0]:
        assert time.monotonic() < until, told  # a scrape is behind the page for a moment
        time.sleep(0.5)
