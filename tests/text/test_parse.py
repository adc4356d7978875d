"""The strict parser: examples, properties against what was written, prometheus-client as the oracle, real captures."""

from __future__ import annotations

import random
import runpy
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from math import inf, isnan, nan
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from prometheus_client.parser import text_string_to_metric_families as text_families

from exporter.core.types import number
from exporter.text.parse import (
    TYPES,
    Comment,
    Line,
    Malformed,
    family_of,
    is_created,
    parse,
    parse_line,
    parse_value,
)

# prometheus-client does not annotate this one
OPENMETRICS_FAMILIES: Callable[[str], Iterable[Metric]] = openmetrics_families
CAPTURES = sorted(
    path
    for path in (Path(__file__).parents[1] / "captures" / "litellm").glob("*/m*.body")
    if path.read_bytes().startswith(b"# ")
)
FORMATS = pytest.mark.parametrize("openmetrics", [False, True], ids=["text", "openmetrics"])


def same(first: float, second: float) -> bool:
    return first == second or (isnan(first) and isnan(second))


def samples(body: bytes, openmetrics: bool = False) -> list[tuple[str, dict[str, str], float]]:
    return [(line.name, dict(line.labels), line.value) for line in parse(body, openmetrics=openmetrics)]


# Values


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (b"1", 1.0),
        (b"-0", -0.0),
        (b"+1.5", 1.5),
        (b"1.", 1.0),
        (b".5", 0.5),
        (b"1e5", 1e5),
        (b"1.797e+09", 1.797e9),
        (b"1E-400", 0.0),
        (b"18446744073709551616", 2.0**64),
        (b"NaN", nan),
        (b"nan", nan),
        (b"Inf", inf),
        (b"+inf", inf),
        (b"-INF", -inf),
        (b"+Infinity", inf),
        (b"-infinity", -inf),
    ],
)
def test_a_value_is_read_as_prometheus_reads_it(text: bytes, value: float) -> None:
    assert same(parse_value(text), value)


@pytest.mark.parametrize(
    "text",
    [
        *("", "1_000", "0x1p1", "0x10", "１２", "١", " 1", "1 ", "1\n", "\n", "\u00a01", "1\x00", "1,5", "true"),
        *(".", "-", "+", "--1", "e5", "1e", "1e+", "1.5.5", "1e5.5", "+NaN", "-nan", "infinit", "None"),
    ],
)
def test_what_is_not_a_decimal_number_is_refused(text: str) -> None:
    with pytest.raises(Malformed, match=r"^not a number: "):
        parse_value(text.encode())


@pytest.mark.parametrize("text", [b"1e999", b"-1e309", b"9" * 400, b"9" * 400 + b"."])
def test_a_number_that_no_float_holds_is_refused_and_not_infinite(text: bytes) -> None:
    with pytest.raises(Malformed, match=r"^a number too large: "):
        parse_value(text)


@given(st.floats())
def test_every_float_is_read_back_exactly(value: float) -> None:
    assert same(parse_value(number(value).encode()), value)


@given(st.text(max_size=8))
def test_a_value_is_what_python_says_it_is_or_refused(text: str) -> None:
    try:
        value = parse_value(text.encode())
    except Malformed:
        return
    assert same(value, float(text))


# Lines


