"""Reads a configuration file, and lists every mistake in it: `file:line: path: what is wrong (what to write)`."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, SecretStr, ValidationError
from pydantic_core import ErrorDetails

from exporter.config import document
from exporter.config.document import BrokenError, Node, Problem
from exporter.config.model import Config, TargetConfig
from exporter.config.values import nearest, shown
from exporter.sources import sources

Kinds = Mapping[str, type[TargetConfig]]

LARGEST = 2**20
"""Bytes that a configuration may have."""

AUTO = "auto"
"""The source of a target that is recognised by what it answers."""

_PLAIN_WORDS = {
    "string_type": ("not text", "write {quoted}"),
    "int_type": ("not a whole number", "write digits alone"),
    "float_type": ("not a number", "write digits, such as 90"),
    "bool_type": ("neither true nor false", "write true or false, without quotes"),
    "tuple_type": ("not a list", "write [a, b], or one item a line with - before it"),
    "dict_type": ("not a mapping", "write key: value, one a line"),
    "model_type": ("not a mapping", "write key: value, one a line"),
    "literal_error": ("not one of the words for it", "write {expected}"),
    "greater_than_equal": ("too small", "write at least {ge}"),
    "less_than_equal": ("too large", "write at most {le}"),
    "too_short": ("too short", "write at least {min_length}"),
}
"""What pydantic calls a mistake, in plain words, and what to write."""


class ConfigError(Exception):
    """A configuration that cannot be taken. `problems` are its mistakes, in the order of the file."""

    def __init__(self, problems: tuple[str, ...]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


def configured_kinds() -> dict[str, type[TargetConfig]]:
    """What `source` may be, and the keys of each: those of the sources' folders."""
    return {kind: source.Config for kind, source in sources().items()}


def load(path: Path, kinds: Kinds | None = None, environ: Mapping[str, str] = os.environ) -> Config:
    """The configuration in a file. Raises ConfigError with every mistake in it.

    `kinds` are the targets that can be configured, by their `source`; left out, those there are.
    """
    text = _text(path)
    kinds = configured_kinds() if kinds is None else kinds
    every: dict[str, type[TargetConfig]] = {AUTO: TargetConfig, **kinds}
    try:
        root, problems = document.read(text)
    except BrokenError as error:
        raise _refused(path, [error.problem], every) from None
    check = _Check(root, problems, every, {"environ": environ, "directory": path.absolute().parent, "kinds": kinds})
    config = check.config()
    if config is None or check.problems:
        raise _refused(path, check.problems, every)
    return config


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
    except FileNotFoundError:
        raise ConfigError((f"{path}: no such file (write the path of a YAML file)",)) from None
    except IsADirectoryError:
        raise ConfigError((f"{path}: a folder (write the path of a YAML file)",)) from None
    except PermissionError:
        raise ConfigError((f"{path}: may not be read (let the exporter's user read it)",)) from None
    except OSError as error:
        raise ConfigError((f"{path}: cannot be read: {error.strerror} (write the path of a YAML file)",)) from None
    if len(content) > LARGEST:
        raise ConfigError((f"{path}: larger than 1 MiB (write less)",))
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError((f"{path}:{line}: not UTF-8 (save the file as UTF-8)",)) from None


def _refused(path: Path, problems: list[Problem], kinds: Kinds) -> ConfigError:
    """The mistakes as text, each once, in the order of lines."""
    secret = {name for kind in kinds.values() for name in _secret_keys(kind)}
    texts = []
    for problem in sorted(problems, key=lambda problem: problem.line):
        steps = list(problem.path)
        for place, step in enumerate(steps):
            if step in secret:  # what is written in the place of a secret may be one, keys included
                del steps[place + 1 :]
                break
        where = ".".join(_step(step) for step in steps)
        texts.append(": ".join(filter(None, (f"{path}:{problem.line}", where, problem.what))))
    return ConfigError(tuple(dict.fromkeys(texts)))


def _secret_keys(model: type[BaseModel]) -> set[str]:
    return {
        name
        for name, field in model.model_fields.items()
        if SecretStr in (field.annotation, *getattr(field.annotation, "__args__", ()))
    }


def _step(step: str | int) -> str:
    return str(step) if isinstance(step, int) or re.fullmatch(r"[\w-]{1,60}", step) else shown(step)


