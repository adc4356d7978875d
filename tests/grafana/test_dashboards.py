"""The dashboards ask what the catalogue knows, add only what may be added, and have the form that Grafana wants."""

import json
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from promql import REPLICA, SCRAPED, BrokenRuleError, Checker, checker, entries, family_of, selectors
from questions import ROOT, Question, dashboards, everything, of_annotations

from exporter.catalogue import chapters, families
from grafana.source import __main__ as source
from grafana.source.page import ROWS, TAG
from grafana.source.style import SEVERITIES

OF_PROMETHEUS = {
    **dict.fromkeys(("scrape_duration_seconds", "process_start_time_seconds"), SCRAPED),
    **dict.fromkeys(("process_cpu_seconds_total", "process_resident_memory_bytes"), SCRAPED),
    "ALERTS": SCRAPED | {"alertname", "alertstate", "severity", "target", "model"},
}
"""What dashboards ask for beside the catalogue: of alerts, of scrapes, and of the exporter's own process."""
SUBJECTS = "overview providers latency cache dynamo nats services gpu-host models exporter"
UIDS = [f"llm-{subject}" for subject in SUBJECTS.split()]


@pytest.fixture(scope="module")
def questions() -> list[Question]:
    return everything()


def faults(questions: list[Question], found: Any) -> list[str]:
    return [f"{question.place}: {fault} in {question.expr}" for question in questions for fault in found(question)]


def test_what_is_made_is_not_stale() -> None:
    assert source.stale() == [], "run python -m grafana.source"


def test_stale_missing_and_left_over_files_are_named_and_mended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "DASHBOARDS", tmp_path)
    source.write()
    (tmp_path / "llm-nats.json").write_text("{}")
    (tmp_path / "llm-cache.json").unlink()
    (tmp_path / "llm-old.json").write_text("{}")
    assert source.stale() == ["llm-cache.json", "llm-nats.json", "llm-old.json"]
    source.write()
    assert source.stale() == []


def test_there_are_the_dashboards_that_the_readme_names() -> None:
    assert sorted(dashboards()) == sorted(UIDS)
    assert [dashboard["uid"] for dashboard in dashboards().values()] == sorted(UIDS)
    readme = (ROOT / "README.md").read_text("utf-8")
    assert [uid for uid in UIDS if uid not in readme] == []


def test_every_query_speaks_our_words(questions: list[Question]) -> None:
    """What `promql.Checker` holds of rules holds of dashboards, and a legend has labels that its series have."""
    checks = Checker(checker().known | OF_PROMETHEUS, strict=False)
    assert len(questions) > 250

    def broken(question: Question) -> Iterator[str]:
        try:
            labels = checks.labels(question.expr_with_ranges)
        except (BrokenRuleError, ValueError) as error:
            yield str(error)
        else:
            yield from set(re.findall(r"{{(\w+)}}", question.legend)) - labels
            of_targets = any("source" in checks.known[each.name] for each in selectors(question.expr_with_ranges))
            if labels & REPLICA and of_targets and not question.is_variable:
                yield "shows each replica of an exporter"

    assert faults(questions, broken) == []


def test_ranges_are_those_of_the_panel(questions: list[Question]) -> None:
    """A fixed range has gaps where scrapes are rarer, and smooths away what a zoomed panel should show."""

    def fixed(question: Question) -> Iterator[str]:
        yield from {*re.findall(r"\[([^\]]+)\]", question.expr)} - {"$__rate_interval", "$__range"}

    assert faults(questions, fixed) == []


def test_counters_are_read_by_what_they_gain_and_gauges_by_what_they_are(questions: list[Question]) -> None:
    """A counter as it stands is a lifetime's sum; a rate of a gauge is nothing."""

    def wrong(question: Question) -> Iterator[str]:
        for each in selectors(question.asked):
            family = family_of(each.name)
            if family is None:
                continue
            gains = {"rate", "increase"} & set(each.calls)
            if family.kind == "gauge" and gains:
                yield f"{gains} of the gauge {each.name}"
            if family.kind != "gauge" and not gains and not existence_only(question, each.name):
                yield f"{each.name} as it stands"

    assert faults(questions, wrong) == []


def existence_only(question: Question, name: str) -> bool:
    """Where a counter is asked for its labels only, or, in a table, for all that it has counted."""
    return (
        question.is_variable
        or re.search(rf"and on \([^)]*\) {name}{{", question.expr) is not None
        or (question.instant and name == "llm_unit_restarts_total")
    )


def test_every_selector_names_job_and_instance(questions: list[Question]) -> None:
    def open_to_all(question: Question) -> Iterator[str]:
        for each in selectors(question.expr_with_ranges):
            if each.name not in ("ALERTS", "llm_exporter_build_info") or "job" in each.matchers:
                matchers = {"job": ("Re", "$job"), "instance": ("Re", "$instance")}
                if question.place.endswith("$instance") or ":" in each.name:  # recordings are over all of a job
                    matchers.pop("instance")
                if matchers.items() - each.matchers.items():
                    yield each.name

    assert faults(questions, open_to_all) == []