@FORMATS
@pytest.mark.parametrize(
    ("line", "identity", "name", "labels", "value"),
    [
        (b"a 1", b"a", "a", (), 1.0),
        (b"a\t1", b"a", "a", (), 1.0),
        (b"  a   1  ", b"a", "a", (), 1.0),
        (b"a 1\r", b"a", "a", (), 1.0),
        (b"a{} 1", b"a{}", "a", (), 1.0),
        (b":a:b_9 1", b":a:b_9", ":a:b_9", (), 1.0),
        (b"# a 1"[2:], b"a", "a", (), 1.0),
        (b"TYPE 1", b"TYPE", "TYPE", (), 1.0),
        (b'a{x="1"}2', b'a{x="1"}', "a", (("x", "1"),), 2.0),
        (b'a{x="1"} +Inf', b'a{x="1"}', "a", (("x", "1"),), inf),
        (b'a{x="1",} 2', b'a{x="1",}', "a", (("x", "1"),), 2.0),
        (b'\ta { x\t= "1" , y ="2", } 2\t', b'a { x\t= "1" , y ="2", }', "a", (("x", "1"), ("y", "2")), 2.0),
        (b'a{y="1",x="2"} 3', b'a{y="1",x="2"}', "a", (("y", "1"), ("x", "2")), 3.0),
        (rb'a{x="\\\"\n\\n"} 1', rb'a{x="\\\"\n\\n"}', "a", (("x", '\\"\n\\n'),), 1.0),
        (b'a{x="} 2 # {,=\t"} 1', b'a{x="} 2 # {,=\t"}', "a", (("x", "} 2 # {,=\t"),), 1.0),
        (b'a{x="\x00\r\xc2\x85"} 1', b'a{x="\x00\r\xc2\x85"}', "a", (("x", "\x00\r\x85"),), 1.0),
        (b'a{x=""} 1', b'a{x=""}', "a", (("x", ""),), 1.0),
        (b'a{__x="1"} 1', b'a{__x="1"}', "a", (("__x", "1"),), 1.0),
        (b'a{"x"="1"} 1', b'a{"x"="1"}', "a", (("x", "1"),), 1.0),
        (b'{"my.metric"} 1', b'{"my.metric"}', "my.metric", (), 1.0),
        (b'{ "m" , } 1', b'{ "m" , }', "m", (), 1.0),
        (b'{"m\\"{","l.x"="v",y="w"} 1', b'{"m\\"{","l.x"="v",y="w"}', 'm"{', (("l.x", "v"), ("y", "w")), 1.0),
        (b"a 1 1700000000000", b"a", "a", (), 1.0),
        (b"a 1 -1", b"a", "a", (), 1.0),
        (b"a 1 # {} 2", b"a", "a", (), 1.0),
        (b'a{x="1"} 1 5 # {t="#",u="\\""} 0.5 1.5', b'a{x="1"}', "a", (("x", "1"),), 1.0),
        (b'a 1\t#\t{ t = "x" , }\tNaN\t1e9', b"a", "a", (), 1.0),
    ],
)
def test_a_sample_is_read(
    openmetrics: bool,
    line: bytes,
    identity: bytes,
    name: str,
    labels: tuple[tuple[str, str], ...],
    value: float,
) -> None:
    assert parse_line(line, openmetrics=openmetrics) == Line(identity, name, labels, value)


@FORMATS
@pytest.mark.parametrize(
    ("line", "comment"),
    [
        (b"# TYPE a counter", Comment("TYPE", "a", "counter")),
        (b" #\tTYPE  a\tgauge \r", Comment("TYPE", "a", "gauge")),
        (b'# TYPE "my.metric" histogram', Comment("TYPE", "my.metric", "histogram")),
        (rb"# HELP a One \\ two\nthree \d {", Comment("HELP", "a", "One \\ two\nthree \\d {")),
        (b"# HELP a", Comment("HELP", "a", "")),
        (b'# HELP "a b" it', Comment("HELP", "a b", "it")),
        (b"#", Comment("", "", "")),
        (b"# TYPES of things", Comment("", "", "TYPES of things")),
        (b"# type a counter", Comment("", "", "type a counter")),
        (b"#1", Comment("", "", "1")),
    ],
)
def test_a_comment_is_read(openmetrics: bool, line: bytes, comment: Comment) -> None:
    assert parse_line(line, openmetrics=openmetrics) == comment


@FORMATS
@pytest.mark.parametrize("kind", sorted(TYPES))
def test_every_type_of_either_format_is_known(openmetrics: bool, kind: str) -> None:
    assert parse_line(f"# TYPE a {kind}".encode(), openmetrics=openmetrics) == Comment("TYPE", "a", kind)


