"""A trial in place: while the engine serves, blocks of steps with and without what is tried, in turn.

Whole steps are timed, not the kernel alone, either those without prompts or those with; a pair is the medians of two
blocks side by side at the same size. Everything but `verdict` is called by the step thread.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence

from execution.compiler.port import Bucket
from execution.compiler.verdict import Speed
from execution.live.significance import paired_speed
from execution.live.variants import Variant

BLOCK_STEPS = 6
_FIRST = 1
"""Steps after a change of sides that do not count: caches are cold."""


class PlaceTrial:
    """Of variants that belong together (one unit, all layers)."""

    def __init__(
        self, variants: Sequence[Variant], *, pairs: int = 24, block: int = BLOCK_STEPS, mixed: bool = False
    ) -> None:
        self._mixed = mixed
        self._variants = tuple(variants)
        self._pairs = pairs
        self._block = block
        self._steps = 0
        self._on = True
        self._sides: dict[bool, dict[int, list[float]]] = {False: defaultdict(list), True: defaultdict(list)}
        self._found: dict[int, list[tuple[float, float]]] = defaultdict(list)
        self._over = False

    @property
    def steps(self) -> int:
        """That were looked at."""
        return self._steps

    @property
    def enough(self) -> bool:
        """Pairs were found at some batch size."""
        return any(len(pairs) >= self._pairs for pairs in self._found.values())

    def begins(self, prompt_tokens: int) -> None:
        """A step is about to run."""
        if self._over or bool(prompt_tokens) != self._mixed:
            return
        if self._steps % self._block == 0:
            if self._steps % (2 * self._block) == 0:
                self._pair()
                first = self._steps // (2 * self._block) % 2 == 0  # the order turns
            else:
                first = not self._on
            self._switch(on=first)
        self._steps += 1

    def ended(self, rows: int, taken_s: float, *, prompt_tokens: int) -> None:
        """It is over. Steps with prompts count where whole modules of them are tried (`mixed`)."""
        if (
            bool(prompt_tokens) == self._mixed
            and not self._over
            and (self._steps - 1) % self._block >= _FIRST
        ):
            if self._mixed:  # prompts come in all sizes: time for each token, sizes of one order of magnitude
                self._sides[self._on][1 << prompt_tokens.bit_length()].append(taken_s / prompt_tokens)
            else:
                self._sides[self._on][rows].append(taken_s)

    def end(self, *, on: bool) -> None:
        """Stay on one side; between two steps."""
        self._over = True
        self._switch(on=on)

    def verdicts(self, *, threads: int, min_gain: float) -> dict[Bucket, Speed]:
        """By batch size, most pairs first."""
        listed = sorted(self._found.items(), key=lambda item: -len(item[1]))
        return {
            Bucket(rows, rows): paired_speed(*zip(*pairs, strict=True), threads=threads, min_gain=min_gain)
            for rows, pairs in listed
            if len(pairs) >= max(4, self._pairs // 3)
        }

    def _pair(self) -> None:
        for rows, on in self._sides[True].items():
            off = self._sides[False].get(rows, [])
            if len(on) >= 2 and len(off) >= 2:
                self._found[rows].append((statistics.median(off), statistics.median(on)))
        for side in self._sides.values():
            side.clear()

    def _switch(self, *, on: bool) -> None:
        self._on = on
        for variant in self._variants:
            variant.on = on
