"""Model providers of known behaviour, with exact books: OpenAI-compatible endpoints at /NAME/v1/chat/completions.

Run as a process of its own: `python fake_provider.py PORT`. What each name does stands in PROVIDERS; what each really
did is at /ledger, times as this process itself measured them.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from dataclasses import asdict, dataclass, field
from typing import Any

from aiohttp import web


@dataclass(frozen=True)
class Behaviour:
    """Seconds to the first token and for each further one; cached prompt tokens; statuses in turn (0: an answer)."""

    first: float = 0.05
    each: float = 0.02
    cached: int = 0
    statuses: tuple[int, ...] = (0,)
    hang: float = 0.0


PROVIDERS = {
    "good": Behaviour(cached=4),
    "slow": Behaviour(first=0.7, each=0.04),
    "flaky": Behaviour(statuses=(0, 503, 0, 0)),
    "broken": Behaviour(statuses=(500,)),
    "limited": Behaviour(statuses=(429,)),
    "badkey": Behaviour(statuses=(401,)),
    "hang": Behaviour(hang=30.0),
}


@dataclass
class Books:
    """What one provider did."""

    requests: int = 0
    failures: dict[str, int] = field(default_factory=dict)
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    streams: int = 0
    first_seconds: float = 0.0  # of streams: from the request to the first token
    token_seconds: float = 0.0  # of all answers: from the first token to the last
    later_tokens: int = 0


BOOKS = {name: Books() for name in PROVIDERS}


async def complete(request: web.Request) -> web.StreamResponse:
    """One chat completion."""
    name = request.match_info["name"]
    behaviour, books = PROVIDERS[name], BOOKS[name]
    arrived = time.monotonic()
    asked = await request.json()
    status = behaviour.statuses[books.requests % len(behaviour.statuses)]
    books.requests += 1
    if behaviour.hang:
        await asyncio.sleep(behaviour.hang)
    if status:
        books.failures[str(status)] = books.failures.get(str(status), 0) + 1
        return web.json_response({"error": {"message": f"invented {status}", "type": "invented"}}, status=status)
    tokens = asked.get("max_tokens") or 20
    prompt = sum(len(message["content"].split()) for message in asked["messages"])
    usage = {
        "prompt_tokens": prompt,
        "completion_tokens": tokens,
        "total_tokens": prompt + tokens,
        "prompt_tokens_details": {"cached_tokens": min(prompt, behaviour.cached)},
    }
    head = {"id": "c", "created": int(time.time()), "model": asked["model"]}
    limits = {"x-ratelimit-remaining-requests": "900", "x-ratelimit-remaining-tokens": "80000"}
    await asyncio.sleep(behaviour.first)
    began = time.monotonic()

    def book(ended: float) -> None:
        books.prompt_tokens += prompt
        books.cached_tokens += min(prompt, behaviour.cached)
        books.output_tokens += tokens
        books.token_seconds += ended - began
        books.later_tokens += tokens - 1

    if not asked.get("stream"):
        await asyncio.sleep(behaviour.each * (tokens - 1))
        book(time.monotonic())
        message = {"role": "assistant", "content": "word " * tokens}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        answer = {**head, "object": "chat.completion", "choices": [choice], "usage": usage}
        return web.json_response(answer, headers=limits)

    response = web.StreamResponse(headers={"Content-Type": "text/event-stream", **limits})
    await response.prepare(request)

    async def send(choices: list[dict[str, Any]], **more: Any) -> None:
        chunk = {**head, "object": "chat.completion.chunk", "choices": choices, **more}
        await response.write(f"data: {json.dumps(chunk)}\n\n".encode())

    for number in range(tokens):
        if number:
            # each token at its own time, so that sleeping too long does not add up
            await asyncio.sleep(max(0.0, began + number * behaviour.each - time.monotonic()))
        delta = {"content": "word "} | ({"role": "assistant"} if number == 0 else {})
        await send([{"index": 0, "delta": delta, "finish_reason": None}])
        if number == 0:
            books.streams += 1
            books.first_seconds += time.monotonic() - arrived
    book(time.monotonic())
    await send([{"index": 0, "delta": {}, "finish_reason": "stop"}])
    await send([], usage=usage)
    await response.write(b"data: [DONE]\n\n")
    return response


async def ledger(_: web.Request) -> web.Response:
    """The books of all providers."""
    return web.json_response({name: asdict(books) for name, books in BOOKS.items()})


def main() -> None:
    """Serve until killed."""
    application = web.Application()
    application.router.add_post("/{name}/v1/chat/completions", complete)
    application.router.add_post("/{name}/chat/completions", complete)
    application.router.add_get("/ledger", ledger)
    web.run_app(application, host="127.0.0.1", port=int(sys.argv[1]), print=None, access_log=None)


if __name__ == "__main__":
    main()
