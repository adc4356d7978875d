"""etcd's HTTP gateway: keys by prefix and their changes, leases; what gRPC's clients see of etcd, without gRPC.

The gateway stands on the client port of every member. Several members are tried in turn; numbers come as strings; what
a user may not read of the prefixes is as if it were not there, as long as there is one that may be read.
"""

from __future__ import annotations

import asyncio
import json
from base64 import b64decode, b64encode
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

from exporter.config.secret import SecretError
from exporter.core.errors import ReadError
from exporter.core.fetch import Answer, Upstream

PAGE = 500
"""Keys that are asked for at once: more would hold the event loop while they are understood."""
PATIENCE = 2.0
"""Seconds that a member has for an answer before the next one is asked."""
GATEWAY_OFF = (
    "its HTTP gateway is off (write enable-grpc-gateway: true in etcd's configuration file, "
    "or start etcd with --enable-grpc-gateway=true)"
)

_TOKEN = (401, 16)
"""Of HTTP and of gRPC: the token is none, or none any more."""
_DENIED = 7
"""Of gRPC: the user may not."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A key with its value as it was written at `revision`; `lease` is 0 where it never ends by itself."""

    key: str
    value: bytes
    revision: int
    lease: int


@dataclass(frozen=True, slots=True)
class Change:
    """A key that was written, or, without a pair, that is gone."""

    key: str
    pair: Pair | None
    revision: int


class RefusedError(ReadError):
    """What etcd answered instead: HTTP's status, and gRPC's code, 0 where none was told."""

    def __init__(self, reason: str, message: str, status: int, code: int = 0) -> None:
        super().__init__(reason, message)
        self.status = status
        self.code = code


