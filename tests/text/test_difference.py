"""Reading by difference gives what the strict parser gives, in whatever chunks a body comes, however it is written."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter.core.errors import ReadError
from exporter.text import again, shelf
from exporter.text.block import MOST
from exporter.text.difference import Difference, Limits
from exporter.text.loose import TOGETHER
from exporter.text.parse import Line, parse, parse_line
from exporter.text.sink import Known

CAPTURES = sorted(
    path
    for path in (Path(__file__).parents[1] / "captures" / "litellm").glob("*/m*.body")
    if path.read_bytes().startswith(b"# ")
)


Series = tuple[str, frozenset[tuple[str, str]]]


def series_of(line: Line) -> Series:
    """What makes two lines the same series, however they are written."""
    return line.name, frozenset(label for label in line.labels if label[1])


class Lasts:
    """A destination that remembers the last values alone."""

    waits = False
    stale = False
    kind = "last"

    def __init__(self, sink: "Values", series: list[Series]) -> None:
        self.sink = sink
        self.series = series
        self.read = 0

    def take(self, values: Sequence[float], places: Sequence[int] | None = None) -> None:
        series = self.series if places is None else [self.series[place] for place in places]
        self.sink.known.update(zip(series, values, strict=True))

    def join(self, others: Sequence["Lasts"]) -> "Lasts":
        return Lasts(self.sink, [series for known in (self, *others) for series in known.series])

    def split(self, lines: int) -> list["Lasts"]:
        assert lines == len(self.series)
        return [Lasts(self.sink, [series]) for series in self.series]

    def each(self, lines: int) -> list["Lasts"]:
        return self.split(lines)

    def vanished(self) -> float:
        return self.sink.worth

    def returned(self) -> None: ...

    def forgotten(self, identities: Iterable[bytes]) -> None:
        self.sink.forgotten += len(list(identities))


class Values:
    """A sink that keeps each series' last value."""

    anew = False

    def __init__(self) -> None:
        self.known: dict[Series, float] = {}
        self.dropped = 0
        self.opened = 0
        self.worth = 0.0  # seconds for which lines are remembered
        self.forgotten = 0

    def wants(self, name: str) -> bool:
        return True

    def begin(self) -> None: ...

    def open(self, line: Line, upstream_type: str | None) -> Lasts:
        self.opened += 1
        self.type = upstream_type
        self.known[series_of(line)] = line.value
        return Lasts(self, [series_of(line)])

    def model(self, known: Lasts) -> list[Series]:
        return known.series

    def open_like(self, model: list[Series], line: Line, values: Sequence[float]) -> Lasts:
        self.opened += 1
        others = frozenset(label for label in line.labels if label[0] != "le" and label[1])
        series = [(name, others | {label for label in labels if label[0] == "le"}) for name, labels in model]
        known = Lasts(self, series)
        known.take(values)
        return known

    def drop(self, reason: str, samples: int) -> None:
        self.dropped += samples

    def settle(self) -> Iterator[tuple[Known, Known]]:
        return iter(())

    def abort(self) -> bool:
        return True

    def end(self) -> bool:
        return True

    def verify(self) -> None: ...


class Reader:
    def __init__(self, limits: Limits | None = None) -> None:
        self.sink = Values()
        self.difference = Difference(self.sink, limits)

    def read(self, body: bytes, chunk: int = 1 << 16, *, openmetrics: bool = False) -> None:
        self.difference.begin(openmetrics=openmetrics)
        try:
            for start in range(0, len(body), chunk):
                self.difference.feed(body[start : start + chunk])
            self.difference.end()
        except ReadError:
            self.difference.abort()
            raise

    def values(self, body: bytes) -> dict[Series, str]:
        """What is known of the series that stand in this body."""
        return {series_of(line): repr(self.sink.known[series_of(line)]) for line in parse(body)}


def strictly(body: bytes) -> dict[Series, str]:
    return {series_of(line): repr(line.value) for line in parse(body)}


@pytest.mark.parametrize("chunk", [1, 1000, 1 << 16])
def test_captures_one_after_the_other_read_as_the_strict_parser_reads_them(chunk: int) -> None:
    reader = Reader()
    for capture in CAPTURES:
        body = capture.read_bytes()[: 60_000 if chunk == 1 else None]
        body = body[: body.rindex(b"\n") + 1]
        reader.read(body, chunk)
        uncreated = strictly(body)
        assert reader.values(body) == uncreated


NAMES = st.sampled_from(["a", "a_total", "b:c", "h_bucket"])
LABELS = st.dictionaries(
    st.sampled_from(["x", "y", "le"]), st.text(st.sampled_from('ab "\\\n{}#,= é漢'), max_size=6), max_size=3
)
NUMBERS = st.one_of(st.floats(), st.integers(-5, 2000).map(float))


def escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def written(value: float) -> str:
    return "NaN" if value != value else repr(value).replace("inf", "Inf")


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    end = draw(st.sampled_from(["\n", "\r\n"]))
    lines = []
    for _ in range(draw(st.integers(1, 8))):
        labels = draw(LABELS)
        shown = ",".join(f'{name}="{escaped(value)}"' for name, value in labels.items())
        tail = draw(st.sampled_from(["", " 1395066363000", "  ", ' # {id="a b"} 0.5']))
        blank = draw(st.sampled_from([" ", "  ", "\t"]))
        lines.append(f"{draw(NAMES)}{{{shown}}}{blank}{written(draw(NUMBERS))}{tail}")
        if draw(st.booleans()):
            lines.append(draw(st.sampled_from(["# a comment", "", "# HELP a nothing", "# TYPE b:c gauge"])))
    return "".join(line + end for line in lines).encode()


@settings(max_examples=300)
@given(st.lists(bodies(), min_size=1, max_size=5), st.integers(1, 50))
def test_any_bodies_in_any_chunks_read_as_the_strict_parser_reads_them(several: list[bytes], chunk: int) -> None:
    reader = Reader()
    for body in several:
        reader.read(body, chunk)
        assert reader.values(body) == strictly(body)


def test_a_line_is_parsed_once_and_known_again() -> None:
    reader = Reader()
    for value in range(5):
        reader.read(b'a{x="1"} %d\n# TYPE b gauge\nb 1\n' % value)
    assert reader.sink.opened == 2
    assert reader.sink.known["a", frozenset({("x", "1")})] == 4.0


def test_of_a_series_that_stands_twice_the_first_counts() -> None:
    reader = Reader()
    for _ in range(2):
        reader.read(b"a 1\na 2\na 3 1395066363000\n")
    assert reader.sink.known["a", frozenset()] == 1.0
    assert reader.sink.dropped == 4


def test_a_type_is_told_for_each_line_and_a_changed_one_opens_the_lines_anew() -> None:
    reader = Reader()
    reader.read(b"# TYPE a_total counter\na_total 1\n")
    assert reader.sink.type == "counter"
    reader.read(b"# TYPE a_total gauge\na_total 1\n")
    assert reader.sink.type == "gauge"


def test_a_vanished_line_is_parsed_again_on_its_return() -> None:
    reader = Reader()
    reader.read(b"a 1\nb 1\n")
    reader.read(b"b 1\n")
    assert len(reader.difference) == 1
    reader.read(b"a 1\nb 1\n")
    assert reader.sink.opened == 3


@pytest.mark.parametrize(
    ("body", "reason", "text"),
    [
        (b"a 1\nb{ 2\n", "malformed", "line 2 in a line of b"),
        (b"a 1\na 1_0\n", "malformed", "line 2 in a line of a: not a number"),
        (b'a{user="alice"x} 1\n', "malformed", "line 1 in a line of a"),
        (b"a 1\nb 2", "truncated", "line feed"),
        (b"", "content", "empty"),
        (b"# a\n" * 30, "too_large", "more than 100 bytes"),
        (b"a" * 60 + b" 1\n", "too_large", "line 1 has more than 50 bytes"),
        (b"a 1\nb 1\nc 1\nd 1\n", "too_large", "more than 3 samples"),
        (b"\xff\xfe 1\n", "malformed", "UTF-8"),
    ],
)
@pytest.mark.parametrize("chunk", [1, 1 << 16])
def test_what_is_malformed_or_too_large_fails_with_line_and_reason(
    body: bytes, reason: str, text: str, chunk: int
) -> None:
    reader = Reader(Limits(body=100, line=50, lines=3))
    with pytest.raises(ReadError, match=text) as error:
        reader.read(body, chunk)
    assert error.value.reason == reason
    assert "alice" not in str(error.value)
    reader.read(b"a 1\n")


def test_a_changed_value_that_is_malformed_fails_as_a_new_line_does() -> None:
    reader = Reader()
    reader.read(b"a 1\n")
    with pytest.raises(ReadError, match="line 1 in a line of a: not a number"):
        reader.read("a １\n".encode())
    with pytest.raises(ReadError, match="line 1 in a line of a: not a number"):
        reader.read("a １\n".encode())


def test_openmetrics_ends_with_its_mark_and_has_nothing_behind_it() -> None:
    reader = Reader()
    reader.read(b'# TYPE a counter\na_total 1.0 # {x="1"} 0.5 1.5\n# EOF\n', openmetrics=True)
    assert reader.sink.type == "counter"
    with pytest.raises(ReadError, match="EOF") as error:
        reader.read(b"a_total 1.0\n", openmetrics=True)
    assert error.value.reason == "truncated"
    with pytest.raises(ReadError, match="more after # EOF"):
        reader.read(b"# EOF\na_total 1.0\n", openmetrics=True)


def test_a_body_cut_at_any_byte_fails_and_the_next_one_reads_right() -> None:
    first, second = b'a{x="1"} 1\nb 2\nc 3\n', b'a{x="1"} 2\nb 3\nd 4\n'
    for at in range(len(second) - 1):
        reader = Reader()
        reader.read(first)
        if second[at - 1 : at] != b"\n":
            with pytest.raises(ReadError):
                reader.read(second[:at])
        reader.read(second)
        assert reader.values(second) == strictly(second)


