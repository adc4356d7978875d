"""A real member of etcd, watched: what was written and leased, and its states while it fares ill."""

import asyncio
import base64
import signal
from pathlib import Path
from typing import Any

from brokers import SECRET, SOON, EtcdMember, certificates, etcd, line, stopped, watched
from stack import running

UP = "llm_target_up"


def target(member: EtcdMember, /, **more: Any) -> dict[str, Any]:
    return {"source": "etcd", "name": "etcd", "url": member.url, **more}


async def test_leases_and_keys_are_what_was_asked_for(tmp_path: Path) -> None:
    member = etcd(tmp_path)
    with running(member):
        async with watched(tmp_path, target(member)) as exporter:
            await exporter.until_value(UP, 1.0)
            for name in ("up", "has_leader", "is_leader"):
                assert exporter.value(f"llm_etcd_{name}") == 1.0, name
            assert exporter.value("llm_etcd_leases") == 0.0
            leases = [member.post("lease/grant", TTL="600")["ID"] for _ in range(3)]
            await exporter.until_value("llm_etcd_leases", 3.0)
            for number, lease in enumerate(leases):
                put(member, number, lease)
            await exporter.until_value("llm_etcd_keys", 3.0)
            member.post("lease/revoke", ID=leases[0])
            await exporter.until_value("llm_etcd_keys", 2.0)
            put(member, 3, member.post("lease/grant", TTL="3")["ID"])
            await exporter.until_value("llm_etcd_leases_expired_total", 1.0)
            await exporter.until_value("llm_etcd_leases", 2.0)
            await exporter.until_value("llm_etcd_keys", 2.0)
            await exporter.until_value("llm_etcd_leases_granted_total", 4.0)
            await exporter.until_value("llm_etcd_leases_revoked_total", 2.0)
            assert exporter.falls() == []


def put(member: EtcdMember, number: int, lease: str) -> None:
    key = base64.b64encode(f"v1/instances/{number}".encode()).decode()
    member.post("kv/put", key=key, value="", lease=lease)


async def test_the_database_grows_with_what_is_written(tmp_path: Path) -> None:
    member = etcd(tmp_path, "--quota-backend-bytes", str(16 << 20))
    with running(member):
        async with watched(tmp_path, target(member)) as exporter:
            await exporter.until_value("llm_etcd_db_quota_bytes", float(16 << 20))
            before = exporter.value("llm_etcd_db_size_bytes") or 0.0
            for number in range(20):
                await asyncio.to_thread(member.put, f"k{number}", "x" * 50_000)
            await exporter.until(
                lambda page: _size(page) > before + 1_000_000, "a database that has grown by what was written"
            )
            await exporter.until(
                lambda page: _size(page) == float(member.post("maintenance/status")["dbSize"]),
                "the size that etcd says",
            )
            assert (exporter.value("llm_etcd_wal_sync_seconds_count") or 0.0) > 20.0


def _size(page: Any) -> float:
    return sum(value for (name, _), value in page.items() if name == "llm_etcd_db_size_bytes")


async def test_a_member_that_is_killed_and_comes_back_is_seen_both_times_and_no_counter_falls(tmp_path: Path) -> None:
    member = etcd(tmp_path)
    with running(member):
        async with watched(tmp_path, target(member)) as exporter:
            await exporter.until_value("llm_etcd_leader_changes_total", 1.0)
            for _ in range(2):
                member.post("lease/grant", TTL="600")
            await exporter.until_value("llm_etcd_leases_granted_total", 2.0)
            await asyncio.to_thread(member.stop, signal.SIGKILL)
            await exporter.until_value(UP, 0.0, SOON)
            assert exporter.value("llm_etcd_up") == 0.0
            assert exporter.value("llm_etcd_has_leader") is None
            assert exporter.value("llm_etcd_leases") is None
            assert exporter.value("llm_target_read_failures_total", reason="connect")
            await asyncio.to_thread(member.start)
            await exporter.until_value(UP, 1.0)
            assert exporter.value("llm_etcd_up") == 1.0
            assert exporter.value("llm_etcd_leases") == 2.0  # they outlive a restart
            await exporter.until_value("llm_etcd_leader_changes_total", 2.0)
            member.post("lease/grant", TTL="600")
            await exporter.until_value("llm_etcd_leases_granted_total", 3.0)
            assert exporter.falls() == []


