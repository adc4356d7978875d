"""Mutates captures and examples at random: `python tests/text/fuzz_parse.py SECONDS [SEED]`, in CPU seconds.

Whatever the parser is given, it raises Malformed or nothing; and what it takes for a line says the same when it is
written again.
"""

from __future__ import annotations

import random
import re
import sys
import time
from math import isnan
from pathlib import Path

from exporter.core.types import number
from exporter.text.parse import Comment, Line, Malformed, parse, parse_line

CAPTURES = Path(__file__).parents[1] / "captures"
EXAMPLES = (
    rb'a{x="1",y="\\\"\n",} NaN 1700000000000',
    b'  a : \t{ x = "\xc3\xa9" , }\t-Inf\r',
    b'{"my.metric","a label"="v",plain="w"} 1e-05',
    b'a_total 7 1700000000.5 # {trace_id="abc",x=""} 0.67 1.5e9',
    rb"# HELP a What \\ it\n says",
    b'# TYPE "my.metric" counter',
    b"# UNIT a_seconds seconds",
    b"# EOF",
    b"# anything",
    b"",
)
PIECES = (
    *(bytes((byte,)) for byte in b'{}"\\,=# \t\r\n_:.-+0\x00\x0b\xc2\xa0'),
    *(b"\\n", b'\\"', b"\\\\", b'""', b'="', b'",', b'"} ', b" # {", b"__name__", b"NaN", b"+Inf", b"1e999", b"0x1p1"),
    *(b"# TYPE ", b"# HELP ", b"# EOF\n", b"\xff", b"\xed\xa0\x80", "１".encode(), "\u2028".encode(), b"9" * 400),
)


def mutated(text: bytes, chance: random.Random) -> bytes:
    """`text` with some bytes or pieces removed, inserted, replaced, repeated."""
    for _ in range(chance.randint(1, 4)):
        begin = chance.randint(0, len(text))
        end = min(len(text), begin + chance.choice((0, 0, 1, 1, 2, 8, 60)))
        piece = chance.choice((b"", chance.choice(PIECES), chance.choice(PIECES), text[begin:end] * 2))
        text = text[:begin] + piece + text[end:]
    return text


def written(said: Line | Comment) -> bytes:
    """A line that says what `said` says, each name in quotes that needs them."""
    if isinstance(said, Comment):
        escaped = said.text.replace("\\", r"\\").replace("\n", r"\n")
        return f"# {said.keyword} {named(said.name)} {escaped if said.keyword == 'HELP' else said.text}".encode()
    labels = [f"{named(name, colon='')}={quoted(value)}" for name, value in said.labels]
    name = named(said.name)
    head = f"{name}{{{','.join(labels)}}}" if name[0] != '"' else f"{{{','.join((name, *labels))}}}"
    return f"{head} {number(said.value)}".encode()


def named(name: str, colon: str = ":") -> str:
    return name if re.fullmatch(f"[a-zA-Z_{colon}][a-zA-Z0-9_{colon}]*", name) else quoted(name)


def quoted(text: str) -> str:
    escaped = text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
    return f'"{escaped}"'


def meaning(said: Line | Comment | None) -> object:
    """What must be equal of two lines that say the same: everything but how they are written."""
    if isinstance(said, Line):
        return said.name, said.labels, "NaN" if isnan(said.value) else said.value
    return said


def tried(line: bytes, openmetrics: bool) -> Line | Comment | Malformed | None:
    try:
        return parse_line(line, openmetrics=openmetrics)
    except Malformed as error:
        return error


def check_line(line: bytes, openmetrics: bool) -> None:
    """Raises AssertionError, or what is not Malformed, where the parser is wrong about `line`."""
    said = tried(line, openmetrics)
    if isinstance(said, Malformed):
        assert said.line == line
        assert said.reason
        assert len(str(said)) < 1000
        return
    if isinstance(said, Line):
        assert said.identity in line
        assert said.identity == said.identity.strip(b" \t")
        assert meaning(parse_line(said.identity + b" 1", openmetrics=openmetrics)) == (said.name, said.labels, 1.0)
    if isinstance(said, Line) or (isinstance(said, Comment) and said.name):
        again = written(said) + b"\r"
        assert meaning(parse_line(again, openmetrics=openmetrics)) == meaning(said), again


def check_body(body: bytes, openmetrics: bool) -> None:
    """The same for a whole body, and that no series comes twice."""
    try:
        lines = list(parse(body, openmetrics=openmetrics))
    except Malformed:
        return
    assert body[-1:] in (b"", b"\n")
    assert len({(line.name, frozenset(line.labels)) for line in lines}) == len(lines)


def fuzz(seconds: float, seed: int) -> int:
    """Checks mutated lines and bodies for `seconds` of CPU time; how many."""
    chance = random.Random(seed)
    lines = [
        line
        for capture in sorted(CAPTURES.rglob("*.body"))
        for line in capture.read_bytes().split(b"\n")[:: chance.randint(7, 13)]
    ]
    checked, end = 0, time.process_time() + seconds
    while time.process_time() < end:
        for _ in range(50):
            line = chance.choice(EXAMPLES) if chance.random() < 0.5 else chance.choice(lines)
            check_line(mutated(line, chance), openmetrics=chance.random() < 0.5)
        body = b"\n".join(chance.choices(lines, k=5) + chance.choices(EXAMPLES, k=5)) + b"\n"
        check_body(mutated(body, chance), openmetrics=False)
        check_body(mutated(body.replace(b"# EOF\n", b"") + b"# EOF\n", chance), openmetrics=True)
        checked += 52
    return checked


if __name__ == "__main__":
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else random.randrange(2**32)
    print(f"seed {seed}")
    print(f"{fuzz(float(sys.argv[1]), seed)} mutations checked")
