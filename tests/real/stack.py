"""Real servers for tests, each a process: Redis, LiteLLM over invented providers, Prometheus, the exporter."""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import aiohttp
import yaml
from prometheus_client.parser import text_string_to_metric_families

HERE = Path(__file__).parent
LITELLM = Path(os.environ.get("LLM_EXPORTER_LITELLM_VENV", HERE.parents[1] / ".venv-litellm")) / "bin"
KEY = "sk-master-invented"
EXPORTER = [sys.executable, "-m", "exporter"]
PATIENCE = 90.0
"""Seconds after which what has not come will not. Machines that others use stand still for some, and a read that took a
moment longer for it is followed by the next after ten times as long."""


_PORTS = iter(random.sample(range(20000, 30000), 10000))


def free_port() -> int:
    """A port that nobody has, nor is given by the system before the server that it is for has started."""
    for port in _PORTS:
        with socket.socket() as sock, suppress(OSError):
            sock.bind(("127.0.0.1", port))
            return port
    raise OSError("no port is free")


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


@dataclass
class Server:
    """A process that listens on a port of this machine, with its log."""

    arguments: list[str]
    port: int
    log: Path
    environ: Mapping[str, str] = field(default_factory=dict)
    ready: str = "/"
    patience: float = PATIENCE
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.arguments,
                stdout=log,
                stderr=log,
                env={"PATH": os.environ["PATH"], "HOME": str(self.log.parent), **self.environ},
                cwd=self.log.parent,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )
        until = time.monotonic() + self.patience
        while not self.answers():
            assert self.process.poll() is None, f"{self.arguments[0]} died:\n{self.tail()}"
            assert time.monotonic() < until, f"{self.arguments[0]} does not answer:\n{self.tail()}"
            time.sleep(0.2)

    def answers(self) -> bool:
        try:
            if not self.ready:
                with socket.create_connection(("127.0.0.1", self.port), 1):
                    return True
            with urllib.request.urlopen(self.url + self.ready, timeout=5) as response:
                return bool(response.status == 200)
        except OSError:
            return False

    def tail(self) -> str:
        return self.log.read_text("utf-8", "replace")[-6000:]

    def stop(self, sign: int = signal.SIGTERM) -> int:
        """End the process and all that it started."""
        assert self.process is not None
        if self.process.poll() is None:
            os.killpg(self.process.pid, sign) if sign == signal.SIGKILL else self.process.send_signal(sign)
        try:
            status = self.process.wait(20)
        except subprocess.TimeoutExpired:
            status = -9
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        return status

    def text(self, path: str, headers: Mapping[str, str] | None = None) -> str:
        request = urllib.request.Request(self.url + path, headers=dict(headers or {}))
        with urllib.request.urlopen(request, timeout=60) as response:
            return str(response.read().decode())


@contextmanager
def running(*servers: Server) -> Iterator[None]:
    """Start them one after the other; stop those that were started, the last first."""
    try:
        for server in servers:
            server.start()
        yield
    finally:
        for server in reversed(servers):
            if server.process is not None:
                server.stop()


def redis(folder: Path) -> Server:
    port = free_port()
    arguments = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
    return Server(arguments, port, folder / "redis.log", ready="")


def providers(folder: Path) -> Server:
    port = free_port()
    return Server(
        [sys.executable, str(HERE / "fake_provider.py"), str(port)], port, folder / "providers.log", ready="/ledger"
    )


MODELS = {  # the name asked for → LiteLLM's name, the provider behind it, price of a prompt and an output token
    "good": ("openai/gpt-4o-mini", "good", (1e-6, 4e-6)),
    "slow": ("hosted_vllm/slow-model", "slow", (2e-6, 6e-6)),
    "flaky": ("deepseek/flaky-model", "flaky", None),
    "broken": ("mistral/broken-model", "broken", None),
    "rescued": ("mistral/broken-model", "broken", None),
    "limited": ("xai/limited-model", "limited", None),
    "badkey": ("groq/badkey-model", "badkey", None),
    "hang": ("openai/hanging-model", "hang", None),
}


