"""The exact replica layout of a heterogeneous cluster: a mixed-integer program, solved with HiGHS.

Maximises the share of the load that the worst-served model gets, over the number of replicas of every
(model, tp, pp) on every node, pipelines over several nodes included. In the spirit of Helix (Mei et al.
2025), whose program places layers; here the unit is a whole replica, as the deployment options offer it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array

from loop.contracts.observation import DeploymentOption, Observation
from loop.contracts.plan import ReplicaSpec
from strategy.estimates import Load, option_for, requests_per_s, shared_batch
from strategy.placing import spec_of, usable_devices

RELATIVE_GAP = 0.002
"""Proving the last fraction of a per cent takes longer than it saves."""
THROUGHPUT_WEIGHT = 0.05
"""What throughput beyond the worst-served model's counts for."""


@dataclass(frozen=True, slots=True)
class LayoutProblem:
    """What to solve, and the limits of every replica in the answer."""

    obs: Observation
    loads: Sequence[Load]
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192
    restart_penalty: float = 0.02
    """Share of its throughput that a replica which keeps serving counts for on top, so that equal layouts do
    not restart replicas for nothing."""


def solve_layout(problem: LayoutProblem, budget_s: float) -> tuple[ReplicaSpec, ...]:
    """The layout that serves the loads fastest, within `budget_s` of solving; empty when none was found.

    Solved twice: how many requests a replica runs together, and so how fast it is, depends on its share of
    the load, which the first solution tells.
    """
    first = _Program(problem, {load.model: float(problem.max_num_seqs) for load in problem.loads})
    specs = first.solve(budget_s / 2)
    if not specs:
        return ()
    batches = _shared_batches(problem, specs)
    if all(batch >= problem.max_num_seqs for batch in batches.values()):
        return specs
    return _Program(problem, batches).solve(budget_s / 2) or specs


def _shared_batches(problem: LayoutProblem, specs: tuple[ReplicaSpec, ...]) -> dict[str, float]:
    """Requests that an average replica of each model runs together in this layout."""
    batches = {}
    for load in problem.loads:
        mine = [spec for spec in specs if spec.model == load.model]
        mix = [option for option in option_for(problem.obs, mine) if option is not None]
        batches[load.model] = shared_batch(mix, load, problem.max_num_seqs)
    return batches


@dataclass(frozen=True, slots=True)
class _Slot:
    """One integer variable: replicas of an option within a node, or its stages there when it spans nodes."""

    at: tuple[str, str]
    """(node, kind)."""
    option: DeploymentOption
    spans: bool
    rate: float
    """Requests per second of one replica, at the slowest speed observed in the node."""
    serving: tuple[ReplicaSpec, ...]
    """Replicas of the present plan that could stay."""

    @property
    def size(self) -> int:
        return self.option.tp if self.spans else self.option.tp * self.option.pp


