import re
from base64 import b64encode
from dataclasses import replace
from hashlib import sha256
from html.parser import HTMLParser

import pytest

from exporter.core.types import Advice
from exporter.web.landing import POLICY, landing, not_found, span
from exporter.web.view import TargetView

NOW = 1_000_000.0
UP = TargetView("router-a", "litellm", "http://127.0.0.1:4000", "up", "", 5.0, 0.0123, NOW - 12, 1284, "1.83.7", ())
HOSTILE = "<script>alert(1)</script>\"'&\udcff\x00"


def shown(*targets: TargetView, looked_for: tuple[str, ...] = ()) -> str:
    return landing(targets, looked_for, version="0.1.0", now=NOW).decode()


class Elements(HTMLParser):
    """Every element of a page with its attributes, and the text outside of any style."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.opened: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag != "meta":
            self.opened.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.opened.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.opened:
            self.text += data


def test_each_target_stands_with_its_state_figures_and_last_success() -> None:
    waiting = replace(UP, name="router-b", state="waiting", read_seconds=None, last_success=None, version=None)
    page = shown(UP, waiting)
    text = Elements(page).text
    assert "1 waiting, 1 up at 1970-01-12 13:46:40 UTC" in text
    for figure in ("router-a", "litellm 1.83.7 · http://127.0.0.1:4000", "12 s ago", "12.3 ms", "5 s", "1,284"):
        assert figure in text
    assert '<span class="state up">up</span>' in page
    assert '<span class="state waiting">waiting</span>' in page
    assert "never" in text


def test_what_was_recognised_and_what_is_experimental_is_said() -> None:
    text = Elements(shown(replace(UP, source="nim", version=None, recognised=True, experimental=True))).text
    assert "nim (experimental), recognised by what it answers · http://127.0.0.1:4000" in text


def test_an_error_is_the_present_one_of_a_target_that_is_down_and_the_last_one_of_one_that_is_up() -> None:
    down = replace(UP, state="down", error="connect: nothing listens")
    assert "Error: connect: nothing listens" in Elements(shown(down)).text
    hint = replace(UP, state="down", error="too slow (raise `timeout`, `<b>`)")
    assert "too slow (raise <code>timeout</code>, <code>&lt;b&gt;</code>)" in shown(hint)
    assert "Last error: timeout" in Elements(shown(replace(UP, error="timeout"))).text
    assert "rror:" not in Elements(shown(UP)).text


def test_what_is_missing_stands_with_the_line_that_brings_it() -> None:
    lines = 'litellm_settings:\n  callbacks: ["prometheus"]'
    page = shown(replace(UP, advice=(Advice("prices", "api_key_file: /run/key"), Advice("latencies", lines))))
    assert re.search(r"<dt>prices</dt>\s*<dd>.*<code>api_key_file: /run/key</code></dd>", page)
    assert f"→ {lines}" in Elements(page).text
    assert "<pre>litellm_settings:\n  callbacks: [&quot;prometheus&quot;]</pre>" in page


def test_without_targets_the_page_says_what_to_do_and_what_was_looked_for() -> None:
    text = Elements(shown(looked_for=("A LiteLLM proxy on 127.0.0.1:4000.",))).text
    assert "no target is configured" in text
    assert "targets:" in text
    assert "A LiteLLM proxy on 127.0.0.1:4000." in text


def test_nothing_from_outside_becomes_markup() -> None:
    hostile = TargetView(
        HOSTILE, HOSTILE, HOSTILE, "down", HOSTILE, 5.0, 0.1, None, 0, HOSTILE, (Advice(HOSTILE, HOSTILE),)
    )
    elements = Elements(landing([hostile], [HOSTILE], version=HOSTILE, now=NOW).decode())
    assert elements.opened == []
    tags = {tag for tag, _ in elements.seen}
    assert "script" not in tags
    assert elements.text.count("alert(1)") == 9
    assert {key for _, attributes in elements.seen for key in attributes} <= {
        *("lang", "charset", "name", "content", "href", "class", "scope", "colspan", "data-label")
    }


@pytest.mark.parametrize("url", ["http://user:sk-secret@gpu:8000/v1", "http://gpu:8000/v1?key=sk-secret#sk-secret"])
def test_a_key_within_a_url_is_not_shown(url: str) -> None:
    page = shown(replace(UP, url=url))
    assert "sk-secret" not in page
    assert "http://gpu:8000/v1" in page


def test_a_huge_error_is_cut() -> None:
    assert len(shown(replace(UP, error="x" * 1_000_000))) < 20_000


@pytest.mark.parametrize("page", [shown(UP), shown(), not_found().decode()])
def test_the_policy_allows_the_style_sheet_and_the_page_needs_nothing_else(page: str) -> None:
    (style,) = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
    assert f"'sha256-{b64encode(sha256(style.encode()).digest()).decode()}'" in POLICY
    elements = Elements(page)
    assert elements.opened == []
    for tag, attributes in elements.seen:
        assert tag not in {"script", "img", "link", "iframe", "form"}
        assert "style" not in attributes
        assert (attributes.get("href") or "/").startswith("/")
    assert "url(" not in style
    assert "@import" not in style
    assert "color-scheme: light dark" in style


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0123, "12.3 ms"),
        (0.5, "500 ms"),
        (1.0, "1 s"),
        (90, "90 s"),
        (754, "13 min"),
        (7200, "2 h"),
        (172_800, "2 d"),
    ],
)
def test_a_span_reads_as_people_say_it(seconds: float, text: str) -> None:
    assert span(seconds) == text