def test_targets_of_one_name_on_two_machines_stay_apart(questions: list[Question]) -> None:
    def merged(question: Question) -> Iterator[str]:
        for found in re.findall(r"\bby \(([^)]*)\)", question.expr):
            kept = set(found.split(", "))
            if "target" in kept and not kept & {"instance", "id", "alertname"}:  # id: of edges, which have a target
                yield f"by ({found})"

    assert faults(questions, merged) == []


def test_serving_families_are_asked_by_layer(questions: list[Question]) -> None:
    of_serving = {family.name for chapter in chapters()[:2] for family in chapter.families if "layer" in family.labels}

    def any_layer(question: Question) -> Iterator[str]:
        grouped = re.search(r"(by|on|group_left) \([^)]*\blayer\b", question.expr)
        if not question.is_variable and not grouped:
            for each in selectors(question.asked):
                family = family_of(each.name)
                if family and family.name in of_serving and "layer" not in each.matchers:
                    yield each.name

    assert len(of_serving) > 50
    assert faults(questions, any_layer) == []


def test_annotations_are_above_0_where_they_are_to_be_drawn() -> None:
    """Grafana draws an annotation from Prometheus only where the value is above 0."""
    for dashboard in dashboards().values():
        annotations = list(of_annotations(dashboard))
        assert [each.place for each in annotations if re.search(r"== 0", each.expr)] == []
        names = {each.place.split(": ", 1)[1] for each in annotations}
        assert {"Exporter restarted", "Target down", "Alert: critical", "Alert: warning"} <= names
        assert all(each["enable"] and not each["hide"] for each in dashboard["annotations"]["list"])


def test_alerts_of_every_severity_are_drawn() -> None:
    rules = entries()["alert"]
    assert {rule["labels"]["severity"] for rule in rules} == SEVERITIES.keys()
    assert all(rule["alert"].startswith("LLM") for rule in rules)


def test_every_panel_has_a_title_a_unit_a_description_and_words_for_when_it_is_empty() -> None:
    for dashboard in dashboards().values():
        titles = [panel["title"] for panel in dashboard["panels"] if panel["type"] != "row"]
        assert len(set(titles)) == len(titles)
        for panel in dashboard["panels"]:
            if panel["type"] == "row":
                continue
            assert panel["title"], panel["id"]
            assert len(panel["description"]) > 3, panel["title"]
            assert panel["description"].endswith("."), panel["title"]
            defaults = panel["fieldConfig"]["defaults"]
            assert defaults["unit"], panel["title"]
            assert defaults["noValue"], panel["title"]
            assert panel["targets"], panel["title"]


def test_nothing_has_a_datasource_but_the_one_that_is_chosen() -> None:
    for dashboard in dashboards().values():
        assert "__inputs" not in dashboard
        assert {"grafana", "prometheus"} == {each["id"] for each in dashboard["__requires"]}
        first, *others = dashboard["templating"]["list"]
        assert (first["type"], first["name"], first["query"]) == ("datasource", "datasource", "prometheus")
        users = [panel for panel in dashboard["panels"] if panel["type"] != "row"] + dashboard["annotations"]["list"]
        users += [variable for variable in others if variable["type"] == "query"]
        assert {tuple(sorted(each["datasource"].items())) for each in users} == {
            (("type", "prometheus"), ("uid", "${datasource}"))
        }
        targets = [target for panel in dashboard["panels"] for target in panel.get("targets", ())]
        assert [target for target in targets if "datasource" in target] == []


def test_job_and_instance_and_what_queries_use_are_variables() -> None:
    for uid, dashboard in dashboards().items():
        names = [variable["name"] for variable in dashboard["templating"]["list"]]
        assert names[:3] == ["datasource", "job", "instance"]
        text = (ROOT / "grafana" / "dashboards" / "LLM" / f"{uid}.json").read_text("utf-8")
        used = set(re.findall(r"\$(?!__)([a-z]\w*)", text)) | set(re.findall(r"\${(?!__)(\w+)(?::\w+)?}", text))
        assert used - set(names) == set()
        assert set(names) - used == set()


def test_panels_fill_the_grid_without_overlaps_or_gaps() -> None:
    for uid, dashboard in dashboards().items():
        taken: dict[tuple[int, int], str] = {}
        for panel in dashboard["panels"]:
            grid = panel["gridPos"]
            for x in range(grid["x"], grid["x"] + grid["w"]):
                for y in range(grid["y"], grid["y"] + grid["h"]):
                    assert (x, y) not in taken, f"{uid}: {panel['title']} lies on {taken[x, y]}"
                    taken[x, y] = panel["title"]
        height = max(y for _, y in taken) + 1
        assert taken.keys() == {(x, y) for x in range(24) for y in range(height)}


def test_panels_have_ids_of_their_own() -> None:
    for dashboard in dashboards().values():
        ids = [panel["id"] for panel in dashboard["panels"]]
        assert len(set(ids)) == len(ids)
        assert all(isinstance(each, int) and each > 0 for each in ids)


