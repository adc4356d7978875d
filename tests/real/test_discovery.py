"""Dynamo's discovery against a real etcd: who registers, whose lease ends, what is seen while etcd breaks."""

import asyncio
import json
import time
from base64 import b64encode
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from brokers import SECRET, SELDOM, SOON, EtcdMember, Watched, certificates, etcd, found, line, stopped, watched
from stack import PATIENCE, running

from exporter.config.model import Tls
from exporter.core.fetch import Upstream, session
from exporter.sources.dynamo.registry import PREFIXES, Registry
from exporter.sources.etcd.gateway import Gateway

FAILED = "llm_target_read_failures_total"
ENDPOINT = {"dynamo_namespace": "n", "dynamo_component": "backend", "dynamo_endpoint": "generate"}


def base64(text: str) -> str:
    return b64encode(text.encode()).decode()


class Worker:
    """A worker as etcd knows one: a lease, and under it an instance that takes connections."""

    started: ClassVar[list["Worker"]] = []

    def __init__(self, member: EtcdMember, token: str = "") -> None:
        self._member = member
        self._token = token
        self._server: asyncio.Server | None = None
        self.lease = ""

    @property
    def id(self) -> str:
        return f"{int(self.lease):x}"

    async def start(self, ttl: int, endpoint: str = "generate") -> None:
        self._server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
        self.started.append(self)
        port = self._server.sockets[0].getsockname()[1]
        self.lease = (await asyncio.to_thread(self._member.post, "lease/grant", self._token, TTL=ttl))["ID"]
        await self.put(f"v1/instances/n/backend/{endpoint}/{self.id}", {"transport": {"tcp": f"127.0.0.1:{port}/x"}})

    async def put(self, key: str, value: object) -> None:
        told = {"key": base64(key), "value": base64(json.dumps(value)), "lease": self.lease}
        await asyncio.to_thread(self._member.post, "kv/put", self._token, **told)

    async def stay(self) -> None:
        await asyncio.to_thread(self._member.post, "lease/keepalive", self._token, ID=self.lease)

    def die(self) -> None:
        assert self._server is not None
        self._server.close()

    async def stop(self) -> None:
        self.die()
        await asyncio.to_thread(self._member.post, "lease/revoke", self._token, ID=self.lease)


@pytest.fixture(autouse=True)
async def _all_die() -> AsyncIterator[None]:
    yield
    while Worker.started:
        Worker.started.pop().die()


@pytest.fixture
def member(tmp_path: Path) -> Iterator[EtcdMember]:
    made = etcd(tmp_path)
    with running(made):
        yield made


def dynamo(*members: str, **options: Any) -> dict[str, Any]:
    return {"source": "dynamo", "name": "dynamo", "etcd": list(members), **options}


async def until_state(seen: Watched, state: str, target: str = "dynamo", within: float = PATIENCE) -> None:
    """Wait until the endpoint is in this state."""
    await seen.until_value("llm_dynamo_endpoint_state", 1.0, within, **ENDPOINT, target=target, state=state)


def states_ever(seen: Watched) -> set[str]:
    """The states that any page has shown of the endpoint."""
    return {
        dict(labels)["state"]
        for _, page in seen.pages
        for (name, labels), value in page.items()
        if name == "llm_dynamo_endpoint_state" and value
    }


async def test_a_worker_s_life_is_seen_as_it_happens(member: EtcdMember, tmp_path: Path) -> None:
    heard, read = {**ENDPOINT, "target": "dynamo"}, {**ENDPOINT, "target": "often"}
    async with watched(tmp_path, dynamo(member.url, **SELDOM), dynamo(member.url, name="often", forget="3s")) as seen:
        for target in ("dynamo", "often"):
            await seen.until_value("llm_target_up", 1.0, target=target)
        first, second = Worker(member), Worker(member)
        await first.start(ttl=600)
        await until_state(seen, "ready")
        began = time.time()
        await second.start(ttl=600)
        for place in (heard, read):
            await seen.until_value("llm_dynamo_endpoint_instances", 2.0, **place)
        last = seen.value("llm_dynamo_endpoint_last_activity_timestamp_seconds", **heard)
        assert began <= (last or 0.0) <= time.time()
        await seen.read_again(3, target="often")  # it is asked once, and answers
        second.die()
        instance = {"dynamo_instance": second.id}
        await seen.until_value("llm_dynamo_instance_state", 1.0, **read, **instance, state="suspect")
        assert seen.value("llm_dynamo_endpoint_state", **read, state="ready") == 1.0
        await second.stop()
        await seen.until_value("llm_dynamo_endpoint_instances", 1.0, **heard)
        assert seen.value("llm_dynamo_instance_info", **heard, **instance) is None
        stopped = time.monotonic()
        await first.stop()
        await until_state(seen, "offline")
        await seen.until_value("llm_dynamo_endpoint_instances", None, **read)
        assert time.monotonic() - stopped > 3


