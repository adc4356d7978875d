"""Secrets: targets that want one, and where it is kept: a file, systemd's $CREDENTIALS_DIRECTORY, the environment."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, SecretStr, field_validator
from pydantic_core.core_schema import ValidationInfo

from exporter.config.model import TargetConfig
from exporter.config.values import Text

LARGEST = 64 * 1024
"""Bytes that a file with a secret may have: more is some other file."""


class SecretError(Exception):
    """A secret cannot be had. The message says which file or variable and what to do, never what it holds."""


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


def _to_be_had(value: Any, info: ValidationInfo) -> Any:
    """Of `NAME`, `NAME_file` and `NAME_env` one at most; while a file is loaded, one that is there."""
    if value is None:
        return value
    assert info.field_name is not None  # noqa: S101 - it is a field's validator
    name = info.field_name.removesuffix("_file").removesuffix("_env")
    other = next((key for key in (name, f"{name}_file") if info.data.get(key) is not None), None)
    if other is not None:
        raise ValueError(f"a second {_called(name)} beside {other} (leave one of them out)")
    if isinstance(value, SecretStr):
        plain = value.get_secret_value()
        if not plain or not plain.isprintable():
            raise ValueError(f"not a {_called(name)} (write one line of text, or {name}_file)")
        if re.fullmatch(r"\$\{\w+\}|\$[A-Z][A-Z0-9_]+|os\.environ/\w+", plain):  # as shells and LiteLLM write it
            raise ValueError(f"the name of a {_called(name)}, not the {_called(name)} (write {name}_env: NAME)")
    elif info.context is not None:
        if info.field_name.endswith("_file") and "/" in value:
            value = str(Path(info.context["directory"]) / value)
        read = from_file if info.field_name.endswith("_file") else from_environment
        try:
            read(value, info.context["environ"])
        except SecretError as error:
            raise ValueError(str(error)) from None
    return value


def _called(name: str) -> str:
    return name.removeprefix("api_")


def _had(target: TargetConfig, name: str, environ: Mapping[str, str]) -> str | None:
    """A secret as it is now, None where none is configured. Raises SecretError; never keeps what it read."""
    file, variable, value = (getattr(target, key) for key in (f"{name}_file", f"{name}_env", name))
    if file is not None:
        return from_file(file, environ)
    if variable is not None:
        return from_environment(variable, environ)
    return value.get_secret_value() if value is not None else None


class WithKey(TargetConfig):
    """A target that wants a key. At most one place for it is named."""

    api_key: SecretStr | None = Field(
        default=None, description="The key itself. Better: `api_key_file`, so that this file holds no secret."
    )
    api_key_file: str | None = Field(
        default=None,
        description="File with the key, read again each time. A name without a slash is looked for in "
        "`$CREDENTIALS_DIRECTORY`; another path that does not begin with / starts at the configuration's folder.",
    )
    api_key_env: str | None = Field(default=None, description="Environment variable with the key.")

    _one_key = field_validator("api_key", "api_key_file", "api_key_env")(_to_be_had)

    def secret(self, environ: Mapping[str, str] = os.environ) -> str | None:
        """The key as it is now, None where none is configured. Raises SecretError; never keeps what it read."""
        return _had(self, "api_key", environ)


class WithPassword(TargetConfig):
    """A target that wants a user and a password."""

    user: Text | None = Field(default=None, description="The user to log in as.")
    password: SecretStr | None = Field(
        default=None, description="The password itself. Better: `password_file`, so that this file holds no secret."
    )
    password_file: str | None = Field(
        default=None, description="File with the password, read again each time; found as `api_key_file` is."
    )
    password_env: str | None = Field(default=None, description="Environment variable with the password.")

    _one_password = field_validator("password", "password_file", "password_env")(_to_be_had)

    @field_validator("password", "password_file", "password_env")
    @classmethod
    def _somebodys(cls, value: Any, info: ValidationInfo) -> Any:
        if value is not None and info.data.get("user") is None:
            raise ValueError("a password without a user (write user, too)")
        return value

    def login(self, environ: Mapping[str, str] = os.environ) -> tuple[str, str] | None:
        """User and password as they are now, None where no user is configured. Raises SecretError."""
        return None if self.user is None else (self.user, _had(self, "password", environ) or "")


class WithToken(TargetConfig):
    """A target that wants a token."""

    token: SecretStr | None = Field(
        default=None, description="The token itself. Better: `token_file`, so that this file holds no secret."
    )
    token_file: str | None = Field(
        default=None, description="File with the token, read again each time; found as `api_key_file` is."
    )
    token_env: str | None = Field(default=None, description="Environment variable with the token.")

    _one_token = field_validator("token", "token_file", "token_env")(_to_be_had)

    def secret_token(self, environ: Mapping[str, str] = os.environ) -> str | None:
        """The token as it is now, None where none is configured. Raises SecretError."""
        return _had(self, "token", environ)