def test_units_the_end_and_a_quote_in_help_are_openmetrics_only() -> None:
    assert parse_line(b"# UNIT a_s s", openmetrics=True) == Comment("UNIT", "a_s", "s")
    assert parse_line(b"# UNIT a_s s") == Comment("", "", "UNIT a_s s")
    assert parse_line(b"# EOF\r", openmetrics=True) == Comment("EOF", "", "")
    assert parse_line(b"# EOF") == Comment("", "", "EOF")
    assert parse_line(rb"# HELP a \"", openmetrics=True) == Comment("HELP", "a", '"')
    assert parse_line(rb"# HELP a \"") == Comment("HELP", "a", '\\"')


@FORMATS
@pytest.mark.parametrize("line", [b"", b"\r", b" ", b"\t \t", b" \r"])
def test_a_blank_line_says_nothing(openmetrics: bool, line: bytes) -> None:
    assert parse_line(line, openmetrics=openmetrics) is None


def test_a_timestamp_is_whole_milliseconds_in_text_and_seconds_in_openmetrics() -> None:
    assert parse_line(b"a 1 9223372036854775807") == parse_line(b"a 1 1.5e9", openmetrics=True)
    for text in (b"1.5", b"1e9", b"9223372036854775808", b"0" * 20, b"x", b"NaN", "１".encode()):
        with pytest.raises(Malformed, match=r"^not a timestamp in whole milliseconds: '"):
            parse_line(b"a 1 " + text)
    for text in (b"NaN", b"-Inf"):
        with pytest.raises(Malformed, match=r"^not a timestamp in seconds: '"):
            parse_line(b"a 1 " + text, openmetrics=True)
    with pytest.raises(Malformed, match=r"^not a timestamp in seconds: 'Inf'"):
        parse_line(b"a 1 # {} 1 Inf")


def test_an_unknown_escape_is_both_characters_in_openmetrics_and_refused_in_text() -> None:
    line = rb'a{x="C:\models"} 1'
    assert parse_line(line, openmetrics=True) == Line(rb'a{x="C:\models"}', "a", (("x", r"C:\models"),), 1.0)
    with pytest.raises(Malformed, match=r"^unknown escape: '\\\\m': "):
        parse_line(line)


