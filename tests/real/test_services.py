"""Real services, watched by the exporter as a process: Redis, HTTP, TCP, and TLS with certificates good and expired."""

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import stack
import yaml
from stack import Exporter, Server, running

SECRET = "invented-secret"


@asynccontextmanager
async def watching(folder: Path, *targets: Mapping[str, Any], **more: Any) -> AsyncIterator[Exporter]:
    """An exporter of these targets. It ends in good order, and has logged no secret and no defect."""
    file = folder / "llm-exporter.yaml"
    file.write_text(yaml.safe_dump({"targets": [dict(target) for target in targets], "timeout": "2s", **more}))
    server = stack.exporter(folder, "", "--config", str(file))
    await asyncio.to_thread(server.start)
    try:
        yield server
    finally:
        status = await asyncio.to_thread(server.stop)
    log = server.log.read_text()
    assert status == 0, log
    assert SECRET not in log, log
    assert "Traceback" not in log, log


def openssl(folder: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True, cwd=folder)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an authority, ca.pem, and its certificates for this machine: good.pem and expired.pem with keys."""
    folder = tmp_path_factory.mktemp("certificates")
    new = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    openssl(folder, "req", "-x509", *new, "-keyout", "ca.key", "-out", "ca.pem", "-days", "2", "-subj", "/CN=invented")
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1\n")
    for name, days in (("good", "3"), ("expired", "-1")):
        openssl(folder, "req", *new, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        sign = ["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", days, "-extfile", "names"]
        openssl(folder, "x509", "-req", "-in", f"{name}.csr", *sign, "-out", f"{name}.pem")
    return folder


def tls_server(folder: Path, certificates: Path, name: str) -> Server:
    """OpenSSL's own server: it answers each GET with a page that says how it was asked."""
    port = stack.free_port()
    files = ["-cert", str(certificates / f"{name}.pem"), "-key", str(certificates / f"{name}.key")]
    arguments = ["openssl", "s_server", "-quiet", "-accept", f"127.0.0.1:{port}", *files, "-www"]
    return Server(arguments, port, folder / f"{name}.log", ready="")


def http_server(folder: Path) -> Server:
    port = stack.free_port()
    (folder / "www").mkdir(exist_ok=True)
    arguments = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1", "--directory", "www"]
    return Server(arguments, port, folder / "http.log")


