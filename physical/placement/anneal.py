"""Simulated annealing over runs of layers (Kirkpatrick, Gelatt and Vecchi, 1983), with the exact flow as objective."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence

from physical.placement.flow import tokens_per_s
from physical.placement.problem import IDLE, Placement, Problem, Run

Better = Callable[[Placement, float], bool]
"""Told of every improvement; True: good enough, stop."""


class Annealer:
    """Walks from placement to placement; `best` is the best of them all."""

    def __init__(self, problem: Problem, start: Placement, rng: random.Random, scale: float) -> None:
        self._problem = problem
        self._rng = rng
        self._scale = scale
        self._most = [problem.most(i) for i in range(len(problem.machines))]
        self._able = [i for i, most in enumerate(self._most) if most]
        self._now = list(start)
        self.best: Placement = start
        self.best_tokens_per_s = tokens_per_s(problem, start)
        self._score = self._rate(start, self.best_tokens_per_s)

    def walk(self, ended: Callable[[], float], better: Better) -> None:
        """Until `ended` (the share of the time that is used, 0 to 1) says 1 or `better` says stop."""
        if not self._able:
            return
        while (share := ended()) < 1.0:
            temperature = 0.05 * self._scale * (1.0 - share) ** 2
            for _ in range(20):
                if self._step(temperature, better):
                    return
            if self._rng.random() < 0.002:  # back to the best now and then
                self._now = list(self.best)
                self._score = self._rate(self.best, self.best_tokens_per_s)

    def _step(self, temperature: float, better: Better) -> bool:
        changed = self._neighbour()
        if changed is None:
            return False
        value = tokens_per_s(self._problem, changed)
        score = self._rate(changed, value)
        if score < self._score:
            chance = math.exp((score - self._score) / temperature) if temperature > 0.0 else 0.0
            if self._rng.random() >= chance:
                return False
        self._now, self._score = changed, score
        if value > self.best_tokens_per_s * (1.0 + 1e-12):
            self.best, self.best_tokens_per_s = tuple(changed), value
            return better(self.best, value)
        return False

    def _rate(self, placement: Sequence[Run], value: float) -> float:
        """The flow, and a little for coverage, which leads over plateaus where the flow is one and the same."""
        carried = [0.0] * self._problem.layers
        for i, run in enumerate(placement):
            if run.count:
                rate = self._problem.rate(i, run)
                for layer in range(run.start, run.end):
                    carried[layer] += rate
        return value + 0.02 * sum(min(c, self._scale) for c in carried) / len(carried) + 0.02 * min(carried)

    def _neighbour(self) -> list[Run] | None:
        runs = list(self._now)
        kind = self._rng.random()
        if kind < 0.35:
            return self._shift(runs)
        if kind < 0.55:
            return self._swap(runs)
        return self._move(runs)

    def _shift(self, runs: list[Run]) -> list[Run] | None:
        """A boundary between runs, one or two layers up or down, with all that start or end at it."""
        points = sorted({r.start for r in runs if r.count} | {r.end for r in runs if r.count})
        points = [p for p in points if 0 < p < self._problem.layers]
        if not points:
            return None
        point, by = self._rng.choice(points), self._rng.choice((-2, -1, 1, 2))
        for i, run in enumerate(runs):
            if not run.count:
                continue
            start = run.start + by if run.start == point else run.start
            end = run.end + by if run.end == point else run.end
            if (start, end) != (run.start, run.end):
                if not (0 <= start < end <= self._problem.layers and end - start <= self._most[i]):
                    return None
                runs[i] = Run(start, end - start)
        return runs

    def _swap(self, runs: list[Run]) -> list[Run] | None:
        """Two machines trade places."""
        a, b = self._rng.choice(self._able), self._rng.choice(self._able)
        if runs[a] == runs[b] or runs[a].count > self._most[b] or runs[b].count > self._most[a]:
            return None
        runs[a], runs[b] = runs[b], runs[a]
        return runs

    def _move(self, runs: list[Run]) -> list[Run] | None:
        """One machine somewhere else: beside another, between two boundaries, grown, shrunk, or at rest."""
        rng, layers = self._rng, self._problem.layers
        i = rng.choice(self._able)
        how = rng.random()
        if how < 0.3:
            target = runs[rng.choice(self._able)]
        elif how < 0.7:
            points = sorted({0, layers} | {p for r in runs if r.count for p in (r.start, r.end)})
            start = rng.choice(points[:-1])
            ends = [p for p in points if start < p <= start + self._most[i]]
            end = rng.choice(ends) if ends else min(layers, start + rng.randint(1, self._most[i]))
            target = Run(start, end - start)
        elif how < 0.75 and not self._problem.must_hold:
            target = IDLE
        else:
            count = rng.randint(1, self._most[i])
            target = Run(rng.randint(0, layers - count), count)
        if (
            target == runs[i]
            or target.count > self._most[i]
            or (not target.count and self._problem.must_hold)
        ):
            return None
        runs[i] = target
        return runs
