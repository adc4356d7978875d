"""The simulated day by itself: it repeats, its parts agree with each other, and what goes wrong is felt."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from exporter.demo.engine import Call
from exporter.demo.stack import DEMAND, PORTS, Stack
from exporter.demo.world import MORNING, TROUBLES, World
from exporter.text.parse import parse

SPEED = 120.0
PROVIDERS = {"openai", "azure", "anthropic", "vertex_ai", "openai_like", "hosted_vllm", "llamafile", "ollama_chat"}


def made(seed: int = 1, hour: float = MORNING, speed: float = SPEED, begins: float = MORNING) -> Stack:
    """The stack as it is at an hour of the first day, or, at another speed, when it begins."""
    ports = {name: number for number, name in enumerate(PORTS, 1000)}
    stack = Stack(World(seed, speed, 1.8e9, begins), ports, "sk-1", Path("/nowhere"))
    advance(stack, hour)
    return stack


def advance(stack: Stack, hour: float) -> None:
    stack.world.advance((hour - MORNING) * 3600.0 / SPEED)


def total(text: str, name: str, **labels: str) -> float:
    """The sum of the samples of a name that have these labels."""
    lines = (line for line in parse(text.encode()) if line.name == name)
    return sum(line.value for line in lines if labels.items() <= dict(line.labels).items())


def test_the_same_seed_makes_the_same_day_and_another_one_another() -> None:
    bodies = [made(seed, 12.0).gateway.book.text() for seed in (1, 1, 2)]
    assert bodies[0] == bodies[1] != bodies[2]


def test_how_the_clock_is_looked_at_changes_nothing() -> None:
    whole, pieces = made(hour=10.0), made()
    for step in range(1, 41):
        advance(pieces, MORNING + 2.0 * step / 40)
    assert whole.gateway.book.text() == pieces.gateway.book.text()


def test_every_body_is_an_exposition() -> None:
    stack = made(hour=23.0)
    bodies = [stack.gateway.book, stack.frontend.book, stack.vllm_a.engine.book]
    assert all(list(parse(book.text().encode())) for book in bodies)


def test_what_the_gateway_asks_its_engines_for_arrives_there() -> None:
    stack = made(hour=20.0)  # through a stalled engine and a lost worker
    gateway = stack.gateway.book.text()
    for name, engine in (("vllm-a", stack.vllm_a.engine), ("vllm-b", stack.vllm_b.engine)):
        asked = total(gateway, "litellm_deployment_total_requests_total", model_id=name)
        ended = total(engine.book.text(), "vllm:request_success_total")
        never = asked - ended - len(engine.running) - len(engine.waiting)
        assert asked > 100
        assert 0 <= never < 0.2 * asked, name  # given up while they waited in the engine that stood still
    asked = total(gateway, "litellm_deployment_total_requests_total", model_id="dynamo-1")
    assert total(stack.frontend.book.text(), "dynamo_frontend_input_sequence_tokens_count") == asked > 100


def test_each_request_ends_once() -> None:
    stack = made(hour=20.0)
    gateway = stack.gateway.book.text()
    seen = total(gateway, "litellm_proxy_total_requests_metric_total")
    failed = total(gateway, "litellm_proxy_failed_requests_metric_total")
    whole = total(gateway, "litellm_request_total_latency_metric_count")
    assert seen == failed + whole
    running = total(gateway, "litellm_in_flight_requests") - 1
    frontend = total(stack.frontend.book.text(), "dynamo_frontend_inflight_requests")
    assert 0 <= frontend <= running < 60


def test_eight_providers_and_every_model_serve() -> None:
    lines = list(parse(made(hour=22.0).gateway.book.text().encode()))
    served = [dict(line.labels) for line in lines if line.name == "litellm_request_total_latency_metric_count"]
    assert {labels["api_provider"] for labels in served} == PROVIDERS
    models = {labels["model_group"] for labels in served}
    assert set(DEMAND) - {"phi-4-mini"} <= models <= set(DEMAND)  # which few ask for: it is unloaded most of the time


def test_a_day_has_its_peaks_and_its_night() -> None:
    world = World(1, 3600.0, 0.0)
    load = {}
    for _ in range(24):
        load[round(world.hour)] = world.load
        world.advance(world.now + 1.0)
    assert load[3] < 0.15 < 0.8 < load[10] < load[15]


def test_work_makes_a_gpu_warm_and_one_without_any_stays_cold() -> None:
    gpus = made(hour=13.4).gpus
    assert gpus.hottest() > 42.0
    said = gpus.said()["gpus"]
    assert said[7]["nvmlDeviceGetPowerUsage"] == 75_000.0
    assert said[4]["nvmlDeviceGetPowerUsage"] > 100_000.0


FELT: dict[str, Callable[[Stack], float]] = {
    "provider": lambda stack: total(
        stack.gateway.book.text(), "litellm_deployment_failure_responses_total", model_id="azure-1"
    ),
    "engine": lambda stack: float(stack.vllm_b.engine.stands and len(stack.vllm_b.engine.running) > 0),
    "worker": lambda stack: float(len([worker for worker in stack.frontend.workers if not worker.alive])),
    "gpu": lambda stack: float(stack.gpus.hottest() > 84.0),
    "limits": lambda stack: total(
        stack.gateway.book.text(), "litellm_deployment_failure_responses_total", exception_status="429"
    ),
    "cache": lambda stack: total(stack.gateway.book.text(), "litellm_redis_failed_requests_total"),
    "unit": lambda stack: float(stack.units.all["reranker.service"].restarts + len(stack.gpus.said()["xids"])),
}


@pytest.mark.parametrize("trouble", FELT)
def test_what_goes_wrong_is_felt_while_it_lasts(trouble: str) -> None:
    begin, end = TROUBLES[trouble]
    stack = made(hour=begin - 0.1)
    before = FELT[trouble](stack)
    advance(stack, end - 0.1)
    assert FELT[trouble](stack) > before + 0.5


def test_a_lost_worker_comes_back_as_another() -> None:
    stack = made(hour=TROUBLES["worker"][0] - 0.1)
    before = stack.frontend.workers[-1].id
    advance(stack, TROUBLES["worker"][1] + 0.5)
    worker = stack.frontend.workers[-1]
    assert worker.alive
    assert worker.id != before
    advance(stack, 18.0)
    assert total(worker.engine.book.text(), "dynamo_component_requests_total") > 0


def test_the_unit_of_a_worker_that_is_killed_has_failed_until_it_is_back() -> None:
    stack = made(hour=TROUBLES["worker"][0] + 0.5)
    unit = stack.units.all["dynamo-worker@2.service"]
    assert (unit.state, unit.result, unit.status) == ("failed", "signal", 9)
    life = unit.invocation
    advance(stack, TROUBLES["worker"][1] + 0.5)
    assert unit.is_active()
    assert unit.invocation != life


def test_a_unit_that_restarts_in_a_loop_is_given_up_and_started_by_hand() -> None:
    stack = made(speed=24.0, begins=TROUBLES["unit"][0] - 0.1)
    unit, states, entries = stack.units.all["reranker.service"], list[str](), list[bytes]()
    stack.units.changed.append(lambda unit: states.append(unit.state))
    stack.units.written.append(entries.append)
    stack.world.advance(stack.world.now + 90.0)
    assert unit.restarts == 5
    assert states == ["activating", "active"] * 5 + ["failed"]
    said = [json.loads(entry) for entry in entries]
    assert [each["PRIORITY"] for each in said if each["_SYSTEMD_UNIT"] == unit.name].count("2") == 6
    stack.world.advance(stack.world.now + 110.0)
    assert unit.is_active()
    assert unit.restarts == 0


def test_ollama_forgets_a_model_that_nobody_asks_for_and_loads_it_again() -> None:
    stack = made()
    held = set()
    for _ in range(120):
        stack.world.advance(stack.world.now + 5.0)
        held.add(stack.ollama.held)
    assert len(held) == 2


def test_the_whole_day_repeats_its_troubles() -> None:
    stack = made(hour=24.0 + 9.0)
    assert stack.world.troubled("provider")
    assert re.search(r'litellm_deployment_cooled_down_total\{[^}]*"azure-1"', stack.gateway.book.text())


def test_an_engine_that_stands_still_loses_nothing_that_is_not_given_up() -> None:
    stack = made()
    engine, ended = stack.vllm_a.engine, list[Call]()
    call = Call("qwen3-32b", 100, 0, 10, stack.world.now, ended.append)
    engine.submit(call)
    stack.world.advance(stack.world.now + 0.5)
    engine.stands = True
    stack.vllm_a.engine = made().vllm_a.engine  # nobody makes it move again
    stack.world.advance(stack.world.now + 20.0)
    assert not ended
    engine.stands = False
    stack.world.advance(stack.world.now + 5.0)
    assert ended == [call]
    assert call.end is not None
    assert call.end - call.arrived > 20.0
