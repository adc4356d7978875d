"""A real NATS server, watched: counts against what a client sent, and states, with their times, while it fares ill."""

import asyncio
import signal
import time
from pathlib import Path
from typing import Any

from brokers import (
    SECRET,
    SOON,
    NatsServer,
    Watched,
    certificates,
    credentials,
    found,
    line,
    nats_client,
    nats_server,
    stopped,
    watched,
)
from stack import PATIENCE, free_port, running

UP, STATE, TRIP = "llm_target_up", "llm_nats_connection_state", "llm_nats_round_trip_seconds"
RECONNECTS, INTERVAL = "llm_nats_reconnects_total", "llm_target_interval_seconds"


def target(server: NatsServer, /, **more: Any) -> dict[str, Any]:
    return {"source": "nats", "name": "nats", "url": server.url, "server": server.server, **more}


async def is_connected(exporter: Watched, within: float = PATIENCE) -> None:
    await exporter.until_value(STATE, 1.0, within, state="connected")


async def test_counts_are_what_a_client_sent(tmp_path: Path) -> None:
    server = nats_server(tmp_path)
    with running(server):
        async with watched(tmp_path, target(server)) as exporter, nats_client(server.server) as client:
            await is_connected(exporter)
            before = exporter.look()
            heard = asyncio.Queue[bytes]()

            async def hear(message: Any) -> None:
                heard.put_nowait(message.data)

            for subject in ("dynamo_backend.generate-2040a1fbfef66b06", "dynamo_backend.generate-2040a1fbfef66b1d"):
                await client.subscribe(subject, cb=hear)
            await client.subscribe("dynamo_backend.*", cb=hear)
            await client.subscribe("namespace.dynamo.component.backend.kv_events", cb=hear)
            for number in range(100):
                await client.publish("dynamo_backend.generate-2040a1fbfef66b06", b"%010d" % number)
            for _ in range(200):
                await asyncio.wait_for(heard.get(), PATIENCE)
            await exporter.until_value("llm_nats_out_messages_total", 200.0)
            after = exporter.look()
            gained = {
                name: value - before[name, labels]
                for (name, labels), value in after.items()
                if name.startswith("llm_nats_") and name.endswith("_total")
            }
            assert gained == {
                "llm_nats_in_messages_total": 100.0,
                "llm_nats_out_messages_total": 200.0,
                "llm_nats_in_bytes_total": 1000.0,
                "llm_nats_out_bytes_total": 2000.0,
                "llm_nats_slow_consumers_total": 0.0,
                RECONNECTS: 0.0,
            }
            assert exporter.value("llm_nats_connections") == 2.0  # the client's, and the exporter's own
            assert exporter.value("llm_nats_dynamo_subjects", plane="request") == 2.0
            assert exporter.value("llm_nats_dynamo_subjects", plane="event") == 1.0
            assert exporter.value("llm_probe_up", probe="health") == 1.0
            assert 0.0 < (exporter.value(TRIP) or 0.0) < 1.5, "a PONG must come within a second"
            assert not [name for name, _ in after if name.startswith("llm_nats_jetstream")]
            own = server.ask("/connz?state=open")["connections"]
            assert [entry["in_msgs"] for entry in own if entry.get("name") == "llm-exporter"] == [0]
        end = time.monotonic() + PATIENCE
        while server.ask("/connz")["num_connections"]:  # nothing is left behind
            assert time.monotonic() < end
            await asyncio.sleep(0.1)


