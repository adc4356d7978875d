"""The pages for people: which targets there are, how they do, and what switches on what is missing.

No script, no file from elsewhere; everything that comes from outside is escaped.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from hashlib import sha256
from html import escape
from typing import get_args

from exporter.core.types import Advice
from exporter.web.view import State, TargetView

PATHS: Mapping[str, str] = {
    "/": "the targets, their state and what they lack",
    "/metrics": "what Prometheus scrapes",
    "/-/healthy": "whether the exporter runs",
    "/-/ready": "whether every target has been read once",
}

_STYLE = """
:root { color-scheme: light dark; --text: #1c2024; --soft: #60646c; --line: #e0e1e6; --back: #f7f7f9; --card: #fff;
  --code: #f0f0f3; --link: #0b62c4; --up: #14713d; --up-back: #dcf5e6; --down: #b3261e; --down-back: #fde5e3;
  --waiting: #805500; --waiting-back: #fdf0d2; }
@media (prefers-color-scheme: dark) { :root { --text: #edeef0; --soft: #a5abb6; --line: #2f333a; --back: #111317;
  --card: #191c21; --code: #262a31; --link: #77b6ff; --up: #6fdd9b; --up-back: #123524; --down: #ff9c94;
  --down-back: #451b19; --waiting: #f3c766; --waiting-back: #3b2e0d; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 72rem; padding: 2rem 1.25rem 4rem; background: var(--back); color: var(--text);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { margin: 0; font-size: 1.6rem; letter-spacing: -.02em; }
h1 small { color: var(--soft); font-size: .9rem; font-weight: 400; letter-spacing: 0; margin-left: .35rem; }
h2 { margin: 2.25rem 0 .75rem; font-size: 1.1rem; }
h2 small { color: var(--soft); font-size: .9rem; font-weight: 400; margin-left: .35rem; }
header p { margin: .25rem 0 .75rem; color: var(--soft); }
a { color: var(--link); }
nav a { display: inline-block; margin-right: 1.25rem; font-family: ui-monospace, monospace; font-size: .9rem; }
table { width: 100%; border-collapse: separate; border-spacing: 0; background: var(--card);
  border: 1px solid var(--line); border-radius: 10px; }
th, td { padding: .65rem .9rem; text-align: left; vertical-align: top; overflow-wrap: anywhere; }
thead th { color: var(--soft); font-size: .8rem; font-weight: 500; white-space: nowrap; }
tbody tr:first-child > * { border-top: 1px solid var(--line); }
tbody th { font-weight: 600; }
th small, td small { display: block; color: var(--soft); font-size: .85rem; font-weight: 400; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
@media (min-width: 46.01rem) { .number { white-space: nowrap; } }
.state { display: inline-block; padding: 0 .65rem; border-radius: 1rem; font-size: .85rem; font-weight: 600; }
.state, time { white-space: nowrap; }
.up { color: var(--up); background: var(--up-back); }
.down { color: var(--down); background: var(--down-back); }
.waiting { color: var(--waiting); background: var(--waiting-back); }
.more td { padding-top: 0; }
.more p { margin: 0; }
.more h3 { margin: 0 0 .35rem; font-size: .9rem; font-weight: 600; }
p + h3 { padding-top: .6rem; }
.error b { color: var(--down); font-weight: 600; }
.error.past b { color: var(--soft); }
dl { margin: 0; padding: .6rem .9rem; background: var(--back); border-radius: 8px; }
dt { font-size: .9rem; }
dd { display: flex; gap: .6rem; margin: .15rem 0 .7rem; }
dd:last-child { margin-bottom: 0; }
dd > span { color: var(--soft); }
code, pre { font: .87em/1.5 ui-monospace, monospace; background: var(--code); border-radius: 5px; }
code { padding: .1em .4em; overflow-wrap: anywhere; align-self: start; }
pre { margin: 0; padding: .5rem .75rem; overflow-x: auto; min-width: 0; flex: 1; }
ul { margin: 0; padding-left: 1.2rem; color: var(--soft); }
.empty { padding: 1rem; background: var(--card); border: 1px solid var(--line); border-radius: 10px; margin: 0; }
@media (max-width: 46rem) {
  thead { display: none; }
  table, tbody, th, td { display: block; }
  tbody { padding: .75rem .9rem; border-top: 1px solid var(--line); }
  tbody:first-of-type, tbody tr:first-child > * { border-top: 0; }
  tr { display: grid; grid-template-columns: 1.35fr 1.15fr .85fr .95fr; gap: .4rem .5rem; }
  th, td { padding: 0; }
  tbody th, tbody th + td { grid-area: 1 / 1 / 2 / -1; }
  tbody th { padding-right: 5.5rem; }
  tbody th + td { justify-self: end; }
  .number { text-align: left; font-size: .9rem; }
  .number::before { display: block; content: attr(data-label); color: var(--soft); font-size: .8rem; }
  .more td { grid-column: 1 / -1; padding-top: .5rem; }
}
"""

POLICY = (
    f"default-src 'none'; style-src 'sha256-{b64encode(sha256(_STYLE.encode()).digest()).decode()}'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Content-Security-Policy of every answer: this style sheet, and nothing else."""

_LONGEST_ERROR = 1000
_CODE = re.compile(r"`([^`\n]+)`")
_PRIVATE = re.compile(r"(?<=//)[^/]*@|[?#].*", re.DOTALL)
_COLUMNS = ("Target", "State", "Last success", "Read took", "Every", "Series")


def landing(targets: Sequence[TargetView], looked_for: Sequence[str], *, version: str, now: float) -> bytes:
    """The overview as HTML; `now` is Unix time in seconds."""
    if targets:
        states = [target.state for target in targets]
        counted = ", ".join(f"{n} {state}" for state in get_args(State) if (n := states.count(state)))
        made = datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")  # a page may be left open, or sent on
        head = "".join(
            f'<th scope="col"{"" if column in _COLUMNS[:2] else _NUMBER}>{column}</th>' for column in _COLUMNS
        )
        bodies = "\n".join(_target(target, now) for target in targets)
        shown = (
            f"<h2>Targets <small>{counted} at <time>{made}</time></small></h2>\n"
            f"<table>\n<thead><tr>{head}</tr></thead>\n{bodies}\n</table>"
        )
    else:
        shown = (
            '<h2>Targets</h2>\n<p class="empty">None: no target is configured, and nothing that runs on this machine '
            "was recognised. Name one under <code>targets:</code> in the configuration.</p>"
        )
    if looked_for:
        sentences = "".join(f"<li>{_words(sentence)}</li>" for sentence in looked_for)
        shown += (
            "\n<h2>Looked for and not found</h2>\n<p>It is looked for again all the while. What runs elsewhere, or on "
            f"another port, is named under <code>targets:</code> in the configuration.</p>\n<ul>{sentences}</ul>"
        )
    links = " ".join(f'<a href="{path}">{path}</a>' for path in PATHS if path != "/")
    return _document(
        "llm-exporter",
        f"<header>\n<h1>llm-exporter <small>{escape(version)}</small></h1>\n"
        "<p>One Prometheus vocabulary for everything that serves language models.</p>\n"
        f"<nav>{links}</nav>\n</header>\n<main>\n{shown}\n</main>",
    )


def not_found() -> bytes:
    """The page for every path that is not there; it does not repeat what was asked for."""
    paths = "".join(f'<li><a href="{path}">{path}</a>: {what}</li>' for path, what in PATHS.items())
    return _document(
        "Nothing is here: llm-exporter",
        f"<main>\n<h1>Nothing is here</h1>\n<p>llm-exporter answers at:</p>\n<ul>{paths}</ul>\n</main>",
    )


def span(seconds: float) -> str:
    """A length of time as people read it: `350 ms`, `12 s`, `5 min`, `3 h`, `2 d`."""
    if seconds < 0.9995:
        return f"{seconds * 1000:.3g} ms"
    if seconds < 120:
        return f"{seconds:.3g} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    if seconds < 172_800:
        return f"{seconds / 3600:.0f} h"
    return f"{seconds / 86_400:.0f} d"


_NUMBER = ' class="number"'


def _document(title: str, body: str) -> bytes:
    text = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f"<title>{title}</title>\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )
    return text.encode(errors="replace")  # an upstream's text may hold lone surrogates


def _words(text: str) -> str:
    """A sentence as HTML; what stands in backticks in it is code."""
    return _CODE.sub(r"<code>\1</code>", escape(text))


def _ago(then: float | None, now: float) -> str:
    if then is None:
        return "never"
    seconds = int(now - then)
    return f"{span(seconds)} ago" if seconds >= 1 else "just now"


def _target(target: TargetView, now: float) -> str:
    """A target's own rows; what it says about itself and what is missing stand beneath."""
    kind = f"{target.source} {target.version}" if target.version else target.source
    if target.experimental:
        kind += " (experimental)"
    if target.recognised:
        kind += ", recognised by what it answers"
    url = _PRIVATE.sub("", target.url)  # neither a password nor a key in a query gets here; if one did, it ends here
    figures = (
        _ago(target.last_success, now),
        "–" if target.read_seconds is None else span(target.read_seconds),
        span(target.interval),
        f"{target.series:,}",
    )
    cells = "".join(
        f'<td class="number" data-label="{column}">{figure}</td>'
        for column, figure in zip(_COLUMNS[2:], figures, strict=True)
    )
    more = _error(target) + _advice(target.advice)
    beneath = f'\n<tr class="more"><td colspan="{len(_COLUMNS)}">{more}</td></tr>' if more else ""
    return (
        f'<tbody>\n<tr><th scope="row">{escape(target.name)}<small>{escape(kind)} · {escape(url)}</small></th>'
        f'<td><span class="state {target.state}">{target.state}</span></td>{cells}</tr>'
        f"{beneath}\n</tbody>"
    )


def _error(target: TargetView) -> str:
    if not target.error:
        return ""
    past = target.state == "up"
    return (
        f'<p class="error{" past" if past else ""}"><b>{"Last error" if past else "Error"}:</b> '
        f"{_words(target.error[:_LONGEST_ERROR])}</p>"
    )


def _advice(given: Iterable[Advice]) -> str:
    entries = "".join(
        f"<dt>{_words(advice.missing)}</dt><dd><span>→</span> <{tag}>{escape(advice.remedy)}</{tag}></dd>"
        for advice in given
        for tag in ["pre" if "\n" in advice.remedy else "code"]
    )
    return f"<h3>Missing, and what brings it</h3>\n<dl>{entries}</dl>" if entries else ""
