"""What real frontends and workers answered, served again, becomes exactly the exposition expected of it."""

import asyncio
import subprocess
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from prometheus_client.parser import text_string_to_metric_families

from exporter.config.model import TargetConfig
from exporter.core.errors import ReadError
from exporter.core.fetch import Upstream, session
from exporter.core.source import Context, Result, source_map
from exporter.core.total import Totals
from exporter.core.types import Sample, SeriesTable
from exporter.sources.dynamo.endpoint import Endpoint
from exporter.text.difference import Difference
from exporter.text.negotiate import Format
from exporter.text.render import Sheet, page

HERE = Path(__file__).parents[2] / "captures" / "dynamo"
PORTS = sorted(str(body.relative_to(HERE))[: -len("_metrics.body")] for body in HERE.glob("*/**/*_metrics.body"))
FRONTENDS = [port for port in PORTS if port.endswith("frontend")]
WORKERS = [port for port in PORTS if "system_1808" in port]
A, B = "1.6.1/A_default", "1.6.1/B_nats"
LOADED = f"{A}/3_load_t5/frontend"
WORKER = f"{A}/3_load_t5/system_18081"

Routes = dict[str, tuple[int, bytes]]


def captured(port: str) -> Routes:
    """What a port answered: status and body by path."""
    file = HERE / f"{port}_metrics.body"
    routes = {"/metrics": (200, file.read_bytes())}
    statuses = dict(line.split() for line in file.with_name("status.txt").read_text().splitlines())
    for name, path in (("health", "/health"), ("models", "/v1/models")):
        body = HERE / f"{port}_{name}.body"
        if body.exists():
            status = next(int(s) for of, s in statuses.items() if of.rpartition(".")[0] == f"{file.name[:-13]}_{name}")
            routes[path] = status, body.read_bytes()
    return routes


def engine(name: str) -> Routes:
    """A worker with a real engine: its own families, and the engine's behind them."""
    routes = captured(f"{B}/8_provisioning/system_18082")
    return {**routes, "/metrics": (200, routes["/metrics"][1] + (HERE / f"engines/{name}_metrics.body").read_bytes())}


class Port:
    """A port whose answers can be changed, and an endpoint that reads it at times that are set."""

    def __init__(self, url: str, routes: Routes, upstream: Upstream, config: TargetConfig) -> None:
        self.routes = routes
        self.time = 0.0
        self.asked: list[str] = []
        self.table = SeriesTable({"source": "dynamo", "target": "dynamo"})
        self.totals = Totals(source_map("dynamo"), self.table)
        self.endpoint = Endpoint(
            config,
            Context(upstream, self.table, self.totals, Difference(self.totals), clock=lambda: self.time),
        )

    async def read(self) -> list[Sample]:
        """What is shown after a read, once a page has carried it."""
        result: Result = await self.endpoint.read()
        self.totals.samples(0)
        return [*self.totals.samples(1), *result.samples]

    async def values(self, family: str) -> dict[str, float]:
        """The values of a family after a read, by their own labels."""
        shown = await self.read()
        return {
            ",".join(value for _, value in series.own) + series.suffix: value
            for series, value in shown
            if series.family.name == family
        }


@asynccontextmanager
async def serving(routes: Routes) -> AsyncIterator[Port]:
    async def answer(request: web.Request) -> web.Response:
        port.asked.append(request.path)
        status, body = port.routes.get(request.path, (404, b""))
        json = body[:1] == b"{"
        return web.Response(body=body, status=status, content_type="application/json" if json else "text/plain")

    runner = web.ServerRunner(web.Server(answer), access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        async with session() as client:
            port = Port(url, routes, Upstream(client, url), TargetConfig(url=url))
            yield port
    finally:
        await runner.cleanup()


async def read(routes: Routes) -> list[Sample]:
    async with serving(routes) as port:
        return await port.read()


def exposition(samples: list[Sample]) -> bytes:
    told = [sample for sample in samples if sample[0].family.name != "llm_probe_duration_seconds"]
    return page([Sheet(told)], Format.TEXT)


@pytest.mark.parametrize("port", PORTS)
async def test_a_capture_becomes_exactly_the_exposition_expected_of_it(port: str, accept: bool) -> None:
    told = exposition(await read(engine(port.removeprefix("engines/")) if "engines" in port else captured(port)))
    expected = HERE / f"{port}.prom"
    if accept:
        expected.write_bytes(told)
    assert told == expected.read_bytes()


def promtool(text: bytes) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, check=False)


