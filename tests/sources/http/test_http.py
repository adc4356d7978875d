"""Configured services: what is up, what is down, and what is the exporter's own failure."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from exporter.config.load import ConfigError, load
from exporter.config.model import Config, Thresholds
from exporter.core.board import Board
from exporter.core.fetch import session
from exporter.core.poll import Watch
from exporter.core.types import Reading
from exporter.sources.http import Http, Service
from exporter.text.negotiate import Format
from exporter.wiring import assemble


class Double:
    """A service that answers as is set."""

    def __init__(self) -> None:
        self.status = 200
        self.text = "all is well"
        self.hangs = False
        self.asked: list[tuple[str, str | None]] = []
        self.url = ""
        self.port = 0

    async def answer(self, request: web.BaseRequest) -> web.Response:
        self.asked.append((request.path, request.headers.get("Authorization")))
        if self.hangs:
            await asyncio.sleep(60)
        return web.Response(status=self.status, text=self.text, headers={"Location": "/elsewhere"})


@pytest.fixture
async def double() -> AsyncIterator[Double]:
    made = Double()
    runner = web.ServerRunner(web.Server(made.answer), access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    made.port = runner.addresses[0][1]
    made.url = f"http://127.0.0.1:{made.port}"
    yield made
    await runner.cleanup()


@asynccontextmanager
async def watching(config: Config | None = None, board: Board | None = None, **options: Any) -> AsyncIterator[Watch]:
    async with session() as client:
        target = Service(**{"name": "s", "timeout": "1m", **options})
        yield assemble(config or Config(), target, client, board or Board(), None)


def shown(reading: Reading) -> dict[str, float]:
    assert {series.get("probe") for series, _ in reading.samples} <= {"http", "tcp"}
    return {series.family.name.removeprefix("llm_probe_"): value for series, value in reading.samples}


def why(reading: Reading) -> str:
    return " ".join(advice.missing for advice in reading.advice)


@pytest.mark.parametrize(
    ("answered", "expected", "up"),
    [(200, (), 1.0), (204, (), 1.0), (500, (), 0.0), (401, (), 0.0), (401, (401,), 1.0), (200, (401, 403), 0.0)],
)
async def test_a_service_is_up_where_its_status_is_one_that_is_expected(
    double: Double, answered: int, expected: tuple[int, ...], up: float
) -> None:
    double.status = answered
    async with watching(url=double.url, status=expected) as watch:
        reading = await watch.read()
    assert reading.ok
    assert shown(reading)["up"] == up
    assert (f"answers {answered}" in why(reading)) == (not up)


async def test_a_service_is_up_where_its_answer_holds_the_text(double: Double) -> None:
    async with watching(url=double.url, text="well") as watch:
        assert shown(await watch.read())["up"] == 1.0
        double.text = "all is lost"
        reading = await watch.read()
        assert shown(reading)["up"] == 0.0
        assert "without the text" in why(reading)


async def test_a_redirect_is_not_followed(double: Double) -> None:
    double.status = 302
    async with watching(url=f"{double.url}/health") as watch:
        reading = await watch.read()
    assert shown(reading)["up"] == 0.0
    assert "not followed" in why(reading)
    assert [path for path, _ in double.asked] == ["/health"]


async def test_up_since_stays_while_it_is_up_and_begins_anew_after_a_fall(
    double: Double, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with watching(url=double.url) as watch:
        now = iter([100.0, 300.0])
        watch._source._wall = lambda: next(now)  # type: ignore[attr-defined]
        told = []
        for status in (200, 200, 503, 200, 200):
            double.status = status
            told.append(shown(await watch.read()).get("up_since_timestamp_seconds"))
    assert told == [100.0, 100.0, None, 300.0, 300.0]


async def test_a_service_that_is_not_there_is_down_and_its_target_is_up() -> None:
    async with watching(url="http://127.0.0.1:1") as watch:
        reading = await watch.read()
    assert reading.ok
    assert shown(reading) == {"up": 0.0}
    assert "nothing listens" in why(reading)


async def test_a_service_that_hangs_is_down_within_the_timeout(double: Double) -> None:
    double.hangs = True
    async with watching(url=double.url, timeout="2s") as watch:
        reading = await watch.read()
    assert reading.ok
    assert shown(reading) == {"up": 0.0}
    assert "no whole answer within 1.6 s" in why(reading)


async def test_a_key_that_cannot_be_had_is_the_exporter_s_own_failure(double: Double, tmp_path: Path) -> None:
    file = tmp_path / "key"
    async with watching(url=double.url, api_key_file=str(file)) as watch:
        reading = await watch.read()
        assert (reading.reason, len(reading.samples)) == ("auth", 0)
        file.write_text("invented\n")
        assert shown(await watch.read())["up"] == 1.0
    assert double.asked == [("/", "Bearer invented")]


async def test_a_port_is_up_while_it_takes_connections() -> None:
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with watching(host="127.0.0.1", port=port) as watch:
        assert shown(await watch.read())["up"] == 1.0
        server.close()
        await server.wait_closed()
        reading = await watch.read()
        assert shown(reading) == {"up": 0.0}
        assert reading.ok


async def test_nothing_is_taken_for_a_configured_service() -> None:
    assert Http.candidates({}) == []
    assert not await Http.recognise()


def test_the_name_is_host_and_port() -> None:
    assert Http.at("tcp://db:5432", {}).target_name == "db:5432"
    assert Http.at("tcp://[::1]:5432", {}).target_name == "[::1]:5432"
    assert Http.at("https://gw/health", {}).target_name == "gw:443"
    assert Service(host="::1", port=1).place == "tcp://[::1]:1"


@pytest.mark.parametrize(
    ("entry", "what"),
    [
        ("{source: http, name: a}", "write url, or host and port"),
        ("{source: http, url: http://a, host: a, port: 1}", "write url, or host and port"),
        ("{source: http, host: a}", "port without host (write both)"),
        ("{source: http, host: a, port: 1, status: 200}", "write them with a url"),
        ("{source: http, url: http://a, status: 99}", "too small: 99"),
        ("{source: http, url: http://a, thresholds: {cpu_max: 900}}", "thresholds.cpu_max: too large"),
        ("{source: http, url: http://a, thresholds: {cpu_max: much}}", "not a number: 'much'"),
    ],
)
def test_what_is_written_wrong_is_said(entry: str, what: str, tmp_path: Path) -> None:
    file = tmp_path / "llm.yaml"
    file.write_text(f"targets:\n  - {entry}\n")
    with pytest.raises(ConfigError, match=r"llm.yaml:2: targets\.0") as caught:
        load(file)
    assert what in str(caught.value)


def test_a_status_is_one_or_several(tmp_path: Path) -> None:
    file = tmp_path / "llm.yaml"
    file.write_text("targets: [{source: http, url: http://a, status: 401, text: ok}, "
                    "{source: http, url: http://b, status: [200, 503]}]")  # fmt: skip
    assert [target.status for target in load(file).targets] == [(401,), (200, 503)]  # type: ignore[attr-defined]


@pytest.mark.parametrize(("own", "ratios"), [(None, (0.8, 0.9, 3.0)), (Thresholds(mem_max=50.5), (0.8, 0.505, 3.0))])
async def test_thresholds_are_ratios_and_a_service_s_own_come_first(
    own: Thresholds | None, ratios: tuple[float, ...], tmp_path: Path
) -> None:
    board = Board()
    config = Config(thresholds=Thresholds(cpu_max=80, restart_failures=3))
    async with watching(config, board, url="http://127.0.0.1:1", thresholds=own, api_key_file="/nowhere") as watch:
        assert not (await watch.read()).ok  # they are there for a target that is down, too
    page = board.page(Format.TEXT).decode()
    labels = '{source="http",target="s"}'
    for name, ratio in zip(("cpu_ratio", "memory_ratio", "restart_failures"), ratios, strict=True):
        assert f"llm_threshold_{name}{labels} {ratio}\n" in page
