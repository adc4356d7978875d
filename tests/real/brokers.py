"""Real etcd members and NATS servers for tests, on loopback; an exporter that watches them; a line that can be cut."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nats.aio.client
import nkeys
import yaml
from stack import EXPORTER, HERE, PATIENCE, Exporter, Page, Server, free_port


@dataclass
class NatsServer(Server):
    """A NATS server; `port` is its monitoring port, `client_port` that of its clients."""

    client_port: int = 0

    @property
    def server(self) -> str:
        return f"nats://127.0.0.1:{self.client_port}"

    def ask(self, endpoint: str) -> dict[str, Any]:
        return dict(json.loads(self.text(endpoint)))


def nats_server(folder: Path, *options: str, configuration: str = "") -> NatsServer:
    """`configuration` is what stands in its file, where it has one."""
    port, client_port = free_port(), free_port()
    arguments = ["nats-server", "-a", "127.0.0.1", "-p", str(client_port), "-m", str(port), *options]
    if configuration:
        file = folder / f"nats-{port}.conf"
        file.write_text(configuration)
        arguments += ["-c", str(file)]
    if "-js" in options:
        arguments += ["-sd", str(folder / f"jetstream-{port}")]
    return NatsServer(arguments, port, folder / f"nats-{port}.log", ready="/healthz", client_port=client_port)


@asynccontextmanager
async def nats_client(server: str, **options: Any) -> AsyncIterator[nats.aio.client.Client]:
    client = nats.aio.client.Client()
    await client.connect(server, allow_reconnect=False, **options)
    try:
        yield client
    finally:
        await client.close()


@dataclass
class EtcdMember(Server):
    """The only member of its cluster."""

    def post(self, endpoint: str, token: str = "", **body: object) -> dict[str, Any]:
        """Ask its HTTP gateway."""
        command = ["curl", "-s", "-f", "-X", "POST", f"{self.url}/v3/{endpoint}", "-d", json.dumps(body)]
        done = subprocess.run([*command, *(["-H", f"Authorization: {token}"] if token else [])], capture_output=True)
        assert done.returncode == 0, (endpoint, done.stdout, done.stderr)
        return dict(json.loads(done.stdout))

    def put(self, key: str, value: str) -> None:
        self.post(
            "kv/put", key=base64.b64encode(key.encode()).decode(), value=base64.b64encode(value.encode()).decode()
        )


def etcd(folder: Path, *options: str, scheme: str = "http", ready: str = "/health") -> EtcdMember:
    port = free_port()
    url = f"{scheme}://127.0.0.1:{port}"
    peer = f"http://127.0.0.1:{free_port()}"
    arguments = [
        "etcd", "--data-dir", str(folder / f"etcd-{port}"), "--listen-client-urls", url, "--advertise-client-urls", url,
        "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", f"default={peer}",
        *options,
    ]  # fmt: skip
    return EtcdMember(arguments, port, folder / f"etcd-{port}.log", ready=ready)


@contextmanager
def stopped(server: Server) -> Any:
    """The server hangs: it keeps its connections, and does nothing."""
    assert server.process is not None
    os.kill(server.process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(server.process.pid, signal.SIGCONT)


# -- the exporter ------------------------------------------------------------------------------------------------------


def exporter(folder: Path, *targets: Mapping[str, Any], environ: Mapping[str, str] | None = None) -> Exporter:
    """An exporter that reads these targets every half second; without any, it looks for what runs here.

    A target that is read SELDOM shows what comes without a read.
    """
    port = free_port()
    arguments = [*EXPORTER, "--listen", f"127.0.0.1:{port}", "--state-directory", str(folder / "state")]
    if targets:
        file = folder / f"exporter-{port}.yaml"
        file.write_text(
            yaml.safe_dump({"interval": "500ms", "timeout": "5s", "targets": [dict(one) for one in targets]})
        )
        arguments += ["--config", str(file)]
    else:
        arguments += ["--interval", "500ms"]
    environ = {"PYTHONPATH": str(HERE.parents[1]), **(environ or {})}
    return Exporter(arguments, port, folder / f"exporter-{port}.log", environ, ready="/-/ready")


class Watched:
    """What an exporter shows, page after page, with the time of each."""

    def __init__(self, exporter: Exporter) -> None:
        self.exporter = exporter
        self.pages: list[tuple[float, Page]] = []

    def look(self) -> Page:
        page = self.exporter.page()
        self.pages.append((time.monotonic(), page))
        return page

    async def until(self, holds: Callable[[Page], bool], what: str = "", within: float = PATIENCE) -> None:
        """Wait until a page holds it. Fails after so many seconds."""
        end = time.monotonic() + within
        while time.monotonic() < end:
            if holds(await asyncio.to_thread(self.look)):
                return
            await asyncio.sleep(0.05)
        shown = {name: value for name, value in self.pages[-1][1].items() if "bucket" not in name[0]}
        raise AssertionError(f"not within {within} s: {what}\n{str(shown)[:8000]}\n{self.exporter.tail()}")

    async def until_value(self, name: str, value: float | None, within: float = PATIENCE, **labels: str) -> None:
        """Wait until the only sample that has these labels has this value; None: until there is none."""
        await self.until(lambda page: found(page, name, **labels) == value, f"{name}{labels} {value}", within)

    async def read_again(self, times: int, target: str) -> None:
        """Wait until a target has been read, in vain or not, so many times more: no two reads take the same time."""
        for _ in range(times):
            last = self.value("llm_target_read_duration_seconds", target=target)
            await self.until(
                lambda page, last=last: found(page, "llm_target_read_duration_seconds", target=target) != last,
                f"another read of {target}",
            )

    def value(self, name: str, **labels: str) -> float | None:
        return found(self.look(), name, **labels)

    def falls(self) -> list[str]:
        """The counters that were ever shown lower than before."""
        last: dict[Any, float] = {}
        fell = []
        for _, page in self.pages:
            for (name, labels), value in page.items():
                if name.startswith("llm_") and name.endswith("_total"):
                    if value < last.get((name, labels), 0.0):
                        fell.append(f"{name}{dict(labels)}: {last[name, labels]} → {value}")
                    last[name, labels] = value
        return fell

    def why(self) -> str:
        """What the landing page says."""
        return self.exporter.text("/")


def found(page: Page, name: str, **labels: str) -> float | None:
    values = [
        value for (sample, have), value in page.items() if sample == name and labels.items() <= dict(have).items()
    ]
    assert len(values) < 2, (name, labels)
    return values[0] if values else None


SOON = 15.0
"""Seconds within which is seen what takes up to five, on a machine that stands still for some now and then."""
SELDOM = {"interval": "1h", "timeout": "1m"}
"""Of a target that is read once: what is heard between two reads is all that can have told."""


@asynccontextmanager
async def watched(
    folder: Path, *targets: Mapping[str, Any], environ: Mapping[str, str] | None = None
) -> AsyncIterator[Watched]:
    """An exporter, for as long as it is looked at. It ends in good order, and has logged no secret."""
    server = exporter(folder, *targets, environ=environ)
    await asyncio.to_thread(server.start)
    try:
        yield Watched(server)
    finally:
        status = await asyncio.to_thread(server.stop)
    assert status == 0, server.tail()
    assert SECRET not in server.log.read_text(), server.tail()
    assert "Traceback" not in server.log.read_text(), server.tail()


SECRET = "invented-secret"


# -- a line that can be cut, or slow -----------------------------------------------------------------------------------


class Line:
    """Forwards TCP to a port of this machine, until it is cut: then it takes connections, and forwards nothing.

    What comes back is `late` by so many seconds.
    """

    def __init__(self, to: int) -> None:
        self._to = to
        self._whole = asyncio.Event()
        self._whole.set()
        self._writers: set[asyncio.StreamWriter] = set()
        self.port = 0
        self.late = 0.0

    def cut(self) -> None:
        self._whole.clear()

    def mend(self) -> None:
        self._whole.set()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, late: bool) -> None:
        with suppress(OSError):
            while piece := await reader.read(65536):
                await asyncio.sleep(self.late * late)
                await self._whole.wait()
                writer.write(piece)
                await writer.drain()
        writer.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        await self._whole.wait()
        with suppress(OSError):
            there, back = await asyncio.open_connection("127.0.0.1", self._to)
            self._writers.add(back)
            await asyncio.gather(self._forward(reader, back, False), self._forward(there, writer, True))
        writer.close()


@asynccontextmanager
async def line(to: int) -> AsyncIterator[Line]:
    made = Line(to)
    server = await asyncio.start_server(made._connected, "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        server.close()
        made.mend()
        for writer in made._writers:
            writer.close()
        await asyncio.sleep(0.1)


# -- certificates and credentials --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Certificates:
    """Files: an authority of the test's own, a server's certificate for 127.0.0.1, and a client's."""

    ca: Path
    server: Path
    server_key: Path
    client: Path
    client_key: Path


