"""A map that cannot be right is refused when it is loaded, with what to write."""

import re

import pytest
import yaml
from helpers import Upstream

from exporter.catalogue import families, maps
from exporter.core.mapping import MapError, SourceMap


def load(text: str) -> SourceMap:
    return SourceMap("map.yaml", yaml.safe_load(text), families())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("families: {llm_nothing: {from: [a]}}", "llm_nothing is not in the catalogue"),
        ("families: {llm_requests_total: {from: [a], label: {}}}", "unknown ['label']"),
        ("family: {}\nfamilies: {}", "the map: unknown ['family']"),
        ("families: {llm_requests_total: {from: [a], labels: {team: team}}}", "has no label team"),
        ("families: {llm_requests_total: {from: [a], merge: max}}", "for gauges only"),
        ("families: {llm_requests_running: {from: [a], merge: mean}}", "merge: mean"),
        ("families: {llm_request_failures_total: {from: [a], constant: {reason: odd}}}", "['odd'] is not one of"),
        ("families: {llm_requests_total: {from: [a], labels: {model: {lookup: t, by: x}}}}", "no table t"),
        ("families: {llm_time_per_output_token_mean_seconds: {from: [a]}}", "made by code"),
        ("families: {llm_requests_total: {from: [a]}, llm_requests_running: {from: [a]}}", "both as a counter and"),
        ("families: {llm_requests_total: {from: []}}", "from: is empty"),
    ],
)
def test_a_wrong_map_is_refused_when_it_is_loaded(text: str, message: str) -> None:
    with pytest.raises(MapError, match=re.escape(message)):
        load(text)


def test_the_maps_of_all_sources_are_right() -> None:
    for kind, given in maps().items():
        assert SourceMap(kind, given, families()).sample_names


def test_every_mapped_or_made_family_says_what_it_is_computed_from() -> None:
    for family in families().values():
        assert re.search(r" From: \S.*\.$", family.help), family.name


def test_a_scale_turns_milliseconds_into_seconds() -> None:
    up = Upstream(text="families: {llm_request_duration_seconds: {from: [ms], scale: 0.001}}")
    up.read('ms_sum 1500\nms_count 2\nms_bucket{le="+Inf"} 2\n')
    shown = {name.partition("{")[0]: value for name, value in up.shown().items()}
    assert shown["llm_request_duration_seconds_sum"] == 1.5