@FORMATS
@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"1a 1", "no metric name"),
        (b"{} 1", "no metric name"),
        (b'{x="1"} 1', "no metric name"),
        (b'{__name__="a"} 1', "no metric name"),
        (b'{"a" "b"} 1', "no metric name"),
        (b'{"a', "no metric name"),
        (b"\xef\xbb\xbfa 1", "no metric name"),
        (b"<html>", "no metric name"),
        (b'{"detail":"x"}', "no metric name"),
        (b'{""} 1', "an empty metric name"),
        (b"a.b 1", "not a metric name: 'a.b 1'"),
        (b"a-1", "not a metric name: 'a-1'"),
        (b"a}" + b"x" * 50, f"not a metric name: 'a}}{'x' * 38}…'"),
        (b"a", "no value"),
        (b'a{x="1"}', "no value"),
        (b'a{x="1"} \r', "no value"),
        (b"a one", "not a number: 'one'"),
        (b"a # {} 1", "no value"),
        (b"a one two", "not a number: 'one'"),
        (b"a 1\x0b2", "not a number: '1\\x0b2'"),
        (b"a 1\r\r", "not a number: '1\\r'"),
        (b"a 1\n", "not a number: '1\\n'"),
        (b"a 1e999", "a number too large: '1e999'"),
        (b"a 1 2 3", "unexpected text after the sample: '3'"),
        (b"a 1 #x", "unexpected text after the sample: '#x'"),
        (b"a 1 2 # x", "unexpected text after the sample: '# x'"),
        (b"a 1 # {} 1 2 3", "unexpected text after the exemplar: '3'"),
        (b"a 1 # {} 1 # {} 1", "unexpected text after the exemplar: '# {} 1'"),
        (b"a 1 # {}", "no value"),
        (b'a 1 # {x="1",x="2"} 1', "duplicate label: 'x'"),
        (b'a 1 # {"a"} 1', "no = after the label name '\"a\"'"),
        (b"a{", "the label set is not closed"),
        (b'a{x="1"', "no comma or closing brace after the label 'x'"),
        (b'a{x="1",', "the label set is not closed"),
        (b'a{x="1" y="2"} 1', "no comma or closing brace after the label 'x'"),
        (b'a{x="1",,y="2"} 1', "not a label name: ',y=\"2\"} 1'"),
        (b"a{,} 1", "not a label name: ',} 1'"),
        (b'a{1x="1"} 1', "not a label name: '1x=\"1\"} 1'"),
        (b'a{x:y="1"} 1', "no = after the label name 'x'"),
        (b'a{x.y="1"} 1', "no = after the label name 'x'"),
        (b"a{x} 1", "no = after the label name 'x'"),
        (b"a{x=1} 1", "no quote before the value of the label 'x'"),
        (b"a{x='1'} 1", "no quote before the value of the label 'x'"),
        (b'a{x="1} 1', "no closing quote after the value of the label 'x'"),
        (rb'a{x="1\"} 1', "no closing quote after the value of the label 'x'"),
        (b'a{x="1\n2"} 1', "no closing quote after the value of the label 'x'"),
        (b'a{""="1"} 1', "an empty label name"),
        (b'a{x="1",x="1"} 1', "duplicate label: 'x'"),
        (b'a{x="1","x"="2"} 1', "duplicate label: 'x'"),
        (b'a{__name__="b"} 1', "a label __name__: it would name the metric twice"),
        (b'a{x="\xff"} 1', "not UTF-8 at byte 6"),
        (b'a{x="\xed\xa0\x80"} 1', "not UTF-8 at byte 6"),
        (b"# HELP a \xc0\x80", "not UTF-8 at byte 10"),
        (b"# TYPE", "TYPE without a metric name"),
        (b"# HELP", "HELP without a metric name"),
        (b"# TYPE a", "TYPE without a type"),
        (b"# TYPE a Counter", "not a type: 'Counter'"),
        (b"# TYPE a counter gauge", "not a type: 'counter gauge'"),
        (b"# TYPE a.b counter", "TYPE of no metric name: 'a.b counter'"),
        (b"# HELP 1a it", "HELP of no metric name: '1a it'"),
        (b'# TYPE "" counter', "an empty metric name"),
        (b"# HELP a b\nc", "a line feed within a line"),
    ],
)
def test_a_malformed_line_is_refused_with_its_reason(openmetrics: bool, line: bytes, reason: str) -> None:
    with pytest.raises(Malformed) as refused:
        parse_line(line, openmetrics=openmetrics)
    assert (refused.value.reason, refused.value.line, refused.value.number) == (reason, line, None)


def test_a_message_says_where_and_why_and_shows_the_first_120_characters() -> None:
    line = b"a " + "é".encode() * 500
    with pytest.raises(Malformed) as refused:
        list(parse(b"b 1\n\n" + line + b"\n"))
    assert refused.value.number == 3
    assert str(refused.value) == f"line 3: not a number: '{'é' * 40}…': 'a {'é' * 118}'"
    assert str(Malformed("why")) == "why"
    assert str(Malformed("why", b"\xff\n")) == "why: '\ufffd\\n'"


# Bodies

