"""Whether memory follows what is live: `python tests/bench/long.py [READS]`, 5,000 reads by default, some minutes.

LiteLLM's body of 20,425 series, a tenth of it changing, a key coming and another one going at each read; the reader's
clock moves on by ten seconds each time, so that what vanished is remembered for 360 reads. Fails where the process is
more than a tenth larger at the end than at read 500.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path

from bodies import Bodies
from reading import CHUNK, reader

SETTLED = 500
MARGIN = 1.10


def resident() -> float:
    """Megabytes of this process in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6


def make(pipe: Connection, reads: int) -> None:
    """A process that makes the bodies, so that they are in nobody else's memory."""
    bodies = Bodies("M", 10, churn=1)
    with os.fdopen(pipe.fileno(), "wb", closefd=False) as out:
        for _ in range(reads):
            body = bodies.next()
            out.write(len(body).to_bytes(8) + body)


def main() -> int:
    """Read, and print the size of the process now and then."""
    reads = int(sys.argv[1]) if len(sys.argv) > 1 else 5_000
    ours, theirs = multiprocessing.Pipe(duplex=False)
    maker = multiprocessing.get_context("spawn").Process(target=make, args=(theirs, reads), daemon=True)
    maker.start()
    now = 0.0
    totals, difference = reader(clock=lambda: now)
    settled = 0.0
    print("| read | lines known | slots | resident MB | CPU ms of the read |\n| --- | --- | --- | --- | --- |")
    bodies = os.fdopen(ours.fileno(), "rb", closefd=False)
    for read in range(1, reads + 1):
        now += 10.0
        began = time.process_time()
        difference.begin()
        left = int.from_bytes(bodies.read(8))
        while left:
            piece = bodies.read1(min(left, CHUNK))
            left -= len(piece)
            more = difference.feed(piece)
            while more:
                more = difference.feed(b"")
        difference.end()
        took = (time.process_time() - began) * 1000
        totals.samples(read)
        if read == SETTLED:
            settled = resident()
        if read == SETTLED or read % (reads // 10) == 0:
            row = len(difference), len(totals.ledger), f"{resident():.1f}", f"{took:.1f}"
            print(f"| {read} |", " | ".join(map(str, row)), "|", flush=True)
    grown = resident() / settled
    print(f"\nat the end {grown:.3f} of what it was at read {SETTLED}")
    return int(grown > MARGIN)


if __name__ == "__main__":
    sys.exit(main())
