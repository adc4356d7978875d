"""The gateway's answers are taken apart with care: whatever stands behind the URL, it is a failed read and no more."""

import pytest
from served import Routes, serving

from exporter.config.secret import SecretError
from exporter.core.errors import ReadError
from exporter.core.fetch import Upstream, session
from exporter.sources.etcd.gateway import Gateway

JUNK = [
    b"{}",
    b"[]",
    b"null",
    b'{"header":{}}',
    b'{"header":[1]}',
    b'{"header":{"revision":"x"}}',
    b'{"header":{"revision":Infinity}}',
    b'{"error":"x","code":Infinity}',
    b'{"header":{"revision":"1"},"kvs":1}',
    b'{"header":{"revision":"1"},"kvs":[1]}',
    b'{"header":{"revision":"1"},"kvs":[{"key":1}]}',
    b'{"header":{"revision":"1"},"kvs":[{"key":"YQ==","lease":{}}]}',
    b"[" * 100_000,
    b"<html>",
    b"\xff",
]


@pytest.mark.parametrize("body", JUNK)
@pytest.mark.parametrize("status", [200, 400, 404, 503])
async def test_whatever_answers_a_range_is_a_failed_read(status: int, body: bytes) -> None:
    routes: Routes = {"/v3/kv/range": (status, "application/json", body)}
    async with serving(routes) as server, session() as client:
        with pytest.raises(ReadError):
            await Gateway([Upstream(client, server.url)], lambda: None).ranges(["v1/"])


@pytest.mark.parametrize(
    "line",
    [
        b"{\n",
        b"[]\n",
        b'{"result":1}\n',
        b'{"result":{"compact_revision":"x"}}\n',
        b'{"result":{"events":1}}\n',
        b'{"result":{"events":[{"kv":{}}]}}\n',
        b'{"result":{"events":[{"type":"PUT"}]}}\n',
    ],
)
async def test_whatever_a_watch_tells_ends_it_as_a_failed_read(line: bytes) -> None:
    async with serving({"/v3/watch": (200, "application/json", line)}) as server, session() as client:
        with pytest.raises(ReadError, match="not etcd's"):
            async for _ in Gateway([Upstream(client, server.url)], lambda: None).watch(["v1/"], 1):
                pass


@pytest.mark.parametrize("body", [b"{}", b"[]", b"1"])
async def test_an_answer_to_a_login_without_a_token_is_a_failed_read(body: bytes) -> None:
    async with serving({"/v3/auth/authenticate": (200, "application/json", body)}) as server, session() as client:
        with pytest.raises(ReadError, match="not etcd's"):
            await Gateway([Upstream(client, server.url)], lambda: ("user", "secret")).leases()


async def test_a_password_that_cannot_be_had_is_a_failed_read() -> None:
    def login() -> tuple[str, str]:
        raise SecretError("the variable ETCD_AUTH_PASSWORD is not set")

    async with session() as client:
        with pytest.raises(ReadError, match="ETCD_AUTH_PASSWORD") as raised:
            await Gateway([Upstream(client, "http://127.0.0.1:1")], login).leases()
    assert raised.value.reason == "auth"
