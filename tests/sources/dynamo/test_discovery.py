"""What is registered, out of keys of every layout: what real etcds answered, served again, and a worker's life."""

import asyncio
import json
import os
import time
from base64 import b64decode, b64encode
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from aiohttp import web

from exporter.catalogue import families
from exporter.config.model import TargetConfig
from exporter.core.errors import ReadError
from exporter.core.fetch import Upstream, session
from exporter.core.source import Context, Result, source_map
from exporter.core.total import Totals
from exporter.core.types import Reading, Samples, SeriesTable
from exporter.sources.dynamo import Deployment, Dynamo
from exporter.sources.dynamo.discovery import Discovery
from exporter.sources.dynamo.registry import Card, Endpoint, Instance, Registry, read_record
from exporter.text.difference import Difference
from exporter.text.negotiate import Format
from exporter.text.render import Sheet, page

HERE = Path(__file__).parents[2] / "captures" / "dynamo"
SITUATIONS = sorted(str(body.parent.relative_to(HERE)) for body in HERE.glob("**/etcd_range.body"))


def key_of(pair: dict[str, Any]) -> str:
    return b64decode(pair["key"]).decode()


class Double:
    """etcd's gateway and NATS's monitoring port, with what is put into them; `denied` prefixes may not be read."""

    def __init__(self, situation: str | None = None) -> None:
        self.pairs: list[dict[str, Any]] = []
        self.connections: list[dict[str, Any]] | None = None
        self.denied: tuple[str, ...] = ()
        self.revision = 1
        self.url = ""
        if situation is not None:
            told = json.loads((HERE / situation / "etcd_range.body").read_bytes())
            self.pairs, self.revision = told.get("kvs", []), int(told["header"]["revision"])
            if (connz := HERE / situation / "nats_connz.body").exists():
                self.connections = json.loads(connz.read_bytes())["connections"]

    def put(self, key: str, value: object) -> None:
        self.delete(key)
        text = json.dumps(value).encode()
        pair = {"key": key.encode(), "value": text}
        self.pairs.append(
            {name: b64encode(raw).decode() for name, raw in pair.items()} | {"mod_revision": str(self.revision)}
        )

    def delete(self, key: str) -> None:
        self.revision += 1
        self.pairs = [pair for pair in self.pairs if key_of(pair) != key]

    async def answer(self, request: web.Request) -> web.Response:
        if request.path == "/connz" and self.connections is not None:
            offset, limit = int(request.query["offset"]), int(request.query["limit"])
            some = self.connections[offset : offset + limit]
            return web.json_response({"total": len(self.connections), "connections": some})
        if request.path != "/v3/kv/range":
            return web.Response(status=404)
        asked = await request.json()
        start, end = (b64decode(asked[name]).decode() for name in ("key", "range_end"))
        if start.startswith(self.denied):
            return web.json_response({"error": "etcdserver: permission denied", "code": 7}, status=403)
        found = sorted((pair for pair in self.pairs if start <= key_of(pair) < end), key=key_of)
        header = {"revision": str(self.revision)}
        return web.json_response(
            {"header": header, "kvs": found[: asked["limit"]], "more": len(found) > asked["limit"]}
        )


class Watched:
    """A discovery of a double, at times that are set, with the readings of its children as they are set."""

    def __init__(self, double: Double, upstream: Upstream, **options: Any) -> None:
        self.double = double
        self.time = 1000.0
        self.found: Sequence[TargetConfig] = ()
        self.readings: dict[str, Reading] = {}
        self.table = SeriesTable({"source": "dynamo", "target": "dynamo"})
        self.totals = Totals(source_map("dynamo"), self.table)
        self.config = Deployment(**({"etcd": (double.url,), "nats": double.url} | options))
        context = Context(
            upstream,
            self.table,
            self.totals,
            Difference(self.totals),
            found=lambda targets: setattr(self, "found", targets),
            newest=self.readings.get,
        )
        self.discovery = Discovery(self.config, context, wall=lambda: self.time)

    async def read(self) -> Result:
        return await self.discovery.read()

    async def states(self) -> dict[str, str]:
        """The state of each endpoint and each instance, by its name."""
        return states(await self.read())


