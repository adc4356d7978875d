"""The exporter's own pages as Chromium shows them: on a desk and on a phone, in the light and in the dark."""

import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import browser
import pytest
import stack
import yaml

WIDTHS = {"desk": 1280, "phone": 375}
LONG = "a-name-with-no-space-" * 4 + "x" * 60
MISSING = ["Failed to load resource: the server responded with a status of 404 (Not Found)"]
"""What the browser says of a page that is not there, as of any."""

LOOK = (Path(__file__).parent / "look.js").read_text("utf-8")


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[stack.Server]:
    server = browser.chromium(tmp_path_factory.mktemp("chromium"))
    with stack.running(server):
        yield server


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[stack.Exporter]:
    """All is well, and stays so for the half hour until the demo's first trouble."""
    server = stack.demo(tmp_path_factory.mktemp("demo"), "--speed", "1")
    with stack.running(server):
        yield server


@pytest.fixture(scope="module")
def troubled(tmp_path_factory: pytest.TempPathFactory, demo: stack.Exporter) -> Iterator[stack.Exporter]:
    """Of its targets one is dead, one says nothing, one is not what it should be, one lacks what it should have."""
    folder = tmp_path_factory.mktemp("troubled")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        targets = [
            {"source": "vllm", "name": "dead", "url": f"http://127.0.0.1:{stack.free_port()}"},
            {"source": "vllm", "name": "silent", "url": f"http://127.0.0.1:{silent.getsockname()[1]}", "timeout": "9m"},
            {"source": "litellm", "name": "another", "url": demo.url},
            {"source": "vllm", "name": "lacks", "url": demo.url},
            {"source": "nim", "name": LONG, "url": f"http://127.0.0.1:{stack.free_port()}/{LONG}"},
            f"http://127.0.0.1:{stack.free_port()}",
        ]
        (folder / "llm.yaml").write_text(yaml.safe_dump({"targets": targets}))
        server = stack.exporter(folder, "", "--config", str(folder / "llm.yaml"))
        server.ready = "/-/healthy"
        with stack.running(server):
            until = time.monotonic() + stack.PATIENCE
            while len(states(server)) < len(targets) - 1:
                assert time.monotonic() < until, server.tail()
                time.sleep(0.1)
            yield server


def states(server: stack.Exporter) -> dict[str, str]:
    """What /metrics says of each target that has been read."""
    found = ((dict(labels), value) for (name, labels), value in server.page().items() if name == "llm_target_up")
    return {labels["target"]: "up" if value else "down" for labels, value in found}


async def look(tab: browser.Tab, url: str, width: str, scheme: str) -> dict[str, Any]:
    """Open a page and hold it against what is asked of every page; the rest of what is seen of it."""
    await tab.open(url, width=WIDTHS[width], scheme=scheme)
    seen: dict[str, Any] = await tab.value(LOOK)
    assert seen["dark"] == (scheme == "dark")
    assert seen["wide"] <= 0, "the page is wider than the window"
    assert (seen["spilled"], seen["broken"], seen["pale"]) == ([], [], [])
    return seen


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_each_target_is_seen_with_its_state(
    chromium: stack.Server, demo: stack.Exporter, width: str, scheme: str
) -> None:
    async with browser.tab(chromium) as tab:
        seen = await look(tab, demo.url, width, scheme)
        assert tab.complaints == []
    assert seen["states"] == states(demo)
    assert len(seen["states"]) > 12
    assert set(seen["states"].values()) == {"up"}


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_each_trouble_is_seen_with_its_reason(
    chromium: stack.Server, troubled: stack.Exporter, width: str, scheme: str
) -> None:
    async with browser.tab(chromium) as tab:
        seen = await look(tab, troubled.url, width, scheme)
        assert tab.complaints == []
    assert seen["states"] == states(troubled) | {"silent": "waiting"}
    assert [*seen["states"].values()] == ["down"] * 4 + ["waiting", "up"], "what is wrong stands first"
    for words in ("nothing listens there", "not recognised", "Missing, and what brings it", "4 down, 1 waiting, 1 up"):
        assert words in seen["text"]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_a_page_that_is_not_there_says_what_is(
    chromium: stack.Server, demo: stack.Exporter, width: str, scheme: str
) -> None:
    async with browser.tab(chromium) as tab:
        seen = await look(tab, f"{demo.url}/nothing", width, scheme)
        assert tab.complaints == MISSING
    assert f"{demo.url}/" in seen["links"]


async def test_every_link_leads_to_a_page(chromium: stack.Server, demo: stack.Exporter) -> None:
    async with browser.tab(chromium) as tab:
        await tab.open(f"{demo.url}/nothing", width=WIDTHS["desk"], scheme="light")
        links = {*(await tab.value(LOOK))["links"]}
        await tab.open(demo.url, width=WIDTHS["desk"], scheme="light")
        links |= {*(await tab.value(LOOK))["links"]}
        assert {link.removeprefix(demo.url) for link in links} == {"/", "/metrics", "/-/healthy", "/-/ready"}
        for link in links:
            await tab.open(link, width=WIDTHS["desk"], scheme="light")
            assert await tab.value("performance.getEntriesByType('navigation')[0].responseStatus") == 200
            assert await tab.value("document.body.innerText")
            assert tab.complaints == []