def certificates(folder: Path) -> Certificates:
    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], check=True, capture_output=True, cwd=folder)

    new = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    openssl(
        "req", "-x509", *new, "-keyout", "ca.key", "-out", "ca.pem", "-days", "2", "-subj", "/CN=invented authority"
    )
    # etcd's HTTP gateway is a client of etcd's, with the server's certificate
    for name, usage in (("server", "serverAuth,clientAuth"), ("client", "clientAuth")):
        (folder / f"{name}.ext").write_text(f"subjectAltName=IP:127.0.0.1\nextendedKeyUsage={usage}\n")
        openssl("req", *new, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        openssl(
            "x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2",
            "-extfile", f"{name}.ext", "-out", f"{name}.pem",
        )  # fmt: skip
    files = (folder / name for name in ("ca.pem", "server.pem", "server.key", "client.pem", "client.key"))
    return Certificates(*files)


def credentials(folder: Path) -> tuple[str, Path]:
    """A NATS server's configuration for accounts by JWT, and the file of credentials of one user."""
    pairs = {
        name: _pair(prefix) for name, prefix in (("operator", "O"), ("account", "A"), ("system", "A"), ("user", "U"))
    }
    key = {name: pair.public_key.decode() for name, pair in pairs.items()}
    operator = _jwt(pairs["operator"], key["operator"], "operator", {"system_account": key["system"]})
    limits = {
        "subs": -1,
        "data": -1,
        "payload": -1,
        "imports": -1,
        "exports": -1,
        "wildcards": True,
        "conn": -1,
        "leaf": -1,
    }
    accounts = {
        key[name]: _jwt(pairs["operator"], key[name], "account", {"limits": limits}) for name in ("account", "system")
    }
    user = _jwt(pairs["account"], key["user"], "user", {"subs": -1, "data": -1, "payload": -1})
    file = folder / "user.creds"
    file.write_text(
        f"-----BEGIN NATS USER JWT-----\n{user}\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{pairs['user'].seed.decode()}\n------END USER NKEY SEED------\n"
    )
    preload = "\n".join(f"  {name}: {jwt}" for name, jwt in accounts.items())
    return f"operator: {operator}\nresolver: MEMORY\nresolver_preload: {{\n{preload}\n}}\n", file


def _pair(prefix: str) -> Any:
    byte = {"O": nkeys.PREFIX_BYTE_OPERATOR, "A": nkeys.PREFIX_BYTE_ACCOUNT, "U": nkeys.PREFIX_BYTE_USER}[prefix]
    return nkeys.from_seed(nkeys.encode_seed(os.urandom(32), byte))


def _jwt(issuer: Any, subject: str, kind: str, claims: Mapping[str, Any]) -> str:
    def part(said: Mapping[str, Any] | bytes) -> bytes:
        raw = said if isinstance(said, bytes) else json.dumps(said).encode()
        return base64.urlsafe_b64encode(raw).rstrip(b"=")

    body = {
        "jti": os.urandom(8).hex(), "iat": int(time.time()), "iss": issuer.public_key.decode(), "name": kind,
        "sub": subject,
        "nats": {**claims, "type": kind, "version": 2},
    }  # fmt: skip
    signed = part({"typ": "JWT", "alg": "ed25519-nkey"}) + b"." + part(body)
    return (signed + b"." + part(issuer.sign(signed))).decode()
