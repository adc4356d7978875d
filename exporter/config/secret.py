"""Reads secrets where they are kept: a file, systemd's $CREDENTIALS_DIRECTORY, the environment. Never prints one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from exporter.config.values import SecretError

LARGEST = 64 * 1024
"""Bytes that a file with a secret may have: more is some other file."""


def from_file(name: str, environ: Mapping[str, str]) -> str:
    """The secret in a file, without one line feed at its end. A name without a slash is a credential of systemd's.

    Raises SecretError saying which file, and what to do.
    """
    path = Path(name)
    if "/" not in name:
        directory = environ.get("CREDENTIALS_DIRECTORY")
        if not directory:
            raise SecretError(
                "a credential, but $CREDENTIALS_DIRECTORY is not set "
                "(write a path with a slash, or give the service LoadCredential=)"
            )
        path = Path(directory) / name
        if not path.exists():  # the name is not shown: it may be the secret itself, written in the wrong place
            raise SecretError(f"no such credential in {directory} (give the service LoadCredential= of that name)")
    where = repr(str(path))
    try:
        if path.exists() and not path.is_file():  # a pipe would never answer
            raise SecretError(f"not a file: {where} (write the path of a file that holds the secret)")
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
    except (FileNotFoundError, NotADirectoryError):
        raise SecretError(f"no such file: {where} (write the path of a file that holds the secret)") from None
    except PermissionError:
        raise SecretError(f"may not be read: {where} (let the exporter's user read it)") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a path"
        raise SecretError(f"cannot be read: {where}: {reason} (write the path of a file)") from None
    try:
        secret = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise SecretError(f"not text: {where} (put nothing but the secret in the file)") from None
    return _whole(secret.removesuffix("\n").removesuffix("\r"), f"the file {where}")


def from_environment(name: str, environ: Mapping[str, str]) -> str:
    """The secret in an environment variable. Raises SecretError where it is not set."""
    if not re.fullmatch(r"[A-Z_][A-Z0-9_]*", name):  # not shown: it may be the secret itself
        raise SecretError("not the name of a variable (write one such as LITELLM_API_KEY)")
    if name not in environ:
        raise SecretError(f"the variable {name} is not set (set it, or name a file that holds the secret)")
    return _whole(environ[name], f"the variable {name}")


def _whole(secret: str, where: str) -> str:
    """A secret that fits in one header."""
    if not secret:
        raise SecretError(f"{where} is empty (put the secret there)")
    if len(secret) > LARGEST or not secret.isprintable():
        raise SecretError(f"{where} holds more than one line of text (put nothing but the secret there)")
    return secret