async def test_jetstream_is_told_where_it_is_on(tmp_path: Path) -> None:
    server = nats_server(tmp_path, "-js")
    with running(server):
        async with watched(tmp_path, target(server)) as exporter, nats_client(server.server) as client:
            stream = client.jetstream()
            await stream.add_stream(name="events", subjects=["events.>"])
            await stream.subscribe("events.kv", durable="router")
            for _ in range(30):
                await stream.publish("events.kv", b"0123456789")
            await exporter.until_value("llm_nats_jetstream_messages", 30.0)
            said = server.ask("/jsz")
            for name, value in {
                "streams": 1.0,
                "consumers": 1.0,
                "bytes": said["bytes"],
                "storage_bytes": said["storage"],
                "storage_limit_bytes": said["config"]["max_storage"],
                "api_requests_total": said["api"]["total"],
                "api_errors_total": said["api"]["errors"],
            }.items():
                assert exporter.value(f"llm_nats_jetstream_{name}") == value, name


async def test_a_server_that_is_killed_and_comes_back_is_seen_both_times_and_no_counter_falls(tmp_path: Path) -> None:
    server = nats_server(tmp_path)
    with running(server):
        async with watched(tmp_path, target(server)) as exporter:
            await is_connected(exporter)
            async with nats_client(server.server) as client:
                for _ in range(50):
                    await client.publish("x", b"0123456789")
                await client.flush()
            await exporter.until_value("llm_nats_in_messages_total", 50.0)

            await asyncio.to_thread(server.stop, signal.SIGKILL)
            await exporter.until_value(UP, 0.0, SOON)
            await exporter.until_value(STATE, 1.0, SOON, state="disconnected")
            await exporter.until_value("llm_nats_in_messages_total", None)  # what was read before is not shown on
            page = exporter.look()
            assert exporter.value(TRIP) is None
            assert exporter.value("llm_target_read_failures_total", reason="connect")
            assert sum(value for (name, _), value in page.items() if name == STATE) == 1.0
            assert "nothing listens there" in exporter.why()

            await asyncio.to_thread(server.start)
            await is_connected(exporter, SOON)
            await exporter.until_value(UP, 1.0)
            async with nats_client(server.server) as client:
                for _ in range(30):
                    await client.publish("x", b"0123456789")
                await client.flush()
            await exporter.until_value("llm_nats_in_messages_total", 80.0)  # fifty before, thirty after
            assert exporter.value(RECONNECTS) == 1.0
            assert exporter.value("llm_nats_in_bytes_total") == 800.0
            assert exporter.value(TRIP) is not None
            assert exporter.falls() == []


async def test_a_server_that_hangs_is_seen_by_the_pings_and_its_return_too(tmp_path: Path) -> None:
    server = nats_server(tmp_path)
    with running(server):
        async with watched(tmp_path, target(server)) as exporter:
            await is_connected(exporter)
            with stopped(server):
                await exporter.until_value(
                    STATE, 1.0, SOON, state="reconnecting"
                )  # for the three seconds of an attempt
                await exporter.until_value(STATE, 1.0, SOON, state="disconnected")
                assert exporter.value(TRIP) is None
                await exporter.until_value(UP, 0.0, SOON)
                await exporter.until_value("llm_nats_connections", None)  # what is shown is not old
                assert exporter.value(STATE, state="disconnected") == 1.0
                assert exporter.value("llm_target_read_failures_total", reason="timeout")
            await is_connected(exporter, SOON)
            assert exporter.value(RECONNECTS) == 1.0


async def test_a_partition_between_the_exporter_and_the_clients_port_is_seen_while_the_rest_is_told(
    tmp_path: Path,
) -> None:
    server = nats_server(tmp_path)
    with running(server):
        async with line(server.client_port) as wire:
            through = target(server, server=f"nats://127.0.0.1:{wire.port}")
            async with watched(tmp_path, through) as exporter:
                await is_connected(exporter)
                wire.cut()
                await exporter.until_value(STATE, 0.0, SOON, state="connected")
                await exporter.until_value(STATE, 1.0, SOON, state="disconnected")
                await exporter.until_value(UP, 0.0, SOON)
                assert exporter.value(TRIP) is None
                assert exporter.value("llm_nats_server_info", version=server.ask("/varz")["version"]) == 1.0
                assert "its monitoring port answered" in exporter.why()
                wire.mend()
                await is_connected(exporter, SOON)
                await exporter.until_value(UP, 1.0)
                assert exporter.value(RECONNECTS) == 1.0


