"""A real llama-server on a CPU, with models of random weights."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from brokers import SECRET
from stack import HERE, Server, free_port

PROMPT = "the cat and the dog went home"
VENV = Path(os.environ.get("LLM_EXPORTER_LLAMACPP_VENV", HERE.parents[1] / ".venv-llamacpp")) / "bin"


def models(folder: Path, *names: str) -> Path:
    """A folder with models of these names: see make_models.py."""
    subprocess.run([VENV / "python", HERE / "make_models.py", folder, *names], check=True, timeout=120)
    return folder


@dataclass
class Usage:
    """What a client was told of its requests."""

    prompt: int = 0
    cached: int = 0
    output: int = 0
    seconds: float = 0.0


class Llama(Server):
    """A llama-server."""

    def post(self, path: str, **body: Any) -> Any:
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {SECRET}"}
        request = urllib.request.Request(self.url + path, json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=120) as response:
            return json.loads(response.read())

    def states(self) -> dict[str, str]:
        """Of a router: what it says itself of its models, which wakes none."""
        return {model["id"]: model["status"]["value"] for model in json.loads(self.text("/models"))["data"]}

    async def complete(self, usage: Usage, count: int = 1, tokens: int = 8, **more: Any) -> None:
        """So many requests at once, whose tokens are added to `usage`."""

        async def one() -> None:
            # letters alone: llama-server fails where random bytes are no text
            given = {"prompt": PROMPT, "n_predict": tokens, "ignore_eos": True, "grammar": "root ::= [a-z ]*"}
            timings = (await asyncio.to_thread(self.post, "/completion", **given, **more))["timings"]
            usage.prompt += timings["prompt_n"] + timings["cache_n"]
            usage.cached += timings["cache_n"]
            usage.output += timings["predicted_n"]
            usage.seconds += timings["predicted_ms"] / 1000.0

        await asyncio.gather(*(one() for _ in range(count)))


def llama(folder: Path, *options: str, port: int = 0, ready: str = "/health") -> Llama:
    port = port or free_port()
    arguments = [
        str(VENV / "llama-server-vulkan"), "--host", "127.0.0.1", "--port", str(port), "--n-gpu-layers", "0",
        "--threads", "1", "--ctx-size", "2048", "--parallel", "2", "--offline", *options,
    ]  # fmt: skip
    return Llama(arguments, port, folder / f"llama-{port}.log", ready=ready)
