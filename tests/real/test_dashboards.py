"""Every question of every dashboard is put to a real Prometheus that scrapes the demo."""

import time
from collections.abc import Iterator

import pytest
import stack
import yaml
from ask import Answer, ask, asked
from promql import selectors
from questions import ROOT, Question

ONLY_AT_TIMES = {
    "llm-exporter: Samples left out",
    "llm-overview: Frozen, or gone",
    "llm-overview: Firing alerts",
}
"""Panels that are empty while all is well."""
OF_PROMETHEUS = {"scrape_duration_seconds"}


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[stack.Exporter]:
    folder, port = tmp_path_factory.mktemp("demo"), stack.free_port()
    command = [*stack.EXPORTER, "demo", "--listen", f"127.0.0.1:{port}"]
    server = stack.Exporter(command, port, folder / "demo.log", {"PYTHONPATH": str(ROOT)}, ready="/-/ready")
    with stack.running(server):
        yield server


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory, demo: stack.Exporter) -> Iterator[stack.Prometheus]:
    """With our recording rules, worked out every second, and the exporter as two replicas and one elsewhere."""
    folder = tmp_path_factory.mktemp("prometheus")
    for file in (ROOT / "prometheus" / "rules").glob("*.yml"):
        groups = yaml.safe_load(file.read_text("utf-8"))["groups"]
        (folder / f"{file.stem}.rules").write_text(
            yaml.safe_dump({"groups": [group | {"interval": "1s"} for group in groups]})
        )
    seen_as = [{"instance": "a", "pod": "1"}, {"instance": "a", "pod": "2"}, {"instance": "b", "pod": "3"}]
    server = stack.prometheus(folder, demo.url, rules=str(folder / "*.rules"), seen_as=seen_as)
    with stack.running(server):
        yield server


def expected(question: Question, page: stack.Page) -> bool:
    """Whether the demo shows all that a question is about, at any time of its day."""
    if "offset 1d" in question.expr or question.place.rsplit(" (", 1)[0] in ONLY_AT_TIMES:
        return False
    for each in selectors(question.asked):
        wanted = {(label, value) for label, (operator, value) in each.matchers.items() if operator == "Equal"}
        shown = (labels for name, labels in page if name == each.name)
        if ":" not in each.name and each.name not in OF_PROMETHEUS and not any(wanted <= labels for labels in shown):
            return False
    return True


def test_every_question_of_every_dashboard_is_answered(demo: stack.Exporter, prometheus: stack.Prometheus) -> None:
    left = asked()
    total = len(left)
    until = time.monotonic() + 180
    while True:
        answers: list[Answer] = [ask(prometheus.url, question, minutes=3) for question in left]
        assert [
            f"{each.question.place}: {each.refused} in {each.question.asked}" for each in answers if each.refused
        ] == []
        left = [each.question for each in answers if not each.series]
        page = demo.page()
        missing = [question.place for question in left if expected(question, page)]
        if not missing and total - len(left) > 0.8 * total:
            break
        assert time.monotonic() < until, f"of {total} {total - len(left)} are answered, these not: {missing or left}"
        time.sleep(2)
    print(f"{total} questions, {total - len(left)} with an answer")


def test_replicas_of_an_exporter_count_once_and_exporters_of_two_machines_each(
    demo: stack.Exporter, prometheus: stack.Prometheus
) -> None:
    instances = {question.place: question for question in asked()}["llm-dynamo: Instances (A)"]
    registered = [value for (name, _), value in demo.page().items() if name == "llm_dynamo_endpoint_instances"]
    assert list(prometheus.query(instances.asked).values()) == [2 * sum(registered)]
