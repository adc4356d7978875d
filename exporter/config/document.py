"""Reads YAML into values that know their line. What is not plain data is a problem, not a surprise.

Scalars are those of YAML 1.2 (`yes`, `on`, `12:30` and dates are text); a key is the text that is written. The document
is read from the parser's events, so that depth and the weight of aliases are bounded before anything is built.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import yaml

Path = tuple[str | int, ...]

DEEPEST = 32
"""Levels of nesting."""
LARGEST = 100_000
"""Values in a document, each alias counted as what it stands for."""

_BOOLS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_NULLS = ("", "~", "null", "Null", "NULL")
_INTEGER = re.compile(r"[-+]?[0-9]{1,18}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]{1,18}|[0-9]{1,18}(\.[0-9]{0,18})?)([eE][-+]?[0-9]{1,3})?")
_TEXT = "tag:yaml.org,2002:str"

Scalar = str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class Problem:
    """A mistake in a document: its line (from 1), where in the data it is, and what is wrong."""

    line: int
    path: Path
    what: str


class BrokenError(Exception):
    """The document cannot be read to its end."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.what)
        self.problem = problem


@dataclass(frozen=True, slots=True)
class Node:
    """A value and what is in it; a mapping has for each key its line and its value.

    `size` counts all values, `depth` the levels; both count an alias as what it stands for.
    """

    line: int
    value: Scalar | list[Node] | dict[str, tuple[int, Node]]
    size: int = 1
    depth: int = 0

    def plain(self) -> object:
        """The data alone; a list is a tuple."""
        match self.value:
            case list():
                return tuple(node.plain() for node in self.value)
            case dict():
                return {key: node.plain() for key, (_, node) in self.value.items()}
            case value:
                return value

    def line_of(self, path: Path) -> int:
        """The line of a key or list item; of a path that leads nowhere, of the last step that is there."""
        line, node = self.line, self
        for step in path:
            if isinstance(node.value, dict) and isinstance(step, str) and step in node.value:
                line, node = node.value[step]
            elif isinstance(node.value, list) and isinstance(step, int) and step < len(node.value):
                node = node.value[step]
                line = node.line
            else:
                break
        return line


def read(text: str) -> tuple[Node, list[Problem]]:
    """The root of a document, and the problems that do not keep the rest from being read. Raises BrokenError."""
    try:
        return _Reader(text).document()
    except yaml.MarkedYAMLError as error:
        raise BrokenError(_syntax(error, text)) from None
    except yaml.reader.ReaderError as error:
        before = text.encode()[: error.position].decode(errors="ignore")
        what = f"a character that YAML does not allow: U+{error.character:04X} (leave it out)"
        raise BrokenError(Problem(before.count("\n") + 1, (), what)) from None


def _syntax(error: yaml.MarkedYAMLError, text: str) -> Problem:
    """What the parser complains of. It never quotes the document, so nothing secret is in its words."""
    mark = error.problem_mark or error.context_mark
    line = mark.line if mark is not None else 0
    written = text.splitlines()[line : line + 1] or [""]
    if "\t" in written[0][: len(written[0]) - len(written[0].lstrip())]:
        return Problem(line + 1, (), "a tab (indent with spaces)")
    problem = error.problem or "not to be understood"
    if "mapping values are not allowed" in problem:
        remedy = "put text that holds ': ' in quotes, and indent the keys of a mapping alike"
    elif error.context_mark is not None and error.context_mark.line != line:
        remedy = f"look at what begins on line {error.context_mark.line + 1}"
    else:
        remedy = "put text that begins with a sign in quotes, and close what is opened"
    return Problem(line + 1, (), f"not YAML: {problem} ({remedy})")


def _line(event: yaml.Event) -> int:
    assert event.start_mark is not None  # noqa: S101 - every event of a parser has a place
    return event.start_mark.line + 1


def _too_deep(line: int, path: Path) -> Problem:
    return Problem(line, path[:1], f"nested deeper than {DEEPEST} levels (write it flatter)")


