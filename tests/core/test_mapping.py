"""A map that cannot be right is refused when it is loaded, with what to write."""

import json
import re
from pathlib import Path

import pytest
import yaml
from helpers import Upstream

from exporter.catalogue import families, maps
from exporter.core.errors import ReadError
from exporter.core.mapping import TABLE_LENGTH, MapError, SourceMap
from exporter.sources import sources


def load(text: str) -> SourceMap:
    return SourceMap("map.yaml", yaml.safe_load(text), families())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("families: {llm_nothing: {from: [a]}}", "llm_nothing is not in the catalogue"),
        (
            "families: {llm_requests_total: {from: [a], label: {}}}",
            "families.llm_requests_total.label: unknown key label (known: constant, copies,",
        ),
        ("family: {}\nfamilies: {}", "family: unknown key family (known: absent, "),
        ("families: {llm_requests_total: {from: [a], labels: {team: team}}}", "has no label team"),
        ("families: {llm_requests_total: {from: [a], merge: max}}", "for gauges only"),
        ("families: {llm_requests_running: {from: [a], merge: mean}}", "merge: mean"),
        ("families: {llm_requests_total: {from: [a], progress: start}}", "write one of running, end, none"),
        ("families: {llm_request_failures_total: {from: [a], constant: {reason: odd}}}", "['odd'] is not one of"),
        ("families: {llm_requests_total: {from: [a], labels: {model: {lookup: t, by: x}}}}", "no table t"),
        (
            "families: {llm_time_per_output_token_mean_seconds: {from: [a]}}",
            "(write part: sum, or part: count)",
        ),
        ("families: {llm_requests_total: {from: [a]}, llm_requests_running: {from: [a]}}", "both as a counter and"),
        ("families: {llm_requests_total: {from: []}}", "from: is empty"),
        ("families: {llm_requests_total: {from: ['a_*_b']}}", "a_*_b (a pattern is * and how names end"),
        ("families: {llm_requests_total: {from: ['*total']}}", "*total (a pattern is"),
        (
            "families: {llm_requests_total: {from: ['*_a'], declared: gage}}",
            "declared: gage is no word for it",
        ),
        ("families: {llm_requests_total: {from: ['*_a']}, llm_requests_running: {from: ['*_a']}}", "both as a"),
        ("identity: {name: a}\nfamilies: {}", "identity: label: is missing (write label: …)"),
    ],
)
def test_a_wrong_map_is_refused_when_it_is_loaded(text: str, message: str) -> None:
    with pytest.raises(MapError, match=re.escape(message)):
        load(text)


def test_the_maps_of_all_sources_are_right() -> None:
    for kind, given in maps().items():
        assert SourceMap(kind, given, families(), maps()).sample_names


def test_every_mapped_or_made_family_says_what_it_is_computed_from() -> None:
    for family in families().values():
        assert re.search(r" From: \S.*\.$", family.help), family.name


def test_what_a_capture_shows_is_said_of_its_source() -> None:
    """Where a HELP names sources, all that show the family are among them, or take the map of one that is."""
    shown = {
        tuple(found)
        for file in (Path(__file__).parents[1] / "captures").rglob("*.prom")
        for found in re.findall(r'^(llm_\w+?)(?:_bucket|_sum|_count)?\{source="(\w+)"', file.read_text(), re.MULTILINE)
    }
    assert len(shown) > 200
    for name, source in sorted(shown & {(name, source) for name in families() for source in sources()}):
        said = families()[name].help.rpartition(" From: ")[2]
        named = {each for group in re.findall(r"\(([\w, ]+)\)", said) for each in group.split(", ")} & set(sources())
        assert not named or named & {source, *maps().get(source, {}).get("include", ())}, f"{name} of {source}: {said}"


def test_a_scale_turns_milliseconds_into_seconds() -> None:
    up = Upstream(text="families: {llm_request_duration_seconds: {from: [ms], scale: 0.001}}")
    up.read('ms_sum 1500\nms_count 2\nms_bucket{le="+Inf"} 2\n')
    shown = {name.partition("{")[0]: value for name, value in up.shown().items()}
    assert shown["llm_request_duration_seconds_sum"] == 1.5


