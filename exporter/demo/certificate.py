"""A certificate for 127.0.0.1 that nobody but the demo trusts, made anew with each start: no key is shipped.

Self-signed, with ECDSA over P-256 in plain numbers: enough for one signature that protects nothing.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from base64 import encodebytes
from pathlib import Path

_P = 2**256 - 2**224 + 2**192 + 2**96 - 1
_N = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
_G = (
    0x6B17D1F2E12C4247F8BCE6E563A440F277037D812DEB33A0F4A13945D898C296,
    0x4FE342E2FE1A7F9B8EE7EB4A7C0F9E162BCE33576B315ECECBB6406837BF51F5,
)
_Point = tuple[int, int] | None
_SHA256, _CURVE = "06082a8648ce3d040302", "06072a8648ce3d020106082a8648ce3d030107"
_NAME, _ALTERNATIVE, _BASIC = "0603550403", "0603551d11", "0603551d13"
"""Object identifiers, as DER has them."""


def write(file: Path, days: float) -> Path:
    """Write a file with key and certificate, which expires in so many days."""
    key = secrets.randbelow(_N - 1) + 1
    public = _times(key, _G)
    assert public is not None  # noqa: S101 - the key is below the group's order
    point = b"\0\4" + public[0].to_bytes(32) + public[1].to_bytes(32)
    owner = _der(0x30, _der(0x31, _der(0x30, bytes.fromhex(_NAME), _der(0x0C, b"simulated"))))
    algorithm = _der(0x30, bytes.fromhex(_SHA256))
    extensions = (
        (_ALTERNATIVE, _der(0x30, _der(0x87, bytes((127, 0, 0, 1))))),
        (_BASIC, _der(0x30)),
    )
    said = _der(
        0x30,
        *(_der(0xA0, _der(2, b"\2")), _der(2, b"\1"), algorithm, owner),
        _der(0x30, *(_der(0x18, _time(time.time() + each * 86400.0)) for each in (-30.0, days))),
        *(owner, _der(0x30, _der(0x30, bytes.fromhex(_CURVE)), _der(3, point))),
        _der(0xA3, _der(0x30, *(_der(0x30, bytes.fromhex(name), _der(4, value)) for name, value in extensions))),
    )
    certificate = _der(0x30, said, algorithm, _der(3, b"\0" + _signed(key, said)))
    private = _der(0x30, _der(2, b"\1"), _der(4, key.to_bytes(32)), _der(0xA0, bytes.fromhex(_CURVE)[9:]))
    file.write_text(_pem("EC PRIVATE KEY", private) + _pem("CERTIFICATE", certificate))
    return file


def _signed(key: int, said: bytes) -> bytes:
    once = secrets.randbelow(_N - 1) + 1
    point = _times(once, _G)
    assert point is not None  # noqa: S101 - the same
    r = point[0] % _N
    s = pow(once, -1, _N) * (int.from_bytes(hashlib.sha256(said).digest()) + r * key) % _N
    return _der(0x30, *(_der(2, number.to_bytes(33).lstrip(b"\0")) for number in (r, s)))


def _times(number: int, point: _Point) -> _Point:
    """A point of the curve, added to itself."""
    total: _Point = None
    while number:
        if number & 1:
            total = _plus(total, point)
        point, number = _plus(point, point), number >> 1
    return total


def _plus(one: _Point, other: _Point) -> _Point:
    if one is None or other is None:
        return other if one is None else one
    if one == other:
        slope = 3 * (one[0] ** 2 - 1) * pow(2 * one[1], -1, _P)
    elif one[0] == other[0]:
        return None
    else:
        slope = (other[1] - one[1]) * pow(other[0] - one[0], -1, _P)
    x = (slope * slope - one[0] - other[0]) % _P
    return x, (slope * (one[0] - x) - one[1]) % _P


def _der(tag: int, *parts: bytes) -> bytes:
    """One value with its tag and length; a number keeps a leading zero where it would look negative."""
    body = b"".join(parts)
    if tag == 2 and body[0] & 0x80:
        body = b"\0" + body
    size = len(body).to_bytes((len(body).bit_length() + 7) // 8)
    return bytes((tag,)) + (bytes((len(body),)) if len(body) < 0x80 else bytes((0x80 | len(size),)) + size) + body


def _time(at: float) -> bytes:
    return time.strftime("%Y%m%d%H%M%SZ", time.gmtime(at)).encode()


def _pem(what: str, body: bytes) -> str:
    return f"-----BEGIN {what}-----\n{encodebytes(body).decode()}-----END {what}-----\n"