def test_rows_have_one_order() -> None:
    for dashboard in dashboards().values():
        rows = [panel["title"].split(":")[0] for panel in dashboard["panels"] if panel["type"] == "row"]
        assert dashboard["panels"][0]["type"] == "row"
        assert rows[0] == "Now"
        assert all(ROWS.index(one) <= ROWS.index(next_) for one, next_ in pairwise(rows))


def test_the_first_screen_of_the_overview_holds_its_five_questions() -> None:
    panels = dashboards()["llm-overview"]["panels"]
    first = [panel["title"] for panel in panels if panel["gridPos"]["y"] + panel["gridPos"]["h"] <= 22]
    told = " ".join(first).lower()
    assert [each for each in ("served", "slowness", "frozen", "unload", "spend") if each not in told] == []


def test_siblings_are_linked_by_their_tag() -> None:
    for dashboard in dashboards().values():
        assert dashboard["tags"] == [TAG]
        (link,) = dashboard["links"]
        assert (link["type"], link["tags"], link["asDropdown"]) == ("dashboards", [TAG], True)
        assert link["includeVars"]
        assert link["keepTime"]
        assert "inControlsMenu" not in json.dumps(dashboard)


def test_links_go_to_dashboards_that_are_there() -> None:
    for file in (ROOT / "grafana" / "dashboards" / "LLM").iterdir():
        assert set(re.findall(r"/d/([\w-]+)", file.read_text("utf-8"))) <= set(UIDS)


def test_what_only_a_real_grafana_shows_is_minded() -> None:
    for dashboard in dashboards().values():
        assert dashboard["schemaVersion"] == 39
        for panel in dashboard["panels"]:
            options = panel.get("options", {})
            if panel["type"] == "status-history":
                assert panel["maxDataPoints"] <= 60
            if panel["type"] in ("timeseries", "state-timeline", "status-history"):
                assert options["tooltip"]["mode"] == "multi"
            if panel["type"] == "table":  # a cell without a value would show the words for an empty panel
                first = panel["fieldConfig"]["overrides"][0]
                assert (first["matcher"]["options"], first["properties"][0]["value"]) == (".*", "–")
            if panel["type"] in ("stat", "bargauge"):
                assert options["reduceOptions"]["calcs"] == ["last"]
                assert all(target["instant"] for target in panel["targets"])
            if panel["type"] == "nodeGraph":
                assert [(target["format"], target["instant"]) for target in panel["targets"]] == [("table", True)] * 2


def test_a_percentile_has_one_colour_everywhere() -> None:
    colours: dict[str, set[str]] = {}
    for dashboard in dashboards().values():
        for panel in dashboard["panels"]:
            legends = {target["refId"]: target["legendFormat"] for target in panel.get("targets", ())}
            for override in panel.get("fieldConfig", {}).get("overrides", ()):
                named = legends.get(override["matcher"]["options"], "")
                if re.fullmatch(r"p\d+", named):
                    (value,) = (each["value"] for each in override["properties"] if each["id"] == "color")
                    colours.setdefault(named, set()).add(value["fixedColor"])
    assert colours.keys() == {"p50", "p95", "p99"}
    assert all(len(each) == 1 for each in colours.values())


def test_states_are_shown_by_the_words_that_the_catalogue_declares() -> None:
    shown = 0
    for dashboard in dashboards().values():
        for panel in dashboard["panels"]:
            for target in panel.get("targets", ()):
                found = re.findall(r'(llm_\w+_state){[^}]*state="(\w+)"} \* (\d+)', target["expr"])
                if found:
                    of_columns = [each for one in panel["fieldConfig"]["overrides"] for each in one["properties"]]
                    (mapping,) = panel["fieldConfig"]["defaults"].get("mappings") or next(
                        each["value"] for each in of_columns if each["id"] == "mappings"
                    )
                    options = mapping["options"]
                    words = {code: word.replace("_", " ") for _, word, code in found}
                    assert {code: option["text"] for code, option in options.items()} == words
                    assert [word for _, word, _ in found] == list(families()[found[0][0]].closed["state"])
                    shown += 1
    assert shown >= 5


def test_the_provisioned_files_show_the_dashboards_and_never_change_them() -> None:
    folder = ROOT / "grafana" / "provisioning"
    (datasource,) = yaml.safe_load((folder / "datasources" / "prometheus.yaml").read_text("utf-8"))["datasources"]
    assert (datasource["type"], datasource["url"]) == ("prometheus", "${PROMETHEUS_URL}")
    (job,) = yaml.safe_load((ROOT / "prometheus" / "prometheus.yml").read_text("utf-8"))["scrape_configs"]
    assert datasource["jsonData"]["timeInterval"] == job["scrape_interval"]
    (provider,) = yaml.safe_load((folder / "dashboards" / "llm.yaml").read_text("utf-8"))["providers"]
    assert provider["options"]["foldersFromFilesStructure"]
    assert not provider["allowUiUpdates"]