ANY_PREFIX = """
not: ["*:*", other_*]
families:
  llm_requests_total: {from: ["*_requests_total", old_calls_total], labels: {model: model}}
  llm_requests_waiting: {from: ["*_queued_requests_total"], merge: max}
  llm_request_duration_seconds: {from: ["*_duration_seconds"], labels: {model: model}}
  llm_prompt_tokens_total: {from: ["*_input_tokens_sum"], declared: histogram}
  llm_prompt_length_tokens: {from: ["*_input_tokens"]}
  llm_output_tokens_total: {from: [other_requests_total]}
"""


def fed_by(name: str, text: str = ANY_PREFIX) -> list[tuple[str, int, str]]:
    return [(rule.key, alternative, suffix) for rule, alternative, suffix in load(text).wants(name)]


@pytest.mark.parametrize("prefix", ["dynamo_frontend", "nv_llm_http_service", "a"])
def test_a_name_with_a_star_stands_for_every_prefix(prefix: str) -> None:
    assert fed_by(f"{prefix}_requests_total") == [("llm_requests_total", 0, "")]
    assert fed_by(f"{prefix}_duration_seconds_bucket") == [("llm_request_duration_seconds", 0, "_bucket")]
    assert fed_by(f"{prefix}_input_tokens_sum") == [
        ("llm_prompt_tokens_total", 0, ""),
        ("llm_prompt_length_tokens", 0, "_sum"),
    ]
    assert fed_by(f"{prefix}_duration_seconds") == fed_by(f"{prefix}requests_totals") == fed_by("requests_total") == []


def test_the_longest_ending_a_name_written_out_and_names_never_matched_go_first() -> None:
    assert fed_by("a_queued_requests_total") == [("llm_requests_waiting", 0, "")]
    assert fed_by("old_calls_total") == [("llm_requests_total", 1, "")]
    assert fed_by("other_requests_total") == [("llm_output_tokens_total", 0, "")]
    assert fed_by("other_duration_seconds_sum") == fed_by("engine:x_requests_total") == []


def test_only_names_written_out_can_be_asked_for() -> None:
    assert load(ANY_PREFIX).sample_names == ("old_calls_total", "other_requests_total")


def test_names_matched_by_their_ending_are_remembered_within_bounds() -> None:
    source_map = load(ANY_PREFIX)
    for number in range(TABLE_LENGTH + 50):
        assert source_map.wants(f"p{number}_requests_total")
        assert not source_map.wants(f"p{number}_junk_total")
    assert len(source_map._matched) == TABLE_LENGTH


@pytest.mark.parametrize("name", ["x_seconds", "'*_seconds'"])
def test_histograms_of_any_prefix_are_those_of_a_name_written_out(name: str) -> None:
    family = f"llm_request_duration_seconds: {{from: [{name}], labels: {{model: model}}}}"
    up = Upstream(text=f"layer: gateway\nfamilies: {{{family}}}")
    lines = [
        f'x_seconds_{part}{{model="{model}"{le}}} {value}\n'
        for model, value in (("m", 1), ("n", 2), ("o", 3))
        for part, le in (("bucket", ',le="1"'), ("bucket", ',le="+Inf"'), ("sum", ""), ("count", ""))
    ]
    up.read("# TYPE x_seconds histogram\n" + "".join(lines))
    assert len(up.shown()) == 12
    assert up.shown()['llm_request_duration_seconds_bucket{model="o",le="1.0"}'] == 3.0


def test_a_switch_from_one_ending_to_another_changes_no_total() -> None:
    up = Upstream(
        text="layer: gateway\nfamilies: {llm_output_tokens_total: {from: ['*_tokens_total', '*_length_sum']}}"
    )
    up.read("p_length_sum 5\n")
    up.read("p_length_sum 5\np_tokens_total 9\n")
    up.read("p_tokens_total 10\n")
    up.read("p_tokens_total 12\n")
    assert up.shown()["llm_output_tokens_total"] == 7.0