def litellm_config(
    upstream: str, redis_port: int, *, cooldowns: bool = False, prometheus: bool = True
) -> dict[str, Any]:
    """A proxy over the invented providers: Redis as cache, one fallback, no retries, so that counts can be exact."""
    models = []
    for name, (model, provider, price) in MODELS.items():
        parameters: dict[str, Any] = {"model": model, "api_base": f"{upstream}/{provider}/v1", "api_key": "invented"}
        if price is not None:
            parameters |= {"input_cost_per_token": price[0], "output_cost_per_token": price[1]}
        if name == "hang":
            parameters["timeout"] = 1
        models.append({"model_name": name, "litellm_params": parameters, "model_info": {"id": f"{name}-1"}})
    server = {"host": "127.0.0.1", "port": redis_port}
    return {
        "model_list": models,
        "litellm_settings": {
            "callbacks": ["prometheus"] if prometheus else [],
            "service_callback": ["prometheus_system"] if prometheus else [],
            "cache": True,
            "cache_params": {"type": "redis", "ttl": 600, "supported_call_types": ["acompletion"], **server},
            "num_retries": 0,
            "request_timeout": 20,
            "fallbacks": [{"rescued": ["good"]}],
        },
        "router_settings": {
            "redis_host": server["host"],
            "redis_port": server["port"],
            "disable_cooldowns": not cooldowns,
            "allowed_fails": 0,
            "cooldown_time": 5,
            "provider_budget_config": {"openai": {"budget_limit": 10, "time_period": "1d"}},
        },
        "general_settings": {"master_key": KEY},
    }


class LiteLLM(Server):
    """A LiteLLM proxy. Its workers share one folder for their metrics, made anew with each proxy."""

    def metrics(self) -> str:
        return self.text("/metrics/", {"Authorization": f"Bearer {KEY}"})

    def start(self) -> None:
        """Start; one start in several dies on some machines before it answers, and is tried again."""
        for attempt in range(3):
            try:
                super().start()
            except AssertionError:
                self.stop(signal.SIGKILL)
                if attempt == 2:
                    raise
            else:
                return

    def workers(self) -> list[int]:
        """Process ids of the workers of a proxy that has several."""
        assert self.process is not None
        found = subprocess.run(
            ["pgrep", "-f", "-g", str(self.process.pid), "spawn_main"], capture_output=True, text=True, check=False
        )
        return [int(pid) for pid in found.stdout.split()]


def litellm(folder: Path, config: Mapping[str, Any], workers: int = 1) -> LiteLLM:
    port = free_port()
    file = folder / f"litellm-{port}.yaml"
    file.write_text(yaml.safe_dump(dict(config), sort_keys=False))
    arguments = [str(LITELLM / "litellm"), "--config", str(file), "--host", "127.0.0.1", "--port", str(port)]
    environ = {
        "PATH": f"{LITELLM}:{os.environ['PATH']}",
        "LITELLM_MODE": "PRODUCTION",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_TELEMETRY": "False",
        "DO_NOT_TRACK": "1",
    }
    if workers > 1:
        # by itself it ends a worker that has not answered for five seconds, as none does that has yet to import LiteLLM
        # on a machine that is slow; and so the next, for ever
        arguments += ["--num_workers", str(workers), "--timeout_worker_healthcheck", "120"]
        shared = folder / f"multiproc-{port}"
        shared.mkdir()
        environ["PROMETHEUS_MULTIPROC_DIR"] = str(shared)
    return LiteLLM(arguments, port, folder / f"litellm-{port}.log", environ, ready="/health/liveliness", patience=180.0)


Page = dict[tuple[str, frozenset[tuple[str, str]]], float]


class Exporter(Server):
    """The exporter, reading every half second."""

    def page(self) -> Page:
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(self.text("/metrics"))
            for sample in family.samples
        }

    def sum(self, name: str, page: Page | None = None, **labels: str) -> float:
        """The sum of the samples of this name that have these labels."""
        wanted = labels.items()
        page = self.page() if page is None else page
        return sum(value for (sample, have), value in page.items() if sample == name and wanted <= have)

    async def until(self, name: str, value: float, **labels: str) -> None:
        """Wait until the sum is this value."""
        await self._until(lambda found: abs(found - value) < 1e-9 * max(1.0, value), f"{value}", name, labels)

    async def until_above(self, name: str, value: float, **labels: str) -> None:
        """Wait until the sum is more than this value."""
        await self._until(lambda found: found > value, f"above {value}", name, labels)

    async def _until(self, right: Callable[[float], bool], what: str, name: str, labels: dict[str, str]) -> None:
        found = float("nan")
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            found = await asyncio.to_thread(self.sum, name, None, **labels)
            if right(found):
                return
            await asyncio.sleep(0.3)
        raise AssertionError(f"{name}{labels} is {found}, not {what}\n{self.tail()}")


def exporter(folder: Path, upstream: str, *arguments: str, state: str = "state", port: int = 0) -> Exporter:
    port = port or free_port()
    command = [
        *EXPORTER, "--listen", f"127.0.0.1:{port}", "--interval", "500ms",
        "--state-directory", str(folder / state), *arguments,
    ]  # fmt: skip
    environ = {"LITELLM_HOST": upstream, "LITELLM_API_KEY": KEY, "PYTHONPATH": str(HERE.parents[1])}
    return Exporter(command, port, folder / f"exporter-{port}.log", environ, ready="/-/ready")


