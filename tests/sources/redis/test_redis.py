"""Redis as it answers, and as it does not: what is written wrong, refused, hostile. The real one is in tests/real."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from exporter.config.load import ConfigError, load
from exporter.config.model import Config
from exporter.core.board import Board
from exporter.core.fetch import Upstream, session
from exporter.core.poll import Watch
from exporter.core.types import Reading
from exporter.sources.redis import Redis, Server
from exporter.wiring import assemble

INFO = {
    "redis_version": "7.0.15",
    "run_id": "aa",
    "role": "master",
    "used_memory": "900000",
    "maxmemory": "0",
    "keyspace_hits": "10",
    "keyspace_misses": "4",
    "connected_clients": "2",
    "db0": "keys=3,expires=1,avg_ttl=0",
    "db2": "keys=5,expires=0,avg_ttl=0",
}


class Double:
    """Answers each command in turn with what is set, INFO with `said`; keeps what it was asked."""

    def __init__(self) -> None:
        self.said = dict(INFO)
        self.raw: bytes | None = None
        self.asked: list[bytes] = []
        self.port = 0

    @property
    def server(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while asked := await reader.read(4096):
            self.asked.append(asked)
            text = "# Server\r\n" + "".join(f"{name}:{value}\r\n" for name, value in self.said.items())
            answer = f"${len(text)}\r\n{text}\r\n".encode() if b"INFO" in asked else b"+OK\r\n"
            writer.write(answer if self.raw is None else self.raw)
        writer.close()


@pytest.fixture
async def double() -> AsyncIterator[Double]:
    made = Double()
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    yield made
    server.close()


@asynccontextmanager
async def watching(server: str, **options: Any) -> AsyncIterator[Watch]:
    async with session() as client:
        target = Server(**{"server": server, "name": "r", "timeout": "1m", **options})
        yield assemble(Config(), target, client, Board(), None)


def shown(reading: Reading) -> dict[str, float]:
    own = {"target": "r", "source": "redis"}.items()
    return {
        f"{series.family.name.removeprefix('llm_redis_')}{dict(dict(series.labels).items() - own) or ''}": value
        for series, value in reading.samples
    }


async def test_what_info_says_is_shown_in_our_words(double: Double) -> None:
    async with watching(double.server) as watch:
        await watch.read()
        double.said["keyspace_hits"] = "17"
        del double.said["db2"]
        reading = await watch.read()
    told = shown(reading)
    assert reading.version == "7.0.15"
    assert told["up"] == 1.0
    assert told["hits_total"] == 17.0
    assert told["memory_used_bytes"] == 900000.0
    assert told["keys{'db': '0'}"] == 3.0
    assert told["keys{'db': '2'}"] == 0.0, "a database that had keys, and has none"
    assert "memory_limit_bytes" not in told, "0 means that there is none"


async def test_a_restart_loses_no_hits_and_a_reset_counts_none_twice(double: Double) -> None:
    async with watching(double.server) as watch:
        told = []
        for run, hits in (("aa", 10), ("aa", 12), ("bb", 12), ("bb", 13), ("bb", 1)):
            double.said |= {"run_id": run, "keyspace_hits": str(hits)}
            told.append(shown(await watch.read())["hits_total"])
    assert told == [10.0, 12.0, 24.0, 25.0, 26.0]


async def test_of_a_database_in_the_address_alone_the_keys_are_told(double: Double) -> None:
    async with watching(f"{double.server}/2") as watch:
        keys = {name: value for name, value in shown(await watch.read()).items() if "keys" in name}
    assert keys == {"keys{'db': '2'}": 5.0}


@pytest.mark.parametrize(
    ("options", "sent"),
    [
        ({}, None),
        ({"password": "p"}, b"*3\r\n$4\r\nAUTH\r\n$7\r\ndefault\r\n$1\r\np\r\n"),
        ({"user": "u", "password": "p"}, b"*3\r\n$4\r\nAUTH\r\n$1\r\nu\r\n$1\r\np\r\n"),
        ({"user": "u"}, b"*3\r\n$4\r\nAUTH\r\n$1\r\nu\r\n$0\r\n\r\n"),
    ],
)
async def test_it_logs_in_where_there_is_a_login(double: Double, options: dict[str, Any], sent: bytes | None) -> None:
    async with watching(double.server, **options) as watch:
        assert (await watch.read()).ok
    info = b"*1\r\n$4\r\nINFO\r\n"
    assert double.asked == ([info] if sent is None else [sent, info])


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"-NOAUTH Authentication required.\r\n", "auth"),
        (b"-DENIED Redis is running in protected mode\r\n", "auth"),
        (b"-ERR unknown command\r\n", "content"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "content"),
        (b"$99999999999\r\n", "too_large"),
        (b"$4\r\nab: \r\n", "content"),
        (b"x" * 100_000, "content"),
        (b"$-1\r\n", "content"),
        (b"", "timeout"),
    ],
)
async def test_an_answer_that_is_none_is_a_failure_with_its_reason(double: Double, raw: bytes, reason: str) -> None:
    async with watching(double.server, timeout="2s" if reason == "timeout" else "1m") as watch:
        assert (await watch.read()).ok
        double.raw = raw
        reading = await watch.read()
    assert (reading.reason, shown(reading)) == (reason, {"up": 0.0})


async def test_a_password_that_the_server_repeats_is_not_passed_on(double: Double) -> None:
    double.raw = b"-ERR unknown command 'AUTH', with args beginning with: 'default' 'hunter2' \r\n"
    async with watching(double.server, password="hunter2") as watch:
        reading = await watch.read()
    assert (reading.reason, reading.error) == ("auth", "Redis refuses AUTH: ERR (see user and password_file)")


async def test_ever_other_databases_are_not_remembered_without_end(double: Double) -> None:
    async with watching(double.server) as watch:
        for read in range(3):
            double.said = INFO | {f"db{read * 1000 + number}": "keys=1,expires=0" for number in range(1000)}
            keys = [name for name in shown(await watch.read()) if "keys" in name]
    assert len(keys) == 1000


async def test_a_server_that_is_not_there_is_down() -> None:
    async with watching("redis://127.0.0.1:1") as watch:
        reading = await watch.read()
    assert (reading.reason, shown(reading)) == ("connect", {"up": 0.0})


async def test_it_is_recognised_by_its_answer_to_ping_with_or_without_a_login(double: Double) -> None:
    async with session() as client:
        for raw, known in ((b"+PONG\r\n", True), (b"-NOAUTH Authentication required.\r\n", True), (b"+OK\r\n", False),
                           (b"HTTP/1.1 400 \r\n", False)):  # fmt: skip
            double.raw = raw
            assert await Redis.recognise(Upstream(client, ""), Server(server=double.server)) == known


@pytest.mark.parametrize(
    ("environ", "server", "user"),
    [
        ({}, "redis://127.0.0.1:6379", "default"),
        ({"REDIS_HOST": "cache", "REDIS_PORT": "7000"}, "redis://cache:7000", "default"),
        ({"REDIS_URL": "rediss://u:p%40@cache/1?ssl_cert_reqs=none"}, "rediss://cache:6379/1", "u"),
        ({"REDIS_URL": "unix:///run/redis.sock"}, "redis://127.0.0.1:6379", "default"),
    ],
)
def test_the_environment_names_the_server_as_litellm_reads_it(environ: dict[str, str], server: str, user: str) -> None:
    (found,) = Redis.candidates(environ)
    assert (found.server, found.user, found.target_name) == (server, user, "redis")
    assert found.login({}) == (user, "p@" if user == "u" else "")


@pytest.mark.parametrize(
    ("entry", "what"),
    [
        ("{source: redis, url: 'redis://a'}", "write server: redis://host:6379"),
        ("{source: redis, server: 'http://a'}", "not a Redis server: 'http://a'"),
        ("{source: redis, server: 'redis://u:secret@a'}", "not a Redis server: 'redis://…@a'"),
        ("{source: redis, server: 'redis://a:99999'}", "not a Redis server"),
        ("{source: redis}", "server: missing"),
    ],
)
def test_what_is_written_wrong_is_said(entry: str, what: str, tmp_path: Path) -> None:
    file = tmp_path / "llm.yaml"
    file.write_text(f"targets:\n  - {entry}\n")
    with pytest.raises(ConfigError) as caught:
        load(file)
    assert what in str(caught.value)
    assert "secret" not in str(caught.value)