async def test_a_server_that_is_slow_is_connected_and_its_round_trip_says_how_slow(tmp_path: Path) -> None:
    server = nats_server(tmp_path)
    with running(server):
        async with line(server.client_port) as wire, line(server.port) as monitoring:
            through = target(server, url=f"http://127.0.0.1:{monitoring.port}", server=f"nats://127.0.0.1:{wire.port}")
            async with watched(tmp_path, through) as exporter:
                await is_connected(exporter)
                await exporter.until(lambda page: (found(page, TRIP) or 1.0) < 0.2, "a quick round trip")
                wire.late = monitoring.late = 0.2
                await exporter.until(lambda page: (found(page, TRIP) or 0.0) >= 0.2, "a slow round trip")
                await exporter.until(lambda page: (found(page, INTERVAL) or 0.0) > 5.0, "it is read more rarely")
                await is_connected(exporter)
                assert exporter.value(UP) == 1.0
                assert exporter.value(RECONNECTS) == 0.0


async def test_where_the_monitoring_port_is_gone_the_connection_is_told(tmp_path: Path) -> None:
    server = nats_server(tmp_path)
    with running(server):
        async with watched(tmp_path, target(server, url=f"http://127.0.0.1:{free_port()}")) as exporter:
            await is_connected(exporter)
            await exporter.until(lambda page: any(name == TRIP for name, _ in page), TRIP)
            assert exporter.value(UP) == 0.0
            assert exporter.value("llm_nats_connections") is None
            assert f"clients can connect to {server.server}" in exporter.why()


async def test_a_server_without_a_monitoring_port_is_up_while_it_can_be_connected_to(tmp_path: Path) -> None:
    server = nats_server(tmp_path)
    with running(server):
        only = {"source": "nats", "server": server.server}
        async with watched(tmp_path, only) as exporter:
            await is_connected(exporter)
            await exporter.until_value(UP, 1.0, target=f"127.0.0.1:{server.client_port}")
            await asyncio.to_thread(server.stop, signal.SIGKILL)
            await exporter.until_value(UP, 0.0)
            assert (
                exporter.value(STATE, state="disconnected") == 1.0 or exporter.value(STATE, state="reconnecting") == 1.0
            )


async def test_a_wrong_password_is_said_and_not_tried_again_and_again_and_a_corrected_one_at_once(
    tmp_path: Path,
) -> None:
    server = nats_server(tmp_path, "--user", "reader", "--pass", SECRET)
    password = tmp_path / "password"
    password.write_text("wrong\n")
    with running(server):
        login = target(server, user="reader", password_file=str(password))
        async with watched(tmp_path, login) as exporter:
            await exporter.until_value(UP, 0.0)
            assert exporter.value(STATE, state="disconnected") == 1.0
            assert exporter.value("llm_target_read_failures_total", reason="auth")
            assert "refuses the login (set user and password_file" in exporter.why()
            await asyncio.sleep(4)
            assert server.ask("/varz")["total_connections"] == 1
            corrected = time.monotonic()
            password.write_text(f"{SECRET}\n")
            await is_connected(exporter)
            assert time.monotonic() - corrected < 40, "before one that is refused is tried again, after a minute"
            assert exporter.value(UP) == 1.0


async def test_a_server_that_wants_a_login_nobody_gave_is_read_and_says_what_to_give(tmp_path: Path) -> None:
    server = nats_server(tmp_path, "--user", "reader", "--pass", SECRET)
    with running(server):
        async with watched(tmp_path, target(server)) as exporter:
            await exporter.until_value(UP, 1.0)
            await exporter.until_value("llm_nats_connections", 0.0)  # it was there when it was refused
            assert exporter.value(STATE, state="disconnected") == 1.0
            assert "wants a login (set user and password_file" in exporter.why()


