"""A certificate for 127.0.0.1 that nobody but the demo trusts, made anew with each start: no key is shipped."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from pathlib import Path

DAYS = 40
"""For which it is valid."""


def served(file: Path) -> ssl.SSLContext | None:
    """Write the certificate into a file, and give what serves it; None where openssl is not installed."""
    openssl, key = shutil.which("openssl"), file.with_suffix(".key")
    if openssl is None:
        return None
    command = f"{openssl} req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=simulated"
    made = (*command.split(), "-addext", "subjectAltName=IP:127.0.0.1", "-days", str(DAYS))
    subprocess.run([*made, "-keyout", key, "-out", file], check=True, capture_output=True)  # noqa: S603 - a line of ours
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file, key)
    return context
