"""List schedulers of the literature, with insertion, on the same links as everyone else here."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from physical.scheduling.carried import best_of
from physical.scheduling.decode import ListRun
from physical.scheduling.plan import Plan
from physical.scheduling.problem import Problem
from physical.scheduling.ranks import edge_s, mean_durations, optimistic_costs, upward
from physical.scheduling.residency import BoundedRun, decoder_of


class Heft:
    """Heterogeneous earliest finish time (Topcuoglu, Hariri, Wu 2002)."""

    name = "heft"

    def plan(self, problem: Problem, seed: int = 0) -> Plan:  # noqa: ARG002  # nothing here is random
        """Highest upward rank first, each on the unit where it ends first."""
        rank = upward(problem, mean_durations(problem), edge_s(problem))
        return within(problem, lambda of: decoder_of(of).run(rank, name=self.name))


class Peft:
    """Predict earliest finish time: the table of optimistic costs is added when units are compared
    (Arabnejad, Barbosa 2014)."""

    name = "peft"

    def plan(self, problem: Problem, seed: int = 0) -> Plan:  # noqa: ARG002
        """Highest mean optimistic cost first, each where end plus optimistic cost is least."""
        table = optimistic_costs(problem)
        weights = [len(group.units) for group in problem.groups]
        rank = []
        for row in table:
            able = [(cost, w) for cost, w in zip(row, weights, strict=True) if cost < math.inf]
            rank.append(sum(cost * w for cost, w in able) / sum(w for _, w in able))
        return within(problem, lambda of: decoder_of(of).run(rank, bias=table, name=self.name))


class LookaheadHeft:
    """HEFT that compares units by when the successors of a task would end (Bittencourt et al. 2010)."""

    name = "lookahead"

    def plan(self, problem: Problem, seed: int = 0) -> Plan:  # noqa: ARG002
        """Highest upward rank first, each where the last of its successors would end first."""
        rank = upward(problem, mean_durations(problem), edge_s(problem))
        return within(problem, lambda of: _looking_ahead(of).plan(rank, self.name, 0.0))


class _Lookahead(ListRun):
    """List scheduling with one level of lookahead."""

    def choose(self, task: int, ready_s: float) -> tuple[float, int, int]:
        followers = self.problem.successors[task]
        best = (math.inf, math.inf)
        chosen: tuple[float, int, int] | None = None
        for option in self.options[task]:
            takes, group, node = option
            ends = self.begin_s(task, ready_s, option) + takes
            last = max((self._follower_s(task, ends, group, node, f) for f in followers), default=ends)
            if (last, ends) < best:
                best, chosen = (last, ends), option
        if chosen is None:
            raise ValueError(f"task {task} has no group")
        return chosen

    def _follower_s(self, task: int, ends: float, group: int, node: int, follower: int) -> float:
        """When a successor could end at best, as far as what is placed tells."""
        problem, arrival, nodes = self.problem, self.arrival, self.problem.nodes
        best = math.inf
        for takes, other, there in self.options[follower]:
            at = ends
            for version in problem.inputs[follower]:
                if problem.producer[version] == task:
                    at = max(at, ends + problem.transfer_s(node, there, problem.nbytes[version]))
                elif arrival[version * nodes + there] < math.inf:
                    at = max(at, arrival[version * nodes + there])
                elif self.copies[version]:
                    source, since = self.source(version, there)
                    at = max(at, since + problem.transfer_s(source, there, problem.nbytes[version]))
            units = len(problem.groups[other].units)
            free = self.earliest_s(other, at, takes) if other != group or units > 1 else max(at, ends)
            best = min(best, free + takes)
        return best


class _BoundedLookahead(_Lookahead, BoundedRun):
    """The same in memories that are bounded."""


def _looking_ahead(problem: Problem) -> ListRun:
    run = _BoundedLookahead if problem.bounded else _Lookahead
    return run(decoder_of(problem), None, math.inf, 0.0)


def within(problem: Problem, make: Callable[[Problem], Plan | None]) -> Plan:
    """What `make` plans; where memories are bounded, what comes of it or of what it plans without bounds, whichever
    is over first."""
    if not problem.bounded:
        return _placed(make(problem))
    return best_of(problem, (_placed(make(of)) for of in (problem, problem.unbounded())))


def _placed(plan: Plan | None) -> Plan:
    """A plan that no cutoff could stop."""
    if plan is None:
        raise ValueError("a run without cutoff always gives a plan")
    return plan


__all__: Sequence[str] = ["Heft", "LookaheadHeft", "Peft", "within"]
