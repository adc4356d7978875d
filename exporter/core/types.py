"""The few types that every room shares: Family, Series, Sample, Reading, Advice."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Literal
from weakref import WeakValueDictionary

Kind = Literal["counter", "gauge", "histogram", "summary"]
Labels = tuple[tuple[str, str], ...]
"""Names and values, in an order: what names a series."""
LabelSet = Mapping[str, str]
"""Values by name: what is looked up."""

_HALVES = dict.fromkeys(map(chr, range(0xD800, 0xE000)), "\N{REPLACEMENT CHARACTER}")
_ESCAPES = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""} | _HALVES)


@dataclass(frozen=True, slots=True, eq=False)
class Family:
    """One word of the catalogue.

    `name` is the name users query (a counter's ends in `_total`); `labels` are the allowed label names in the
    order in which they are shown; `closed` gives for a label its whole set of values; `parent` names the family
    whose series decide which closed values exist at 0; `order` is the family's place on the page.
    """

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...]
    order: int
    closed: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    parent: str | None = None


def escaped(value: str) -> str:
    """A label's value as the exposition formats write it between quotes.

    Half a character, as JSON and names of files can have it, cannot be written: it would break the whole page.
    """
    return value.translate(_ESCAPES)


def number(value: float) -> str:
    """A float as the exposition formats write it: `1.0`, `0.25`, `1e-05`, `NaN`, `+Inf`, `-Inf`."""
    if value - value == 0.0:
        return repr(value)
    if value != value:
        return "NaN"
    return "+Inf" if value > 0 else "-Inf"


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Series:
    """A family with label values: one line of the page, without its value.

    Made once for each target by a `SeriesTable` for as long as anything holds it, so identity is equality. `own` are
    the labels without those that the whole target carries; `prefix` is the line's bytes up to and including the space
    before the value.
    """

    family: Family
    labels: Labels
    own: Labels
    suffix: str
    le: float | None
    prefix: bytes

    @property
    def sort(self) -> tuple[Labels, int, float]:
        """Its place within the family."""
        return self.labels, _SUFFIX_ORDER[self.suffix], inf if self.le is None else self.le

    def get(self, label: str) -> str | None:
        """The value of `label`, or None where this series does not have it."""
        for name, value in self.labels:
            if name == label:
                return value
        return None


_SUFFIX_ORDER = {"": 0, "_bucket": 1, "_count": 2, "_sum": 3}


class SeriesTable:
    """Makes each Series once. One table a target, with the labels that every series of the target carries."""

    def __init__(self, constant: Mapping[str, str]) -> None:
        self.constant = dict(constant)
        self._made: WeakValueDictionary[bytes, Series] = WeakValueDictionary()  # by their prefix, which says it all
        self._told: tuple[Family, Labels] | None = None
        self._parts: tuple[Labels, Labels, str] = (), (), ""

    def __call__(
        self,
        family: Family,
        labels: Iterable[tuple[str, str]] = (),
        suffix: str = "",
        le: float | None = None,
    ) -> Series:
        """The series of `family` with `labels`, beside the table's own; order of `labels` does not matter."""
        told = (family, labels if isinstance(labels, tuple) else tuple(labels))
        if told != self._told:  # the buckets of a histogram come one after the other
            self._told, self._parts = told, self._lay_out(*told)
        ordered, own, shown = self._parts
        bound = "" if le is None else f'le="{number(le)}"'
        text = ",".join(filter(None, (shown, bound)))
        prefix = f"{family.name}{suffix}{{{text}}} ".encode() if text else f"{family.name}{suffix} ".encode()
        series = self._made.get(prefix)
        if series is None:
            series = self._made[prefix] = Series(family, ordered, own, suffix, le, prefix)
        return series

    def _lay_out(self, family: Family, labels: Labels) -> tuple[Labels, Labels, str]:
        """All labels in the order in which they are shown, those that are the series' own, and all of them as text."""
        given = self.constant | {name: value for name, value in labels if value}
        ordered = tuple((name, given.pop(name)) for name in family.labels if name in given)
        ordered += tuple(sorted(given.items()))
        own = tuple(pair for pair in ordered if pair[0] not in self.constant)
        return ordered, own, ",".join([f'{name}="{escaped(value)}"' for name, value in ordered])

    def __len__(self) -> int:
        return len(self._made)


Sample = tuple[Series, float]


@dataclass(frozen=True, slots=True)
class Samples:
    """Series and their values, in two lists of one length."""

    series: list[Series] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.series)

    def __iter__(self) -> Iterator[Sample]:
        return zip(self.series, self.values, strict=True)


@dataclass(frozen=True, slots=True)
class Advice:
    """Something a target could tell but does not, and the exact line that switches it on."""

    missing: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Reading:
    """One read of one target: its samples, or why there are none.

    `at` is Unix time in seconds when the read ended, `seconds` how long the upstream took; `reason` is one of
    `exporter.core.errors.REASONS`, None where the read succeeded; `error` is a sentence for people.
    """

    target: str
    at: float
    seconds: float
    samples: Samples = field(default_factory=Samples)
    reason: str | None = None
    error: str = ""
    advice: tuple[Advice, ...] = ()
    version: str | None = None

    @property
    def ok(self) -> bool:
        return self.reason is None
