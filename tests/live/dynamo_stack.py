"""A real Dynamo on a CPU: etcd, NATS, a frontend and mockers, each a process, and a client that keeps books.

The mocker is Dynamo's own worker without an engine: it registers, is routed to, streams tokens at the pace of a model
and tells metrics like a real one. Its tokens mean nothing.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import time
import urllib.request
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import aiohttp
import yaml
from stack import EXPORTER, Exporter, Page, Server, free_port

HERE = Path(__file__).parent
PYTHON = Path(os.environ.get("LLM_EXPORTER_DYNAMO_VENV") or HERE.parents[1] / ".venv-dynamo") / "bin" / "python"
NATS = shutil.which("nats-server", path=f"{os.environ['PATH']}:/usr/sbin") or "nats-server"  # Debian: where root looks
MODEL = "tiny-llm"
SYSTEM_PORTS = (18081, 18082)  # Dynamo wants them under 32768 (it reads an i16); nothing else is in this network
FORGET = 20.0
"""Seconds after which what is offline leaves the page, as the exporter is told."""
INSTANCES = "v1/instances/dynamo/backend/generate/"


def write_model(folder: Path) -> Path:
    """A model without weights: what a mocker and the frontend read of one.

    The mocker's tokens are drawn from 1000 to 1999. Each is a word here, so that each comes in a piece of the stream
    of its own and the client can count them; bytes would wait for the rest of their letter.
    """
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]  # bytes that stand for themselves in byte-level BPE
    letters = [chr(byte) for byte in plain] + [chr(256 + number) for number in range(256 - len(plain))]
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    vocabulary = [*special, *letters]
    vocabulary += [f"Ġ{number}" for number in range(len(vocabulary), 2048)]
    bytewise = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    plainly = {"special": True, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    files: dict[str, dict[str, Any]] = {
        "tokenizer.json": {
            "version": "1.0",
            "added_tokens": [{"id": number, "content": token, **plainly} for number, token in enumerate(special)],
            "pre_tokenizer": bytewise,
            "decoder": bytewise,
            "model": {
                "type": "BPE",
                "vocab": {token: number for number, token in enumerate(vocabulary)},
                "merges": [],
            },
        },
        "config.json": {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "num_hidden_layers": 2,
            "vocab_size": len(vocabulary),
            "max_position_embeddings": 4096,
            "bos_token_id": 0,
            "eos_token_id": 2,
            "torch_dtype": "bfloat16",
        },
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": "<|im_end|>",
            "chat_template": "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
            "{% endfor %}<|im_start|>assistant\n",
        },
    }
    model = folder / MODEL
    model.mkdir()
    for name, content in files.items():
        (model / name).write_text(json.dumps(content))
    return model


def etcd(folder: Path) -> Server:
    port = free_port()
    url, peer = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{free_port()}"
    arguments = [
        "etcd", "--data-dir", str(folder / "etcd"), "--listen-client-urls", url, "--advertise-client-urls", url,
        "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", f"default={peer}",
    ]  # fmt: skip
    return Server(arguments, port, folder / "etcd.log", ready="/health")


@dataclass
class Nats(Server):
    """A NATS server; `port` is that of its monitoring."""

    client: int = 0

    @property
    def server(self) -> str:
        return f"nats://127.0.0.1:{self.client}"


def nats(folder: Path) -> Nats:
    port, client = free_port(), free_port()
    arguments = [NATS, "-a", "127.0.0.1", "-p", str(client), "-m", str(port)]
    return Nats(arguments, port, folder / "nats.log", ready="/healthz", client=client)


@dataclass
class Worker(Server):
    """A mocker; it is there once it is registered. `port` is its system port, 0 where it has none."""

    registered: Callable[[], set[str]] = set
    instance: str = ""  # in hexadecimal, as in etcd's keys
    others: set[str] = field(default_factory=set)

    def start(self) -> None:
        self.others = self.registered()
        super().start()
        (self.instance,) = self.registered() - self.others

    def answers(self) -> bool:
        return len(self.registered() - self.others) == 1


@dataclass
class Dynamo:
    """The stack, running: two workers of one endpoint. The exporter is to be started."""

    etcd: Server
    nats: Nats
    frontend: Server
    workers: tuple[Worker, Worker]
    exporter: Exporter

    @property
    def instances(self) -> set[str]:
        return {worker.instance for worker in self.workers}

    def target(self, server: Server) -> str:
        """The name of the target that is made of a frontend or of a worker's system port."""
        return f"dynamo/127.0.0.1:{server.port}"


