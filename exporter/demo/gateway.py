"""A LiteLLM proxy: what clients ask for, who is asked to serve it, retries, fallbacks, caches and money."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from exporter.demo.book import Book
from exporter.demo.engine import Call
from exporter.demo.ports import always
from exporter.demo.world import World

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 420.0, 600.0)
"""LiteLLM's boundaries."""
PATIENCE = 30.0
"""Seconds that a deployment has for its whole answer."""
COOLDOWN = 20.0
"""Seconds for which a deployment is left alone after FAILURES failures in a row."""
FAILURES = 3
BUDGET = 40.0
"""USD that a provider may cost in a simulated day, where it has a budget."""
STATUS = {
    401: "AuthenticationError",
    408: "Timeout",
    429: "RateLimitError",
    500: "InternalServerError",
    503: "ServiceUnavailableError",
}
"""LiteLLM's exceptions."""

Submit = Callable[[Call], None]


@dataclass(slots=True, eq=False)
class Deployment:
    """One way to have a model served. Prices are USD a million tokens: input, output, cache read, cache write."""

    id: str
    group: str
    provider: str
    upstream: str
    submit: Submit
    prices: Sequence[float | None] = (None, None, None, None)
    limit: int = 0  # requests a minute, where the provider says how many are left
    budget: bool = False
    failures: int = 0  # in a row
    cool: float = 0.0  # until when it is left alone
    asked: list[float] = field(default_factory=list)

    def price(self, kind: int) -> float:
        return (self.prices[kind] or 0.0) / 1e6


@dataclass(slots=True, eq=False)
class Asked:
    """A client's request."""

    group: str
    call: Call  # what it is about
    stream: bool
    tried: list[Deployment]
    original: str  # the group that the client named