WRONG_TYPE = "layer: gateway\nfamilies: {llm_client_disconnects_total: {from: [gone], declared: [gauge]}}"


@pytest.mark.parametrize(("declared", "shown"), [("gauge", 3.0), ("untyped", 3.0), ("counter", None)])
def test_what_an_upstream_declares_wrongly_is_taken_as_what_it_is(declared: str, shown: float | None) -> None:
    up = Upstream(text=WRONG_TYPE)
    up.read(f"# TYPE gone {declared}\ngone 1\n")
    up.read(f"# TYPE gone {declared}\ngone 3\n")
    assert up.shown().get("llm_client_disconnects_total") == shown


@pytest.mark.parametrize(
    ("told", "shown"),
    [
        ("2324035511328441101", "2040a1fbfa20030d"),
        ("0", "0"),
        ("2040a1fbfa20030d", "2040a1fbfa20030d"),
        ("9" * 400, "9" * 400),
        ("٣", "٣"),
    ],
)
def test_a_decimal_number_becomes_hexadecimal_and_anything_else_stays(told: str, shown: str) -> None:
    up = Upstream(
        text="layer: gateway\nfamilies: {llm_requests_total: {from: [up], labels: {model: {hex: [id, worker_id]}}}}"
    )
    up.read(f'up{{worker_id="{told}"}} 1\n')
    assert up.shown() == {f'llm_requests_total{{model="{shown}"}}': 1.0}


BY_LABEL = """
identity: {name: uptime, label: worker_id}
layer: gateway
families: {llm_requests_total: {from: [up_requests_total], labels: {model: model}}}
"""


def of(process: str | None, uptime: float, **requests: float) -> str:
    label = "" if process is None else f'{{worker_id="{process}"}}'
    lines = [f'up_requests_total{{model="{model}"}} {value}\n' for model, value in requests.items()]
    return "".join(lines) + f"uptime{label} {uptime}\n"


M = 'llm_requests_total{model="m"}'


@pytest.mark.parametrize("after", ["2040a1fbfa20030e", "1040a1fbfa20030d"])  # ids that follow have no order
def test_a_process_told_by_a_label_counts_right_though_it_has_overtaken_the_one_before(after: str) -> None:
    up = Upstream(text=BY_LABEL)
    up.read(of("2040a1fbfa20030d", 500.0, m=10))
    up.read(of("2040a1fbfa20030d", 501.0, m=11))
    assert up.shown() == {M: 11.0}
    up.read(of(after, 3.0, m=14))
    assert up.shown() == {M: 25.0}
    up.read(of(after, 4.0, m=15))
    assert up.shown() == {M: 26.0}


def test_a_cut_body_of_a_process_told_by_a_label_counts_nothing_twice() -> None:
    up = Upstream(text=BY_LABEL)
    up.read(of("a", 500.0, m=10, n=1))
    another = of("b", 3.0, m=14, n=2)
    for at in range(len(another)):
        up.cut(another, at)
    up.read(another)
    assert up.shown() == {M: 24.0, 'llm_requests_total{model="n"}': 3.0}


def test_a_restart_of_the_exporter_knows_a_process_told_by_a_label() -> None:
    up = Upstream(text=BY_LABEL)
    up.read(of("a", 500.0, m=10))
    saved = json.loads(json.dumps(up.dump()))
    again, another = Upstream(saved, text=BY_LABEL), Upstream(saved, text=BY_LABEL)
    again.read(of("a", 510.0, m=12))
    another.read(of("b", 3.0, m=12))
    assert (again.shown(), another.shown()) == ({M: 12.0}, {M: 22.0})