EXAMPLE = b"""\
# HELP http_requests_total The total number of HTTP requests.
# TYPE http_requests_total counter
http_requests_total{method="post",code="200"} 1027 1395066363000
http_requests_total{method="post",code="400"}    3 1395066363000

# Escaping in label values:
msdos_file_access_time_seconds{path="C:\\\\DIR\\\\FILE.TXT",error="Cannot find file:\\n\\"FILE.TXT\\""} 1.458255915e9
# Minimalistic line:
metric_without_timestamp_and_labels 12.47
# A weird metric from before the epoch:
something_weird{problem="division by zero"} +Inf -3982045
# TYPE rpc_duration_seconds summary
rpc_duration_seconds{quantile="0.01"} 3102\r
rpc_duration_seconds_sum 1.7560473e+07\r
"""
OPENMETRICS = b"""\
# TYPE acme_http_router_request_seconds summary
# UNIT acme_http_router_request_seconds seconds
# HELP acme_http_router_request_seconds Latency though all of ACME's HTTP request router.
acme_http_router_request_seconds_sum{path="/api/v1",method="GET"} 9036.32
acme_http_router_request_seconds_count{path="/api/v1",method="GET"} 807283.0
acme_http_router_request_seconds_created{path="/api/v1",method="GET"} 1605281325.0
# TYPE go_goroutines gauge
go_goroutines 69 1605281325.5
# TYPE foo counter
foo_total 17.0 1520879607.789 # {trace_id="KOO5S4vxi0o"} 0.67
foo_created 1520430000.123
# EOF
"""


def test_the_examples_of_the_specifications_are_read() -> None:
    error = 'Cannot find file:\n"FILE.TXT"'
    assert samples(EXAMPLE) == [
        ("http_requests_total", {"method": "post", "code": "200"}, 1027.0),
        ("http_requests_total", {"method": "post", "code": "400"}, 3.0),
        ("msdos_file_access_time_seconds", {"path": r"C:\DIR\FILE.TXT", "error": error}, 1.458255915e9),
        ("metric_without_timestamp_and_labels", {}, 12.47),
        ("something_weird", {"problem": "division by zero"}, inf),
        ("rpc_duration_seconds", {"quantile": "0.01"}, 3102.0),
        ("rpc_duration_seconds_sum", {}, 17560473.0),
    ]
    labels = {"path": "/api/v1", "method": "GET"}
    assert samples(OPENMETRICS, openmetrics=True) == [
        ("acme_http_router_request_seconds_sum", labels, 9036.32),
        ("acme_http_router_request_seconds_count", labels, 807283.0),
        ("go_goroutines", {}, 69.0),
        ("foo_total", {}, 17.0),
    ]


def test_a_body_cut_at_any_byte_but_a_line_boundary_is_refused() -> None:
    for at in range(1, len(EXAMPLE)):
        if EXAMPLE[at - 1 : at] == b"\n":
            assert len(samples(EXAMPLE[:at])) <= 7
        else:
            with pytest.raises(Malformed, match="no line feed at the end: the body was cut"):
                samples(EXAMPLE[:at])


def test_an_openmetrics_body_cut_anywhere_is_refused() -> None:
    for at in range(len(OPENMETRICS)):
        with pytest.raises(Malformed, match=r"no (line feed|# EOF) at the end: the body was cut"):
            samples(OPENMETRICS[:at], openmetrics=True)


def test_a_cut_body_says_so_in_its_last_line() -> None:
    with pytest.raises(Malformed) as refused:
        samples(b"a 1\nb 2")
    assert str(refused.value) == "line 2: no line feed at the end: the body was cut: 'b 2'"


def test_nothing_follows_the_end_of_openmetrics() -> None:
    for rest in (b"\n", b"# EOF\n", b"a 1\n"):
        with pytest.raises(Malformed, match=r"^line 13: text after # EOF: "):
            samples(OPENMETRICS + rest, openmetrics=True)


def test_an_empty_body_is_text_without_samples() -> None:
    assert samples(b"") == []
    assert samples(b"\n") == []