async def test_a_member_that_hangs_is_not_up_and_shows_nothing_old(tmp_path: Path) -> None:
    member = etcd(tmp_path)
    with running(member):
        async with watched(tmp_path, target(member)) as exporter:
            await exporter.until_value(UP, 1.0)
            with stopped(member):
                await exporter.until_value("llm_etcd_up", 0.0, SOON)
                assert exporter.value(UP) == 0.0
                assert exporter.value("llm_etcd_db_size_bytes") is None
                assert exporter.value("llm_target_read_failures_total", reason="timeout")
                assert exporter.value("llm_target_interval_seconds") == 0.5, "waiting is no work: it is asked on"
            await exporter.until_value("llm_etcd_up", 1.0)


async def test_a_partition_is_seen_as_a_member_that_does_not_answer(tmp_path: Path) -> None:
    member = etcd(tmp_path)
    with running(member):
        async with line(member.port) as wire:
            through = target(member, url=f"http://127.0.0.1:{wire.port}")
            async with watched(tmp_path, through) as exporter:
                await exporter.until_value("llm_etcd_up", 1.0)
                wire.cut()
                await exporter.until_value("llm_etcd_up", 0.0)
                assert exporter.value(UP) == 0.0
                assert "no answer within 3 s" in exporter.why()


async def test_a_password_is_no_hindrance_for_what_needs_none_and_a_login_gives_the_leases(tmp_path: Path) -> None:
    member = etcd(tmp_path)
    with running(member):
        member.post("lease/grant", TTL="600")
        member.post("auth/user/add", name="root", password=SECRET)
        member.post("auth/role/add", name="root")
        member.post("auth/user/grant", user="root", role="root")
        member.post("auth/enable")
        for password in (SECRET, "wrong"):
            login = target(member, user="root", password_env="ETCD_AUTH_PASSWORD")
            async with watched(tmp_path, login, environ={"ETCD_AUTH_PASSWORD": password}) as exporter:
                await exporter.until_value(UP, 1.0)
                assert exporter.value("llm_etcd_up") == 1.0
                assert exporter.value("llm_etcd_has_leader") == 1.0
                assert exporter.value("llm_etcd_leases") == (1.0 if password == SECRET else None)
                assert ("etcd refuses the login" in exporter.why()) == (password != SECRET)


async def test_a_gateway_that_is_off_says_what_switches_it_on(tmp_path: Path) -> None:
    member = etcd(tmp_path, "--enable-grpc-gateway=false")
    with running(member):
        async with watched(tmp_path, target(member)) as exporter:
            await exporter.until_value(UP, 1.0)
            assert exporter.value("llm_etcd_leases") is None
            assert "enable-grpc-gateway: true" in exporter.why()


async def test_tls_needs_the_authority_and_the_certificate_that_is_asked_for(tmp_path: Path) -> None:
    files = certificates(tmp_path)
    member = etcd(
        tmp_path, "--cert-file", str(files.server), "--key-file", str(files.server_key),
        "--client-cert-auth", "--trusted-ca-file", str(files.ca), scheme="https", ready="",
    )  # fmt: skip
    tls = {"ca_file": str(files.ca), "cert_file": str(files.client), "key_file": str(files.client_key)}
    place = f"https://127.0.0.1:{member.port}"
    with running(member):
        async with watched(tmp_path, target(member, url=place, tls=tls)) as exporter:
            await exporter.until_value(UP, 1.0)
            assert exporter.value("llm_etcd_up") == 1.0
            assert exporter.value("llm_etcd_leases") is not None
        for lacking in ({"ca_file": tls["ca_file"]}, None):
            given = {} if lacking is None else {"tls": lacking}
            async with watched(tmp_path, target(member, url=place, **given)) as exporter:
                await exporter.until_value(UP, 0.0)
                assert exporter.value("llm_etcd_up") == 0.0


async def test_a_member_found_by_the_environment_is_watched(tmp_path: Path) -> None:
    member = etcd(tmp_path)
    with running(member):
        async with watched(tmp_path, environ={"ETCD_ENDPOINTS": f"127.0.0.1:{member.port}"}) as exporter:
            await exporter.until_value("llm_etcd_up", 1.0, target="etcd")
