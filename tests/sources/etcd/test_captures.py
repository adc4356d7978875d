"""What real members of etcd answered under each version of Dynamo becomes exactly the exposition expected of it."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from exporter.config.model import Config
from exporter.core.board import Board
from exporter.core.fetch import session
from exporter.core.poll import Watch
from exporter.core.types import Reading
from exporter.sources.etcd import Etcd, Member
from exporter.text.negotiate import Format
from exporter.text.render import Sheet, page
from exporter.wiring import assemble

HERE = Path(__file__).parents[2] / "captures" / "etcd"
CAPTURES = sorted(str(file.parent.relative_to(HERE)) for file in HERE.rglob("metrics.txt"))
ONE = "1.6.1/B_nats-3_load_t5"
FILES = {
    "/metrics": "metrics.txt",
    "/health": "health.json",
    "/v3/lease/leases": "leases.json",
    "/version": "version.json",
}

Answer = Callable[[web.Request], web.Response]


@asynccontextmanager
async def watching(name: str, odd: dict[str, Answer] | None = None, **options: object) -> AsyncIterator[Watch]:
    """A watch on a member that answers as captured, but for what is `odd`."""

    async def answer(request: web.Request) -> web.StreamResponse:
        await request.read()
        if odd is not None and request.path in odd:
            return odd[request.path](request)
        file = HERE / name / FILES[request.path]
        kind = "text/plain" if file.suffix == ".txt" else "application/json"
        return web.Response(body=file.read_bytes(), content_type=kind)

    runner = web.ServerRunner(web.Server(answer), access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        async with session() as client:
            member = Member(url=f"http://127.0.0.1:{runner.addresses[0][1]}", name="etcd", **options)
            yield assemble(Config(), member, client, Board(), None)
    finally:
        await runner.cleanup()


def text(reading: Reading) -> bytes:
    return page([Sheet(reading.samples)], Format.TEXT)


def value(reading: Reading, name: str) -> float | None:
    found = [number for series, number in reading.samples if series.family.name == name]
    return found[0] if found else None


@pytest.mark.parametrize("name", CAPTURES)
async def test_a_capture_becomes_exactly_the_exposition_expected_of_it(name: str, accept: bool) -> None:
    async with watching(name) as watch:
        reading = await watch.read()
    assert reading.ok, reading.error
    assert reading.version in ("3.4.23", "3.6.16")
    assert not reading.advice
    expected = HERE / name / "expected.prom"
    if accept:
        expected.write_bytes(text(reading))
    assert text(reading) == expected.read_bytes()


@pytest.mark.parametrize("name", CAPTURES)
async def test_a_member_is_recognised_by_what_it_says_of_its_version(name: str) -> None:
    something = {"/version": lambda _: web.json_response({"version": "0.13.5"})}
    for odd, known in ((None, True), (something, False)):
        async with watching(name, odd) as watch:
            assert await Etcd.recognise(watch._source._context.upstream, None) is known  # type: ignore[attr-defined]


async def test_a_member_that_says_it_is_ill_is_read_and_shown_as_ill() -> None:
    ill = {"/health": lambda _: web.json_response({"health": "false", "reason": "RAFT NO LEADER"}, status=503)}
    async with watching(ONE, ill) as watch:
        reading = await watch.read()
    assert reading.ok
    assert value(reading, "llm_etcd_up") == 0.0
    assert value(reading, "llm_etcd_keys") == 16.0


@pytest.mark.parametrize(
    ("status", "user", "missing"),
    [
        (404, None, "gateway is off"),
        (400, None, "wants a login"),
        (400, "reader", "refuses the login"),
        (403, "reader", "does not let the user"),
        (500, "reader", "answers 500"),
    ],
)
async def test_where_the_leases_are_refused_the_rest_is_told_and_what_to_do(
    status: int, user: str | None, missing: str
) -> None:
    asked: list[str] = []

    def refuse(request: web.Request) -> web.Response:
        asked.append(request.path)
        return web.json_response({"error": "no"}, status=status)

    odd = {"/v3/lease/leases": refuse, "/v3/auth/authenticate": refuse}
    async with watching(ONE, odd, user=user, password="wrong" if user else None) as watch:
        readings = [await watch.read() for _ in range(3)]
    for reading in readings:
        assert reading.ok
        assert value(reading, "llm_etcd_leases") is None
        assert value(reading, "llm_etcd_up") == 1.0
        assert missing in reading.advice[0].missing
    assert len(asked) == 1  # not asked again for a minute


async def test_a_login_gives_a_token_that_is_kept_until_it_is_refused() -> None:
    good = ["one"]
    logins = 0

    def authenticate(request: web.Request) -> web.Response:
        nonlocal logins
        logins += 1
        return web.json_response({"token": good[0]})

    def leases(request: web.Request) -> web.Response:
        if request.headers.get("Authorization") != good[0]:
            return web.json_response({"error": "invalid auth token"}, status=401)
        return web.json_response({"leases": [{"ID": "1"}, {"ID": "2"}]})

    odd = {"/v3/lease/leases": leases, "/v3/auth/authenticate": authenticate}
    async with watching(ONE, odd, user="reader", password="word") as watch:
        counts = [value(await watch.read(), "llm_etcd_leases") for _ in range(3)]
        good[0] = "two"  # etcd was started anew, and knows no token
        counts.append(value(await watch.read(), "llm_etcd_leases"))
    assert counts == [2.0] * 4
    assert logins == 2


async def test_no_lease_at_all_is_none_and_not_unknown() -> None:
    async with watching(ONE, {"/v3/lease/leases": lambda _: web.json_response({"header": {}})}) as watch:
        assert value(await watch.read(), "llm_etcd_leases") == 0.0


@pytest.mark.parametrize(
    ("endpoints", "found"),
    [
        ("", [("http://127.0.0.1:2379", "etcd")]),
        ("http://a:2379", [("http://a:2379", "etcd")]),
        ("a:2379, https://b:2379", [("http://a:2379", "a:2379"), ("https://b:2379", "b:2379")]),
    ],
)
def test_the_environment_says_where_the_members_are(endpoints: str, found: list[tuple[str, str]]) -> None:
    environ = {"ETCD_ENDPOINTS": endpoints, "ETCD_AUTH_USERNAME": "reader", "ETCD_AUTH_PASSWORD": "word"}
    members = Etcd.candidates(environ)
    assert [(member.url, member.target_name) for member in members] == found
    assert members[0].login(environ) == ("reader", "word")