async def test_a_token_opens_the_connection(tmp_path: Path) -> None:
    server = nats_server(tmp_path, "--auth", SECRET)
    with running(server):
        login = target(server, token_env="NATS_AUTH_TOKEN")
        async with watched(tmp_path, login, environ={"NATS_AUTH_TOKEN": SECRET}) as exporter:
            await is_connected(exporter)
        async with watched(tmp_path, login, environ={"NATS_AUTH_TOKEN": "wrong"}) as exporter:
            await exporter.until_value(UP, 0.0)
            assert exporter.value(STATE, state="disconnected") == 1.0


async def test_a_file_of_credentials_opens_the_connection_and_a_bad_one_is_said(tmp_path: Path) -> None:
    configuration, file = credentials(tmp_path)
    server = nats_server(tmp_path, configuration=configuration)
    with running(server):
        async with watched(tmp_path, target(server, creds_file=str(file))) as exporter:
            await is_connected(exporter)
            file.write_text("-----BEGIN NATS USER JWT-----\n")
            await asyncio.to_thread(server.stop)
            await asyncio.to_thread(server.start)
            await exporter.until_value(STATE, 1.0, state="disconnected")
            await exporter.until(lambda _: "not a file of credentials" in exporter.why(), "what is wrong with the file")


async def test_tls_needs_the_authority_and_then_opens(tmp_path: Path) -> None:
    files = certificates(tmp_path)
    options = ["--tls", "--tlscert", str(files.server), "--tlskey", str(files.server_key)]
    mutual = [*options, "--tlsverify", "--tlscacert", str(files.ca)]
    for more in (options, mutual):
        server = nats_server(tmp_path, *more)
        with running(server):
            tls = {"ca_file": str(files.ca), "cert_file": str(files.client), "key_file": str(files.client_key)}
            given = tls if more is mutual else {"ca_file": str(files.ca)}
            place = f"tls://127.0.0.1:{server.client_port}"
            async with watched(tmp_path, target(server, server=place, tls=given)) as exporter:
                await is_connected(exporter)
                assert exporter.value(UP) == 1.0
            given = {"ca_file": str(files.ca)} if more is mutual else None
            lacking = {**target(server, server=place), **({"tls": given} if given else {})}
            async with watched(tmp_path, lacking) as exporter:
                await exporter.until_value(UP, 0.0)
                assert exporter.value(STATE, state="disconnected") == 1.0
                assert "see tls: ca_file" in exporter.why()


async def test_a_login_is_not_sent_in_plain_where_tls_was_asked_for(tmp_path: Path) -> None:
    server = nats_server(tmp_path, "-DV", "--user", "reader", "--pass", SECRET)
    with running(server):
        login = {"user": "reader", "password_env": "NATS_AUTH_PASSWORD"}
        place = f"tls://127.0.0.1:{server.client_port}"
        environ = {"NATS_AUTH_PASSWORD": SECRET}
        async with watched(tmp_path, target(server, server=place, **login), environ=environ) as exporter:
            await exporter.until_value(UP, 0.0)
            assert "does not speak TLS" in exporter.why()
        assert "[CONNECT" not in server.log.read_text()
        async with watched(tmp_path, target(server, **login), environ=environ) as exporter:
            await is_connected(exporter)
        assert "[CONNECT" in server.log.read_text()  # the log would have told


async def test_a_server_found_by_the_environment_is_watched_by_what_of_it_answers(tmp_path: Path) -> None:
    server = nats_server(tmp_path, "--user", "reader", "--pass", SECRET)
    environ = {"NATS_SERVER": server.server, "NATS_AUTH_USERNAME": "reader", "NATS_AUTH_PASSWORD": SECRET}
    with running(server):
        async with watched(tmp_path, environ={**environ, "ETCD_ENDPOINTS": f"127.0.0.1:{free_port()}"}) as exporter:
            await exporter.until_value(STATE, 1.0, state="connected", target="nats")
