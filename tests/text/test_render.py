import random
import subprocess
from collections.abc import Iterable
from math import inf, nan

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.parser import text_string_to_metric_families as text

from exporter.core.types import Family, Sample, SeriesTable
from exporter.text import render
from exporter.text.negotiate import Format
from exporter.text.render import HelpOf, Sheet

UP = Family("llm_target_up", "gauge", "Whether the last read succeeded: 1 or 0.", ("target",), 0)
REQUESTS = Family("llm_requests_total", "counter", "Requests that ended.", ("target", "model", "outcome"), 1)
LATENCY = Family("llm_request_duration_seconds", "histogram", "Time of a request.", ("target", "model"), 2)
HOSTILE = '\\ and "quotes",\nand a new line {}# EOF'
BOUNDS = (0.1, 1.0, inf)


def page(targets: Iterable[Iterable[Sample]], form: Format, help_of: HelpOf = lambda family: family.help) -> bytes:
    return render.page([Sheet(samples) for samples in targets], form, help_of)


def openmetrics(shown: str) -> list[Metric]:
    return list(text_string_to_metric_families(shown))  # type: ignore[no-untyped-call] # it has no annotations


def of_target(name: str, models: tuple[str, ...] = ("m-1", "m-2")) -> list[Sample]:
    """What one target has, in no particular order of families."""
    series = SeriesTable({"target": name})
    samples: list[Sample] = []
    for model in models:
        labels = (("model", model),)
        samples += [(series(REQUESTS, (*labels, ("outcome", outcome))), 7.0) for outcome in ("success", "error")]
        samples += [(series(LATENCY, labels, "_bucket", le), float(n)) for n, le in enumerate(BOUNDS)]
        samples += [(series(LATENCY, labels, "_count"), 2.0), (series(LATENCY, labels, "_sum"), 0.25)]
    return [*samples, (series(UP), 1.0)]


def test_a_text_page_is_these_bytes() -> None:
    assert page([of_target("a", ("m",))], Format.TEXT).decode() == (
        "# HELP llm_target_up Whether the last read succeeded: 1 or 0.\n"
        "# TYPE llm_target_up gauge\n"
        'llm_target_up{target="a"} 1.0\n'
        "# HELP llm_requests_total Requests that ended.\n"
        "# TYPE llm_requests_total counter\n"
        'llm_requests_total{target="a",model="m",outcome="error"} 7.0\n'
        'llm_requests_total{target="a",model="m",outcome="success"} 7.0\n'
        "# HELP llm_request_duration_seconds Time of a request.\n"
        "# TYPE llm_request_duration_seconds histogram\n"
        'llm_request_duration_seconds_bucket{target="a",model="m",le="0.1"} 0.0\n'
        'llm_request_duration_seconds_bucket{target="a",model="m",le="1.0"} 1.0\n'
        'llm_request_duration_seconds_bucket{target="a",model="m",le="+Inf"} 2.0\n'
        'llm_request_duration_seconds_count{target="a",model="m"} 2.0\n'
        'llm_request_duration_seconds_sum{target="a",model="m"} 0.25\n'
    )


def test_openmetrics_names_a_counter_without_total_above_its_samples_and_ends_with_eof() -> None:
    lines = page([of_target("a", ("m",))], Format.OPENMETRICS).decode().splitlines()
    assert "# HELP llm_requests Requests that ended." in lines
    assert "# TYPE llm_requests counter" in lines
    assert 'llm_requests_total{target="a",model="m",outcome="error"} 7.0' in lines
    assert lines[-1] == "# EOF"
    assert lines.count("# EOF") == 1


def test_a_page_without_samples_is_still_a_page() -> None:
    assert page([], Format.TEXT) == b""
    assert page([[], []], Format.OPENMETRICS) == b"# EOF\n"


@pytest.mark.parametrize("format", Format)
def test_a_family_stands_once_with_its_targets_in_the_order_given(format: Format) -> None:  # noqa: A002
    lines = page([of_target("b"), of_target("a")], format).decode().splitlines()
    assert len([line for line in lines if line.startswith("# TYPE")]) == 3
    assert len([line for line in lines if line.startswith("# HELP")]) == 3
    ups = [line for line in lines if line.startswith("llm_target_up")]
    assert ups == ['llm_target_up{target="b"} 1.0', 'llm_target_up{target="a"} 1.0']


@pytest.mark.parametrize("format", Format)
def test_the_order_in_which_a_target_yields_its_samples_changes_no_byte(format: Format) -> None:  # noqa: A002
    targets = [of_target("a"), of_target("b")]
    shuffled = [random.Random(3).sample(samples, len(samples)) for samples in targets]
    assert page(targets, format) == page(shuffled, format)


def test_the_help_can_be_given_from_outside() -> None:
    assert b"# HELP llm_target_up From llm_target_up.\n" in page(
        [of_target("a")], Format.TEXT, lambda family: f"From {family.name}."
    )


def test_special_values_are_written_as_the_formats_write_them() -> None:
    series = SeriesTable({"target": "a"})
    values = [nan, inf, -inf, 1e-05, 1e300]
    samples = [(series(REQUESTS, [("model", f"m{n}")]), value) for n, value in enumerate(values)]
    written = [line.split()[-1] for line in page([samples], Format.TEXT).decode().splitlines()[2:]]
    assert written == ["NaN", "+Inf", "-Inf", "1e-05", "1e+300"]


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), st.text(st.characters(exclude_categories=["Cs"])))
def test_the_usual_parsers_read_back_every_label_value_and_help(value: str, told: str) -> None:
    family = Family("llm_thing", "gauge", "", ("target",), 0)
    samples = [(SeriesTable({"target": value})(family), 0.5)]
    shown = page([samples], Format.OPENMETRICS, lambda _: told).decode()
    (read,) = openmetrics(shown)
    assert [(sample.labels, sample.value) for sample in read.samples] == [({"target": value}, 0.5)]
    assert read.documentation.strip() == told.strip()  # that parser does not keep blanks at the ends


def test_hostile_text_is_escaped_in_both_formats() -> None:
    samples = [(SeriesTable({"target": HOSTILE})(UP), 1.0)]
    in_text = page([samples], Format.TEXT, lambda _: HOSTILE)
    assert rb'# HELP llm_target_up \\ and "quotes",\nand a new line' in in_text
    in_openmetrics = page([samples], Format.OPENMETRICS, lambda _: HOSTILE)
    assert rb"# HELP llm_target_up \\ and \"quotes\",\nand a new line" in in_openmetrics
    (read,) = text(in_text.decode())
    assert read.documentation == HOSTILE
    assert read.samples[0].labels == {"target": HOSTILE}


def test_the_openmetrics_parser_of_prometheus_client_reads_the_page() -> None:
    shown = page([of_target("a"), of_target("b")], Format.OPENMETRICS).decode()
    families = {family.name: family for family in openmetrics(shown)}
    assert {name: family.type for name, family in families.items()} == {
        "llm_target_up": "gauge",
        "llm_requests": "counter",
        "llm_request_duration_seconds": "histogram",
    }
    assert sum(len(family.samples) for family in families.values()) == 2 * 15


def test_promtool_finds_nothing_to_say() -> None:
    shown = page([of_target("a"), of_target(HOSTILE)], Format.TEXT)
    done = subprocess.run(["promtool", "check", "metrics"], input=shown, capture_output=True, timeout=120, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
