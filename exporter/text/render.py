"""One page from the samples of all targets: catalogue order, each family once, the same bytes for the same samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter

from exporter.core.types import Family, Sample, number
from exporter.text.negotiate import Format

_HELP_ESCAPES = {
    Format.TEXT: str.maketrans({"\\": r"\\", "\n": r"\n"}),
    Format.OPENMETRICS: str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""}),
}


HelpOf = Callable[[Family], str]
_HELP: HelpOf = attrgetter("help")


def heading(family: Family, format: Format, help_of: HelpOf = _HELP) -> bytes:  # noqa: A002 - the field's word
    """The HELP and TYPE lines of a family. OpenMetrics names a counter there without its `_total`."""
    name = family.name
    if format is Format.OPENMETRICS and family.kind == "counter":
        name = name.removesuffix("_total")
    text = help_of(family).translate(_HELP_ESCAPES[format])
    return f"# HELP {name} {text}\n# TYPE {name} {family.kind}\n".encode()


def page(
    samples: Iterable[Sequence[Sample]],
    format: Format,  # noqa: A002 - the field's word
    help_of: HelpOf = _HELP,
) -> bytes:
    """The page of any number of targets, each a sequence of samples in any order.

    Families come in catalogue order, and only those that have a series; within one, the targets as they are given,
    then `Series.sort`. A series that is given twice is shown twice: who gathers the samples has each once.
    """
    families: dict[str, Family] = {}
    groups: dict[str, list[list[Sample]]] = {}
    for target in samples:
        own: dict[str, list[Sample]] = {}
        for sample in target:
            family = sample[0].family
            group = own.get(family.name)
            if group is None:
                families[family.name] = family
                group = own[family.name] = []
                groups.setdefault(family.name, []).append(group)
            group.append(sample)
    parts: list[bytes] = []
    for family in sorted(families.values(), key=attrgetter("order", "name")):
        parts.append(heading(family, format, help_of))
        for group in groups[family.name]:
            group.sort(key=lambda sample: sample[0].sort)
            parts += [b"%b%b\n" % (series.prefix, number(value).encode()) for series, value in group]
    if format is Format.OPENMETRICS:
        parts.append(b"# EOF\n")
    return b"".join(parts)