def test_of_a_series_that_comes_twice_the_first_counts() -> None:
    body = b'a{x="1",y="2"} 1\na{y="2",x="1"} 2\na{x="1",y="2",z=""} 3\na{x="1"} 4\n{"a",x="1"} 5\n'
    assert samples(body) == [("a", {"x": "1", "y": "2"}, 1.0), ("a", {"x": "1"}, 4.0)]


def test_when_a_series_began_is_left_out_in_both_forms_and_nothing_else_is() -> None:
    text = b"""\
# TYPE a_total counter
a_total 1
# TYPE a_created gauge
a_created 1.7e9
# TYPE h histogram
h_count 1
# TYPE h_created gauge
h_created 1.7e9
# TYPE s summary
s_count 1
# TYPE s_created gauge
s_created 1.7e9
# TYPE g gauge
g 1
# TYPE g_created gauge
g_created 5
job_created 6
"""
    kept = ["a_total", "h_count", "s_count", "g", "g_created", "job_created"]
    assert [name for name, _, _ in samples(text)] == kept
    assert [name for name, _, _ in samples(text + b"# EOF\n", openmetrics=True)] == kept


def test_a_family_is_found_by_its_exact_name_or_a_suffix_that_its_type_has() -> None:
    types = {
        "c": "counter",
        "t_total": "counter",
        "h": "histogram",
        "h_max_count": "gauge",
        "s": "summary",
        "i": "info",
        "q": "gaugehistogram",
        "g": "gauge",
    }
    assert family_of("c", types) == family_of("c_total", types) == family_of("c_created", types) == ("c", "counter")
    assert family_of("t_total", types) == ("t_total", "counter")
    for suffix in ("bucket", "sum", "count", "created"):
        assert family_of(f"h_{suffix}", types) == ("h", "histogram")
    assert family_of("h_max_count", types) == ("h_max_count", "gauge")
    assert family_of("s_sum", types) == ("s", "summary")
    assert family_of("s_bucket", types) is None
    assert family_of("i_info", types) == ("i", "info")
    assert family_of("q_gcount", types) == family_of("q_bucket", types) == ("q", "gaugehistogram")
    assert family_of("g_total", types) is None
    assert family_of("g_sum", types) is None
    assert family_of("c_other", types) is None
    assert family_of("other", types) is None
    assert is_created("t_created", types)
    assert not is_created("g_created", types)
    assert not is_created("t_total", types)


# Whatever was written is read back


@dataclass(frozen=True)
class Written:
    """A sample as the generators make it."""

    name: str
    labels: tuple[tuple[str, str], ...]
    value: float


NASTY = st.one_of(
    st.text(max_size=12),
    st.text(alphabet='\\"n{}=,# \t\r\n\x00é\u2028\U0001f600\xa0', max_size=12),
    st.sampled_from(["", "# HELP a b", "# EOF", '"} 1', "a\n# TYPE b c", "\\n", "\\", " ", "NaN", "{a='b'}"]),
)
NAMES = st.from_regex(r"[a-zA-Z_:][a-zA-Z0-9_:]{0,6}", fullmatch=True)
LABEL_NAMES = st.from_regex(r"[a-zA-Z][a-zA-Z0-9_]{0,4}", fullmatch=True)


def written(names: st.SearchStrategy[str], label_names: st.SearchStrategy[str]) -> st.SearchStrategy[list[Written]]:
    labels = st.dictionaries(label_names, NASTY, max_size=4).map(lambda pairs: tuple(pairs.items()))
    return st.lists(
        st.builds(Written, names.map(lambda name: name + "_g"), labels, st.floats()),
        max_size=5,
        unique_by=lambda one: (one.name, frozenset(label for label in one.labels if label[1])),
    )


def quoted(text: str) -> str:
    escaped = text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
    return f'"{escaped}"'