async def test_a_lease_that_is_not_kept_ends_and_one_that_is_does_not(member: EtcdMember, tmp_path: Path) -> None:
    async def keep(worker: Worker) -> None:
        while True:
            await worker.stay()
            await asyncio.sleep(1)

    async with watched(tmp_path, dynamo(member.url)) as seen:
        kept, lost = Worker(member), Worker(member)
        await kept.start(ttl=5)
        await lost.start(ttl=5, endpoint="other")
        staying, going = (asyncio.create_task(keep(worker)) for worker in (kept, lost))
        other = {**ENDPOINT, "dynamo_endpoint": "other"}
        await seen.until_value("llm_dynamo_endpoint_state", 1.0, **other, state="ready")
        await seen.read_again(3, target="dynamo")  # it is asked once, and answers
        lost.die()
        await seen.until_value("llm_dynamo_endpoint_state", 1.0, **other, state="suspect")
        going.cancel()
        left = time.monotonic()
        await seen.until_value("llm_dynamo_endpoint_instances", 0.0, **other)
        assert time.monotonic() - left > 3
        assert seen.value("llm_dynamo_endpoint_state", **other, state="offline") == 1.0
        assert seen.value("llm_dynamo_endpoint_state", **ENDPOINT, state="ready") == 1.0
        staying.cancel()


async def test_while_etcd_is_dead_hung_or_cut_off_states_are_unknown_and_never_offline(
    member: EtcdMember, tmp_path: Path
) -> None:
    async with line(member.port) as way, watched(tmp_path, dynamo(f"http://127.0.0.1:{way.port}")) as seen:
        worker = Worker(member)
        await worker.start(ttl=600)
        await until_state(seen, "ready")
        member.stop(9)
        await until_state(seen, "unknown", within=SOON)
        assert seen.value("llm_target_up", target="dynamo") == 0.0
        await asyncio.to_thread(member.start)
        await until_state(seen, "ready")
        with stopped(member):
            await until_state(seen, "unknown", within=SOON)
        await until_state(seen, "ready")
        way.cut()
        await until_state(seen, "unknown", within=SOON)
        way.mend()
        await until_state(seen, "ready")
        await worker.stop()
        await until_state(seen, "offline", within=SOON)  # the watch is tried again after seconds, reads go on
        assert states_ever(seen) == {"ready", "unknown", "offline"}


async def test_an_etcd_that_is_slow_is_read_more_rarely_and_its_changes_are_told_all_the_same(
    member: EtcdMember, tmp_path: Path
) -> None:
    async with line(member.port) as way:
        way.late = 0.2
        async with watched(tmp_path, dynamo(f"http://127.0.0.1:{way.port}")) as seen:
            interval = "llm_target_interval_seconds"
            await seen.until(lambda page: (found(page, interval, target="dynamo") or 0) > 5, "a tenth of its time")
            for _ in range(10):  # until no read fell between
                reads = seen.value("llm_target_read_duration_seconds", target="dynamo")
                worker = Worker(member)
                await worker.start(ttl=600)
                await until_state(seen, "ready")
                await worker.stop()
                await until_state(seen, "offline")
                if seen.value("llm_target_read_duration_seconds", target="dynamo") == reads:
                    break
            else:
                raise AssertionError("a change is told by the watch, long before the next read")
            assert states_ever(seen) == {"ready", "offline"}
            assert sum(value for (name, _), value in seen.look().items() if name == FAILED) == 0.0


def with_users(member: EtcdMember) -> None:
    """root, and `reader`, who may read v1/ alone."""
    member.post("auth/user/add", name="root", password=SECRET)
    member.post("auth/user/add", name="reader", password=SECRET)
    member.post("auth/role/add", name="root")
    member.post("auth/role/add", name="v1")
    permission = {"permType": "READ", "key": base64("v1/"), "range_end": base64("v10")}
    member.post("auth/role/grant", name="v1", perm=permission)
    member.post("auth/user/grant", user="root", role="root")
    member.post("auth/user/grant", user="reader", role="v1")
    member.post("auth/enable")


async def test_a_user_who_may_read_one_prefix_sees_it_and_its_changes_and_others_are_told_why(
    tmp_path: Path,
) -> None:
    server = etcd(tmp_path, "--auth-token", "simple", "--auth-token-ttl", "3")
    password = tmp_path / "password"
    password.write_text(SECRET)
    wrong = tmp_path / "wrong"
    wrong.write_text("wrong")
    with running(server):
        await asyncio.to_thread(with_users, server)
        login = {"user": "reader", "password_file": str(password)}
        others = [
            dynamo(server.url, name="again", interval="4s", **login),
            dynamo(server.url, name="nobody"),
            dynamo(server.url, name="mistaken", user="reader", password_file=str(wrong)),
        ]
        async with watched(tmp_path, dynamo(server.url, **login, **SELDOM), *others) as seen:
            await seen.until_value("llm_target_up", 1.0, target="dynamo")
            root = server.post("auth/authenticate", name="root", password=SECRET)["token"]  # good for three seconds
            worker = Worker(server, root)
            await worker.start(ttl=600)
            await until_state(seen, "ready")
            await until_state(seen, "ready", "again")
            page = seen.why()
            assert "wants a user (set user and password_file)" in page
            assert "refuses user or password (see user and password_file)" in page
            await seen.read_again(2, target="again")  # the token has run out, another one is asked for
            assert states_ever(seen) == {"ready"}
            root = server.post("auth/authenticate", name="root", password=SECRET)["token"]
            worker._token = root
            await worker.stop()
            await until_state(seen, "offline", "again")