@pytest.mark.parametrize("port", PORTS)
async def test_promtool_finds_nothing_in_an_exposition_and_prometheus_client_reads_it(port: str) -> None:
    samples = await read(engine(port.removeprefix("engines/")) if "engines" in port else captured(port))
    found = await asyncio.to_thread(promtool, page([Sheet(samples)], Format.TEXT))
    assert (found.returncode, found.stdout, found.stderr) == (0, b"", b"")
    families = list(openmetrics_families(page([Sheet(samples)], Format.OPENMETRICS).decode()))
    assert sum(len(family.samples) for family in families) == len(samples)


# -- against prometheus-client's parser, which knows nothing of the map ------------------------------------------

Told = Mapping[tuple[str, ...], float]


def sums(text: bytes, name: str, *labels: str, where: Mapping[str, str] = {}) -> Told:
    """The samples of one name added up by these labels and their bucket."""
    told: dict[tuple[str, ...], float] = defaultdict(float)
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            if sample.name == name and all(sample.labels.get(label) == value for label, value in where.items()):
                bound = [str(float(sample.labels["le"]))] if "le" in sample.labels else []
                told[(*(sample.labels.get(label, "") for label in labels), *bound)] += sample.value
    return dict(told)


def expected(port: str) -> bytes:
    return (HERE / f"{port}.prom").read_bytes()


def body(port: str) -> bytes:
    return (HERE / f"{port}_metrics.body").read_bytes()


@pytest.mark.parametrize("port", FRONTENDS)
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("llm_requests_total", "requests_total"),
        ("llm_requests_running", "inflight_requests"),
        ("llm_requests_waiting", "queued_requests"),
        ("llm_client_disconnects_total", "disconnected_clients"),
        ("llm_prompt_tokens_total", "input_sequence_tokens_sum"),
        ("llm_cached_prompt_tokens_total", "cached_tokens_sum"),
        ("llm_output_tokens_total", "output_tokens_total"),
        ("llm_model_context_tokens", "model_context_length"),
        *(
            (f"{ours}_{part}", f"{theirs}_{part}")
            for ours, theirs in (
                ("llm_request_duration_seconds", "request_duration_seconds"),
                ("llm_time_to_first_token_seconds", "time_to_first_token_seconds"),
                ("llm_inter_token_latency_seconds", "inter_token_latency_seconds"),
                ("llm_prompt_length_tokens", "input_sequence_tokens"),
                ("llm_output_length_tokens", "output_sequence_tokens"),
            )
            for part in ("bucket", "count", "sum")
        ),
    ],
)
def test_a_frontend_s_numbers_are_those_of_its_body(port: str, ours: str, theirs: str) -> None:
    prefix = "nv_llm_http_service" if "prefix" in port else "dynamo_frontend"
    told = sums(body(port).replace(b"unknown_model", b""), f"{prefix}_{theirs}", "model")
    assert sums(expected(port), ours, "model", where={"layer": "frontend"}) == pytest.approx(told)


@pytest.mark.parametrize("port", FRONTENDS)
def test_failures_are_those_of_the_body_and_each_has_its_reason(port: str) -> None:
    name = f"{'nv_llm_http_service' if 'prefix' in port else 'dynamo_frontend'}_requests_total"
    told = sums(body(port), name, "error_type", where={"status": "error"})
    names = {"validation": "bad_request", "not_found": "bad_request"}
    reasons: dict[str, float] = defaultdict(float)
    for (error,), count in told.items():
        reasons[names.get(error, error)] += count
    shown = sums(expected(port), "llm_request_failures_total", "reason")
    assert {reason: count for (reason,), count in shown.items() if count} == reasons