def freely(one: Written, plain: bool, openmetrics: bool, chance: random.Random) -> str:
    """A sample with random blanks, quotes around names, timestamp and exemplar, wherever the format allows them."""

    def gap(least: int = 0) -> str:
        return "".join(chance.choices(" \t", k=chance.choice((least, least, 1, 3))))

    def set_of(labels: tuple[tuple[str, str], ...], first: str = "") -> str:
        terms = [first] if first else []
        for name, value in labels:
            shown = name if plain and chance.random() < 0.7 else quoted(name)
            terms.append(f"{shown}{gap()}={gap()}{quoted(value)}")
        last = chance.choice((",", "")) if terms else ""
        return "{" + gap() + f"{gap()},{gap()}".join(terms) + gap() + last + gap() + "}"

    if not plain or chance.random() < 0.2:
        head = set_of(one.labels, first=quoted(one.name)) + gap()
    elif one.labels or chance.random() < 0.2:
        head = one.name + gap() + set_of(one.labels) + gap()
    else:
        head = one.name + gap(1)
    text = gap() + head + chance.choice((repr, number))(one.value)
    if chance.random() < 0.3:
        text += gap(1) + ("1700000000.25" if openmetrics else "-1700000000250")
    if chance.random() < 0.3:
        text += f"{gap(1)}#{gap()}{set_of(one.labels)}{gap()}{number(one.value)}" + chance.choice(("", " 1.5e9"))
    return text + gap()


def check_read_back(lines: list[Written], plain: bool, openmetrics: bool, chance: random.Random) -> None:
    end = chance.choice(("\n", "\r\n"))
    extra = ("", " ", "# a comment", '# HELP g {"', "# TYPE g gauge", "#")
    shown = [text for one in lines for text in (chance.choice(extra), freely(one, plain, openmetrics, chance))]
    body = "".join(text + end for text in [*shown, "# EOF"]).encode()
    read = list(parse(body, openmetrics=openmetrics))
    assert [(line.name, line.labels) for line in read] == [(one.name, one.labels) for one in lines]
    assert all(same(line.value, one.value) for line, one in zip(read, lines, strict=True))
    for line in read:
        again = parse_line(line.identity + b" 1", openmetrics=openmetrics)
        assert again == Line(line.identity, line.name, line.labels, 1.0)


@FORMATS
@given(lines=written(NAMES, LABEL_NAMES), chance=st.randoms(use_true_random=False))
def test_what_is_written_with_plain_names_is_read_back(
    openmetrics: bool, lines: list[Written], chance: random.Random
) -> None:
    check_read_back(lines, plain=True, openmetrics=openmetrics, chance=chance)


@FORMATS
@given(lines=written(NASTY, NASTY.filter(bool)), chance=st.randoms(use_true_random=False))
def test_what_is_written_with_quoted_names_is_read_back(
    openmetrics: bool, lines: list[Written], chance: random.Random
) -> None:
    check_read_back(lines, plain=False, openmetrics=openmetrics, chance=chance)


# The oracle. It is right where lines are written plainly: one kind of blank, no exemplar in text, no quote in one.


def plainly(one: Written) -> str:
    labels = ",".join(f"{name}={quoted(value)}" for name, value in one.labels)
    return f"{one.name}{{{labels}}} {number(one.value)}"


def check_agreement(body: str, openmetrics: bool) -> None:
    families = OPENMETRICS_FAMILIES(body) if openmetrics else text_families(body)
    oracle = [sample for family in families for sample in family.samples]
    read = list(parse(body.encode(), openmetrics=openmetrics))
    assert [(line.name, dict(line.labels)) for line in read] == [(one.name, one.labels) for one in oracle]
    assert all(same(line.value, one.value) for line, one in zip(read, oracle, strict=True))


@given(lines=written(NAMES, LABEL_NAMES), timestamp=st.sampled_from(["", " 1700000000123"]))
def test_prometheus_client_agrees_about_text(lines: list[Written], timestamp: str) -> None:
    check_agreement("".join(f"{plainly(one)}{timestamp}\n" for one in lines), openmetrics=False)