def test_memory_follows_what_is_live() -> None:
    reader = Reader()
    for number in range(200):
        lines = b"".join(b'a{x="%d"} 1\n' % (number * 10 + line) for line in range(10))
        reader.read(b"# HELP h%d x\n# TYPE h%d gauge\n" % (number, number) + lines)
    assert len(reader.difference) == 10
    assert len(reader.difference._types) == 1
    assert sys.getsizeof(reader.sink) < 1000


def test_a_child_of_very_many_buckets_is_read_in_several_blocks() -> None:
    reader = Reader()
    for read in range(3):
        body = b"".join(b'h_bucket{le="%d"} %d\n' % (le, le + read) for le in range(2_000))
        reader.read(body, 1000)
        assert reader.values(body) == strictly(body)
        assert max(len(block.ends) for block in reader.difference._blocks) <= MOST


def test_no_more_lines_are_remembered_than_are_live_however_many_come_and_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shelf, "REMEMBERED", 50)
    reader = Reader()
    reader.sink.worth = 3600.0
    for read in range(100):
        lines = b"".join(b'a{x="%d"} 1\n' % (read * 20 + line) for line in range(20))
        reader.read(b"b 1\n" + lines)
        assert len(reader.difference) <= 21 + 50 + TOGETHER
    assert reader.sink.forgotten > 1_500


def test_lines_of_a_family_whose_type_changed_are_opened_anew_though_their_block_was_taken_apart() -> None:
    reader = Reader()
    reader.read(b'a_total{x="1"} 1\na_total{x="2"} 1\na_total{x="3"} 1\n# TYPE a_total counter\n')
    opened = reader.sink.opened
    reader.read(b'a_total{x="2"} 1\n# TYPE a_total gauge\na_total{x="1"} 1\na_total{x="3"} 1\n')
    assert reader.sink.opened == opened + 2
    assert reader.sink.type == "gauge"


def test_what_one_format_allows_the_other_need_not() -> None:
    reader = Reader()
    reader.read(b"a 1 1395066363000.5\n# EOF\n", openmetrics=True)
    with pytest.raises(ReadError, match="whole milliseconds"):
        reader.read(b"a 1 1395066363000.5\n# EOF\n")
    reader.read(b"a 1 1395066363000\n# EOF\n")


def test_the_same_series_in_other_bytes_is_the_same_series() -> None:
    reader = Reader()
    reader.read(b'a{x="1",y="2"} 1\n')
    for other in (
        b'a{y="2",x="1"} 2\n',
        b'a{ x="1", y="2", } 3\n',
        b'a{x="1",y="2",z=""} 4\n',
        b'{"a",x="1",y="2"} 5\n',
    ):
        reader.read(other)
    assert reader.sink.opened == 1
    assert set(reader.sink.known.values()) == {5.0}


def test_a_malformed_value_is_told_with_its_line_wherever_its_block_is_known() -> None:
    reader = Reader()
    body = b"".join(b'a{x="%d"} 1\n' % line for line in range(40))
    for _ in range(3):
        reader.read(body)
    for place in (0, 17, 39):
        with pytest.raises(ReadError, match=f"line {place + 1} in a line of a: not a number"):
            reader.read(body.replace(b'"%d"} 1' % place, b'"%d"} 1.2.3' % place))
        reader.read(body)


def test_pieces_of_a_large_child_are_not_made_one_beyond_what_a_block_may_be() -> None:
    reader = Reader()
    for le in range(0, 2_000, 100):
        body = b"".join(b'h_bucket{le="%d"} 1\n' % bound for bound in range(2_000) if bound != le)
        reader.read(body)
        assert reader.values(body) == strictly(body)
        assert max(len(block.ends) for block in reader.difference._blocks) <= MOST


def test_a_first_read_of_lines_that_only_the_strict_parser_takes_is_not_quadratic(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parsed = []
    monkeypatch.setattr(again, "parse_line", lambda line, **how: parsed.append(line) or parse_line(line, **how))
    reader = Reader()
    reader.read(b"".join(b'h_bucket{le="%d"} 1\r\n' % le for le in range(1_000)))
    assert len(parsed) <= 2_000


def test_bodies_that_are_always_cut_and_always_new_fill_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exporter.text.difference.CUT", 100)
    monkeypatch.setattr("exporter.text.shelf.REMEMBERED", 100)
    reader = Reader()
    whole = b'a_total{model="m"} 1\nb 2\n'
    reader.read(whole)
    for turn in range(20):
        body = b"".join(b'a_total{model="%d-%d"} 1\n' % (turn, line) for line in range(200))
        with pytest.raises(ReadError, match="cut on its way"):
            reader.read(whole + body + b"a_tot")
        assert len(reader.difference) < 1_000
    reader.read(whole)
    assert reader.values(whole) == strictly(whole)
