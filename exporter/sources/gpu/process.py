"""The child process that asks the GPUs, seen from the exporter: started, asked, started again, given up."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from exporter.core.errors import ReadError
from exporter.sources.gpu import child

START = 4.0
"""Seconds in which the child must say how many GPUs there are, and the GPUs must answer for the first time."""
PATIENCE = 1.0
"""Seconds in which a GPU must answer: many times what one takes that is well (0.1 to 20 ms)."""
STEADY = 60.0
"""Seconds after which a child has done well: the next is started at once."""
WAIT = (5.0, 60.0)
"""Seconds between two starts of children that do not do well: at first, and at most (it doubles)."""
END = 1.0
"""Seconds in which a child that is killed must be gone, unless a call to the driver holds it."""

Answer = Mapping[str, Any]
"""What one GPU says: `uuid`, and `text` with `processes`, or an `error` (see child.py)."""


class Asker:
    """Has one child ask the GPUs. `heard` is told each XID: the child's line. `clock` gives monotonic seconds."""

    def __init__(
        self, sysfs: str, heard: Callable[[Answer], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._sysfs = sysfs
        self._heard = heard
        self._clock = clock
        self._process: subprocess.Popen[bytes] | None = None
        self._ending: subprocess.Popen[bytes] | None = None  # killed, and perhaps not gone yet
        self._rest = b""
        self._hello: Answer | None = None
        self._why = ""  # the child ended, as it said
        self._answers: dict[int, Answer] = {}
        self._asked = 0
        self._fresh = True  # nothing was asked of this child yet
        self._news = asyncio.Event()
        self._started = float("-inf")
        self._wait = WAIT[0]
        self.seconds = 0.0
        """How long the slowest of the GPUs took that answered the last question."""

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    async def count(self) -> int:
        """How many GPUs there are; none of them is asked. Raises ReadError where there is none."""
        await self._ready()
        assert self._hello is not None  # noqa: S101 - it is ready
        return int(self._hello["gpus"])

    async def ask(self) -> dict[int, Answer | None]:
        """What each GPU says now, by its number; None for one that does not answer in time.

        Raises ReadError where there is no GPU, or nobody to ask it.
        """
        for last in (False, True):  # a child that ended meanwhile is started anew at once, unless it has just begun
            count, began = await self.count(), time.monotonic()
            self._asked += 1
            self._answers = {}
            self._send()
            patience, self._fresh = START if self._fresh else PATIENCE, False
            with suppress(TimeoutError):
                async with asyncio.timeout(patience):
                    while self._process is not None and len(self._answers) < count:
                        self._news.clear()
                        await self._news.wait()
                        if "text" in next(reversed(self._answers.values()), {}):
                            self.seconds = time.monotonic() - began
            if self._process is not None:
                return {number: self._answers.get(number) for number in range(count)}
            if last or self._wait_left() > 0:
                break
        raise self._ended()

    def renew(self) -> None:
        """Begin with a fresh child, unless this one is young: for GPUs that only a new start of the library finds."""
        if self._clock() - self._started > STEADY:
            self._drop()

    async def close(self) -> None:
        """End the child. One that a call to the driver holds is left behind."""
        self._drop()
        self._started = float("-inf")  # it did not end by itself: the next need not wait
        await self._gone()

    # -- the child's life ----------------------------------------------------------------------------------------

    def _wait_left(self) -> float:
        return 0.0 if self._clock() - self._started > STEADY else self._started + self._wait - self._clock()

    def _ended(self) -> ReadError:
        again = f"it is started again in {max(0.0, self._wait_left()):.0f} s"
        return ReadError("connect", f"the process that asks the GPUs has ended ({self._why or 'killed'}): {again}")

    async def _ready(self) -> None:
        """Have a child that has said how many GPUs there are."""
        if self._process is None:
            if not await self._gone():
                assert self._ending is not None  # noqa: S101 - it is not gone
                raise ReadError(
                    "timeout",
                    f"the driver holds the process that asks the GPUs (pid {self._ending.pid}), which cannot be ended: "
                    "see the kernel's log; most often only a restart of the machine helps",
                )
            if self._started > float("-inf") and self._wait_left() > 0:
                raise self._ended()
            self._start()
        with suppress(TimeoutError):
            async with asyncio.timeout(START):
                while self._process is not None and self._hello is None:
                    self._news.clear()
                    await self._news.wait()
        if self._hello is None:
            hung = self._process is not None
            self._drop()
            if hung:
                self._why = "the driver did not answer"
                raise ReadError("timeout", f"the driver did not say within {START:g} s which GPUs there are: it hangs")
            raise self._ended()
        if not self._hello["gpus"]:
            problem, self._hello = self._hello["problem"], None
            self._why = problem
            self._drop()
            raise ReadError("connect", f"no GPU here: {problem}")

    def _start(self) -> None:
        now = self._clock()
        self._wait = WAIT[0] if now - self._started > STEADY else min(self._wait * 2, WAIT[1])
        self._started = now
        self._rest, self._hello, self._why, self._fresh = b"", None, "", True
        self._process = subprocess.Popen(  # noqa: S603 - our own program, by this interpreter
            # -P: what lies beside the program must not stand for the standard library's modules
            [sys.executable, "-P", child.__file__, self._sysfs],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            process_group=0,  # so that Ctrl-C is ours alone
        )
        assert self._process.stdout is not None  # noqa: S101 - it is a pipe
        output = self._process.stdout.fileno()
        os.set_blocking(output, False)
        asyncio.get_running_loop().add_reader(output, self._take)

    def _drop(self) -> None:
        """Kill the child, and wait for nothing."""
        process, self._process = self._process, None
        self._hello = None
        if process is None:
            return
        assert process.stdout is not None  # noqa: S101 - both are pipes
        assert process.stdin is not None  # noqa: S101
        asyncio.get_running_loop().remove_reader(process.stdout.fileno())
        process.kill()
        process.stdout.close()
        process.stdin.close()
        self._ending = process
        self._news.set()

    async def _gone(self) -> bool:
        """Whether the child that was killed is gone."""
        until = time.monotonic() + END
        while self._ending is not None and self._ending.poll() is None:
            if time.monotonic() > until:
                return False
            await asyncio.sleep(0.005)
        self._ending = None
        return True

    # -- its lines -----------------------------------------------------------------------------------------------

    def _send(self) -> None:
        assert self._process is not None  # noqa: S101 - it is ready
        assert self._process.stdin is not None  # noqa: S101 - it is a pipe
        try:
            os.write(self._process.stdin.fileno(), b"%d\n" % self._asked)
        except BrokenPipeError:
            self._drop()

    def _take(self) -> None:
        """What the child wrote."""
        assert self._process is not None  # noqa: S101 - its pipe is watched
        assert self._process.stdout is not None  # noqa: S101 - it is a pipe
        data = os.read(self._process.stdout.fileno(), 1 << 18)
        if not data:
            self._drop()
            return
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            said = json.loads(line)
            if "ask" in said:
                if said["ask"] == self._asked:  # else it is late: what it says was true then
                    self._answers[said["gpu"]] = said
            elif "xid" in said:
                self._heard(said)
            elif "ends" in said:
                self._why = said["ends"]
            else:
                self._hello = said
        self._news.set()
