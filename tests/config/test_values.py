from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from exporter.config.values import Address, Duration, Size, Url, address, duration_text, seconds, shown, size_text


@pytest.mark.parametrize(
    ("text", "expected"),
    [("500ms", 0.5), ("2s", 2.0), ("1m30s", 90.0), ("1h", 3600.0), ("2d", 172800.0), ("1d2h3m4s5ms", 93784.005)],
)
def test_durations_are_read_as_people_write_them(text: str, expected: float) -> None:
    assert seconds(text) == expected
    assert duration_text(expected) == text


@pytest.mark.parametrize("text", ["", "5", "2sec", "1.5s", "-1s", "1s1m", "1s 2ms", "٣s", "1s\n", "1S", "m", "1w"])
def test_what_is_no_duration_is_refused_with_how_to_write_one(text: str) -> None:
    with pytest.raises(ValueError, match=r"^not a duration: .* \(write 500ms, 2s, 1m30s\)$"):
        seconds(text)


@given(st.integers(min_value=0, max_value=10**14))
def test_every_whole_number_of_milliseconds_comes_back_from_its_text(milliseconds: int) -> None:
    assert seconds(duration_text(milliseconds / 1000)) == milliseconds / 1000


@given(st.text())
def test_any_text_is_a_duration_or_a_value_error(text: str) -> None:
    with suppress(ValueError):
        assert seconds(text) >= 0


def test_a_duration_of_no_time_is_no_duration() -> None:
    with pytest.raises(ValidationError, match="no time at all: '0s'"):
        TypeAdapter(Duration).validate_python("0s")


@pytest.mark.parametrize(
    ("text", "size"), [("1B", 1), ("64KiB", 65536), ("256MiB", 268435456), ("1GiB", 2**30), ("1500B", 1500)]
)
def test_sizes_are_read_and_written_alike(text: str, size: int) -> None:
    assert TypeAdapter(Size).validate_python(text) == size
    assert size_text(size) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (":9400", (None, 9400)),
        ("127.0.0.1:0", ("127.0.0.1", 0)),
        ("localhost:9400", ("localhost", 9400)),
        ("[::1]:9400", ("::1", 9400)),
        ("[fe80::1%eth0]:9400", ("fe80::1%eth0", 9400)),
    ],
)
def test_addresses_are_host_and_port(text: str, expected: tuple[str | None, int]) -> None:
    assert address(text) == expected
    assert TypeAdapter(Address).validate_python(text) == text


@pytest.mark.parametrize("text", ["", "9400", "::1:9400", "host", "host:", "host:port", ":65536", "http://h:1"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^not an address"):
        address(text)


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("http://gpu-1:8000", "http://gpu-1:8000"),
        ("HTTPS://gw/", "https://gw"),
        ("http://gw/litellm//", "http://gw/litellm"),
        ("http://[::1]:4000/v1", "http://[::1]:4000/v1"),
        ("http://my_service.namespace.svc:80", "http://my_service.namespace.svc:80"),
    ],
)
def test_a_url_loses_the_slash_at_its_end(text: str, url: str) -> None:
    assert TypeAdapter(Url).validate_python(text) == url


@given(st.text())
def test_any_text_is_a_url_or_a_mistake_and_a_url_is_one_again(text: str) -> None:
    check = TypeAdapter(Url).validate_python
    try:
        url = check("http://" + text)
    except ValidationError:
        return
    assert check(url) == url
    assert "@" not in url


@given(st.text())
def test_a_shown_value_is_short_and_on_one_line(text: str) -> None:
    assert len(shown(text).splitlines()) == 1
    assert len(shown("x" * 61)) <= 62


@pytest.mark.parametrize(
    "text",
    [
        "http://u:hunter2@h",
        "u:hunter2@h",
        "http://h/?key=hunter2",
        "h?key=hunter2",
        "http://u:\nhunter2@h#x",
        "http://h#hunter2",
    ],
)
def test_a_shown_value_holds_no_userinfo_and_no_query(text: str) -> None:
    assert "hunter2" not in shown(text)


@pytest.mark.parametrize("text", ["?" * 400_000, "@:" * 400_000, "http://" * 100_000, "1" * 400_000])
def test_a_long_value_is_shown_at_once(text: str) -> None:
    assert len(shown(text)) <= 62
