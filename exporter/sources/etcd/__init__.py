"""etcd: one member's own metrics, its health, and how many leases are alive.

Reading it writes nothing. The leases are asked for over etcd's HTTP gateway; nothing else wants a login.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from exporter.catalogue import families
from exporter.config.secret import WithPassword
from exporter.core.errors import ReadError
from exporter.core.fetch import Upstream, refuse
from exporter.core.source import Context, Result, waited
from exporter.core.types import Advice
from exporter.sources.etcd.gateway import Gateway, RefusedError

DEFAULT_URL = "http://127.0.0.1:2379"
PATIENCE = 3.0
"""Seconds that /health may take: etcd itself gives up after one."""
REFUSED = 60.0
"""Seconds until the leases are asked for again where that was refused: a login costs etcd much."""


class Member(WithPassword):
    """A member of etcd, by its client URL."""

    source: Literal["etcd"] = "etcd"


class Etcd:
    """Reads one member."""

    kind: ClassVar[str] = "etcd"
    Config: ClassVar[type[Member]] = Member

    def __init__(self, config: Member, context: Context) -> None:
        self._config = config
        self._context = context
        self._gateway = Gateway([context.upstream], config.login)
        self._advice: tuple[Advice, ...] = ()
        self._ask_again = float("-inf")
        self._took = 0.0  # seconds, by the metrics

    @staticmethod
    def at(url: str, environ: Mapping[str, str]) -> Member:
        given: dict[str, Any] = {"url": url if "://" in url else f"http://{url}"}
        if environ.get("ETCD_AUTH_USERNAME"):
            given["user"] = environ["ETCD_AUTH_USERNAME"]
            if environ.get("ETCD_AUTH_PASSWORD"):
                given["password_env"] = "ETCD_AUTH_PASSWORD"  # noqa: S105 - the variable's name
        return Member(**given)

    @staticmethod
    def candidates(environ: Mapping[str, str]) -> Sequence[Member]:
        """The members that `ETCD_ENDPOINTS` names, as Dynamo reads it, else the one on etcd's port here."""
        urls = [url for part in environ.get("ETCD_ENDPOINTS", "").split(",") if (url := part.strip())]
        members = [Etcd.at(url, environ) for url in urls or [DEFAULT_URL]]
        return [members[0].model_copy(update={"name": "etcd"})] if len(members) == 1 else members

    @staticmethod
    async def recognise(upstream: Upstream, _: object) -> bool:
        async with upstream.get("/version") as answer:
            if answer.status != 200:
                return False
            try:
                said = await answer.json()
            except ReadError as error:
                if error.reason == "content":
                    return False
                raise
            return isinstance(said, dict) and "etcdserver" in said

    async def read(self) -> Result:
        known, table = families(), self._context.table
        up, version, leases, failure = False, None, None, None
        self._took = 0.0
        try:
            up = await self._healthy()
            version = await self._metrics()
            leases = await self._leases()
        except ReadError as error:
            failure = error
        samples = [(table(known["llm_etcd_up"]), float(up))]
        if leases is not None:
            samples.append((table(known["llm_etcd_leases"]), float(leases)))
        # waiting for a leader is no work: what is dear to the member are its metrics
        return Result(samples, self._advice, version, failure, seconds=self._took)

    async def _healthy(self) -> bool:
        """What the member says of itself. It asks the cluster for a read, so it is slow where the cluster is ill."""
        upstream = self._context.upstream
        try:
            async with asyncio.timeout(PATIENCE), upstream.get("/health") as answer:
                if answer.status != 503:  # with which it says that it is not
                    refuse(answer)
                said = await answer.json()
        except TimeoutError:
            raise ReadError("timeout", f"{upstream.at('/health')} gave no answer within {PATIENCE:g} s") from None
        return isinstance(said, dict) and str(said.get("health")).lower() == "true"

    async def _metrics(self) -> str | None:
        """Read the metrics into the totals; they tell the version."""
        began = waited()
        async with self._context.upstream.get("/metrics") as answer:
            refuse(answer)
            await self._context.take(answer)
        self._took = waited() - began
        versions = [dict(labels).get("version") for labels in self._context.totals.internal("version")]
        return next(iter(versions), None)

    async def _leases(self) -> int | None:
        """How many leases are alive; None where the gateway is off or refuses, which the advice tells."""
        if self._context.clock() < self._ask_again:
            return None
        self._advice = ()
        try:
            return await self._gateway.leases()
        except RefusedError as error:
            self._advice = (self._missing(error.status),)
            self._ask_again = self._context.clock() + REFUSED
            return None

    def _missing(self, status: int) -> Advice:
        what = "the number of leases (llm_etcd_leases)"
        if status == 404:
            return Advice(f"{what}: etcd's HTTP gateway is off", "enable-grpc-gateway: true  # in etcd's configuration")
        if status == 403:
            return Advice(f"{what}: etcd does not let the user see them", "let it read every key that has a lease")
        if status not in (400, 401):
            return Advice(f"{what}: etcd answers {status}", "see why in etcd's log")
        if self._config.user is not None:
            return Advice(f"{what}: etcd refuses the login", "correct user and password_file, or ETCD_AUTH_*")
        return Advice(
            f"{what}: etcd wants a login",
            "give user and password_file, or ETCD_AUTH_USERNAME and ETCD_AUTH_PASSWORD, of a user that may read every "
            "key that has a lease",
        )


SOURCE = Etcd