class _Reader:
    """Builds the tree of one document from the parser's events."""

    def __init__(self, text: str) -> None:
        self._events = self._parse(text)
        self._anchors: dict[str, Node] = {}
        self._problems: list[Problem] = []

    @staticmethod
    def _parse(text: str) -> Iterator[yaml.Event]:
        loader = yaml.CSafeLoader(text)
        try:
            while loader.check_event():
                event = loader.get_event()
                assert event is not None  # noqa: S101 - check_event has just said so
                yield event
        finally:
            loader.dispose()

    def document(self) -> tuple[Node, list[Problem]]:
        root = Node(1, None)
        documents = 0
        for event in self._events:
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    what = "a second document (a file holds one; leave the --- out)"
                    raise BrokenError(Problem(_line(event), (), what))
                root = self._node(next(self._events), ())
        return root, self._problems

    def _problem(self, event: yaml.Event, path: Path, what: str) -> None:
        self._problems.append(Problem(_line(event), path, what))

    def _node(self, event: yaml.Event, path: Path) -> Node:
        line = _line(event)
        if isinstance(event, yaml.AliasEvent):
            if event.anchor in self._anchors:
                return self._anchors[event.anchor]
            # the name is not shown: it may be a password that begins with *
            self._problem(event, path, "an alias of nothing before it (put text that begins with * in quotes)")
            return Node(line, None)
        if len(path) > DEEPEST:
            raise BrokenError(_too_deep(line, path))
        if isinstance(event, yaml.SequenceStartEvent):
            node = self._list(event, path)
        elif isinstance(event, yaml.MappingStartEvent):
            node = self._mapping(event, path)
        else:
            assert isinstance(event, yaml.ScalarEvent), event  # noqa: S101 - no other event begins a node
            node = Node(line, self._scalar(event, path))
        if event.anchor is not None:
            self._anchors[event.anchor] = node
        return node

    def _plain(self, event: yaml.CollectionStartEvent, path: Path) -> None:
        if event.tag is not None:
            self._problem(event, path, "a tag (leave out what begins with !)")

    @staticmethod
    def _bounded(line: int, value: list[Node] | dict[str, tuple[int, Node]], inner: Iterable[Node], path: Path) -> Node:
        size, depth = 1, 1
        for node in inner:
            size += node.size
            depth = max(depth, node.depth + 1)
        if size > LARGEST:
            what = f"more than {LARGEST} values, aliases counted as what they stand for (write less)"
            raise BrokenError(Problem(line, path[:1], what))
        if depth > DEEPEST:
            raise BrokenError(_too_deep(line, path))
        return Node(line, value, size, depth)

    def _list(self, event: yaml.SequenceStartEvent, path: Path) -> Node:
        self._plain(event, path)
        items: list[Node] = []
        while not isinstance(inner := next(self._events), yaml.SequenceEndEvent):
            items.append(self._node(inner, (*path, len(items))))
        return self._bounded(_line(event), items, items, path)

    def _mapping(self, event: yaml.MappingStartEvent, path: Path) -> Node:
        self._plain(event, path)
        entries: dict[str, tuple[int, Node]] = {}
        merged: list[Node] = []
        while not isinstance(inner := next(self._events), yaml.MappingEndEvent):
            line = _line(inner)
            if not isinstance(inner, yaml.ScalarEvent):
                self._problem(inner, path, "a key that is not text (put text that begins with {, [, * or & in quotes)")
                self._node(inner, path)
                self._node(next(self._events), path)
            elif inner.value == "<<" and inner.implicit[0]:
                merged += self._to_merge(next(self._events), path)
            else:
                key = inner.value
                value = self._node(next(self._events), (*path, key))
                if key in entries:
                    what = f"written twice, first on line {entries[key][0]} (leave one out)"
                    self._problems.append(Problem(line, (*path, key), what))
                else:
                    entries[key] = (line, value)
        for node in merged:
            assert isinstance(node.value, dict)  # noqa: S101 - _to_merge lets nothing else through
            entries = node.value | entries
        return self._bounded(_line(event), entries, (value for _, value in entries.values()), path)

    def _to_merge(self, event: yaml.Event, path: Path) -> list[Node]:
        """The mappings that `<<` names. What is written earlier wins."""
        node = self._node(event, path)
        nodes = node.value if isinstance(node.value, list) else [node]
        if not all(isinstance(each.value, dict) for each in nodes):
            self._problem(event, path, "<< without a mapping (write <<: *anchor of a mapping)")
            return []
        return nodes

    def _scalar(self, event: yaml.ScalarEvent, path: Path) -> Scalar:
        text = event.value
        if event.tag is not None and event.tag != _TEXT:
            self._problem(event, path, "a tag (put text that begins with ! in quotes)")
            return None
        if event.tag == _TEXT or not event.implicit[0]:
            return text
        if text in _NULLS:
            if path:  # a document of nothing is fine
                self._problem(event, path, "nothing is written here (write a value, or leave it out)")
            return None
        if text in _BOOLS:
            return _BOOLS[text]
        if _INTEGER.fullmatch(text):
            return int(text)
        return float(text) if _FLOAT.fullmatch(text) else text