@pytest.mark.parametrize("port", WORKERS)
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("requests_total", "requests_total"),
        ("failures_total", "errors_total"),
        ("cancellations_total", "cancellation_total"),
        ("requests_running", "inflight_requests"),
        ("request_duration_seconds_bucket", "request_duration_seconds_bucket"),
        ("request_duration_seconds_count", "request_duration_seconds_count"),
        ("request_duration_seconds_sum", "request_duration_seconds_sum"),
    ],
)
def test_a_worker_s_numbers_are_those_of_its_body_without_internal_endpoints(port: str, ours: str, theirs: str) -> None:
    labels = ("dynamo_namespace", "dynamo_component", "dynamo_endpoint")
    generate = {"dynamo_endpoint": "generate"}
    told = sums(body(port), f"dynamo_component_{theirs}", *labels, "worker_id", where=generate)
    shown = sums(expected(port), f"llm_dynamo_worker_{ours}", *labels, "dynamo_instance")
    if theirs == "errors_total" and not told:
        told = {next(iter(shown)): 0.0}
    assert shown == pytest.approx(told)


@pytest.mark.parametrize("port", WORKERS)
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("llm_requests_running", "num_requests_running"),
        ("llm_requests_waiting", "num_requests_waiting"),
        ("llm_kv_cache_usage_ratio", "kv_cache_usage_perc"),
        ("llm_preemptions_total", "num_preemptions_total"),
        ("llm_request_duration_seconds_sum", "e2e_request_latency_seconds_sum"),
        ("llm_time_to_first_token_seconds_bucket", "time_to_first_token_seconds_bucket"),
        ("llm_inter_token_latency_seconds_count", "inter_token_latency_seconds_count"),
    ],
)
def test_an_engine_s_numbers_are_those_of_the_body(port: str, ours: str, theirs: str) -> None:
    told = sums(body(port), f"vllm:{theirs}", "model_name", "engine")
    assert sums(expected(port), ours, "model", "rank", where={"layer": "engine"}) == pytest.approx(told)


# -- what the exposition cannot show ------------------------------------------------------------------------------


def test_no_capture_shows_an_unknown_model_an_internal_endpoint_or_an_address() -> None:
    for port in PORTS:
        text = expected(port).decode()
        for word in ("unknown_model", "worker_kv_", '"load_metrics"', "127.0.0.1", 'dynamo_instance="2324'):
            assert word not in text, port


async def test_workers_have_one_name_whether_dynamo_writes_it_decimal_or_hexadecimal() -> None:
    routed = await read(captured(LOADED))
    told = {s.get("dynamo_instance") for s, _ in routed if s.family.name == "llm_dynamo_worker_active_decode_blocks"}
    own = {
        series.get("dynamo_instance")
        for worker in ("18081", "18082")
        for series, _ in await read(captured(f"{A}/3_load_t5/system_{worker}"))
        if series.family.name == "llm_dynamo_worker_requests_running"
    }
    assert told == own == {"2040a1fbfa20030d", "2040a1fbfa200327"}


async def test_counters_of_a_frontend_gain_what_happened_between_two_reads() -> None:
    async with serving(captured(f"{A}/2_load_t0/frontend")) as port:
        assert await port.values("llm_requests_total") == {"frontend,tiny-llm": 44.0}
        port.routes = captured(f"{A}/4_killed_before_expiry/frontend")
        assert await port.values("llm_requests_total") == {"frontend,tiny-llm": 122.0}


async def test_a_frontend_restarted_that_has_overtaken_its_former_self_counts_right() -> None:
    async with serving(captured(f"{A}/2_load_t0/frontend")) as port:
        await port.read()
        port.routes = captured(
            f"{B}/5_killed_after_expiry/frontend"
        )  # another process: 316 requests, where 44 had been
        assert await port.values("llm_requests_total") == {"frontend,tiny-llm": 44.0 + 316.0}
        failed = await port.values("llm_request_failures_total")
        assert failed["frontend,tiny-llm,unavailable"] == 10.0