class _Program:
    """Variables: a count per slot, how many of it are kept, replicas of each spanning option, and the share
    `z` of its load that the worst-served model gets."""

    def __init__(self, problem: LayoutProblem, batches: dict[str, float]) -> None:
        self.problem = problem
        self.loads = {load.model: load for load in problem.loads}
        self.free: dict[tuple[str, str], list[str]] = {}
        for device in usable_devices(problem.obs):
            self.free.setdefault((device.node, device.kind), []).append(device.id)
        self.slots = self._slots(batches)
        self.spanning = list(dict.fromkeys(slot.option for slot in self.slots if slot.spans))
        self.rows: list[tuple[list[tuple[int, float]], float, float]] = []

    def _slots(self, batches: dict[str, float]) -> list[_Slot]:
        speeds = {device.id: device.speed for device in self.problem.obs.devices}
        largest: dict[str, int] = {}
        for (_, kind), devices in self.free.items():
            largest[kind] = max(largest.get(kind, 0), len(devices))
        serving = self._serving()
        slots = []
        for at, devices in self.free.items():
            speed = min(speeds[device] for device in devices)
            for option in self.problem.obs.options:
                size = option.tp * option.pp
                spans = size > largest[at[1]]
                if (
                    option.kind != at[1]
                    or option.model not in self.loads
                    or (size > len(devices) and not spans)
                ):
                    continue
                load = self.loads[option.model]
                rate = requests_per_s(option, load, batches[option.model]) * speed
                if rate > 0 and (option.tp if spans else size) <= len(devices):
                    stay = () if spans else tuple(serving.get((at[0], option), ()))
                    slots.append(_Slot(at, option, spans, rate, stay))
        return slots

    def _serving(self) -> dict[tuple[str, DeploymentOption], list[ReplicaSpec]]:
        """Replicas that could stay, by (node, option); those that span nodes under the empty node."""
        problem = self.problem
        at = {device: node for (node, _), devices in self.free.items() for device in devices}
        found: dict[tuple[str, DeploymentOption], list[ReplicaSpec]] = {}
        replicas = problem.obs.plan.replicas
        for spec, option in zip(replicas, option_for(problem.obs, replicas), strict=True):
            limits = (spec.max_num_seqs, spec.max_num_batched_tokens)
            same = limits == (problem.max_num_seqs, problem.max_num_batched_tokens)
            if option is None or not same or any(device not in at for device in spec.devices):
                continue
            nodes = {at[device] for device in spec.devices}
            found.setdefault((nodes.pop() if len(nodes) == 1 else "", option), []).append(spec)
        return found

    def solve(self, budget_s: float) -> tuple[ReplicaSpec, ...]:
        """The replicas of the best layout; empty when there is none."""
        if not self.slots:
            return ()
        n, m = len(self.slots), len(self.spanning)
        gains = self._constrain()
        # z counts most, then throughput of the other models, then replicas that need not restart
        cost = np.zeros(2 * n + m + 1)
        cost[[*range(n), *range(2 * n, 2 * n + m)]] = -THROUGHPUT_WEIGHT * gains
        cost[n : 2 * n] = -self.problem.restart_penalty * gains[:n]
        cost[-1] = -1.0
        upper = np.full(2 * n + m + 1, np.inf)
        upper[:n] = [len(self.free[slot.at]) // slot.size for slot in self.slots]
        upper[n : 2 * n] = [len(slot.serving) for slot in self.slots]
        index = [
            (row, column, value) for row, (terms, _, _) in enumerate(self.rows) for column, value in terms
        ]
        rows, columns, values = zip(*index, strict=True)
        matrix = coo_array((values, (rows, columns)), shape=(len(self.rows), len(cost))).tocsr()
        solution = milp(
            cost,
            integrality=np.append(np.ones(len(cost) - 1), 0),
            bounds=Bounds(np.zeros(len(cost)), upper),
            constraints=LinearConstraint(matrix, [r[1] for r in self.rows], [r[2] for r in self.rows]),
            options={"time_limit": max(0.05, budget_s), "mip_rel_gap": RELATIVE_GAP},
        )
        return () if solution.x is None else self._place([round(count) for count in solution.x[:n]])

    def _constrain(self) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        """Fill in the constraints; returns what a replica of each slot and spanning option adds to its model."""
        n, m, z = len(self.slots), len(self.spanning), 2 * len(self.slots) + len(self.spanning)
        need = {model: max(load.requests, 1e-3) for model, load in self.loads.items()}
        span_rate = {o: min(s.rate for s in self.slots if s.spans and s.option == o) for o in self.spanning}
        worth = [0.0 if s.spans else s.rate / need[s.option.model] for s in self.slots]
        worth += [span_rate[option] / need[option.model] for option in self.spanning]
        models = [slot.option.model for slot in self.slots] + [option.model for option in self.spanning]
        column = [*range(n), *range(2 * n, 2 * n + m)]
        potential = dict.fromkeys(models, 0.0)
        for one, value in zip(models, worth, strict=True):
            potential[one] += value
        shares = np.array(worth) / min(potential.values())  # so that z is of the order of one
        gains = np.array([value / potential[one] for one, value in zip(models, worth, strict=True)])
        for at, devices in self.free.items():
            here = [(i, float(slot.size)) for i, slot in enumerate(self.slots) if slot.at == at]
            self.rows.append((here, 0.0, float(len(devices))))
        for model in sorted(set(models)):
            mine = [(c, float(g)) for c, g, one in zip(column, shares, models, strict=True) if one == model]
            self.rows.append(([*mine, (z, -1.0)], 0.0, np.inf))
            # each is served, however small its load
            self.rows.append(([(c, 1.0) for c, _ in mine], 1.0, np.inf))
        for i, slot in enumerate(self.slots):
            if slot.serving:
                self.rows.append(([(i, 1.0), (n + i, -1.0)], 0.0, np.inf))
        for j, option in enumerate(self.spanning):
            stages = [(i, 1.0) for i, s in enumerate(self.slots) if s.spans and s.option == option]
            self.rows.append(([*stages, (2 * n + j, -float(option.pp))], 0.0, 0.0))
        return gains

    def _place(self, counts: list[int]) -> tuple[ReplicaSpec, ...]:
        """Give the counts their devices: replicas that serve stay where they are."""
        left = {at: list(devices) for at, devices in self.free.items()}
        count_of = {(slot.at, slot.option): count for slot, count in zip(self.slots, counts, strict=True)}
        specs: list[ReplicaSpec] = []
        for slot in self.slots:
            stay = slot.serving[: count_of[slot.at, slot.option]]
            count_of[slot.at, slot.option] -= len(stay)
            specs.extend(stay)
        node_of = {device: at for at, devices in self.free.items() for device in devices}
        for (node, option), replicas in self._serving().items():
            for spec in replicas if node == "" else ():
                stages = [node_of[device] for device in spec.devices[:: spec.tp]]
                if all(count_of.get((at, option), 0) >= stages.count(at) for at in stages):
                    specs.append(spec)
                    for at in stages:
                        count_of[at, option] -= 1
        taken = {device for spec in specs for device in spec.devices}
        left = {at: [device for device in devices if device not in taken] for at, devices in left.items()}
        stages_of: dict[DeploymentOption, list[tuple[str, ...]]] = {}
        for slot in sorted(self.slots, key=lambda slot: -slot.size):
            for _ in range(count_of[slot.at, slot.option]):
                group, left[slot.at] = tuple(left[slot.at][: slot.size]), left[slot.at][slot.size :]
                if slot.spans:
                    stages_of.setdefault(slot.option, []).append(group)
                else:
                    specs.append(self._spec(slot.option, group))
        for option, groups in stages_of.items():
            for start in range(0, len(groups) - option.pp + 1, option.pp):
                group = tuple(device for stage in groups[start : start + option.pp] for device in stage)
                specs.append(self._spec(option, group))
        return tuple(specs)

    def _spec(self, option: DeploymentOption, devices: tuple[str, ...]) -> ReplicaSpec:
        problem = self.problem
        return spec_of(
            option,
            devices,
            max_num_seqs=problem.max_num_seqs,
            max_num_batched_tokens=problem.max_num_batched_tokens,
        )
