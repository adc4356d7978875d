r"""A strict parser of the exposition formats: Prometheus text 0.0.4 and OpenMetrics 1.0.

It is the slow, certain path: `parse_line` reads a line that was never seen before, `parse` a whole body. What
the formats do not allow raises `Malformed` with line and reason; nothing is guessed. Where upstreams, or the
specifications, disagree:

- Blanks (spaces and tabs) between tokens are free in both formats, as 0.0.4 has it; OpenMetrics wants single
  spaces, but upstreams deviate, and no number depends on it. The same goes for blank lines and free comments.
- An escape other than `\\`, `\"` and `\n` in a label value or a quoted name is malformed in 0.0.4, whose
  specification wants every backslash escaped (Prometheus and prometheus-client keep both characters). The
  grammar of OpenMetrics allows it, and means both characters. In HELP both formats keep it: no number depends
  on words for people.
- Exemplars are allowed in both, on every sample, for upstreams write them so.
- The quoted names of Prometheus 3 (`{"my.metric","a label"="v"} 1`) are read; the metric's name comes first.
- A family whose type is declared twice has the first, as a series that comes twice has its first value.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import inf, isfinite
from typing import Literal, cast

from exporter.core.types import Labels

Keyword = Literal["TYPE", "HELP", "UNIT", "EOF", ""]

TYPES = frozenset(
    ("counter", "gauge", "histogram", "summary", "untyped", "unknown", "info", "stateset", "gaugehistogram")
)

# Repetitions are possessive: no text can be read in two ways, so giving back characters would only cost time.
# Never \w, \d or \s: those take full-width digits and other alphabets.
_BLANKS = r"[ \t]*+"
_METRIC = r"[a-zA-Z_:][a-zA-Z0-9_:]*+"
_NAME = r"[a-zA-Z_][a-zA-Z0-9_]*+"
_QUOTED = r'"[^"\\\n]*+(?:\\[^\n][^"\\\n]*+)*+"'
_REAL = r"[-+]?(?:[0-9]++(?:\.[0-9]*+)?|\.[0-9]++)(?:[eE][-+]?[0-9]++)?"

_is_number = re.compile(rf"{_REAL}|[-+]?(?i:inf(?:inity)?)|(?i:nan)".encode()).fullmatch
_INTEGER = re.compile(r"[-+]?[0-9]{1,19}")
_HEAD = re.compile(rf"({_METRIC}){_BLANKS}(\{{{_BLANKS})?|\{{{_BLANKS}({_QUOTED}){_BLANKS}(?:,{_BLANKS}|(?=\}}))")
_LABEL = re.compile(rf"({_NAME}|{_QUOTED}){_BLANKS}={_BLANKS}({_QUOTED}){_BLANKS}(?:,{_BLANKS}|(?=\}}))")
_LABEL_NAME = re.compile(rf"({_NAME}|{_QUOTED}){_BLANKS}")
_LABEL_VALUE = re.compile(rf"={_BLANKS}({_QUOTED})?")
_NUMBERS = re.compile(rf"{_BLANKS}([^ \t#][^ \t]*+)(?:[ \t]++([^ \t#][^ \t]*+))?{_BLANKS}")
_EXEMPLAR = re.compile(rf"#{_BLANKS}\{{{_BLANKS}")
_COMMENT = re.compile(rf"#{_BLANKS}(HELP|TYPE|UNIT|EOF)(?:[ \t]++(.*+))?")
_DESCRIBED = re.compile(rf"({_METRIC}|{_QUOTED})(?:[ \t]++(.*+))?")
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)

_ESCAPES = {"\\": "\\", '"': '"', "n": "\n"}

# The suffix of a sample, and the types of the families that have such samples.
_SUFFIXES: Mapping[str, frozenset[str]] = {
    "total": frozenset(("counter",)),
    "bucket": frozenset(("histogram", "gaugehistogram")),
    "sum": frozenset(("histogram", "summary")),
    "count": frozenset(("histogram", "summary")),
    "gsum": frozenset(("gaugehistogram",)),
    "gcount": frozenset(("gaugehistogram",)),
    "created": frozenset(("counter", "histogram", "summary")),
    "info": frozenset(("info",)),
}


class Malformed(ValueError):  # noqa: N818 - the word of the field, as REASONS has it
    """What the format does not allow: `reason`, the `line` and its `number` from 1, None where unknown."""

    def __init__(self, reason: str, line: bytes | None = None, number: int | None = None) -> None:
        super().__init__(reason, line, number)
        self.reason = reason
        self.line = line
        self.number = number

    def __str__(self) -> str:
        at = "" if self.number is None else f"line {self.number}: "
        # 480 bytes hold 120 characters, whichever they are
        shown = "" if self.line is None else f": {self.line[:480].decode(errors='replace')[:120]!r}"
        return f"{at}{self.reason}{shown}"


@dataclass(slots=True)
class Line:
    """One sample. Its timestamp and exemplar were checked, and dropped.

    `identity` is the bytes of name and label set exactly as written, without surrounding blanks: the key by
    which the line is known again. `labels` are unescaped, in the order written.
    """

    identity: bytes
    name: str
    labels: Labels
    value: float


@dataclass(frozen=True, slots=True)
class Comment:
    """A line that starts with `#`: what it says of the family `name`, or with keyword "" what nobody reads.

    `text` is the type for TYPE, the unescaped words for HELP. UNIT and EOF exist in OpenMetrics only.
    """

    keyword: Keyword
    name: str
    text: str


def parse_value(text: bytes) -> float:
    """The number in `text`, as Prometheus takes it: decimal, with exponent; NaN, Inf, Infinity in any case.

    Neither hexadecimal forms nor underscores, nor what no float holds (`1e999`). Raises Malformed.
    """
    if _is_number(text) is None:
        raise Malformed(f"not a number: {_shown(text.decode(errors='replace'))}")
    value = float(text)
    if not -inf < value < inf and not text[-1:].isalpha():
        raise Malformed(f"a number too large: {_shown(text.decode())}")
    return value


def parse_line(line: bytes, *, openmetrics: bool = False) -> Line | Comment | None:
    r"""What `line` says, given without its line feed; None where it is blank. One trailing `\r` is allowed.

    Takes time in proportion to the line's length, whatever it holds. Raises Malformed.
    """
    try:
        text = line.decode().removesuffix("\r").strip(" \t")
        if not text:
            return None
        return _comment(text, openmetrics) if text[0] == "#" else _sample(text, openmetrics)
    except UnicodeDecodeError as error:
        raise Malformed(f"not UTF-8 at byte {error.start + 1}", line) from None
    except Malformed as error:
        error.line = line
        raise


def parse(body: bytes, *, openmetrics: bool = False) -> Iterator[Line]:
    """The samples of a whole body, one for each series; those that only say when a series began are left out.

    Of a series that comes twice the first counts; a label with an empty value is none, as in Prometheus.
    Raises Malformed when the iteration comes to the line in question; where the last line feed is missing,
    before the first sample.
    """
    *lines, cut = body.split(b"\n")
    if cut:
        raise Malformed("no line feed at the end: the body was cut", cut, len(lines) + 1)
    types: dict[str, str] = {}
    seen: set[tuple[str, frozenset[tuple[str, str]]]] = set()
    ended = False
    for number, line in enumerate(lines, 1):
        if ended:
            raise Malformed("text after # EOF", line, number)
        try:
            said = parse_line(line, openmetrics=openmetrics)
        except Malformed as error:
            error.number = number
            raise
        if isinstance(said, Line):
            series = said.name, frozenset(label for label in said.labels if label[1])
            if series not in seen and not is_created(said.name, types):
                seen.add(series)
                yield said
        elif said is not None:
            ended = said.keyword == "EOF"
            if said.keyword == "TYPE":
                types.setdefault(said.name, said.text)
    if openmetrics and not ended:
        raise Malformed("no # EOF at the end: the body was cut")


def family_of(name: str, types: Mapping[str, str]) -> tuple[str, str] | None:
    """The declared family and type of a sample: of its exact name, else without a suffix that the type has.

    `types` maps each declared name to its type. None where nothing fits: the sample is untyped.
    """
    declared = types.get(name)
    if declared is not None:
        return name, declared
    family, _, suffix = name.rpartition("_")
    declared = types.get(family)
    if declared is not None and declared in _SUFFIXES.get(suffix, ()):
        return family, declared
    return None


def is_created(name: str, types: Mapping[str, str]) -> bool:
    """Whether a sample says only when a series began: `x_created` of a counter, histogram or summary.

    OpenMetrics has it within the family `x`; in 0.0.4 prometheus-client writes a gauge of its own after the
    family, which is `x_total` where it is a counter.
    """
    family = name.removesuffix("_created")
    if family == name:
        return False
    return any(types.get(of) in _SUFFIXES["created"] for of in (family, family + "_total"))


def _sample(text: str, openmetrics: bool) -> Line:
    """The sample in `text`, which has no surrounding blanks."""
    head = _HEAD.match(text)
    if head is None:
        raise Malformed("no metric name")
    name, brace, quoted = head.groups()
    at = head.end()
    labels: Labels = ()
    if quoted is not None:
        name = _unquoted(quoted, openmetrics)
        if not name:
            raise Malformed("an empty metric name")
    if brace is None and quoted is None:
        end = head.end(1)
        if at == end < len(text):
            raise Malformed(f"not a metric name: {_shown(text)}")
    else:
        labels, at = _labels(text, at, openmetrics)
        end = at
    value, at = _value(text, at, openmetrics)
    if at < len(text):
        exemplar = _EXEMPLAR.match(text, at)
        if exemplar is None:
            raise Malformed(f"unexpected text after the sample: {_shown(text[at:])}")
        _, at = _labels(text, exemplar.end(), openmetrics)
        _, at = _value(text, at, openmetrics=True)
        if at < len(text):
            raise Malformed(f"unexpected text after the exemplar: {_shown(text[at:])}")
    return Line(text[:end].encode(), name, labels, value)


def _labels(text: str, at: int, openmetrics: bool) -> tuple[Labels, int]:
    """The label set whose first label, or closing brace, is at `at`; and where it ends."""
    labels: dict[str, str] = {}
    while not text.startswith("}", at):
        found = _LABEL.match(text, at)
        if found is None:
            raise Malformed(_fault(text, at))
        name, value = found.groups()
        if name[0] == '"':
            name = _unquoted(name, openmetrics)
            if not name:
                raise Malformed("an empty label name")
        if name in labels:
            raise Malformed(f"duplicate label: {_shown(name)}")
        labels[name] = _unquoted(value, openmetrics) if "\\" in value else value[1:-1]
        at = found.end()
    if "__name__" in labels:
        raise Malformed("a label __name__: it would name the metric twice")
    return tuple(labels.items()), at + 1


def _fault(text: str, at: int) -> str:
    """Why no label starts at `at`."""
    if at == len(text):
        return "the label set is not closed"
    found = _LABEL_NAME.match(text, at)
    if found is None:
        return f"not a label name: {_shown(text[at:])}"
    name = _shown(found[1])
    value = _LABEL_VALUE.match(text, found.end())
    if value is None:
        return f"no = after the label name {name}"
    if value[1] is not None:
        return f"no comma or closing brace after the label {name}"
    if text.startswith('"', value.end()):
        return f"no closing quote after the value of the label {name}"
    return f"no quote before the value of the label {name}"


def _value(text: str, at: int, openmetrics: bool) -> tuple[float, int]:
    """The value at `at`, and where it and its timestamp end."""
    found = _NUMBERS.match(text, at)
    if found is None:
        raise Malformed("no value")
    written, timestamp = found.groups()
    value = parse_value(written.encode())
    if timestamp is None:
        pass
    elif openmetrics:
        if not isfinite(parse_value(timestamp.encode())):
            raise Malformed(f"not a timestamp in seconds: {_shown(timestamp)}")
    elif _INTEGER.fullmatch(timestamp) is None or not -(2**63) <= int(timestamp) < 2**63:
        raise Malformed(f"not a timestamp in whole milliseconds: {_shown(timestamp)}")
    return value, found.end()


def _comment(text: str, openmetrics: bool) -> Comment:
    """The comment in `text`, which starts with its `#`."""
    if "\n" in text:
        raise Malformed("a line feed within a line")
    found = _COMMENT.fullmatch(text)
    if found is None or (not openmetrics and found[1] in ("UNIT", "EOF")):
        return Comment("", "", text[1:].strip(" \t"))
    keyword, rest = found.groups("")
    if keyword == "EOF":
        return Comment("" if rest else "EOF", "", rest)
    described = _DESCRIBED.fullmatch(rest)
    if described is None:
        raise Malformed(f"{keyword} of no metric name: {_shown(rest)}" if rest else f"{keyword} without a metric name")
    name, words = described.groups("")
    if name[0] == '"':
        name = _unquoted(name, openmetrics)
        if not name:
            raise Malformed("an empty metric name")
    if keyword == "TYPE" and words not in TYPES:
        raise Malformed(f"not a type: {_shown(words)}" if words else "TYPE without a type")
    if keyword == "HELP":
        escapes = '\\n"' if openmetrics else "\\n"
        words = _ESCAPE.sub(lambda escape: _ESCAPES[escape[1]] if escape[1] in escapes else escape[0], words)
    return Comment(cast(Keyword, keyword), name, words)


def _unquoted(text: str, openmetrics: bool) -> str:
    """What stands between the quotes of `text`, its escapes undone."""

    def character(escape: re.Match[str]) -> str:
        meant = _ESCAPES.get(escape[1])
        if meant is not None:
            return meant
        if openmetrics:
            return escape[0]
        raise Malformed(f"unknown escape: {_shown(escape[0])}")

    return _ESCAPE.sub(character, text[1:-1])


def _shown(text: str) -> str:
    """A piece of a line as messages quote it: not longer than a name."""
    return repr(text if len(text) <= 40 else text[:40] + "…")
