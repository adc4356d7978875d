"""A target given by its URL alone is told by what it answers, and never by asking what costs."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from served import Routes, serving
from test_engines import SGLANG, SIM, TGI, TRITON, TRTLLM, VLLM, body

from exporter.config.model import TargetConfig
from exporter.core.errors import ReadError
from exporter.core.fetch import Upstream, session
from exporter.sources import sources

DYNAMO = b"# TYPE dynamo_component_uptime_seconds gauge\ndynamo_component_uptime_seconds 5\n"
WORKER = b'{"status":"ready","uptime":5,"endpoints":{"generate":"ready"}}'
JSON = (200, "application/json", b"[]")


@asynccontextmanager
async def looking(url: str) -> AsyncIterator[Upstream]:
    async with session() as client:
        yield Upstream(client, url)


async def recognised(routes: Routes) -> tuple[list[str], list[str]]:
    """The sources that know the server as theirs, in the order in which they are asked; and what was asked for."""
    async with serving(routes) as server, looking(server.url) as upstream:
        found = []
        for kind, source in sources().items():
            try:
                if await source.recognise(upstream, TargetConfig(url=server.url)):
                    found.append(kind)
            except ReadError:
                continue
        return found, server.asked


BARE = body(VLLM).replace(b"vllm:", b"")


@pytest.mark.parametrize(
    ("kind", "routes"),
    [
        ("vllm", {"/metrics": body(VLLM)}),
        ("vllm", {"/metrics": body("vllm/0.32/startup")}),
        ("vllm", {"/metrics": body(SIM)}),
        ("vllm", {"/metrics": body(VLLM).replace(b"vllm:", b"vllm_")}),
        ("vllm", {"/metrics": body(VLLM).replace(b"vllm:", b"ray_vllm_")}),
        ("vllm", {"/metrics": b"# HELP a b\n" * 50_000 + body(VLLM)}),  # far down in the body
        ("sglang", {"/metrics": body(SGLANG)}),
        ("sglang", {"/metrics": body("sglang/0.5.23/startup")}),
        ("trtllm", {"/metrics": JSON, "/prometheus/metrics": TRTLLM.encode()}),
        ("triton", {"/metrics": TRITON.encode()}),
        ("tgi", {"/metrics": TGI.encode()}),
        ("nim", {"/v1/metrics": BARE}),
        ("nim", {"/v1/metrics": body(VLLM)}),
        ("nim", {"/v1/metrics": TRTLLM.encode()}),
        ("dynamo", {"/metrics": DYNAMO + body(VLLM), "/health": WORKER}),  # a worker, with its engine's metrics
        ("dynamo", {"/metrics": body(SGLANG) + DYNAMO, "/health": WORKER}),
        ("dynamo", {"/metrics": (200, "text/plain", b""), "/health": WORKER}),
    ],
)
async def test_a_server_is_told_by_the_names_of_its_metrics(kind: str, routes: Routes) -> None:
    found, asked = await recognised(routes)
    assert found == [kind]
    assert asked.count("/metrics") == 1  # whoever looks at it
    if kind != "dynamo":
        assert "/health" not in asked  # SGLang's runs a generation


@pytest.mark.parametrize(
    "routes",
    [
        {"/metrics": body(VLLM) + body(SGLANG)},  # several engines behind one URL
        {"/metrics": DYNAMO + body(VLLM)},  # Dynamo's, whose health cannot be asked now
        {"/metrics": (200, "text/html", b"<pre>\n" + body(VLLM))},
        {"/metrics": (500, "text/plain", body(VLLM))},
        {"/metrics": (302, "text/plain", body(VLLM))},
        {"/metrics": b"# HELP x # TYPE vllm:a gauge\nx 1\n"},
        {"/metrics": b'# TYPE x gauge\nx{a="\\n# TYPE vllm:a gauge"} 1\n'},
        {"/metrics": b"# TYPE my_vllm:a gauge\nmy_vllm:a 1\n"},
        {"/metrics": b"# TYPE vllmish gauge\nvllmish 1\n"},
        {"/metrics": b'# TYPE llm_requests_total counter\nllm_requests_total{source="vllm"} 1\n'},  # another of us
        {"/metrics": JSON},  # something that speaks JSON
        {"/metrics": JSON, "/prometheus/metrics": JSON},
        {"/metrics": JSON, "/prometheus/metrics": body(VLLM)},
        {"/v1/metrics": b"# TYPE gpu_utilization gauge\ngpu_utilization 0.5\n"},  # a NIM of another kind
        {"/metrics": b"\xff\xfe\x00"},
        {},
    ],
)
async def test_what_is_ambiguous_or_only_looks_like_one_is_not_taken_for_it(routes: Routes) -> None:
    found, asked = await recognised(routes)
    assert found == []
    assert asked.count("/metrics") == 1


async def test_several_engines_behind_one_url_are_named() -> None:
    async with serving({"/metrics": body(VLLM) + body(SGLANG)}) as server, looking(server.url) as upstream:
        with pytest.raises(ReadError, match=r"metrics of sglang and vllm \(write source:\)"):
            await sources()["vllm"].recognise(upstream, TargetConfig(url=server.url))


async def test_a_server_that_hangs_is_asked_once_and_the_next_source_does_not_wait_for_it() -> None:
    connected = 0

    async def hang(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connected
        connected += 1
        await never.wait()
        writer.close()

    never = asyncio.Event()
    server = await asyncio.start_server(hang, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with looking(url) as upstream:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1.0):
                await sources()["vllm"].recognise(upstream, TargetConfig(url=url))
        for kind in ("sglang", "tgi", "triton", "trtllm", "dynamo"):
            with pytest.raises(ReadError, match="gives no answer"):
                await sources()[kind].recognise(upstream, TargetConfig(url=url))
    assert connected == 1
    never.set()
    server.close()


@pytest.mark.parametrize(
    ("kind", "urls"),
    [
        ("vllm", ["http://127.0.0.1:8000"]),
        ("sglang", ["http://127.0.0.1:30000"]),
        ("trtllm", ["http://127.0.0.1:8000"]),
        ("triton", ["http://127.0.0.1:8002"]),
        ("tgi", ["http://127.0.0.1:8080", "http://127.0.0.1:3000"]),
        ("nim", ["http://127.0.0.1:8000"]),
        ("openmetrics", []),
    ],
)
def test_servers_are_looked_for_on_their_usual_ports_under_their_own_name(kind: str, urls: list[str]) -> None:
    found = sources()[kind].candidates({})
    assert [target.url for target in found] == urls
    assert {target.target_name for target in found} <= {kind}


def test_the_key_comes_from_the_server_s_own_variable(tmp_path: object) -> None:
    target = sources()["vllm"].at("http://gpu-1:8000", {"VLLM_API_KEY": "sk-1"})
    assert target.secret({"VLLM_API_KEY": "sk-1"}) == "sk-1"  # type: ignore[attr-defined]
