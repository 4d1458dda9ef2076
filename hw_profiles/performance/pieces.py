"""Piecewise linear functions that compute a piece when somebody asks for it.

A simulated replica meets thousands of batch sizes and chunk lengths, each with a function of its own, and of
each function a few neighbouring pieces.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

Line = tuple[float, float]
"""(base, slope): the value at x is `base + slope * x`."""


class Pieces:
    """Linear between knots, continued straight beyond both ends. With `i = bisect_right(ends, x)`, the line at
    x is `lines[i]`, or `line(i)` where that is still None."""

    __slots__ = ("_at", "_knots", "_stretch", "_values", "ends", "lines")

    def __init__(self, knots: Sequence[float], at: Callable[[float], float], stretch: int = 1) -> None:
        """Through `at(knot)` for each of two or more ascending knots; `stretch` spreads x by this factor."""
        self._knots = knots
        self._at = at
        self._stretch = stretch
        self._values: dict[int, float] = {}
        self.ends = [knot * stretch for knot in knots[1:-1]]
        """Upper ends of all pieces but the last."""
        self.ends.append(math.inf)
        self.lines: list[Line | None] = [None] * len(self.ends)

    def line(self, i: int) -> Line:
        """Piece i."""
        knots = self._knots
        low = self._value(i)
        slope = (self._value(i + 1) - low) / (knots[i + 1] - knots[i])
        found = self.lines[i] = (low - slope * knots[i], slope / self._stretch)
        return found

    def _value(self, i: int) -> float:
        value = self._values.get(i)
        if value is None:
            value = self._values[i] = self._at(self._knots[i])
        return value


def floored(knots: Sequence[float], at: Callable[[float], float], floor: float, stretch: int = 1) -> Pieces:
    """max(at, floor), with a knot added where a line crosses the floor."""
    values = [at(x) for x in knots]
    ys: dict[float, float] = {}
    for i, (x, y) in enumerate(zip(knots, values, strict=True)):
        if i and (values[i - 1] - floor) * (y - floor) < 0.0:
            share = (floor - values[i - 1]) / (y - values[i - 1])
            ys[knots[i - 1] + share * (x - knots[i - 1])] = floor
        ys[x] = max(y, floor)
    return Pieces(list(ys), ys.__getitem__, stretch)