PLANES = {
    "tcp and zmq": [],  # the defaults
    "nats": ["--request-plane", "nats", "--event-plane", "nats"],
}


@contextmanager
def dynamo(folder: Path, planes: str, *, blind: bool = False) -> Iterator[Dynamo]:
    """The whole stack, with an exporter to be started; where `blind`, the second worker has no system port."""
    model, store, messages = write_model(folder), etcd(folder), nats(folder)
    environ = {
        "ETCD_ENDPOINTS": store.url,
        "HF_HUB_OFFLINE": "1",
        **dict.fromkeys(
            ("DYN_HTTP_HOST", "DYN_SYSTEM_HOST", "DYN_TCP_RPC_HOST", "DYN_TCP_RESPONSE_STREAM_HOST",
             "DYN_EVENT_PLANE_HOST"), "127.0.0.1"
        ),
    }  # fmt: skip
    if PLANES[planes]:
        environ["NATS_SERVER"] = messages.server  # without it Dynamo knows of no NATS

    def registered() -> set[str]:
        start = b64encode(INSTANCES.encode()).decode()
        end = b64encode(INSTANCES[:-1].encode() + b"0").decode()  # the key after all that begin so
        request = urllib.request.Request(
            f"{store.url}/v3/kv/range", json.dumps({"key": start, "range_end": end, "keys_only": True}).encode()
        )
        with urllib.request.urlopen(request, timeout=5) as response:
            found = json.load(response).get("kvs", [])
        return {b64decode(entry["key"]).decode().rpartition("/")[2] for entry in found}

    def worker(name: str, port: int) -> Worker:
        arguments = [
            str(PYTHON), "-m", "dynamo.mocker", "--model-path", str(model), "--model-name", MODEL,
            "--max-model-len", "4096", "--num-gpu-blocks-override", "512", "--block-size", "16",
            "--max-num-seqs", "16", *PLANES[planes],
        ]  # fmt: skip
        own = {**environ, "DYN_SYSTEM_PORT": str(port)} if port else environ
        return Worker(arguments, port, folder / f"{name}.log", own, registered=registered)

    port = free_port()
    command = [str(PYTHON), "-m", "dynamo.frontend", "--http-port", str(port), "--router-mode", "kv", *PLANES[planes]]
    frontend = Server(command, port, folder / "frontend.log", environ, ready="/live")
    workers = (worker("worker-1", SYSTEM_PORTS[0]), worker("worker-2", 0 if blind else SYSTEM_PORTS[1]))
    found = Dynamo(store, messages, frontend, workers, _exporter(folder, store, messages, frontend))
    try:
        for server in (store, messages, frontend, *workers):
            server.start()
        _until_routed(frontend)
        yield found
    finally:
        for server in (found.exporter, *workers, frontend, messages, store):
            if server.process is not None:
                server.stop(signal.SIGTERM if server is found.exporter else signal.SIGKILL)


def _until_routed(frontend: Server) -> None:
    """Wait until the frontend knows the model."""
    until = time.monotonic() + 30
    while not json.loads(frontend.text("/v1/models"))["data"]:
        assert time.monotonic() < until, f"the frontend finds no model:\n{frontend.tail()}"
        time.sleep(0.2)


def _exporter(folder: Path, store: Server, messages: Nats, frontend: Server) -> Exporter:
    port = free_port()
    targets = [
        {
            "source": "dynamo",
            "name": "dynamo",
            "etcd": [store.url],
            "frontends": [frontend.url],
            "nats": messages.url,
            "forget": f"{FORGET:g}s",
        },
        {"source": "nats", "name": "nats", "url": messages.url, "server": messages.server},
        {"source": "etcd", "name": "etcd", "url": store.url},
    ]
    file = folder / "llm-exporter.yaml"
    config = {"listen": f"127.0.0.1:{port}", "state_directory": str(folder / "state"), "targets": targets}
    file.write_text(yaml.safe_dump(config, sort_keys=False))
    environ = {"PYTHONPATH": str(HERE.parents[1])}
    return Exporter([*EXPORTER, "--config", str(file)], port, folder / "exporter.log", environ, ready="/-/ready")


