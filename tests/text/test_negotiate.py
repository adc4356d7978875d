import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.text.negotiate import Format, accepts_gzip, choose

PROMETHEUS_3 = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,"
    "text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)
PROMETHEUS_PROTOBUF = (
    "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;q=0.6," + PROMETHEUS_3
)
BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"

HEADERS = st.text() | st.lists(
    st.sampled_from(
        ["*/*", "text/plain", "application/openmetrics-text", ";", ",", "q=", "0.5", "1", "nan", "-1", "version=", '"']
    )
).map("".join)


@pytest.mark.parametrize(
    "accept",
    [
        PROMETHEUS_3,
        PROMETHEUS_PROTOBUF,
        "application/openmetrics-text",
        "application/openmetrics-text; version=0.0.1,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
        'Application/OpenMetrics-Text ; Version="1.0.0" ; Q=0.1',
        "text/plain;q=0.5, application/openmetrics-text;q=0.6",
        "text/plain;q=0, application/openmetrics-text;q=0.1",
        "application/openmetrics-text, text/plain",
        "*/*, application/openmetrics-text",
        "text/plain;version=1.0.0, application/openmetrics-text;q=0.5",
    ],
)
def test_openmetrics_is_for_those_who_name_it_and_like_it_best(accept: str) -> None:
    assert choose(accept) is Format.OPENMETRICS


@pytest.mark.parametrize(
    "accept",
    [
        None,
        "",
        "*/*",
        BROWSER,
        "application/json",
        "text/plain;version=abc",
        "application/openmetrics-text;version=2.0.0",
        "application/openmetrics-text;q=0",
        "application/openmetrics-text;q=0.000, */*;q=0.1",
        "application/openmetrics-text;q=0.4, text/plain;q=0.5",
        "application/openmetrics-text;q=0.4, */*;q=0.5",
        "application/openmetrics-text;q=0.4, text/*;q=0.5",
        "text/plain, application/openmetrics-text",
        "text/plain;q=0",
        "application/openmetrics-text;q=nan",
        "application/openmetrics-text;q=9",
        "application/openmetrics-text;q=１",
        "application/openmetrics-text;q=",
        ";;;,,,===",
        "\x00\udcff",
    ],
)
def test_everything_else_gets_text(accept: str | None) -> None:
    assert choose(accept) is Format.TEXT


@given(HEADERS)
def test_no_header_raises(header: str) -> None:
    assert choose(header) in Format
    assert accepts_gzip(header) in (True, False)


@pytest.mark.parametrize(
    "accept", ["gzip", "gzip, deflate", "GZIP;q=0.1", "x-gzip", "*", "br, *;q=0.5", "identity;q=0.5, gzip"]
)
def test_gzip_is_taken_where_it_is_named_or_anything_goes(accept: str) -> None:
    assert accepts_gzip(accept)


@pytest.mark.parametrize(
    "accept", [None, "", "identity", "br", "gzip;q=0", "gzip;q=0, *", "*;q=0", "identity, gzip;q=0.5", "gzip;q=x"]
)
def test_gzip_is_not_taken_where_it_is_refused_or_liked_less(accept: str | None) -> None:
    assert not accepts_gzip(accept)
