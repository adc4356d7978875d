"""What NATS is configured with, what the environment says, and answers that are odd."""

from typing import Any

import pytest
from pydantic import ValidationError

from exporter.sources.nats import Nats, Server
from exporter.sources.nats.monitor import rows, subjects

VARZ: dict[str, Any] = {"server_id": "N", "version": "2.9.10", "in_msgs": 1}


@pytest.mark.parametrize(
    ("server", "whole"),
    [
        ("nats://gw", "nats://gw:4222"),
        ("nats://gw:14222", "nats://gw:14222"),
        ("tls://[::1]", "tls://[::1]:4222"),
    ],
)
def test_a_server_has_its_port_and_gives_the_target_its_name(server: str, whole: str) -> None:
    target = Server(server=server)
    assert (target.server, target.place, target.target_name) == (whole, whole, whole.partition("://")[2])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "neither url nor server (write one of them, or both)"),
        ({"server": "gw:4222"}, "write nats://host:4222"),
        ({"server": "nats://me:secret@gw:4222"}, "without a login"),
        ({"server": "nats://gw:port"}, "write nats://host:4222"),
        ({"server": "nats://gw", "user": "me", "creds_file": "x.creds"}, "a second login beside user"),
        ({"server": "nats://gw", "token_env": "TOKEN", "creds_file": "x.creds"}, "a second login beside token_env"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_what_to_write(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Server(**given)
    assert message in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("environ", "server", "login"),
    [
        ({}, "nats://127.0.0.1:4222", None),
        ({"NATS_SERVER": "nats://gw"}, "nats://gw:4222", None),
        ({"NATS_SERVER": "gw:14222"}, "nats://gw:14222", None),
        ({"NATS_SERVER": "nats://me:word@gw"}, "nats://gw:4222", ("me", "word")),
        ({"NATS_AUTH_USERNAME": "me", "NATS_AUTH_PASSWORD": "word"}, "nats://127.0.0.1:4222", ("me", "word")),
        ({"NATS_SERVER": "tls://word@gw"}, "tls://gw:4222", "word"),
        ({"NATS_AUTH_TOKEN": "word"}, "nats://127.0.0.1:4222", "word"),
    ],
)
def test_the_environment_says_where_the_server_is_and_how_to_log_in(
    environ: dict[str, str], server: str, login: tuple[str, str] | str | None
) -> None:
    monitored, alone = Nats.candidates(environ)
    host = server.partition("://")[2].rpartition(":")[0]
    assert (monitored.url, monitored.server, monitored.target_name) == (f"http://{host}:8222", server, "nats")
    assert (alone.url, alone.server, alone.target_name) == ("", server, "nats")
    assert (alone.login(environ) or alone.secret_token(environ)) == login


def test_answers_that_are_odd_give_what_is_sound_and_nothing_else() -> None:
    odd = {**VARZ, "start": "yesterday", "in_bytes": "7", "mem": None, "connections": True, "slow_consumers": 10**400}
    found = {name: value for name, _, value in rows(odd, {}, {"streams": 2, "api": [], "config": {"max_memory": 5}})}
    assert found == {"varz": 1.0, "varz_in_msgs": 1.0, "jsz_streams": 2.0, "jsz_config_max_memory": 5.0}


def test_a_start_of_nine_digits_behind_the_second_tells_the_process() -> None:
    (start,) = (
        value
        for name, _, value in rows({**VARZ, "start": "2026-11-21T11:32:17.902796836Z"}, {}, None)
        if name == "varz_start"
    )
    assert start == pytest.approx(1795260737.902796)


def test_subjects_of_dynamo_are_told_from_others_and_counted_once() -> None:
    listed = [
        "dynamo_backend.generate-2040a1fbfef66b06",
        "namespace.dynamo.component.backend.kv_events",
        "_INBOX.RZugKFKDZQrjmv0Qi6FkS6.*",
        "$SRV.PING.dynamo_backend",
        "orders.new",
        "my_app.job-done",
        "namespace",
        7,
    ]
    entries: list[dict[str, Any]] = [{"subscriptions_list": listed}, {"subscriptions_list": listed[:2]}, {}, {"x": 1}]
    assert subjects(iter(entries)) == {"request": 1, "event": 1}
