"""A real Dynamo, with the planes it has by default and with NATS: what the page says is what happened, and when."""

import asyncio
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from dynamo_stack import FORGET, MODEL, PLANES, Books, Diary, Dynamo, drive, dynamo, near
from stack import Page

INTERVAL = 3.0
"""Seconds between two reads of Dynamo, where nothing else is configured."""
SOON = INTERVAL + 2.0
LEASE = 30.0
"""Seconds after which etcd drops the keys of who no longer renews its lease; a worker renews it every 10 s."""
ENDPOINT = {"dynamo_namespace": "dynamo", "dynamo_component": "backend", "dynamo_endpoint": "generate"}
STATES = {"ready", "provisioning", "suspect", "offline", "unknown"}

Seen = Callable[[str, float], None]


@pytest.fixture(params=list(PLANES))
def planes(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def live(tmp_path: Path, planes: str) -> Iterator[Dynamo]:
    with dynamo(tmp_path, planes) as stack:
        yield stack


@pytest.fixture
def seen(record_property: Callable[[str, object], None]) -> Seen:
    """Keeps a time, to be shown at the end."""
    return record_property


def samples(page: Page, name: str, **labels: str) -> dict[frozenset[tuple[str, str]], float]:
    return {have: value for (sample, have), value in page.items() if sample == name and labels.items() <= have}


def total(page: Page, name: str, **labels: str) -> float | None:
    """The sum of these samples, None where there is none."""
    found = samples(page, name, **labels)
    return sum(found.values()) if found else None


def state(page: Page) -> str | None:
    """The state of the workers' endpoint, None where the page has none."""
    found = {dict(labels)["state"]: value for labels, value in
             samples(page, "llm_dynamo_endpoint_state", target="dynamo", **ENDPOINT).items()}  # fmt: skip
    if not found:
        return None
    assert found.keys() == STATES
    assert sorted(found.values()) == [0, 0, 0, 0, 1], found
    return next(name for name, value in found.items() if value)


def instances(page: Page) -> dict[str, str]:
    """The state of each instance of that endpoint."""
    return {
        dict(labels)["dynamo_instance"]: dict(labels)["state"]
        for labels, value in samples(page, "llm_dynamo_instance_state", **ENDPOINT).items()
        if value
    }


def up(page: Page, target: str) -> float | None:
    return total(page, "llm_target_up", target=target)


async def ready(stack: Dynamo) -> Diary:
    """Start the exporter; a diary whose last page has both workers ready, and all that is to be read has been."""
    await asyncio.to_thread(stack.exporter.start)
    diary = Diary(stack.exporter)
    await diary.until(
        lambda page: (
            state(page) == "ready"
            and instances(page) == dict.fromkeys(stack.instances, "ready")
            and up(page, stack.target(stack.frontend)) == 1
            and all(up(page, stack.target(worker)) == 1 for worker in stack.workers if worker.port)
        ),
        30.0,
    )
    return diary


async def test_at_rest_the_page_says_who_is_registered_and_over_what_they_speak(live: Dynamo, planes: str) -> None:
    diary = await ready(live)
    page = diary.pages[-1]
    assert total(page, "llm_dynamo_endpoint_instances", **ENDPOINT) == 2
    subjects = {f"dynamo_backend.generate-{instance}" for instance in live.instances} if planes == "nats" else set()
    told = [dict(labels) for labels in samples(page, "llm_dynamo_instance_info", **ENDPOINT)]
    assert {labels["dynamo_instance"] for labels in told} == live.instances
    assert {labels["transport"] for labels in told} == {"nats" if planes == "nats" else "tcp"}
    assert {labels["subject"] for labels in told if "subject" in labels} == subjects
    endpoints = {dict(labels)["dynamo_endpoint"] for labels in samples(page, "llm_dynamo_endpoint_state")}
    assert endpoints == {"generate"}  # worker_kv_query_source_* is Dynamo's own, with a new name at each start
    assert total(page, "llm_dynamo_model_ready", model=MODEL) == 1
    for target in ("nats", "etcd"):
        assert up(page, target) == 1
    assert total(page, "llm_etcd_up") == 1
    assert total(page, "llm_etcd_leases") == 3  # the frontend's and the workers'
    await diary.until(lambda page: total(page, "llm_nats_connection_state", state="connected") == 1, SOON)
    # a server that is up and not used has no subjects of Dynamo's
    used = {plane: total(diary.pages[-1], "llm_nats_dynamo_subjects", plane=plane) for plane in ("request", "event")}
    assert {plane: bool(count) for plane, count in used.items()} == dict.fromkeys(used, planes == "nats"), used


async def test_the_page_counts_what_the_client_counts(live: Dynamo, seen: Seen) -> None:
    diary = await ready(live)
    began = time.time()
    books = Books()
    for requests, tokens, patience in (
        (12, 40, INTERVAL + SOON),  # the first read has series that are new: they are 0 on the page, so that they count
        (5, 7, SOON),
    ):
        part = await drive(live.frontend.url, requests, tokens)
        for name, value in vars(part).items():
            setattr(books, name, getattr(books, name) + value)
        sent = books.requests
        took = await diary.until(
            lambda page, sent=sent: total(page, "llm_requests_total", layer="frontend", model=MODEL) == sent, patience
        )
        seen(f"{sent} requests on the page, after the last", took)
    await diary.keep(INTERVAL + 0.5)  # the workers are read on their own
    page = diary.pages[-1]

    def frontend(name: str) -> float | None:
        return total(page, name, layer="frontend", model=MODEL, target=live.target(live.frontend))

    assert books.output_tokens == 12 * 40 + 5 * 7
    assert frontend("llm_requests_total") == books.requests == 17
    assert frontend("llm_output_tokens_total") == books.output_tokens
    assert not frontend("llm_request_failures_total")
    assert frontend("llm_prompt_length_tokens_sum") == books.prompt_tokens
    assert frontend("llm_prompt_length_tokens_count") == books.requests
    assert frontend("llm_output_length_tokens_sum") == books.output_tokens
    assert frontend("llm_requests_running") == 0
    assert len(books.gaps) == books.output_tokens - books.requests
    for name, times in (
        ("llm_time_to_first_token_seconds", books.first),
        ("llm_inter_token_latency_seconds", books.gaps),
        ("llm_request_duration_seconds", books.durations),
    ):
        assert frontend(f"{name}_count") == len(times), name
        told = frontend(f"{name}_sum")
        assert told is not None
        assert near(told, times, books.requests), (name, told, sum(times))
    (activity,) = samples(page, "llm_dynamo_endpoint_last_activity_timestamp_seconds", **ENDPOINT).values()
    assert began + max(books.durations) <= activity <= time.time()
    # the workers say the same, each its part
    targets = {live.target(worker) for worker in live.workers}
    parts = samples(page, "llm_dynamo_worker_requests_total", dynamo_endpoint="generate")
    assert {dict(labels)["target"] for labels in parts} == targets
    assert {dict(labels)["dynamo_instance"] for labels in parts} == live.instances
    assert sum(parts.values()) == books.requests
    assert total(page, "llm_time_to_first_token_seconds_count", layer="engine") == books.requests


async def test_a_killed_worker_is_suspect_at_once_and_gone_with_its_lease(
    tmp_path: Path, planes: str, seen: Seen
) -> None:
    # With NATS the worker that is killed first has no system port: only its subject, gone from /connz, can tell.
    with dynamo(tmp_path, planes, blind=planes == "nats") as stack:
        diary = await ready(stack)
        last, first = stack.workers

        killed = time.monotonic()
        first.stop(signal.SIGKILL)
        took = await diary.until(
            lambda page: instances(page) == {first.instance: "suspect", last.instance: "ready"}, SOON, killed
        )
        seen("one of two suspect after its kill", took)
        assert state(diary.pages[-1]) == "ready"
        assert total(diary.pages[-1], "llm_dynamo_endpoint_instances", **ENDPOINT) == 2
        took = await diary.until(lambda page: instances(page) == {last.instance: "ready"}, LEASE + 2, killed)
        seen("its key gone with its lease", took)
        assert took >= LEASE - 11
        assert total(diary.pages[-1], "llm_dynamo_endpoint_instances", **ENDPOINT) == 1
        assert {state(page) for page in diary.pages[1:]} == {"ready"}
        answered = await drive(stack.frontend.url, 2, 4)  # by the one that is left
        assert answered.requests == 2

        killed = time.monotonic()
        before = len(diary.pages)
        last.stop(signal.SIGKILL)
        seen(
            "the endpoint suspect after the last one's kill",
            await diary.until(lambda page: state(page) == "suspect", SOON, killed),
        )
        assert instances(diary.pages[-1]) == {last.instance: "suspect"}
        took = await diary.until(lambda page: state(page) == "offline", LEASE + 2, killed)
        seen("the endpoint offline with the last lease", took)
        offline = time.monotonic()
        assert took >= LEASE - 11
        assert instances(diary.pages[-1]) == {}
        assert not total(diary.pages[-1], "llm_dynamo_endpoint_instances", **ENDPOINT)
        turned = [state(page) for page in diary.pages[before:]]
        assert [state for state, previous in zip(turned, [None, *turned], strict=False) if state != previous] in (
            ["ready", "suspect", "offline"],
            ["suspect", "offline"],
        )
        seen(
            "the model not ready after that",
            await diary.until(lambda page: total(page, "llm_dynamo_model_ready", model=MODEL) == 0, SOON, offline),
        )
        took = await diary.until(
            lambda page: not any(ENDPOINT.items() <= labels for name, labels in page), FORGET + SOON, offline
        )
        seen("all its series gone after that", took)
        assert took >= FORGET - 1
        assert up(diary.pages[-1], "dynamo") == 1
        assert up(diary.pages[-1], stack.target(stack.frontend)) == 1
        assert {up(diary.pages[-1], stack.target(worker)) for worker in stack.workers} == {None}


@pytest.mark.parametrize("hangs", [False, True], ids=["gone", "hung"])
async def test_while_etcd_is_away_states_are_unknown_and_never_offline(live: Dynamo, seen: Seen, hangs: bool) -> None:
    diary = await ready(live)
    before = len(diary.pages)
    stopped = time.monotonic()
    assert live.etcd.process is not None
    if hangs:
        live.etcd.process.send_signal(signal.SIGSTOP)
    else:
        live.etcd.stop()
    patience = SOON + 2 if hangs else SOON  # a member that hangs has 2 s to answer
    took = await diary.until(lambda page: state(page) == "unknown" and up(page, "dynamo") == 0, patience, stopped)
    seen("unknown without etcd", took)
    away = await diary.keep(9.0 - took)
    assert {state(page) for page in away} == {"unknown"}
    assert {up(page, "dynamo") for page in away} == {0}
    assert total(away[-1], "llm_etcd_up") == 0
    for server in (live.frontend, *live.workers):  # they go on being read
        assert {up(page, live.target(server)) for page in away} == {1}
        success = total(away[-1], "llm_target_last_success_timestamp_seconds", target=live.target(server))
        assert success is not None
        assert time.time() - success < SOON, server.arguments
    if hangs:
        live.etcd.process.send_signal(signal.SIGCONT)
    else:
        await asyncio.to_thread(live.etcd.start)
    back = time.monotonic()
    took = await diary.until(lambda page: state(page) == "ready" and up(page, "dynamo") == 1, 2 * SOON, back)
    seen("ready after etcd was back", took)
    assert instances(diary.pages[-1]) == dict.fromkeys(live.instances, "ready")
    assert total(diary.pages[-1], "llm_dynamo_endpoint_instances", **ENDPOINT) == 2
    assert "offline" not in {state(page) for page in diary.pages[before:]}
    answered = await drive(live.frontend.url, 2, 4)
    assert answered.requests == 2
