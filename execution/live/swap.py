"""Guards: they stand in a module's place, hand each call to a compiled variant that fits, else to the original.

    guard = Guarded("layers.0.mlp", original, on_fault)
    await engine.replace_module("layers.0.mlp", guard)
    guard.exchange(Table.of({1: variant, 2: variant}))       # one pointer, between two steps
    guard.exchange(Table())                                  # and back

An exception of a variant is answered by the original in the same call. Some calls are checked against the original:
of a pure module later, in another thread; of the decode step at once, since its memory moves on. What differs,
fails or gives no numbers is reported to `on_fault`, and taken out at once.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import torch
from torch import nn

from execution.engines.torch.decode import DecodeStep
from execution.engines.torch.step import Row
from execution.live.variants import Table, Variant

FaultListener = Callable[[str, Variant, str], None]
"""(name of the place, the variant, what it did). Called by the thread that noticed."""


@dataclass(frozen=True, slots=True)
class Check:
    """One shadow check."""

    variant: Variant
    rows: int
    error: float
    allowed: float
    variant_s: float
    original_s: float

    @property
    def ok(self) -> bool:
        """NaN is not."""
        return self.error <= self.allowed


class Guarded(nn.Module):
    """In the place of a module that is a pure function of one tensor [rows, ...]."""

    def __init__(
        self, name: str, original: nn.Module, on_fault: FaultListener, *, check_every: int = 500
    ) -> None:
        super().__init__()
        self.name = name
        self.original = original
        self.table = Table()
        self.calls = 0
        """Of variants."""
        self.checks: deque[Check] = deque(maxlen=64)
        self._on_fault = on_fault
        self._every = self._until_check = check_every
        self._pending: deque[tuple[Variant, torch.Tensor, torch.Tensor]] = deque(maxlen=2)
        self._like: tuple[torch.dtype, torch.device] | None = None

    def exchange(self, table: Table, like: torch.Tensor | None = None) -> Table:
        """Put another table in force; gives the one before. `like`: dtype and device that variants take."""
        if like is not None:
            self._like = (like.dtype, like.device)
        old, self.table = self.table, table
        return old

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """By a variant where one fits."""
        variant = self.table.pick(x.shape[0])
        if variant is None or (x.dtype, x.device) != self._like or not x.is_contiguous():
            return self.original(x)  # type: ignore[no-any-return]
        try:
            y: torch.Tensor = variant.call(x)
        except Exception as error:  # noqa: BLE001 a compiled function may raise anything; the original answers
            self.fault(variant, f"exception: {type(error).__name__}: {error}")
            return self.original(x)  # type: ignore[no-any-return]
        self.calls += 1
        self._until_check -= 1
        if self._until_check <= 0:
            self._until_check = self._every
            self._pending.append((variant, x.clone(), y.clone()))
        return y

    def fault(self, variant: Variant, what: str) -> None:
        """Take a variant out, and tell."""
        self.table = self.table.without(variant)
        self._on_fault(self.name, variant, what)

    def all_variants(self) -> list[Variant]:
        """Those in the table, and those that serve where one of them is off."""
        found: list[Variant] = []
        for first in self.table.variants():
            variant: Variant | None = first
            while variant is not None and variant not in found:
                found.append(variant)
                variant = variant.instead
        return found

    def check_pending(self) -> list[Check]:
        """Recompute calls that were set aside; by the watching thread."""
        done = []
        while self._pending:
            variant, x, y = self._pending.popleft()
            with torch.inference_mode():
                right = self.original(x)
            error, allowed = difference(y, right, variant)
            check = Check(variant, x.shape[0], error, allowed, 0.0, 0.0)
            self.checks.append(check)
            done.append(check)
            if not check.ok:
                self.fault(
                    variant, f"mismatch: error {error:.3g} where {allowed:.3g} is allowed, {x.shape[0]} rows"
                )
        return done


class GuardedDecode(nn.Module):
    """In the place of `decode`. It belongs to the step thread."""

    def __init__(
        self, original: DecodeStep, on_fault: FaultListener, *, share: float = 0.005, least: int = 64
    ) -> None:
        """At most `share` of the time goes into shadow checks; never more than one in `least` steps."""
        super().__init__()
        self.original = original
        self.table = Table()
        self.used: Variant | None = None
        """Who made the last step; None: the original."""
        self.calls = 0
        self.checks: deque[Check] = deque(maxlen=256)
        self.want_case = 0
        """So many more steps are to be copied for proofs."""
        self._on_fault = on_fault
        self._share, self._least = share, least
        self._until_check = least

    def exchange(self, table: Table) -> Table:
        """Put another table in force; gives the one before."""
        old, self.table = self.table, table
        self._until_check = min(self._until_check, 8)
        return old

    def serves(self, rows: int) -> bool:
        """Whether so many rows are better decoded apart from prompts."""
        return self.table.pick(rows) is not None

    def forward(self, rows: Seq[Row]) -> tuple[torch.Tensor, list[int] | None]:
        """By a variant where one fits."""
        variant = self.used = self.table.pick(len(rows))
        if variant is None:
            return self.original(rows)  # type: ignore[no-any-return]
        self._until_check -= 1
        if self._until_check <= 0:
            return self._checked(variant, rows)
        try:
            logits, best = variant.call(rows)
        except Exception as error:  # noqa: BLE001 a compiled function may raise anything; the original answers
            self.fault(variant, f"exception: {type(error).__name__}: {error}")
            return self.original(rows)  # type: ignore[no-any-return]
        self.calls += 1
        if -1 in best:
            return self._without_numbers(variant, rows, best)
        return logits, best

    def fault(self, variant: Variant, what: str) -> None:
        """Take a variant out, and tell."""
        self.table = self.table.without(variant)
        self._on_fault("decode", variant, what)

    def _without_numbers(
        self, variant: Variant, rows: Seq[Row], best: list[int]
    ) -> tuple[torch.Tensor, list[int] | None]:
        """Not the variant's fault if the original has none either."""
        logits = self.original(rows)[0]
        found = [i for i, token in enumerate(best) if token < 0 and bool(logits[i].isfinite().all())]
        if found:
            self.fault(variant, f"no numbers in row {found[0]} of {len(rows)}, where the original has some")
        return logits, None

    def _checked(self, variant: Variant, rows: Seq[Row]) -> tuple[torch.Tensor, list[int] | None]:
        """The variant, then the original on the same memory; what is wrong reaches nobody."""
        began_s = time.perf_counter()
        try:
            logits, best = variant.call(rows)
        except Exception as error:  # noqa: BLE001 as above
            self.fault(variant, f"exception: {type(error).__name__}: {error}")
            return self.original(rows)  # type: ignore[no-any-return]
        between_s = time.perf_counter()
        kv = self.original.cache.layers
        lanes = torch.tensor([r.lane for r in rows])
        places = torch.tensor([r.position for r in rows])
        written = [memory[lanes, :, places] for memory in kv]
        before_s = time.perf_counter()
        right = self.original(rows)[0]
        original_s, variant_s = time.perf_counter() - before_s, between_s - began_s
        off, most = difference(logits, right, variant)
        for memory, ours in zip(kv, written, strict=True):
            one = difference(ours, memory[lanes, :, places], variant)
            if not one[0] <= one[1] and off <= most:
                off, most = one
        check = Check(variant, len(rows), off, most, variant_s, original_s)
        self.checks.append(check)
        self._until_check = max(self._least, int(original_s / max(variant_s, 1e-9) / self._share))
        if not check.ok:
            self.fault(variant, f"mismatch: error {off:.3g} where {most:.3g} is allowed, {len(rows)} rows")
            return right, None
        for memory, ours in zip(kv, written, strict=True):
            memory[lanes, :, places] = ours
        return logits, best


def difference(ours: torch.Tensor, right: torch.Tensor, variant: Variant) -> tuple[float, float]:
    """(largest error, what is allowed); where the original has no numbers ours need none."""
    if ours.shape != right.shape or ours.dtype != right.dtype:
        return float("inf"), 0.0
    sound = right.isfinite()
    if not bool(sound.any()):
        return 0.0, 0.0
    error = torch.where(sound, (ours - right).abs(), torch.zeros_like(right)).max()
    size = torch.where(sound, right.abs(), torch.zeros_like(right)).max()
    return float(error), variant.tolerance * float(size) + variant.allowance