def test_two_processes_told_by_labels_that_take_turns_count_nothing() -> None:
    up = Upstream(text=BY_LABEL)
    up.read(of("a", 500.0, m=10))
    up.read(of("b", 400.0, m=500))
    before = up.shown()
    for turn in range(5):
        with pytest.raises(ReadError, match="take turns"):
            up.read(of("a", 501.0 + turn, m=11 + turn))
        with pytest.raises(ReadError, match="take turns"):
            up.read(of("b", 401.0 + turn, m=501 + turn))
    assert up.shown() == before


def test_without_the_label_falling_counters_tell_another_process() -> None:
    up = Upstream(text=BY_LABEL)
    up.read(of(None, 500.0, m=10, n=10, o=10))
    up.read(of(None, 3.0, m=1, n=2, o=11))
    assert up.shown()['llm_requests_total{model="o"}'] == 21.0


# -- spellings, maps within maps, gauges of several rules ---------------------------------------------------------

ENGINE = {
    "layer": "engine",
    "families": {
        "llm_requests_running": {"from": ["e:running", "e:active"], "merge": "sum"},
        "llm_requests_total": {"from": ["e:requests_total"], "labels": {"model": "model"}},
        "llm_request_failures_total": {
            "from": ["e:failures_total"],
            "labels": {"model": "model"},
            "constant": {"reason": "timeout"},
        },
    },
}
WITHIN = """
include: [engine]
layer: frontend
families:
  llm_requests_running: {from: [own_running], constant: {layer: engine}, merge: sum}
  llm_requests_total: {from: [own_requests_total], labels: {model: model}}
"""


def within(body: str, text: str = WITHIN) -> dict[str, float]:
    up = Upstream(text=text, others={"engine": ENGINE})
    up.read(body)
    return {name.replace('{source="test",target="t",', "{"): value for name, value in up.shown().items()}


@pytest.mark.parametrize("name", ["e:running", "e_running", "e_active"])
def test_a_colon_and_an_underscore_are_alike(name: str) -> None:
    assert within(f"{name} 3\n") == {'llm_requests_running{layer="engine"}': 3.0}


def test_of_several_spellings_the_first_is_taken_and_never_the_sum() -> None:
    assert within("e_active 3\ne:active 4\ne_running 5\n") == {'llm_requests_running{layer="engine"}': 5.0}


def test_names_may_begin_with_something_else() -> None:
    text = 'include: [engine]\nprefixes: {"e:": [other_, ""]}\nfamilies: {}\n'
    for name in ("e:running", "other_running", "running"):
        assert within(f"{name} 3\n", text) == {'llm_requests_running{layer="engine"}': 3.0}
    assert within("my_running 3\n", text) == {}


def test_rules_of_an_included_map_have_its_layer_and_stand_beside_the_map_s_own() -> None:
    assert within('e:requests_total{model="m"} 3\nown_requests_total{model="m"} 4\n') == {
        'llm_requests_total{layer="engine",model="m"}': 3.0,
        'llm_request_failures_total{layer="engine",model="m",reason="timeout"}': 0.0,
        'llm_requests_total{layer="frontend",model="m"}': 4.0,
    }


def test_of_a_gauge_that_several_rules_tell_the_first_is_shown() -> None:
    assert within("own_running 7\n") == {'llm_requests_running{layer="engine"}': 7.0}
    assert within("own_running 7\ne:running 3\n") == {'llm_requests_running{layer="engine"}': 3.0}


def test_what_is_included_must_be_there() -> None:
    with pytest.raises(MapError, match=r"include\.0: no map of a source: other \(known: engine\)"):
        within("", "include: [other]\nfamilies: {}\n")


def test_a_summary_is_fed_by_the_part() -> None:
    text = """
layer: engine
families:
  llm_request_duration_mean_seconds:
    - {from: [us_total], part: sum, scale: 0.000001}
    - {from: [requests_total], part: count}
"""
    up = Upstream(text=text)
    up.read("us_total 1500000\nrequests_total 3\n")
    up.read("us_total 2500000\nrequests_total 4\n")
    name = 'llm_request_duration_mean_seconds_{}{{source="test",target="t",layer="engine"}}'
    assert up.shown() == {name.format("count"): 4.0, name.format("sum"): 2.5}