@dataclass
class Diary:
    """The exporter's pages, one after the other, while one waits for something."""

    exporter: Exporter
    pages: list[Page] = field(default_factory=list)

    async def until(self, true: Callable[[Page], bool], seconds: float, since: float | None = None) -> float:
        """Turn pages until one is so, and say how long that took, in seconds since that monotonic time, else now."""
        began = time.monotonic() if since is None else since
        while True:
            self.pages.append(await asyncio.to_thread(self.exporter.page))
            took = time.monotonic() - began
            if true(self.pages[-1]):
                return took
            assert took < seconds, f"not so after {took:.1f} s:\n{self.shown()}\n{self.exporter.tail()}"
            await asyncio.sleep(0.2)

    async def keep(self, seconds: float) -> list[Page]:
        """Turn pages for a while; gives them."""
        before = len(self.pages)
        end = time.monotonic() + seconds
        await self.until(lambda _: time.monotonic() >= end, seconds + 5)
        return self.pages[before:]

    def shown(self) -> str:
        """What the last page says of Dynamo's states, for a failure's message."""
        found = [(name, dict(labels), value) for (name, labels), value in self.pages[-1].items()]
        return "\n".join(
            f"{name} {labels} {value:g}"
            for name, labels, value in found
            if name == "llm_target_up" or (name.startswith("llm_dynamo_") and (value or "state" not in labels))
            if not name.endswith("_bucket")
        )


@dataclass
class Books:
    """What a client asked, and what it was answered and when, in seconds."""

    requests: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    first: list[float] = field(default_factory=list)  # from asking to the first token
    gaps: list[float] = field(default_factory=list)  # from each token to the next
    durations: list[float] = field(default_factory=list)


def near(told: float, times: list[float], requests: int) -> bool:
    """Whether the frontend's sum is that of the client's times, of so many requests.

    The frontend's clock starts when a request has arrived and stops when it has the token; the client's starts before
    it asks and stops after it has read: it sees 2 to 3 ms more of each request, and more where processes wait for the
    few cores that they share here. Of the gaps between tokens only the delays of the first and of the last token
    remain in the sum: they agree within 0.1 %.
    """
    return abs(sum(times) - told) <= 0.01 * requests


async def drive(url: str, requests: int, tokens: int, *, at_once: int = 4) -> Books:
    """Ask for so many streamed answers of so many tokens."""
    books = Books()
    gate = asyncio.Semaphore(at_once)

    async def one(client: aiohttp.ClientSession, number: int) -> None:
        body = {
            "model": MODEL,
            "messages": [{"role": "user", "content": f"question {number % 3}, please answer well " * (2 + number % 3)}],
            "max_tokens": tokens,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        async with gate:
            began = time.monotonic()
            times = []
            async with client.post(f"{url}/v1/chat/completions", json=body) as response:
                assert response.status == 200, await response.text()
                async for line in response.content:
                    now = time.monotonic()
                    if not line.startswith(b"data: {"):
                        continue
                    piece = json.loads(line.removeprefix(b"data: "))
                    if piece["choices"] and piece["choices"][0]["delta"].get("content"):
                        times.append(now)
                    if usage := piece.get("usage"):
                        books.prompt_tokens += usage["prompt_tokens"]
                        books.cached_tokens += (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
                        assert usage["completion_tokens"] == len(times) == tokens
            books.durations.append(time.monotonic() - began)
            books.requests += 1
            books.output_tokens += len(times)
            books.first.append(times[0] - began)
            books.gaps += [later - earlier for earlier, later in pairwise(times)]

    # A connection for each request: on one that is kept, the frontend's first tokens are held back for up to 40 ms by
    # Nagle's algorithm there and the delayed acknowledgement here, which is neither's TTFT.
    connector = aiohttp.TCPConnector(force_close=True)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=60)) as client:
        await asyncio.gather(*(one(client, number) for number in range(requests)))
    return books