def cli(server: Server, *arguments: str, password: str = SECRET) -> str:
    command = ["redis-cli", "-p", str(server.port), "--no-auth-warning", "-a", password, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def redis(folder: Path, *options: str) -> Server:
    server = stack.redis(folder)
    server.arguments += ["--requirepass", SECRET, *options]
    return server


async def test_an_http_service_goes_and_comes_back(tmp_path: Path) -> None:
    service = http_server(tmp_path)
    (tmp_path / "www" / "health").write_text("all is well\n")
    target = {"source": "http", "name": "web", "url": f"{service.url}/health", "text": "well"}
    with running(service):
        began = time.time()
        async with watching(tmp_path, target) as exporter:
            await exporter.until("llm_probe_up", 1.0, target="web")
            since = exporter.sum("llm_probe_up_since_timestamp_seconds")
            assert began <= since <= time.time()
            assert 0 < exporter.sum("llm_probe_duration_seconds") <= 2.5, "it may take two seconds"
            (tmp_path / "www" / "health").write_text("all is lost\n")
            await exporter.until("llm_probe_up", 0.0, target="web")
            assert "without the text that is expected" in exporter.text("/")
            (tmp_path / "www" / "health").write_text("all is well\n")
            await exporter.until("llm_probe_up", 1.0, target="web")
            assert exporter.sum("llm_probe_up_since_timestamp_seconds") > since
            service.stop()
            await exporter.until("llm_probe_up", 0.0, target="web")
            page = exporter.page()
            assert exporter.sum("llm_target_up", page, target="web") == 1.0, "it could be asked: there is no one there"
            assert not [name for name, _ in page if name.startswith("llm_probe_up_since")]
            service.start()
            await exporter.until("llm_probe_up", 1.0, target="web")


async def test_a_tcp_service_is_up_for_as_long_as_it_takes_connections(tmp_path: Path) -> None:
    service = redis(tmp_path)
    target = {"source": "http", "name": "cache", "host": "127.0.0.1", "port": service.port}
    with running(service):
        async with watching(tmp_path, target) as exporter:
            await exporter.until("llm_probe_up", 1.0, probe="tcp")
            service.stop()
            await exporter.until("llm_probe_up", 0.0, probe="tcp")


async def test_an_expired_certificate_is_refused_and_its_day_is_told(tmp_path: Path, certificates: Path) -> None:
    servers = {name: tls_server(tmp_path, certificates, name) for name in ("good", "expired")}
    tls = {"tls": {"ca_file": str(certificates / "ca.pem")}}
    targets: list[dict[str, Any]] = [
        {"source": "http", "name": name, "url": f"https://127.0.0.1:{server.port}/", **tls}
        for name, server in servers.items()
    ]
    targets.append({"source": "http", "name": "bare", "host": "127.0.0.1", "port": servers["expired"].port, **tls})
    targets.append({"source": "http", "name": "stranger", "url": targets[0]["url"]})
    with running(*servers.values()):
        async with watching(tmp_path, *targets) as exporter:
            await exporter.until("llm_probe_up", 1.0, target="good")
            page = exporter.page()
            up = {target["name"]: exporter.sum("llm_probe_up", page, target=target["name"]) for target in targets}
            assert up == {"good": 1.0, "expired": 0.0, "bare": 0.0, "stranger": 0.0}
            expiry = {
                dict(labels)["target"]: (value - time.time()) / 86400
                for (name, labels), value in page.items()
                if name == "llm_probe_certificate_expiry_timestamp_seconds"
            }
            assert expiry == pytest.approx({"good": 3, "expired": -1, "bare": -1}, abs=0.01), "of whom we trust alone"
            said = exporter.text("/")
            assert "certificate has expired" in said
            assert said.count("certificate is refused") == 3


def stat(server: Server, name: str) -> float:
    return float(dict(line.split(":") for line in cli(server, "info", "stats").split() if ":" in line)[name])


async def test_redis_s_own_numbers_are_ours(tmp_path: Path) -> None:
    server = redis(tmp_path, "--maxmemory", "4mb", "--maxmemory-policy", "allkeys-lru")
    (tmp_path / "password").write_text(f"{SECRET}\n")
    target = {"source": "redis", "name": "r", "server": f"redis://127.0.0.1:{server.port}"}
    with running(server):
        async with watching(tmp_path, {**target, "password_file": str(tmp_path / "password")}) as exporter:
            cli(server, "set", "a", "1")
            cli(server, "-n", "3", "set", "b", "1")
            for key in ("a", "a", "a", "nothing", "nothing"):
                cli(server, "get", key)
            await exporter.until("llm_redis_misses_total", 2.0)
            await exporter.until("llm_redis_clients", 1.0)  # the exporter's own
            page = exporter.page()
            assert exporter.sum("llm_redis_up", page) == 1.0
            assert exporter.sum("llm_redis_hits_total", page) == 3.0
            assert exporter.sum("llm_redis_keys", page, db="0") == 1.0
            assert exporter.sum("llm_redis_keys", page, db="3") == 1.0
            assert exporter.sum("llm_redis_memory_limit_bytes", page) == 4 << 20
            assert 500_000 < exporter.sum("llm_redis_memory_used_bytes", page) < 4 << 20
            cli(server, "eval", "for i = 1, 8000 do redis.call('set', 'k' .. i, string.rep('x', 1000)) end", "0")
            await exporter.until_above("llm_redis_evictions_total", 1000.0)
            before, evicted = 0.0, 1.0
            while evicted != before:  # what is too much is evicted a piece at a time
                await asyncio.sleep(1.0)
                before, evicted = evicted, stat(server, "evicted_keys")
            await exporter.until("llm_redis_evictions_total", evicted)
            server.stop()
            await exporter.until("llm_redis_up", 0.0)
            assert "nothing listens" in exporter.text("/")
            server.start()
            await exporter.until("llm_redis_up", 1.0)
            cli(server, "set", "a", "1")
            cli(server, "get", "a")
            await exporter.until("llm_redis_hits_total", 4.0)


async def test_redis_over_tls_by_a_user_that_may_ask_for_info_alone(tmp_path: Path, certificates: Path) -> None:
    port = stack.free_port()
    files = ["--tls-cert-file", "good.pem", "--tls-key-file", "good.key", "--tls-ca-cert-file", "ca.pem"]
    options = [str(certificates / option) if "." in option else option for option in files]
    server = redis(tmp_path, "--tls-port", str(port), "--tls-auth-clients", "no", *options)
    common = {"source": "redis", "server": f"rediss://127.0.0.1:{port}", "user": "exporter"}
    trusted = {"tls": {"ca_file": str(certificates / "ca.pem")}}
    with running(server):
        cli(server, "acl", "setuser", "exporter", "on", f">{SECRET}2", "+info", "+ping")
        targets = (
            {**common, **trusted, "name": "good", "password": f"{SECRET}2"},
            {**common, **trusted, "name": "wrong", "password": SECRET},
            {**common, "name": "stranger", "password": f"{SECRET}2"},
        )
        async with watching(tmp_path, *targets) as exporter:
            await exporter.until("llm_redis_up", 1.0, target="good")
            page = exporter.page()
            assert exporter.sum("llm_target_read_failures_total", page, target="wrong", reason="auth") >= 1.0
            assert exporter.sum("llm_target_read_failures_total", page, target="stranger", reason="connect") >= 1.0
            assert exporter.sum("llm_redis_up", page) == 1.0
            assert "WRONGPASS" in exporter.text("/")
