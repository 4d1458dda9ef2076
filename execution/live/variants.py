"""What may stand in for a module, by size of batch: a table that is exchanged as one pointer.

A `Variant` is one compiled function in this process. Only the step thread calls it; `on` is the switch by which a
trial in place alternates between it and what was there before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from execution.compiler.port import Bucket


@dataclass(slots=True, eq=False)
class Variant:
    """One way to compute what a module computes."""

    name: str
    bucket: Bucket
    call: Callable[..., Any] = field(repr=False)
    tolerance: float = 2e-4
    """Largest error that a shadow check allows, of the largest value in the original's result."""
    allowance: float = 0.0
    """The same, absolute: for what changes the function on purpose (int8)."""
    on: bool = True
    instead: Variant | None = None
    """Who serves while it is off; None: the original."""


@dataclass(frozen=True, slots=True)
class Table:
    """Which variant serves how many rows."""

    by_rows: tuple[Variant | None, ...] = ()

    @classmethod
    def of(cls, chosen: Mapping[int, Variant | None]) -> Table:
        """From sizes to variants; None, and sizes between that are not named: the original."""
        most = max((rows for rows, variant in chosen.items() if variant is not None), default=-1)
        return cls(tuple(chosen.get(rows) for rows in range(most + 1)))

    def pick(self, rows: int) -> Variant | None:
        """Who serves so many rows now; None: the original."""
        if rows >= len(self.by_rows):
            return None
        variant = self.by_rows[rows]
        while variant is not None and not variant.on:
            variant = variant.instead
        return variant

    def without(self, bad: Variant) -> Table:
        """The same without one variant: what it replaced serves again."""

        def healed(variant: Variant | None) -> Variant | None:
            if variant is None:
                return None
            if variant is bad:
                return healed(bad.instead)
            if variant.instead is bad:
                variant.instead = healed(bad.instead)
            return variant

        return Table(tuple(healed(v) for v in self.by_rows))

    def variants(self) -> list[Variant]:
        """Each once."""
        return list(dict.fromkeys(v for v in self.by_rows if v is not None))