class Prometheus(Server):
    """A Prometheus that scrapes four times a second."""

    def start(self) -> None:
        """Start, and wait until the target has been scraped: Prometheus takes seconds to begin."""
        super().start()
        until = time.monotonic() + PATIENCE
        while set(self.query("up").values()) != {1.0}:
            assert time.monotonic() < until, f"Prometheus does not scrape:\n{self.tail()}"
            time.sleep(0.2)

    def ask(self, path: str, **query: str) -> Any:
        answer = json.loads(self.text(f"/api/v1/{path}?{urlencode(query)}"))
        assert answer["status"] == "success", answer
        return answer["data"]

    def query(self, expression: str) -> dict[frozenset[tuple[str, str]], float]:
        found = self.ask("query", query=expression)["result"]
        return {frozenset(series["metric"].items()): float(series["value"][1]) for series in found}

    def raw(self, selector: str) -> dict[frozenset[tuple[str, str]], list[float]]:
        """The samples stored of each series, in order of time."""
        found = self.ask("query", query=f"{selector}[1h]")["result"]
        return {
            frozenset(series["metric"].items()): [float(value) for _, value in series["values"]] for series in found
        }


def demo(folder: Path, *flags: str) -> Exporter:
    """An exporter over the simulated stack."""
    port = free_port()
    arguments = [*EXPORTER, "demo", "--listen", f"127.0.0.1:{port}", *flags]
    return Exporter(arguments, port, folder / "demo.log", {"PYTHONPATH": str(HERE.parents[1])}, ready="/-/ready")


def prometheus(
    folder: Path, target: str, rules: str = "", seen_as: Sequence[Mapping[str, str]] = ({"pod": "p"},)
) -> Prometheus:
    """Scrapes an exporter under labels as Kubernetes puts on its targets, once for each of those that it is `seen_as`.

    `rules` is a pattern of files of rules.
    """
    port = free_port()
    kubernetes = {
        "namespace": "n",
        "container": "c",
        "node": "o",
        "service": "s",
        "endpoint": "e",
        "env": "v",
    }
    job = {
        "job_name": "llm",
        "static_configs": [
            {"targets": [target.removeprefix("http://")], "labels": {**kubernetes, "cluster": "u", **own}}
            for own in seen_as
        ],
    }
    file = folder / f"prometheus-{port}.yml"
    config = {"global": {"scrape_interval": "250ms"}, "scrape_configs": [job]}
    file.write_text(yaml.safe_dump(config | ({"rule_files": [rules]} if rules else {})))
    arguments = [
        "prometheus", f"--config.file={file}", f"--storage.tsdb.path={folder / f'tsdb-{port}'}",
        f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn",
    ]  # fmt: skip
    return Prometheus(arguments, port, folder / f"prometheus-{port}.log", ready="/-/ready")


def gained(values: Iterable[float]) -> float:
    """What a counter's samples add up to by the reset rule."""
    total, last = 0.0, None
    for value in values:
        total += 0.0 if last is None else value - last if value >= last else value
        last = value
    return total


@dataclass
class Books:
    """What a client sent to one model, and what it was answered."""

    sent: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    streams: int = 0

    @property
    def ok(self) -> int:
        return self.statuses[200]


async def drive(
    url: str, model: str, count: int, *, stream: bool = False, tokens: int = 10, same: str = "", at_once: int = 4
) -> Books:
    """Send so many chats to a model, each its own question unless they are the `same`."""
    books = Books()
    gate = asyncio.Semaphore(at_once)
    headers = {"Authorization": f"Bearer {KEY}"}

    async def one(client: aiohttp.ClientSession, number: int) -> None:
        question = same or f"question {number} of {time.monotonic_ns()} please answer well"
        body: dict[str, Any] = {
            "model": model,
            "messages": [{"role": "user", "content": question}],
            "max_tokens": tokens,
            "stream": stream,
        }
        if stream:
            body["stream_options"] = {"include_usage": True}
        async with gate, client.post(f"{url}/v1/chat/completions", json=body, headers=headers) as response:
            text = await response.text()
            books.sent += 1
            books.statuses[response.status] += 1
            if response.status != 200:
                return
            books.streams += stream
            usage = json.loads(text)["usage"] if not stream else _usage(text)
            assert usage is not None, text[-500:]
            books.prompt_tokens += usage["prompt_tokens"]
            books.output_tokens += usage["completion_tokens"]
            details = usage.get("prompt_tokens_details") or {}
            books.cached_tokens += details.get("cached_tokens") or 0

    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=120)) as client:
        await asyncio.gather(*(one(client, number) for number in range(count)))
    return books


def _usage(events: str) -> dict[str, Any] | None:
    for line in events.splitlines():
        if line.startswith("data: {"):
            usage = json.loads(line.removeprefix("data: ")).get("usage")
            if usage:
                return dict(usage)
    return None