def states(result: Result) -> dict[str, str]:
    return {
        series.get("dynamo_instance") or series.get("dynamo_endpoint") or "": series.get("state") or ""
        for series, value in result.samples
        if series.family.name.endswith("_state") and value
    }


def value(result: Result, family: str) -> float | None:
    return next((value for series, value in result.samples if series.family.name == family), None)


@asynccontextmanager
async def watching(double: Double, **options: Any) -> AsyncIterator[Watched]:
    runner = web.ServerRunner(web.Server(double.answer), access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    double.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        async with session() as client:
            yield Watched(double, Upstream(client, ""), **options)
    finally:
        await runner.cleanup()


# -- captures ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("situation", SITUATIONS)
async def test_a_registry_becomes_exactly_the_exposition_expected_of_it(situation: str, accept: bool) -> None:
    async with watching(Double(situation), internal=True) as watched:
        result = await watched.read()
        watched.totals.samples(0)
        told = page(
            [Sheet(Samples(*map(list, zip(*[*watched.totals.samples(1), *result.samples], strict=True))))], Format.TEXT
        )
    expected = HERE / situation / "registry.prom"
    if accept:
        expected.write_bytes(told)
    assert told == expected.read_bytes()


@pytest.mark.parametrize("situation", SITUATIONS)
async def test_each_key_of_an_instance_is_an_instance_and_each_card_has_its_endpoint(situation: str) -> None:
    pairs = Double(situation).pairs
    kinds = {"instances": Instance, "mdc": Card, "models": Card}
    for pair in pairs:
        key = key_of(pair)
        kind = key.removeprefix("v1/").partition("/")[0]
        record = read_record(key, b64decode(pair["value"]), int(pair.get("lease", 0)))
        if kind not in kinds or key == "mdc/tiny-llm":  # which names no endpoint, and never goes
            assert record is None
            continue
        assert isinstance(record, kinds[kind]), key
        assert record.endpoint.namespace == "dynamo"
        assert int(record.id, 16) == int(pair["lease"])
        if isinstance(record, Instance):
            said = json.loads(b64decode(pair["value"]))
            assert record.endpoint == Endpoint(said["namespace"], said["component"], said["endpoint"])
            assert record.subject == said["transport"].get("nats_tcp")
            if "tcp" in said["transport"]:
                assert said["transport"]["tcp"].startswith("{}:{}/".format(*record.address or ()))


@pytest.mark.parametrize("situation", [name for name in SITUATIONS if name.startswith("1.6.1") and "only" not in name])
async def test_workers_system_ports_are_found_in_their_cards(situation: str) -> None:
    async with watching(Double(situation)) as watched:
        await watched.read()
        urls = {target.url for target in watched.found}
        assert urls
        assert urls <= {"http://127.0.0.1:18081", "http://127.0.0.1:18082"}
        assert {target.target_name for target in watched.found} == {f"dynamo/{url[7:]}" for url in urls}


async def test_only_what_goes_to_and_from_workers_is_counted_of_nats() -> None:
    async with watching(Double("1.6.1/B_nats/3_load_t5")) as watched:
        await watched.read()
        watched.totals.samples(0)
        told = {
            (series.get("dynamo_instance"), series.get("direction")): value
            for series, value in watched.totals.samples(1)
            if series.family.name == "llm_dynamo_instance_nats_bytes_total"
        }
    assert told["2040a1fbfef66b06", "in"] == 519748
    assert told["2040a1fbfef66b06", "out"] == 129350
    assert len(told) == 4  # two workers; the frontend subscribes no instance's subject


# -- states ---------------------------------------------------------------------------------------------------------

KEY = "v1/instances/dynamo/backend/generate/a1"
CARD = "v1/mdc/dynamo/backend/generate/a1"
SYSTEM = "http://127.0.0.1:8081"


def card(system: str = SYSTEM) -> dict[str, Any]:
    path = f"{system}/v1/metadata/dynamo/backend/generate/m/_base/config.json"
    return {"card_json": {"model_info": {"hf_config_json": {"path": path}}}}


async def test_a_card_without_an_instance_is_provisioning_and_an_endpoint_that_is_gone_offline_for_a_while() -> None:
    async with watching(Double(), forget="10m") as watched:
        assert await watched.states() == {}
        watched.double.put(CARD, card())
        assert await watched.states() == {"generate": "provisioning"}
        watched.double.put(KEY, {"transport": {"nats_tcp": "dynamo_backend.generate-a1"}})
        assert await watched.states() == {"generate": "ready", "a1": "ready"}
        watched.double.delete(KEY)
        watched.double.delete(CARD)
        watched.time = 2000.0
        result = await watched.read()
        assert states(result) == {"generate": "offline"}
        assert value(result, "llm_dynamo_endpoint_instances") == 0
        assert value(result, "llm_dynamo_endpoint_last_activity_timestamp_seconds") == 2000.0
        watched.time = 2599.0
        assert await watched.states() == {"generate": "offline"}
        watched.time = 2600.0
        assert await watched.states() == {}


async def test_an_instance_is_suspect_when_its_address_no_longer_takes_connections() -> None:
    async with watching(Double()) as watched:
        server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        watched.double.put(KEY, {"transport": {"tcp": f"127.0.0.1:{port}/a1/dynamo/backend/generate"}})
        assert await watched.states() == {"generate": "ready", "a1": "ready"}
        server.close()
        assert await watched.states() == {"generate": "suspect", "a1": "suspect"}
        back = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", port)
        assert await watched.states() == {"generate": "ready", "a1": "ready"}
        watched.double.put(KEY.replace("a1", "b2"), {"transport": {"tcp": "127.0.0.1:1/b2/dynamo/backend/generate"}})
        back.close()
        assert await watched.states() == {"generate": "ready", "a1": "suspect", "b2": "ready"}, "b2 never answered"


async def test_an_instance_is_suspect_when_its_subject_is_gone_and_nobody_when_nats_cannot_be_asked() -> None:
    async with watching(Double()) as watched:
        subject = "dynamo_backend.generate-a1"
        watched.double.put(KEY, {"transport": {"nats_tcp": subject}})
        counts = {f"{direction}_{unit}": 1 for direction in ("in", "out") for unit in ("bytes", "msgs")}
        crowd = [{"cid": number, "subscriptions_list": ["x"], **counts} for number in range(1500)]
        watched.double.connections = [*crowd, {"cid": 9999, "subscriptions_list": [subject], **counts}]
        assert await watched.states() == {"generate": "ready", "a1": "ready"}
        watched.double.connections = crowd
        assert await watched.states() == {"generate": "suspect", "a1": "suspect"}
        watched.double.connections = None
        assert await watched.states() == {"generate": "ready", "a1": "ready"}


async def test_a_system_port_says_whether_its_worker_is_ready_dead_or_has_been_asked() -> None:
    async with watching(Double()) as watched:
        watched.double.put(KEY, {"transport": {"nats_tcp": "s"}})
        watched.double.put(CARD, card())

        def said(health: float, requests: float, running: float = 0.0, reason: str | None = None) -> None:
            endpoint = [
                ("dynamo_namespace", "dynamo"),
                ("dynamo_component", "backend"),
                ("dynamo_endpoint", "generate"),
            ]
            rows = {
                "llm_probe_up": ((("probe", "health"),), health),
                "llm_dynamo_worker_requests_total": ((*endpoint, ("dynamo_instance", "a1")), requests),
                "llm_dynamo_worker_requests_running": ((*endpoint, ("dynamo_instance", "a1")), running),
            }
            series = [watched.table(families()[name], labels) for name, (labels, _) in rows.items()]
            samples = Samples(series, [number for _, number in rows.values()])
            name = "dynamo/127.0.0.1:8081"
            watched.readings[name] = Reading(name, watched.time, 0.1, Samples() if reason else samples, reason=reason)

        async def activity() -> float | None:
            return value(await watched.read(), "llm_dynamo_endpoint_last_activity_timestamp_seconds")

        assert await watched.states() == {"generate": "ready", "a1": "ready"}
        said(0, 5)
        assert await watched.states() == {"generate": "provisioning", "a1": "provisioning"}
        said(1, 5)
        watched.time = 1100.0
        assert await watched.states() == {"generate": "ready", "a1": "ready"}
        assert await activity() is None, "nobody can say"
        watched.time = 1200.0
        said(1, 5)
        assert await activity() is None
        said(1, 6)
        assert await activity() == 1200.0
        watched.time = 1300.0
        said(1, 6, running=2)
        assert await activity() == 1300.0
        said(1, 6, reason="connect")
        assert await watched.states() == {"generate": "suspect", "a1": "suspect"}


class Cut(Double):
    """Of its watches the first is silent for ever, as one is whose connection was cut; the next one tells of a key."""

    watches = 0

    async def answer(self, request: web.Request) -> web.StreamResponse:  # type: ignore[override]
        if request.path != "/v3/watch":
            return await super().answer(request)
        self.watches += 1
        stream = web.StreamResponse()
        await stream.prepare(request)
        if self.watches > 1:
            self.put(KEY, {"transport": {"tcp": "127.0.0.1:1/x"}})
            events = [{"kv": pair} for pair in self.pairs]
            await stream.write(json.dumps({"result": {"events": events}}).encode() + b"\n")
        await asyncio.sleep(60)
        return stream


async def test_a_watch_that_was_cut_off_is_begun_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exporter.sources.dynamo.discovery.WATCH_ANEW", 0.1)
    async with watching(Cut(), nats=None) as watched, aclosing(watched.discovery.follow()) as following:
        assert await watched.states() == {}
        async with asyncio.timeout(20):
            assert states(await anext(following)) == {"generate": "ready", "a1": "ready"}


async def test_a_connection_that_cannot_be_right_costs_no_other() -> None:
    async with watching(Double()) as watched:
        subject = "dynamo_backend.generate-a1"
        watched.double.put(KEY, {"transport": {"nats_tcp": subject}})
        watched.double.connections = [
            {"cid": cid, "subscriptions_list": [subject], "in_bytes": count, "out_bytes": -1}
            for cid, count in (([], 7), ({}, 10**400), (None, None))
        ]
        assert await watched.states() == {"generate": "ready", "a1": "ready"}
        assert [*watched.totals.values("llm_dynamo_instance_nats_bytes_total").values()] == [7.0]


async def test_what_went_over_nats_leaves_with_the_last_worker_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exporter.core.lines.RETENTION", 1e-9)
    async with watching(Double("1.6.1/B_nats/3_load_t5")) as watched:
        await watched.read()
        assert watched.totals.values("llm_dynamo_instance_nats_bytes_total")
        watched.double.pairs = []
        await watched.read()
        await watched.read()
        assert not watched.totals.values("llm_dynamo_instance_nats_bytes_total")


async def test_while_etcd_cannot_be_asked_all_is_unknown_and_nothing_offline() -> None:
    async with watching(Double("1.6.1/A_default/1_idle_two_workers")) as watched:
        assert (await watched.states())["generate"] == "ready"
        watched.double.denied = ("v1/", "instances/", "models/", "mdc/")
        result = await watched.read()
        assert states(result) == {"generate": "unknown"}
        assert result.failure is not None
        assert result.failure.reason == "auth"
        assert "READ on them" in str(result.failure)
        assert {series.family.name for series, _ in result.samples} == {"llm_dynamo_endpoint_state"}


async def test_what_cannot_be_read_at_the_first_look_fails_and_one_prefix_is_enough() -> None:
    async with watching(Double("0.4.1")) as watched:
        watched.double.denied = ("v1/", "mdc/", "models/")
        assert await watched.states() == {"generate": "ready", "2040a1fc0758270a": "ready"}
    async with watching(Double("0.4.1")) as watched:
        watched.double.denied = ("v1/", "mdc/", "models/", "instances/")
        with pytest.raises(ReadError, match="does not let the user read"):
            await watched.read()


async def test_another_member_is_asked_where_one_is_gone() -> None:
    double = Double("0.7.1")
    async with watching(double) as first:
        for members in (("http://127.0.0.1:1", double.url), (double.url, "http://127.0.0.1:1")):
            watched = Watched(double, first.discovery._context.upstream, etcd=members)
            assert (await watched.states())["generate"] == "ready"
        dead = Watched(double, first.discovery._context.upstream, etcd=("http://127.0.0.1:1", "http://127.0.0.1:2"))
        with pytest.raises(ReadError, match=r"127\.0\.0\.1:1: nothing listens there; 127\.0\.0\.1:2: nothing"):
            await dead.read()


async def test_a_gateway_that_is_off_says_what_to_switch_on() -> None:
    async with watching(Double()) as watched:
        there = Deployment(etcd=(f"{watched.double.url}/elsewhere",))
        discovery = Discovery(there, watched.discovery._context)
        with pytest.raises(ReadError, match="enable-grpc-gateway: true"):
            await discovery.read()


def test_what_is_no_registration_of_dynamo_s_is_ignored() -> None:
    for key, text in {
        "v1/instances/a/b/c/1": b"not json",
        "v1/instances/a/b/c/2": b"[]",
        "v1/instances/a/b": b'{"transport": {"tcp": "h:1/x"}}',
        "v1/mdc/a/b/c/1": b"[" * 100_000,
        "models/1": b'{"endpoint": {"namespace": "n"}}',
        "mdc/slug": b"{}",
        "instances/": b"",
    }.items():
        registry = Registry()
        assert not registry.put(key, text, 1, 0, 1.0), key
        assert not registry.delete(key, 2.0)
        assert not registry.gone


def test_a_key_whose_value_is_no_longer_to_be_understood_is_no_instance_any_more() -> None:
    registry = Registry()
    assert registry.put("v1/instances/a/b/c/1", b'{"transport": {"tcp": "h:1/x"}}', 1, 0, 1.0)
    assert registry.put("v1/instances/a/b/c/1", b"not json", 2, 0, 2.0)
    assert not registry.instances
    assert [*registry.gone] == [Endpoint("a", "b", "c")]
    assert not registry.delete("v1/instances/a/b/c/1", 3.0)


def test_an_endpoint_is_gone_with_the_last_of_its_keys_and_a_crowd_that_goes_costs_its_number() -> None:
    class Counted(Endpoint):
        compared = 0

        def __hash__(self) -> int:
            Counted.compared += 1
            return super().__hash__()

    registry = Registry()
    keys = [(f"v1/instances/a/b/{name}/{worker:x}", b"{}", 1, 0) for worker in range(500) for name in "cde"]
    keys += [(f"v1/mdc/a/b/c/{worker:x}", b"{}", 1, 0) for worker in range(500)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("exporter.sources.dynamo.registry.Endpoint", Counted)
        registry.replace(keys, 1.0, first=True)
        registry.replace(keys[-1:], 2.0, first=False)
        assert {endpoint.name for endpoint in registry.gone} == {"d", "e"}
        Counted.compared = 0
        registry.replace(keys, 3.0, first=False)
        registry.replace([], 4.0, first=False)
    assert {endpoint.name for endpoint in registry.gone} == {"c", "d", "e"}
    assert Counted.compared < 20 * 2 * len(keys)


@pytest.mark.parametrize(
    "place", ["h:0", "a..b:80", "[::1:80", "a\0b:80", f"{'x' * 80}:80", "h:²", ":80", "127.0.0.1:99999"]
)
async def test_an_address_that_can_be_none_costs_its_own_instance_alone(place: str) -> None:
    double = Double()
    double.put("v1/instances/dynamo/backend/generate/a", {"transport": {"tcp": f"{place}/x"}})
    double.put("v1/instances/dynamo/other/generate/b", {"transport": {"tcp": "127.0.0.1:1/x"}})
    async with watching(double, nats=None) as watched:
        assert await watched.states() == {"generate": "ready", "a": "ready", "b": "ready"}


@pytest.mark.parametrize("place", ["h:99999", "h:0", "[::1", "h:x", "user:word@h:81", "a\0b:80", "h :1"])
async def test_a_system_port_that_can_be_none_is_not_read(place: str) -> None:
    double = Double()
    path = f"http://{place}/v1/metadata/config.json"
    double.put("v1/mdc/dynamo/backend/generate/a", {"card_json": {"model_info": {"hf_config_json": {"path": path}}}})
    async with watching(double) as watched:
        assert await watched.states() == {"generate": "provisioning"}
        assert watched.found == []


@pytest.mark.parametrize("transport", ["{}", '"x"', "null", '{"tcp": "x"}', '{"tcp": {"host": 1}}', "[1]"])
def test_an_instance_whose_transport_is_not_understood_is_there_all_the_same(transport: str) -> None:
    record = read_record("v1/instances/a/b/c/3", b'{"transport": %b}' % transport.encode(), 0)
    assert isinstance(record, Instance)
    assert (record.address, record.subject) == (None, None)


@pytest.mark.parametrize("card", ["{}", '{"card_json": null}', '{"card_json": {"model_info": [1]}}'])
def test_a_card_that_does_not_tell_a_system_port_is_a_card(card: str) -> None:
    assert read_record("v1/mdc/a/b/c/1", card.encode(), 0) == Card(Endpoint("a", "b", "c"), "1")


def test_a_transport_nobody_knows_is_shown_and_not_asked() -> None:
    record = read_record("v1/instances/a/b/c/FF", b'{"transport": {"quic": "h:1"}, "more": 1}', 0)
    assert record == Instance(Endpoint("a", "b", "c"), "ff", "quic")
    lora = b'{"card_json": {"model_info": {"hf_config_json": "x"}}}'
    assert read_record("v1/mdc/a/b/c/ff/lora-x", lora, 0) == Card(Endpoint("a", "b", "c"), "ff")


# -- the file backend -----------------------------------------------------------------------------------------------


async def test_the_folder_of_the_file_backend_says_the_same_and_a_file_nobody_touches_is_gone(tmp_path: Path) -> None:
    files = []
    for pair in Double("1.6.1/A_default/1_idle_two_workers").pairs:
        bucket, _, key = key_of(pair).removeprefix("v1/").partition("/")
        file = tmp_path / "v1" / bucket / quote(key, safe="").replace("-", "%2D").replace("_", "%5F")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b64decode(pair["value"]))
        files.append(file)
    double = Double()
    async with watching(double) as first:
        upstream = first.discovery._context.upstream
        watched = Watched(double, upstream, etcd=None, nats=None, directory=str(tmp_path))
        workers = ["2040a1fbfa20030d", "2040a1fbfa200327"]
        assert await watched.states() == {"generate": "ready"} | dict.fromkeys(workers, "ready")
        assert len(watched.found) == 2
        old = time.time() - 11
        for file in files:
            if file.name.endswith("2040a1fbfa20030d"):
                os.utime(file, (old, old))
        assert await watched.states() == {"generate": "ready", workers[1]: "ready"}
        nowhere = Watched(double, upstream, etcd=None, nats=None, directory=str(tmp_path / "nowhere"))
        with pytest.raises(ReadError, match="no such folder"):
            await nowhere.read()


# -- configuration ----------------------------------------------------------------------------------------------------


def test_one_entry_makes_a_target_of_the_registry_and_one_of_each_port() -> None:
    entry = Deployment(
        name="prod", etcd=("http://e:2379",), frontends=("http://f:8000", "https://f"), workers=("http://w:81",)
    )
    parts = entry.parts()
    assert [part.target_name for part in parts] == ["prod", "prod/f:8000", "prod/f:443", "prod/w:81"]
    assert [part.place for part in parts] == ["http://e:2379", "http://f:8000", "https://f", "http://w:81"]
    assert all(not part.parts()[1:] for part in parts)
    assert [part.target_name for part in Deployment(frontends=("http://f:8000",)).parts()] == ["dynamo/f:8000"]
    assert [part.target_name for part in Deployment(url="http://f:8000").parts()] == ["f:8000"]


@pytest.mark.parametrize(
    ("given", "wrong"),
    [
        ({}, "nothing to read"),
        ({"url": "http://f:1", "etcd": ("http://e:1",)}, "url beside etcd"),
        ({"directory": "/x", "etcd": ("http://e:1",)}, "etcd beside directory"),
        ({"frontends": ()}, "at least 1 item"),
    ],
)
def test_what_contradicts_itself_is_refused(given: dict[str, Any], wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong):
        Deployment(**given)


def test_dynamo_s_own_variables_say_where_etcd_is() -> None:
    found = Dynamo.candidates({})
    assert [(part.target_name, part.place) for part in found] == [
        ("dynamo", "http://127.0.0.1:2379"),
        ("dynamo/127.0.0.1:8000", "http://127.0.0.1:8000"),
    ]
    environ = {"ETCD_ENDPOINTS": "https://a:2379, b:2380", "DYN_HTTP_PORT": "9000", "ETCD_AUTH_USERNAME": "u"}
    discovery, frontend = Dynamo.candidates(environ)
    assert discovery.etcd == ("https://a:2379", "http://b:2380")
    assert discovery.login({"ETCD_AUTH_PASSWORD": "p"}) == ("u", "p")
    assert frontend.place == "http://127.0.0.1:9000"
