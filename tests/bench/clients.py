"""Many clients that ask for one page without pause: `python tests/bench/clients.py CLIENTS SECONDS PORT PATH`.

Each keeps its connection to this machine's port. Prints the latencies of all, in milliseconds, as one JSON list.
Sockets are used as they are, because an HTTP library's own time would be part of what is measured.
"""

from __future__ import annotations

import json
import re
import socket
import sys
import threading
import time

HOST = "127.0.0.1"


def ask_without_pause(port: int, path: str, until: float, latencies: list[float]) -> None:
    """One client. Raises OSError where the answer is no page with a length."""
    request = f"GET {path} HTTP/1.1\r\nHost: {HOST}:{port}\r\n\r\n".encode()
    with socket.create_connection((HOST, port), timeout=60) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while time.monotonic() < until:
            began = time.perf_counter()
            connection.sendall(request)
            head = bytearray()
            while b"\r\n\r\n" not in head:
                head += some(connection)
            length = re.match(rb"HTTP/1\.1 200 .*?\r\ncontent-length: (\d+)\r\n", head, re.DOTALL | re.IGNORECASE)
            if length is None:
                raise OSError(f"no page: {bytes(head[:200])!r}")
            missing = int(length[1]) - (len(head) - head.index(b"\r\n\r\n") - 4)
            while missing:
                missing -= len(some(connection))
            latencies.append((time.perf_counter() - began) * 1000)


def some(connection: socket.socket) -> bytes:
    """The next bytes. Raises OSError at the end."""
    piece = connection.recv(1 << 20)
    if not piece:
        raise OSError("the connection was closed")
    return piece


def main() -> None:
    """Ask, then print."""
    count, seconds, port, path = sys.argv[1:]
    latencies: list[float] = []
    until = time.monotonic() + float(seconds)
    asked = (int(port), path, until, latencies)
    clients = [threading.Thread(target=ask_without_pause, args=asked) for _ in range(int(count))]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    print(json.dumps([round(latency, 3) for latency in latencies]))


if __name__ == "__main__":
    main()