@given(lines=written(LABEL_NAMES, LABEL_NAMES), timestamp=st.sampled_from(["", " 1700000000.123"]))
def test_prometheus_client_agrees_about_openmetrics(lines: list[Written], timestamp: str) -> None:
    counters = [Written(f"c{at}_total", one.labels, float(at)) for at, one in enumerate(lines)]
    gauges = [Written(f"g{at}_{one.name}", one.labels, one.value) for at, one in enumerate(lines)]
    body = "".join(f"# TYPE {one.name} gauge\n{plainly(one)}{timestamp}\n" for one in gauges)
    for one in counters:
        family = one.name.removesuffix("_total")
        exemplar = ' # {trace_id="abc # {}"} 0.5 1.5'
        body += f"# HELP {family} h\n# TYPE {family} counter\n{plainly(one)}{timestamp}{exemplar}\n"
    check_agreement(body + "# EOF\n", openmetrics=True)


@pytest.mark.parametrize("capture", CAPTURES, ids=lambda path: path.stem)
def test_prometheus_client_agrees_about_what_litellm_answered(capture: Path) -> None:
    body = capture.read_bytes()
    oracle = [
        (sample.name, sample.labels, float(sample.value))
        for family in text_families(body.decode())
        for sample in family.samples
        if not sample.name.endswith("_created")
    ]
    assert samples(body) == oracle
    assert len(oracle) > 50


def test_there_are_captures() -> None:
    assert len(CAPTURES) >= 6


# Hostile input

MEGABYTE = 1_000_000
HOSTILE = {
    "commas": b"a{" + b"," * MEGABYTE,
    "quotes": b'a{x="' + b'"' * MEGABYTE,
    "backslashes": b'a{x="' + b"\\" * MEGABYTE,
    "escapes": b'a{x="' + b"\\\\" * (MEGABYTE // 2) + b'"} 1',
    "escaped quotes": b'a{x="' + b'\\"' * (MEGABYTE // 2),
    "quoted names": b"{" + b'"\\"' * (MEGABYTE // 3),
    "pairs of quotes": b'a{x="1"' + b'""' * (MEGABYTE // 2),
    "braces": b"{" * MEGABYTE,
    "nested sets": b'a{x="1"} ' + b'{x="' * (MEGABYTE // 4),
    "blanks": b"a" + b" \t" * (MEGABYTE // 2) + b"x",
    "blanks in a set": b"a{" + b" " * MEGABYTE + b"x" + b" " * MEGABYTE,
    "labels": b"a{" + b"".join(b'l%d="",' % at for at in range(MEGABYTE // 10)) + b"} 1",
    "labels, then a fault": b"a{" + b"".join(b'l%d="",' % at for at in range(MEGABYTE // 10)) + b"} x",
    "exemplars": b"a 1" + b" # {} 1" * (MEGABYTE // 7),
    "digits": b"a 0." + b"1" * MEGABYTE,
    "digits, then a fault": b"a " + b"1" * MEGABYTE + b"x",
    "exponent": b"a 1e" + b"1" * MEGABYTE,
    "timestamp": b"a 1 " + b"1" * MEGABYTE,
    "help": b"# HELP a " + b"\\n" * (MEGABYTE // 2),
    "hashes": b"#" * MEGABYTE,
    "name": b"a" * MEGABYTE,
}


@FORMATS
@pytest.mark.parametrize("line", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_line_of_a_megabyte_takes_no_more_than_linear_time(openmetrics: bool, line: bytes) -> None:
    began = time.thread_time()
    with suppress(Malformed):
        parse_line(line, openmetrics=openmetrics)
    # some 0.1 s; what is quadratic takes minutes
    assert time.thread_time() - began < 2


def test_mutated_lines_raise_nothing_but_malformed_and_say_the_same_when_written_again() -> None:
    script = runpy.run_path(str(Path(__file__).with_name("fuzz_parse.py")))
    assert script["fuzz"](2.0, seed=1) > 1000