async def test_over_tls_with_a_certificate_of_one_s_own(tmp_path: Path) -> None:
    files = certificates(tmp_path)
    server = etcd(
        tmp_path, "--cert-file", str(files.server), "--key-file", str(files.server_key),
        "--trusted-ca-file", str(files.ca), "--client-cert-auth", scheme="https", ready="",
    )  # fmt: skip
    url = server.url.replace("http:", "https:")
    ours = {"ca_file": str(files.ca), "cert_file": str(files.client), "key_file": str(files.client_key)}
    with running(server):
        targets = [
            dynamo(url, tls=ours, **SELDOM),
            dynamo(url, name="no certificate", tls={"ca_file": str(files.ca)}),
            dynamo(url, name="no trust"),
        ]
        async with watched(tmp_path, *targets) as seen:
            await seen.until_value("llm_target_up", 1.0, target="dynamo")
            async with session() as client:
                upstream = Upstream(client, url, tls=Tls(**ours).context)
                told = {"key": base64("v1/instances/n/backend/generate/1"), "value": base64('{"transport": {}}')}
                async with upstream.post("/v3/kv/put", told) as answer:
                    assert answer.status == 200
            await until_state(seen, "ready")  # the watch goes over TLS, too
            await seen.until_value("llm_target_up", 0.0, target="no trust")
            await seen.until_value("llm_target_up", 0.0, target="no certificate")
            assert "its TLS certificate is refused" in seen.why()


async def test_a_gateway_that_is_off_and_a_member_that_is_gone(member: EtcdMember, tmp_path: Path) -> None:
    silent = etcd(tmp_path, "--enable-grpc-gateway=false")
    with running(silent):
        targets = [dynamo("http://127.0.0.1:1", member.url, **SELDOM), dynamo(silent.url, name="silent")]
        async with watched(tmp_path, *targets) as seen:
            await seen.until_value("llm_target_up", 1.0, target="dynamo")
            worker = Worker(member)
            await worker.start(ttl=600)
            await until_state(seen, "ready")
            await seen.until_value("llm_target_up", 0.0, target="silent")
            assert "write enable-grpc-gateway: true" in seen.why()


async def test_etcd_is_found_by_itself_once_dynamo_has_registered_there(member: EtcdMember, tmp_path: Path) -> None:
    async with watched(tmp_path, environ={"ETCD_ENDPOINTS": member.url}) as seen:
        worker = Worker(member)
        await worker.start(ttl=600)
        await until_state(seen, "ready")
        assert seen.value("llm_target_up", target="dynamo") == 1.0


async def test_five_hundred_workers_of_three_endpoints_cost_little_to_read(member: EtcdMember) -> None:
    card = {"card_json": {"model_info": {"hf_config_json": {"path": "http://w:81/v1/metadata/x"}}, "more": "x" * 1500}}
    async with session() as client:
        upstream = Upstream(client, member.url)

        async def put(number: int) -> None:
            for kind, endpoint, value in (
                ("instances", "generate", {"transport": {"tcp": f"10.0.0.1:{number}/x"}}),
                ("instances", "clear_kv_blocks", {"transport": {"tcp": f"10.0.0.1:{number}/x"}}),
                ("instances", "embed", {"transport": {"tcp": f"10.0.0.1:{number}/x"}}),
                ("mdc", "generate", card),
            ):
                key = f"v1/{kind}/n/backend/{endpoint}/{number:x}"
                told = {"key": base64(key), "value": base64(json.dumps(value))}
                async with upstream.post("/v3/kv/put", told) as answer:
                    await answer.json()

        await asyncio.gather(*(put(number) for number in range(500)))
        gateway, registry, costs = Gateway([upstream], lambda: None), Registry(), []
        for _ in range(5):
            began = time.thread_time()
            pairs, _ = await gateway.ranges(PREFIXES)
            registry.replace(((pair.key, pair.value, pair.revision, pair.lease) for pair in pairs), 1.0, first=False)
            costs.append((time.thread_time() - began) * 1000)
        assert len(registry.instances) == 1500
        assert len(registry.cards) == 500
        assert min(costs) < 50, f"CPU ms of each read: {costs}"
