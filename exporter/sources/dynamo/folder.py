"""The folder in which Dynamo keeps its keys where it runs on one machine without etcd: `DYN_DISCOVERY_BACKEND=file`.

Each key is a file, `BUCKET/KEY`, with what is not a letter or digit of the key percent-encoded. A worker touches its
files every three seconds; those of one that was killed stay until another process clears them away. Seen on 1.6.1.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

from exporter.core.errors import ReadError
from exporter.sources.dynamo.registry import PREFIXES

LEASE = 10.0
"""Seconds after which a file that was not touched is a dead worker's."""
LARGEST = 1 << 20
"""Bytes of a file that are read."""


def keys(directory: str) -> Iterator[tuple[str, bytes, int, int]]:
    """Each key with its value, a number that changes with the value, and 0: there is no lease. Raises ReadError."""
    now = time.time()
    root = Path(directory)
    if not root.is_dir():
        raise ReadError("connect", f"{directory}: no such folder (write the DYN_FILE_KV that Dynamo is started with)")
    for prefix in PREFIXES:
        try:
            files = list((root / prefix).iterdir())
        except FileNotFoundError:
            continue
        except OSError as error:
            raise ReadError("auth", f"{error.filename}: {error.strerror} (let the exporter's user read it)") from None
        for file in files:
            try:
                if now - file.stat().st_mtime > LEASE:
                    continue
                with file.open("rb") as opened:
                    value = opened.read(LARGEST)
            except OSError:
                continue  # it went meanwhile
            yield prefix + unquote(file.name), value, zlib.crc32(value), 0