class Gateway:
    """The proxy. `demand` is requests a second by group at full load; `fallback` names another group to try."""

    def __init__(
        self,
        world: World,
        deployments: Sequence[Deployment],
        demand: Mapping[str, tuple[float, float, float]],
        fallback: Mapping[str, str],
        cached: Mapping[str, float],
        key: str,
    ) -> None:
        self.book = Book()
        self._world = world
        self._deployments = deployments
        self._demand = demand
        self._fallback = fallback
        self._cached = cached
        self._key = key
        self.hits, self.misses = 0, 0  # of the cache
        self._running = 0
        self._spent: dict[str, float] = {}
        self._hour = world.hour
        self.book.set("python_info", 1.0, version="3.12.1")
        self.book.set("process_start_time_seconds", world.began - 3600.0)
        self.book.add("litellm_redis_total_requests_total", 0, redis="redis")
        self.book.add("litellm_redis_failed_requests_total", 0, redis="redis")
        for deployment in deployments:
            self._known(deployment)
        world.steppers.append(self._step)

    def _known(self, one: Deployment) -> None:
        """Counters that LiteLLM has from the first request on: the morning's were before the simulation."""
        for name in ("total_requests", "success_responses"):
            self.book.add(f"litellm_deployment_{name}_total", 0, **self._of(one))
        if one.limit:
            self.book.set("litellm_deployment_rpm_limit", float(one.limit), **self._of(one))
            self.book.set("litellm_deployment_tpm_limit", one.limit * 2000.0, **self._of(one))

    @staticmethod
    def _of(one: Deployment) -> dict[str, str]:
        return {
            "api_provider": one.provider,
            "litellm_model_name": one.upstream,
            "model_group": one.group,
            "model_id": one.id,
            "requested_model": one.group,
            "team": "None",
        }

    @staticmethod
    def _by(one: Deployment) -> dict[str, str]:
        return {
            "api_provider": one.provider,
            "model": one.upstream,
            "model_group": one.group,
            "model_id": one.id,
            "requested_model": one.group,
            "team": "None",
        }

    # -- traffic -------------------------------------------------------------------------------------------------

    def _step(self, seconds: float) -> None:
        world = self._world
        if world.hour < self._hour:
            self._spent.clear()
        self._hour = world.hour
        for group, (often, prompt, output) in self._demand.items():
            for _ in range(world.happens(often * world.load * seconds)):
                length = max(8, int(world.about(prompt, 0.7)))
                cached = int(length * world.random.choice((0.0, 0.0, 0.4, 0.7)))
                answer = max(1, min(4000, int(world.about(output, 0.6))))
                call = Call(group, length, cached, answer, world.now, lambda _: None)
                self._running += 1
                self._begin(Asked(group, call, world.random.random() < 0.75, [], group))
        self._gauges()

    def _begin(self, asked: Asked) -> None:
        self._redis(asked)
        share = 0.0 if self._world.troubled("cache") else self._cached.get(asked.group, 0.0)
        hit = self._world.random.random() < share
        if share:
            self.hits, self.misses = self.hits + hit, self.misses + (not hit)
        if hit:
            first = next(one for one in self._deployments if one.group == asked.group)
            self._world.later(0.03, lambda: self._from_cache(asked, first))
            return
        self._try(asked)

    def _redis(self, asked: Asked) -> None:
        """Each request asks the cache twice: whether it has the answer, and about limits."""
        broken = self._world.troubled("cache")
        for _ in range(2):
            self.book.add("litellm_redis_total_requests_total", redis="redis")
            took = 0.5 if broken else self._world.about(0.0012, 0.5)
            self.book.observe("litellm_redis_latency", SECONDS, took, redis="redis")
        if broken:
            self.book.add("litellm_redis_failed_requests_total", redis="redis")
        if asked.group in self._cached and not broken:
            model = next(one for one in self._deployments if one.group == asked.group)
            self.book.add("litellm_cache_misses_metric_total", 0, model_id=model.id, **self._cache_of(model))
            self.book.add("litellm_cache_hits_metric_total", 0, model_id=model.id, **self._cache_of(model))

    @staticmethod
    def _cache_of(one: Deployment) -> dict[str, str]:
        return {"api_provider": one.provider, "model": one.upstream}

    def _from_cache(self, asked: Asked, one: Deployment) -> None:
        call = asked.call
        self.book.add("litellm_cache_hits_metric_total", model_id=one.id, **self._cache_of(one))
        tokens = float(call.prompt + call.output)
        self.book.add("litellm_cached_tokens_metric_total", tokens, model_id=one.id, **self._cache_of(one))
        self._answered(asked, one, 0.03, None, free=True)

    def _try(self, asked: Asked) -> None:
        """Ask a deployment of the group that does not cool down and has not been tried."""
        now = self._world.now
        able = [
            one for one in self._deployments if one.group == asked.group and one.cool <= now and one not in asked.tried
        ]
        if not able or len(asked.tried) >= 3:
            other = self._fallback.get(asked.group)
            if other is not None and asked.group == asked.original:
                asked.group = other
                self._try(asked)
                return
            self._refused(asked)
            return
        one = self._world.random.choice(able)
        asked.tried.append(one)
        about = asked.call
        call = Call(
            one.upstream, about.prompt, about.cached, about.output, now, lambda ended: self._ended(asked, one, ended)
        )
        self.book.add("litellm_deployment_total_requests_total", **self._of(one))
        one.asked.append(now)
        one.submit(call)
        self._world.later(PATIENCE, call.give_up)

    def _ended(self, asked: Asked, one: Deployment, call: Call) -> None:
        """What a deployment made of it."""
        if call.given_up:
            call.failure = 408
        if not call.failure:
            one.failures = 0
            assert call.end is not None  # noqa: S101 - it ended
            self.book.add("litellm_deployment_success_responses_total", **self._of(one))
            if asked.group != asked.original:
                self._fell_back("successful", asked)
            first = None if call.first is None else call.first - call.arrived
            self._answered(asked, one, call.end - call.arrived, first)
            return
        status = str(call.failure)
        reason = {"exception_status": status, "exception_class": f"{one.provider.title()}.{STATUS[call.failure]}"}
        self.book.add("litellm_deployment_failure_responses_total", **reason, **self._of(one))
        one.failures += 1
        if one.failures >= FAILURES:
            one.failures, one.cool = 0, self._world.now + COOLDOWN
            labels = {"model_id": one.id, "api_provider": one.provider, "litellm_model_name": one.upstream}
            self.book.add("litellm_deployment_cooled_down_total", exception_status=status, **labels)
        asked.call.failure = call.failure
        self._try(asked)

    def _fell_back(self, how: str, asked: Asked) -> None:
        self.book.add(
            f"litellm_deployment_{how}_fallbacks_total", requested_model=asked.original, fallback_model=asked.group
        )

    def _refused(self, asked: Asked) -> None:
        """Nobody is left to try: the client gets the last failure."""
        self._running -= 1
        if asked.group != asked.original:
            self._fell_back("failed", asked)
        labels = {"requested_model": asked.original, "route": "/v1/chat/completions", "team": "None"}
        if asked.tried:
            status = str(asked.call.failure)
            labels |= {"api_provider": asked.tried[-1].provider, "model_id": asked.tried[-1].id}
            kind = STATUS[asked.call.failure]
        else:
            status, kind = "429", "RouterRateLimitErrorBasic"
        self.book.add("litellm_proxy_total_requests_metric_total", status_code=status, **labels)
        failed = "litellm_proxy_failed_requests_metric_total"
        self.book.add(failed, exception_status=status, exception_class=kind, **labels)

    def _answered(self, asked: Asked, one: Deployment, took: float, first: float | None, *, free: bool = False) -> None:
        """An answer has gone to the client, from a deployment, or `free` from the cache."""
        self._running -= 1
        book, call, world, by = self.book, asked.call, self._world, self._by(one)
        fresh = call.prompt - call.cached
        requested = {**by, "requested_model": asked.original}
        route = "/v1/chat/completions"
        book.add("litellm_proxy_total_requests_metric_total", status_code="200", route=route, **requested)
        book.add("litellm_input_tokens_metric_total", call.prompt, **requested)
        book.add("litellm_output_tokens_metric_total", call.output, **requested)
        queued, overhead = world.about(0.004, 0.6), world.about(0.012, 0.5)
        book.observe("litellm_request_queue_time_seconds", SECONDS, queued, **requested)
        if free:
            book.observe("litellm_request_total_latency_metric", SECONDS, took + overhead, **by)
            return
        whole = world.now - call.arrived  # with what was tried before
        book.observe("litellm_request_total_latency_metric", SECONDS, whole + overhead, **by)
        book.observe("litellm_llm_api_latency_metric", SECONDS, took, **by)
        book.observe("litellm_overhead_latency_metric", SECONDS, overhead, **by)
        if asked.stream and first is not None:
            book.observe("litellm_llm_api_time_to_first_token_metric", SECONDS, first, **by)
        cost = fresh * one.price(0) + call.cached * one.price(2) + call.output * one.price(1)
        if one.prices[2] is not None:
            book.add("litellm_input_cached_tokens_metric_total", call.cached, **requested)
        if one.prices[3] is not None:
            written = int(fresh * 0.3)
            cost += written * (one.price(3) - one.price(0))
            book.add("litellm_input_cache_creation_tokens_metric_total", written, **requested)
        book.add("litellm_spend_metric_total", cost, **requested)
        self._spent[one.provider] = self._spent.get(one.provider, 0.0) + cost

    def _gauges(self) -> None:
        now = self._world.now
        self.book.set("litellm_in_flight_requests", float(self._running + 1))  # the read itself is counted, too
        state = "open" if self._world.troubled("cache") else "closed"
        for each in ("closed", "open"):
            self.book.set("litellm_redis_circuit_breaker_state", float(each == state), state=each)
        for one in self._deployments:
            if one.limit:
                one.asked = [at for at in one.asked if at > now - 60.0]
                left = max(0.0, one.limit - len(one.asked))
                labels = {"api_base": f"https://api.{one.provider}.example", **self._of(one)}
                self.book.set("litellm_remaining_requests_metric", left, **labels)
                self.book.set("litellm_remaining_tokens_metric", left * 2000.0, **labels)
            if one.budget:
                left = BUDGET - self._spent.get(one.provider, 0.0)
                self.book.set("litellm_provider_remaining_budget_metric", left, api_provider=one.provider)

    # -- its port ------------------------------------------------------------------------------------------------

    def application(self) -> web.Application:
        """What it answers. Metrics and models want the key."""
        app = web.Application()
        app.router.add_get("/health/liveliness", always("I'm alive!"))
        app.router.add_get("/health/readiness", always({"status": "healthy"}))
        app.router.add_get("/health/readiness/details", self._details)
        app.router.add_get("/metrics/", self._metrics)
        app.router.add_get("/model/info", self._models)
        return app

    def _wants_key(self, request: web.Request) -> None:
        if request.headers.get("Authorization") != f"Bearer {self._key}":
            raise web.HTTPUnauthorized

    async def _details(self, request: web.Request) -> web.Response:
        self._wants_key(request)
        return web.json_response({"status": "healthy", "cache": "redis", "litellm_version": "1.106.2"})

    async def _metrics(self, request: web.Request) -> web.Response:
        self._wants_key(request)
        return web.Response(text=self.book.text(frozenset(request.query.getall("name[]", ()))))

    async def _models(self, request: web.Request) -> web.Response:
        self._wants_key(request)
        names = ("input_cost_per_token", "output_cost_per_token")
        names += ("cache_read_input_token_cost", "cache_creation_input_token_cost")  # type: ignore[assignment]
        entries: list[dict[str, Any]] = []
        for one in self._deployments:
            prices = {
                name: None if price is None else price / 1e6 for name, price in zip(names, one.prices, strict=True)
            }
            parameters = {"model": f"{one.provider}/{one.upstream}"}
            entries.append(
                {"model_name": one.group, "litellm_params": parameters, "model_info": {"id": one.id, **prices}}
            )
        return web.json_response({"data": entries})
