"""The constants of a policy as a search space, and CMA-ES over it."""

from __future__ import annotations

import ast
import math
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from strategy.evolve.static import normalised_digest
from strategy.evolve.syntax import parse

_RANGE = re.compile(r"#\s*(-?[\d.e+]+)\s+to\s+(-?[\d.e+]+)\s*:")
_SPREAD = 8.0
"""Without a stated range, a constant may vary by this factor either way."""

Vector = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Constant:
    """One tunable number: `NAME = value  # low to high: meaning`."""

    name: str
    value: float
    low: float
    high: float
    integer: bool

    def to_unit(self, value: float) -> float:
        """0 at `low`, 1 at `high`; logarithmic where the range is positive and spans more than a factor 4."""
        value = min(max(value, self.low), self.high)
        if self._log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def from_unit(self, unit: float) -> float:
        """The inverse, to three significant digits: a person has to read it."""
        unit = min(max(unit, 0.0), 1.0)
        if self._log:
            value = self.low * (self.high / self.low) ** unit
        else:
            value = self.low + (self.high - self.low) * unit
        value = min(max(float(f"{value:.3g}"), self.low), self.high)
        return float(round(value)) if self.integer else value

    @property
    def _log(self) -> bool:
        return self.low > 0 and self.high / self.low > 4


@lru_cache(maxsize=1024)
def find_constants(source: str) -> tuple[Constant, ...]:
    """The UPPER_CASE numbers at the top level of a policy, with the ranges that their comments state."""
    lines = source.splitlines()
    found: list[Constant] = []
    for node in parse(source).body:
        if not isinstance(node, ast.Assign) or not isinstance(node.targets[0], ast.Name):
            continue
        name, value = node.targets[0].id, _number(node.value)
        if value is None or not name.isupper():
            continue
        text = "\n".join(lines[node.lineno - 1 : node.end_lineno])
        integer = isinstance(value, int)
        match = _RANGE.search(text)
        low, high = (float(match[1]), float(match[2])) if match else _assumed_range(float(value))
        if low < high:
            found.append(Constant(name, float(value), min(low, value), max(high, value), integer))
    return tuple(found)


@lru_cache(maxsize=1024)
def skeleton(source: str) -> str:
    """Identity of a policy apart from the values of its constants."""
    return normalised_digest(with_constants(source, {c.name: 0.0 for c in find_constants(source)}))


def with_constants(source: str, values: dict[str, float]) -> str:
    """The source with other values for some of its constants; comments and layout stay."""
    integers = {c.name: c.integer for c in find_constants(source)}
    lines = source.encode().splitlines(keepends=True)  # ast counts columns in bytes
    nodes = [n for n in parse(source).body if isinstance(n, ast.Assign)]
    for node in reversed(nodes):  # from the end, so that the columns before stay true
        target, value = node.targets[0], node.value
        if isinstance(target, ast.Name) and target.id in values and value.lineno == value.end_lineno:
            number = values[target.id]
            text = repr(round(number)) if integers.get(target.id) else repr(float(number))
            line = lines[value.lineno - 1]
            lines[value.lineno - 1] = line[: value.col_offset] + text.encode() + line[value.end_col_offset :]
    return b"".join(lines).decode()


class Tuner:
    """CMA-ES (Hansen, Ostermeier 2001; `cma`) over a policy's constants: ask for points, tell their worth.

    Points may be told in any order; those that never come back count as the worst of their generation.
    Same seed and same answers, same points.
    """

    def __init__(self, constants: Sequence[Constant], seed: int, step: float = 0.2) -> None:
        if not constants:
            raise ValueError("there is no constant to tune")
        self._constants = tuple(constants)
        self._generator = np.random.default_rng(seed)
        # CMA-ES needs two dimensions: a lone constant gets a partner that means nothing
        start = [c.to_unit(c.value) for c in constants] + [0.5] * (len(constants) == 1)
        self._strategy: Any = _cma().CMAEvolutionStrategy(
            start,
            step,
            {
                "bounds": [0.0, 1.0],
                "seed": math.nan,  # numpy's global state is not touched
                "randn": lambda *shape: self._generator.standard_normal(shape),
                "verbose": -9,
            },
        )
        self._asked: list[Vector] = []
        self._told: dict[int, float] = {}
        self._next = 0

    @property
    def left(self) -> int:
        """Points of the present generation that were not asked for yet; 0: the next one begins another."""
        return len(self._asked) - self._next

    def ask(self) -> tuple[int, dict[str, float]]:
        """(number of the point, the constants' values)."""
        if self._next >= len(self._asked):
            self._learn()
            self._asked, self._told, self._next = list(self._strategy.ask()), {}, 0
        number = self._next
        self._next += 1
        units = self._asked[number]
        point = zip(self._constants, units, strict=False)
        return number, {c.name: c.from_unit(float(u)) for c, u in point}

    def tell(self, number: int, worth: float | None) -> None:
        """What a point of the present generation is worth (lower is better; None: it failed)."""
        if number < len(self._asked):
            self._told[number] = math.inf if worth is None else worth

    def _learn(self) -> None:
        finite = [w for w in self._told.values() if math.isfinite(w)]
        if not finite or len(self._asked) == 0:
            return
        worst = max(finite) + abs(max(finite)) + 1.0
        worths = [self._told.get(i, math.inf) for i in range(len(self._asked))]
        self._strategy.tell(self._asked, [w if math.isfinite(w) else worst for w in worths])


def random_values(constants: Sequence[Constant], draw: Callable[[], float]) -> dict[str, float]:
    """Each constant anywhere in its range, evenly on its scale; `draw` gives numbers from 0 to 1."""
    return {c.name: c.from_unit(draw()) for c in constants}


def _number(node: ast.expr) -> int | float | None:
    try:
        value = ast.literal_eval(node)
    except ValueError:
        return None
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _assumed_range(value: float) -> tuple[float, float]:
    if value == 0:
        return 0.0, 1.0
    low, high = sorted((value / _SPREAD, value * _SPREAD))
    return low, high


def _cma() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns that it cannot plot
        import cma  # noqa: PLC0415  slow to import, and only needed here
    return cma