class _Check:
    """Holds a document against the model, and gathers what is wrong."""

    def __init__(self, root: Node, problems: list[Problem], kinds: Kinds, context: Mapping[str, Any]) -> None:
        self.problems = list(problems)
        self._known = {problem.path for problem in problems}
        self._root = root
        self._kinds = kinds
        self._context = dict(context)
        self._named: dict[str, int] = {}
        self._read: dict[tuple[str, str], list[tuple[TargetConfig, str]]] = {}

    def config(self) -> Config | None:
        """The configuration; of no use where there are problems."""
        data = self._root.plain()
        if data is None:
            return Config()
        if not isinstance(data, dict):
            self._add((), f"not a mapping: {shown(data)} (write key: value, one a line)")
            return None
        given = data.pop("targets", ())
        targets: list[TargetConfig] = []
        if isinstance(given, tuple):
            for place, target in enumerate(given):
                targets += self._target(target, ("targets", place))
        else:
            self._add(("targets",), f"not a list: {shown(given)} (write a - before each target)")
        config = self._valid(Config, data, ())
        return config.model_copy(update={"targets": tuple(targets)}) if isinstance(config, Config) else None

    def _target(self, data: object, path: document.Path) -> Iterator[TargetConfig]:
        """The targets of one entry: one, or one for each URL of a list."""
        if isinstance(data, str):
            data = {"url": data}
            url_path = path
        else:
            url_path = (*path, "url")
        if not isinstance(data, dict):
            self._add(path, f"not a target: {shown(data)} (write a URL, or a mapping with source and url)")
            return
        kind = self._kind(data, path)
        urls = data.get("url")
        if not isinstance(urls, tuple):
            yield from self._one(kind, data, path, url_path)
            return
        if not urls:
            self._add(url_path, "an empty list (write at least one URL)")
        if "name" in data:
            self._add((*path, "name"), "one name for several targets (leave it out, or write an entry for each URL)")
            data = {key: value for key, value in data.items() if key != "name"}
        for place, url in enumerate(urls):
            yield from self._one(kind, {**data, "url": url}, path, (*url_path, place))

    def _kind(self, data: Mapping[str, Any], path: document.Path) -> type[TargetConfig]:
        """The model of a target; the common one where its source is not known."""
        source = data.get("source", AUTO)
        if isinstance(source, str) and source not in self._kinds:
            self._add((*path, "source"), f"unknown source: {shown(source)} ({nearest(source, self._kinds)})")
        return self._kinds.get(source, TargetConfig) if isinstance(source, str) else TargetConfig

    def _one(
        self, kind: type[TargetConfig], data: dict[str, Any], path: document.Path, url_path: document.Path
    ) -> Iterator[TargetConfig]:
        target = self._valid(kind, data, path, url_path)
        if isinstance(target, TargetConfig):
            parts = target.parts()
        else:
            try:  # the name alone, so that two of a name are found where something else is wrong, too
                named = TargetConfig.model_validate({key: data[key] for key in ("url", "name") if key in data})
            except ValidationError:
                return
            parts = (named,)
        where = (*path, "name") if "name" in data else url_path
        line = self._root.line_of(where)
        for part in parts:
            name = part.target_name
            if name in self._named:
                before = self._named[name]
                self._add(where, f"the same name as the target on line {before}: {shown(name)} (write another name)")
            else:
                self._named[name] = line
                self._once(part, where)
        if isinstance(target, TargetConfig):
            yield from parts

    def _once(self, target: TargetConfig, where: document.Path) -> None:
        """Note a target that reads what another one reads: all its numbers would count twice."""
        alike = target.model_copy(update={"name": None, "labels": {}})
        known = self._read.setdefault((target.source, target.place), [])
        twin = next((name for other, name in known if other == alike), None)
        if twin is not None:
            self._add(where, f"reads what {shown(twin)} reads, and would count it twice (write another url)")
        known.append((alike, target.target_name))

    def _valid(
        self, model: type[BaseModel], data: object, path: document.Path, url_path: document.Path = ()
    ) -> BaseModel | None:
        try:
            return model.model_validate(data, context=self._context)
        except ValidationError as error:
            # a source that is not known has keys that are not known, either
            guess = model is TargetConfig and isinstance(data, dict) and data.get("source", AUTO) != AUTO
            mistakes = error.errors()
            within = {mistake["loc"][:-1] for mistake in mistakes}
            for mistake in mistakes:
                short = mistake["type"] == "too_short" and mistake["loc"] in within  # less what is wrong in it
                if not short and not (guess and mistake["type"] == "extra_forbidden"):
                    place = url_path if mistake["loc"] == ("url",) and url_path else (*path, *mistake["loc"])
                    deeper = getattr(mistake.get("ctx", {}).get("error"), "path", ())  # of a mistake in a map
                    self._add((*place, *deeper), self._words(model, mistake))
            return None

    def _add(self, path: document.Path, what: str) -> None:
        """Note a mistake, unless the document's own are about the same place."""
        path = tuple(step for step in path if step != "[key]")
        if not any(path[:length] in self._known for length in range(1, len(path) + 1)):
            self.problems.append(Problem(self._root.line_of(path), path, what))

    def _words(self, model: type[BaseModel], mistake: ErrorDetails) -> str:
        """What is wrong and what to write instead."""
        kind, value, context = mistake["type"], mistake["input"], mistake.get("ctx", {})
        last = mistake["loc"][-1] if mistake["loc"] else ""
        if kind == "value_error":
            return str(getattr(context["error"], "text", context["error"]))
        if kind == "extra_forbidden":
            return f"unknown key ({self._remedy(model, mistake['loc'])})"
        if kind == "missing":
            return f"missing (write {last}: …)"
        what, remedy = _PLAIN_WORDS.get(kind, (mistake["msg"], "see docs/configuration.md"))
        if not _secret_keys(model).isdisjoint(mistake["loc"]):
            return f"{what} (write text, in quotes)"
        quoted = f"'{shown(value)}' in quotes" if isinstance(value, int | float) else "text"
        return f"{what}: {shown(value)} ({remedy.format(**{**context, 'quoted': quoted})})"

    def _remedy(self, model: type[BaseModel], place: tuple[int | str, ...]) -> str:
        """The nearest known key, or the source that has such a key, or all keys."""
        for step in place[:-1]:
            annotation = model.model_fields[str(step)].annotation
            choices = (annotation, *getattr(annotation, "__args__", ()))
            inner = [choice for choice in choices if isinstance(choice, type) and issubclass(choice, BaseModel)]
            if not inner:
                break
            model = inner[0]
        key = str(place[-1])
        if model is TargetConfig:
            for kind, config in self._kinds.items():
                if key in config.model_fields:
                    return f"write source: {kind}"
        return nearest(key, model.model_fields)
