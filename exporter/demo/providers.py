"""Providers that are somewhere else: of each the gateway sees how fast it answers, and whether."""

from __future__ import annotations

from exporter.demo.engine import Call
from exporter.demo.world import World


class Provider:
    """`first` seconds to the first token, `each` for each further one; of requests a share of `errors` fails.

    During the `trouble` a share of `refused` fails, with the `status`; those that do not are slow.
    """

    def __init__(
        self,
        world: World,
        *,
        first: float,
        each: float,
        errors: float = 0.002,
        trouble: str = "",
        status: int = 503,
        refused: float = 0.75,
    ) -> None:
        self._world = world
        self._first, self._each, self._errors = first, each, errors
        self._trouble, self._status, self._refused = trouble, status, refused

    def submit(self, call: Call) -> None:
        world = self._world
        ill = bool(self._trouble) and world.troubled(self._trouble)
        if world.random.random() < (self._refused if ill else self._errors):
            call.failure = self._status if ill else world.random.choice((500, 503))
            world.later(world.about(0.25, 0.4), lambda: self._end(call))
            return
        first = world.about(self._first * (3.0 if ill else 1.0), 0.35) + (call.prompt - call.cached) / 60_000
        each = world.about(self._each * (2.0 if ill else 1.0), 0.2)
        call.first = world.now + first
        world.later(first + call.output * each, lambda: self._end(call))

    def _end(self, call: Call) -> None:
        if not call.given_up:
            call.end = self._world.now
            call.done(call)
