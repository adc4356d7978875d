"""The ledger of one target: an amount for each rule, alternative and series, by number.

Lines know their slots by number and add to the amounts themselves; what a slot means is looked up only where lines are
opened and where series are shown.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from exporter.core.rule import Rule
from exporter.core.types import Series

NOWHERE = 0
"""The number of the slot that is no one's: what is added there is never shown."""

Place = tuple[str, int, Series]
"""Key of a rule, number of the alternative, series."""


class Ledger:
    """The slots, and their amounts and numbers of inputs as two lists that lines work on directly."""

    def __init__(self) -> None:
        self.amounts: list[float] = []
        self.inputs: list[int] = []
        self.slots: dict[Place, Slot] = {}
        self.changed = False  # a slot has got its first input, or lost its last
        self.opened = 0  # moves where slots come or go
        self._free: list[int] = []
        self.clear()

    def clear(self) -> None:
        """As if nothing had ever been counted."""
        self.amounts[:] = [0.0]
        self.inputs[:] = [0]
        self.slots.clear()
        self._free.clear()
        self.changed = True
        self.opened += 1

    def __len__(self) -> int:
        return len(self.slots)

    def open(self, place: Place, rule: Rule | None, scale: float) -> Slot:
        """A new slot, with nothing in it."""
        self.opened += 1
        number = self._free.pop() if self._free else len(self.amounts)
        if number == len(self.amounts):
            self.amounts.append(0.0)
            self.inputs.append(0)
        slot = self.slots[place] = Slot(self, number, rule, place[1], scale)
        return slot

    def close(self, places: Iterable[Place]) -> None:
        """These slots are no more; their numbers will be used again."""
        self.opened += 1
        for place in places:
            number = self.slots.pop(place).number
            self.amounts[number] = 0.0
            self.inputs[number] = 0
            self._free.append(number)
        self._free.sort(reverse=True)

    def feed(self, numbers: Sequence[int]) -> None:
        """One more line feeds each of these."""
        for number in numbers:
            self.changed |= self.inputs[number] == 0
            self.inputs[number] += 1

    def unfeed(self, numbers: Sequence[int]) -> None:
        """One line less feeds each of these."""
        for number in numbers:
            self.inputs[number] -= 1
            self.changed |= self.inputs[number] == 0

    def unfeed_all(self) -> None:
        """No line feeds anything."""
        self.inputs[:] = [0] * len(self.inputs)
        self.changed = True

    def checkpoint(self) -> list[float]:
        """The amounts as they are now."""
        return self.amounts[:]

    def restore(self, checkpoint: Collection[float]) -> None:
        """The amounts as they were; slots made since then have nothing in them."""
        self.amounts[:] = [*checkpoint, *([0.0] * (len(self.amounts) - len(checkpoint)))]


@dataclass(slots=True, eq=False)
class Slot:
    """What one alternative of one rule gathered for one series; without a rule, what our own code counted."""

    _ledger: Ledger
    number: int
    rule: Rule | None
    alternative: int
    scale: float = 1.0
    shift: float = 0.0  # added where the slot is shown: what its predecessors had gathered
    owed: float = 0.0  # of the saved live sum, what no line has claimed since a restart of the exporter

    @property
    def total(self) -> float:
        return self._ledger.amounts[self.number]

    @total.setter
    def total(self, amount: float) -> None:
        self._ledger.amounts[self.number] = amount

    @property
    def inputs(self) -> int:
        """Lines that feed it, remembered ones included."""
        return self._ledger.inputs[self.number]