class Gateway:
    """The members of one etcd. `login` gives user and password anew each time, None where none are wanted.

    It may raise SecretError; all methods raise ReadError, whatever answers instead of an etcd.
    """

    def __init__(self, members: Sequence[Upstream], login: Callable[[], tuple[str, str] | None]) -> None:
        self._members = list(members)  # the one that answered last stands first
        self._login = login
        self._tokens: dict[str, str] = {}

    async def ranges(self, prefixes: Sequence[str]) -> tuple[list[Pair], int]:
        """All keys under the prefixes as of one revision, and that revision."""
        found: list[Pair] = []
        revision = 0
        refused: RefusedError | None = None
        for prefix in prefixes:
            start = prefix.encode()
            while True:
                asked = {"key": _text(start), "range_end": _text(_end(prefix)), "limit": PAGE}
                if revision:
                    asked["revision"] = revision
                try:
                    answer = await self._call("/v3/kv/range", asked)
                except RefusedError as error:
                    if error.code != _DENIED:
                        raise
                    refused = error
                    break
                with _understanding("/v3/kv/range"):
                    revision = revision or int(answer["header"]["revision"])
                    pairs = [_pair(pair) for pair in answer.get("kvs", ())]
                found += pairs
                if not (answer.get("more") and pairs):
                    break
                start = pairs[-1].key.encode() + b"\0"
        if not revision and refused is not None:
            raise refused
        return found, revision

    async def watch(self, prefixes: Sequence[str], revision: int) -> AsyncGenerator[list[Change], None]:
        """What changes under the prefixes from a revision on, as it happens. Raises ReadError at the end, always."""
        asked = [
            {"key": _text(prefix.encode()), "range_end": _text(_end(prefix)), "start_revision": revision}
            for prefix in prefixes
        ]
        body = "\n".join(json.dumps({"create_request": request}) for request in asked).encode()
        async with self._answer("/v3/watch", body) as answer:
            async for line in answer.lines():
                with _understanding("/v3/watch"):
                    result = _understood(answer.url, json.loads(line)).get("result", {})
                    compacted = int(result.get("compact_revision", 0))
                    changes = [_change(event) for event in result.get("events", ())]
                if compacted:
                    raise ReadError("content", f"{answer.url}: what changed since is no longer known there")
                if changes:
                    yield changes
        raise ReadError("truncated", f"{answer.url}: the watch has ended")

    async def leases(self) -> int:
        """How many leases are alive."""
        said = (await self._call("/v3/lease/leases", {})).get("leases", [])
        if not isinstance(said, list):
            raise ReadError("content", "/v3/lease/leases answers with something else than leases")
        return len(said)

    async def _call(self, endpoint: str, body: object) -> Any:
        async with self._answer(endpoint, json.dumps(body).encode()) as answer:
            return _understood(answer.url, await answer.json())

    @asynccontextmanager
    async def _answer(self, endpoint: str, body: bytes) -> AsyncIterator[Answer]:
        async with AsyncExitStack() as stack:
            yield await self._first(stack, endpoint, body)

    async def _first(self, stack: AsyncExitStack, endpoint: str, body: bytes) -> Answer:
        """The answer of the first member that gives one; it is closed with the stack. Raises ReadError."""
        failures: list[ReadError] = []
        for member in list(self._members):
            try:
                async with asyncio.timeout(PATIENCE), AsyncExitStack() as attempt:
                    answer = await self._asked(attempt, member, endpoint, body)
                    self._members.remove(member)
                    self._members.insert(0, member)
                    stack.push_async_callback(attempt.pop_all().aclose)
                    return answer
            except TimeoutError:
                failures.append(ReadError("timeout", f"{member.url}: no answer within {PATIENCE:g} s"))
            except RefusedError:
                raise
            except ReadError as error:
                failures.append(error)
        raise ReadError(failures[0].reason, "; ".join(map(str, failures)))

    async def _asked(self, stack: AsyncExitStack, member: Upstream, endpoint: str, body: bytes) -> Answer:
        """What a member answers, asked again where a token has run out. Raises ReadError unless all is well."""
        while True:
            token = self._tokens.get(member.url) or await self._token(member)
            headers = {"Authorization": token} if token else {}
            answer = await stack.enter_async_context(member.post(endpoint, body, headers))
            if answer.status == 200:
                return answer
            error = await self._error(answer)
            if not {error.status, error.code}.intersection(_TOKEN) or self._tokens.pop(member.url, None) is None:
                raise error

    async def _token(self, member: Upstream) -> str | None:
        """A token for the user, None where no user is configured. Raises ReadError, also where it cannot be had."""
        try:
            login = self._login()
        except SecretError as missing:
            raise ReadError("auth", str(missing)) from None
        if login is None:
            return None
        user, password = login
        async with member.post("/v3/auth/authenticate", {"name": user, "password": password}) as answer:
            if answer.status == 200:
                said = await answer.json()
                with _understanding("/v3/auth/authenticate"):
                    self._tokens[member.url] = str(said["token"])
                return self._tokens[member.url]
            error = await self._error(answer)
            if "authentication is not enabled" in str(error):
                return None
            raise error

    @staticmethod
    async def _error(answer: Answer) -> RefusedError:
        """What an answer other than 200 means, and what to do."""
        text = (await answer.start(2000)).decode(errors="replace")
        try:
            told = json.loads(text)
            said, code = str(told["error"]), int(told.get("code", 0))
        except (ValueError, OverflowError, KeyError, TypeError, RecursionError):
            said, code = "", 0
        reason, what = "auth", f"answers {answer.status}: {said[:200]}"
        if answer.status == 404:
            reason, what = "status", f"answers 404: {GATEWAY_OFF}"
        elif answer.status == 503 and "connection closed" in said:
            remedy = "with --client-cert-auth etcd's own certificate must be one of a client, too: clientAuth"
            reason, what = "status", f"answers 503: etcd itself refuses its gateway ({remedy})"
        elif "user name is empty" in said or "user name not found" in said:
            what = "wants a user (set user and password_file)"
        elif "authentication failed" in said:
            what = "refuses user or password (see user and password_file)"
        elif code == _DENIED:
            what = "does not let the user read these keys (grant the user's role READ on them)"
        elif not {answer.status, code}.intersection(_TOKEN):
            reason = "status"
        return RefusedError(reason, f"{answer.url} {what}", answer.status, code)


@contextmanager
def _understanding(endpoint: str) -> Iterator[None]:
    """Turns what goes wrong where an answer is taken apart into ReadError (content)."""
    try:
        yield
    except (LookupError, TypeError, ValueError, OverflowError, AttributeError, RecursionError):
        raise ReadError("content", f"{endpoint} answers with something that is not etcd's") from None


def _understood(url: str, told: Any) -> Any:
    """What an answer says, unless it is an error in the midst of a stream."""
    if not isinstance(told, dict) or "error" in told:
        raise ReadError("content", f"{url} answers with something that is not etcd's: {str(told)[:200]}")
    return told


def _text(raw: bytes) -> str:
    return b64encode(raw).decode()


def _end(prefix: str) -> bytes:
    """The first key behind all that begin with the prefix."""
    raw = prefix.encode()
    return raw[:-1] + bytes([raw[-1] + 1])


def _pair(given: Mapping[str, Any]) -> Pair:
    key, value = b64decode(given["key"]).decode(errors="replace"), b64decode(given.get("value", ""))
    return Pair(key, value, int(given.get("mod_revision", 0)), int(given.get("lease", 0)))


def _change(given: Mapping[str, Any]) -> Change:
    pair = _pair(given["kv"])
    return Change(pair.key, None if given.get("type") == "DELETE" else pair, pair.revision)