async def test_output_tokens_are_those_of_the_histogram_where_none_flow() -> None:
    routes = captured("0.7.1/frontend")
    flowing = b"dynamo_frontend_output_tokens_total"
    without = b"\n".join(line for line in routes["/metrics"][1].split(b"\n") if flowing not in line)
    async with serving({**routes, "/metrics": (200, without)}) as port:
        assert await port.values("llm_output_tokens_total") == {"frontend,tiny-llm": 960.0}


async def test_old_names_of_gauges_that_end_as_counters_do_are_gauges() -> None:
    lines = [
        "# TYPE nv_llm_http_service_queued_requests_total gauge",
        'nv_llm_http_service_queued_requests_total{model="m"} 3',
        "# TYPE nv_llm_http_service_inflight_requests_total gauge",
        'nv_llm_http_service_inflight_requests_total{model="m"} 5',
        "# TYPE nv_llm_http_service_requests_total counter",
        'nv_llm_http_service_requests_total{model="m",endpoint="completions",request_type="unary",status="success"} 7',
    ]
    routes = {**captured("0.7.1/frontend"), "/metrics": (200, "\n".join([*lines, ""]).encode())}
    async with serving(routes) as port:
        assert await port.values("llm_requests_waiting") == {"frontend,m": 3.0}
        assert await port.values("llm_requests_running") == {"frontend,m": 5.0}
        assert await port.values("llm_requests_total") == {"frontend,m": 7.0}
        assert not port.totals.dropped.total()


@pytest.mark.parametrize("name", ["A_default/2_load_t0", "B_nats/3_load_t5"])
async def test_where_what_waits_is_told_by_stage_alone_it_is_their_sum(name: str) -> None:
    """Dynamo says of `queued_requests` that it will go."""
    routes = captured(f"1.6.1/{name}/frontend")
    async with serving(routes) as port:
        waiting = await port.values("llm_requests_waiting")
        assert sum(waiting.values()) > 0
    status, metrics = routes["/metrics"]
    gone = b"\n".join(line for line in metrics.split(b"\n") if b"queued_requests" not in line)
    async with serving({**routes, "/metrics": (status, gone)}) as port:
        assert sum((await port.values("llm_requests_waiting")).values()) == sum(waiting.values())


READY = "llm_dynamo_model_ready"


async def test_a_model_whose_last_worker_has_gone_is_not_ready_and_leaves_after_a_while() -> None:
    async with serving(captured(LOADED)) as port:
        assert await port.values(READY) == {"tiny-llm": 1.0}
        status, metrics = port.routes["/metrics"]
        gone = b"\n".join(line for line in metrics.split(b"\n") if b"model_ready" not in line)
        port.routes = {**port.routes, "/metrics": (status, gone)}
        port.time = 600.0
        assert await port.values(READY) == {"tiny-llm": 0.0}  # though /v1/models still has it
        assert await port.values("llm_dynamo_model_kv_blocks") == {}  # stale
        port.time = 601.0
        assert await port.values(READY) == {}
        port.routes = captured(LOADED)
        assert await port.values(READY) == {"tiny-llm": 1.0}
        assert "/v1/models" not in port.asked


async def test_where_readiness_is_not_told_the_list_of_models_is_asked() -> None:
    async with serving(captured("0.7.1/frontend")) as port:
        assert await port.values(READY) == {"tiny-llm": 1.0}
        port.routes = {**port.routes, "/v1/models": (200, b'{"data":[]}')}
        assert await port.values(READY) == {"tiny-llm": 0.0}
        port.routes = {**port.routes, "/v1/models": (404, b"")}
        assert await port.values(READY) == {"tiny-llm": 0.0}
        port.routes = {**port.routes, "/v1/models": (500, b"")}
        with pytest.raises(ReadError, match="500"):
            await port.read()


@pytest.mark.parametrize("said", ["[]", "{}", '{"data":{}}', '{"data":[1,{},{"id":5},{"id":""}]}', '{"data":null}'])
async def test_a_list_of_models_that_is_none_says_nothing(said: str) -> None:
    routes = {**captured("0.4.1/frontend"), "/v1/models": (200, said.encode())}
    async with serving(routes) as port:
        assert await port.values(READY) == {}


UP = "llm_probe_up"


@pytest.mark.parametrize(
    ("port", "up", "endpoints"),
    [
        (LOADED, 1.0, {}),
        (WORKER, 1.0, {"generate": "ready", "worker_kv_query_source_697c5c995650a": "ready"}),  # answers 503
        (f"{B}/8_provisioning/system_18082", 1.0, {"generate": "ready"}),
        ("0.4.1/system_18081", 1.0, {"generate": "ready", "load_metrics": "ready"}),
        ("0.4.1/system_18090", 0.0, {}),  # nothing is served there
    ],
)
async def test_health_is_what_the_endpoints_say_and_not_the_status(port: str, up: float, endpoints: object) -> None:
    async with serving(captured(port)) as read:
        assert await read.values(UP) == {"health": up}
        assert read.endpoint.endpoints == endpoints


@pytest.mark.parametrize(
    ("port", "status", "said", "up"),
    [
        (WORKER, 200, '{"status":"ready","endpoints":{"generate":"notready","other":"ready"}}', 0.0),
        (LOADED, 503, '{"status":"unhealthy","endpoints":[],"instances":[]}', 0.0),
        (LOADED, 200, '{"status":"unhealthy","endpoints":[],"instances":[]}', 0.0),
        (LOADED, 200, "not JSON", 1.0),
        (LOADED, 500, "[]", 0.0),
        (LOADED, 404, "", None),
    ],
)
async def test_health_that_is_none_is_seen(port: str, status: int, said: str, up: float | None) -> None:
    async with serving({**captured(port), "/health": (status, said.encode())}) as read:
        assert await read.values(UP) == ({} if up is None else {"health": up})


async def test_an_empty_body_is_no_failure_where_health_is_dynamo_s_and_what_was_there_has_vanished() -> None:
    async with serving(captured("0.7.1/frontend")) as port:
        assert await port.values("llm_requests_running") == {"frontend,tiny-llm": 0.0}
        port.routes = captured("0.4.1/frontend")  # the frontend of another version, before it has a model
        assert port.routes["/metrics"] == (200, b"")
        assert await port.values("llm_requests_running") == {}
        assert await port.values("llm_requests_total") == {"frontend,tiny-llm": 24.0}
        assert await port.values(READY) == {"tiny-llm": 0.0}
        port.routes = {**port.routes, "/health": (200, b"OK")}
        with pytest.raises(ReadError, match=r"answers nothing.*DYN_SYSTEM_PORT") as error:
            await port.read()
        assert error.value.reason == "content"


async def test_where_nothing_of_dynamo_s_is_the_error_says_what_to_switch_on() -> None:
    async with serving({}) as port:
        with pytest.raises(ReadError, match=r"404.*DYN_SYSTEM_PORT") as error:
            await port.read()
        assert error.value.reason == "status"
        url = port.endpoint._context.upstream.url
    async with session() as client:
        table = SeriesTable({})
        totals = Totals(source_map("dynamo"), table)
        nobody = Endpoint(TargetConfig(url=url), Context(Upstream(client, url), table, totals, Difference(totals)))
        with pytest.raises(ReadError, match="DYN_SYSTEM_PORT") as error:
            await nobody.read()
        assert error.value.reason == "connect"


async def test_what_a_worker_s_endpoints_said_is_forgotten_with_a_read_that_fails() -> None:
    async with serving(captured(WORKER)) as port:
        await port.read()
        assert port.endpoint.endpoints
        port.routes = {**port.routes, "/metrics": (500, b"")}
        port.routes.pop("/health")
        with pytest.raises(ReadError, match="500"):
            await port.read()
        assert not port.endpoint.endpoints


async def test_unchanged_answers_give_the_same_bytes() -> None:
    async with serving(captured(LOADED)) as port:
        assert exposition(await port.read()) == exposition(await port.read())
