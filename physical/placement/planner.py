"""A plan for a cluster: which devices hold which layers of which model, how requests flow, and what binds."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from hw_profiles import Device, Topology
from hw_profiles.performance import PerformanceModel
from physical.placement.compose import Counts, Piece
from physical.placement.explain import explain
from physical.placement.flow import Flow, max_flow
from physical.placement.problem import SINK, SOURCE, Machine, PlacementError, Problem, Run
from physical.placement.rates import StageRates
from physical.placement.search import search
from physical.placement.units import (
    Ask,
    Kind,
    Tables,
    atoms_for,
    build,
    collect,
    group_rates,
    seat,
    share,
)

ACTIVATION_BYTES = 2.0
"""Of one element that a stage hands to the next."""
_WORTH_MESHING = 1.02
"""Flow that has to be gained before replicas are joined into a mesh."""
Seated = list[tuple[Piece, tuple[Device, ...]]]


@dataclass(frozen=True)
class Stage:
    """Consecutive layers on a group of devices of one node."""

    devices: tuple[str, ...]
    kind: str
    first_layer: int
    layers: int
    rate_tokens_per_s: float
    """What it could carry."""
    tokens_per_s: float
    """What it carries."""

    @property
    def tp(self) -> int:
        """Tensor-parallel size."""
        return len(self.devices)

    @property
    def last_layer(self) -> int:
        """The last one that it holds."""
        return self.first_layer + self.layers - 1


@dataclass(frozen=True)
class Hop:
    """Flow from one stage to another of a replica; None stands for the gateway."""

    source: int | None
    target: int | None
    tokens_per_s: float
    limit_tokens_per_s: float
    """What the link carries at most; infinite at the gateway."""
    share: float
    """Of what leaves `source`: the routing weight."""


@dataclass(frozen=True)
class Replica:
    """Stages that requests pass through together. No flow leads from one replica to another."""

    stages: tuple[Stage, ...]
    hops: tuple[Hop, ...]
    tokens_per_s: float
    weight: float
    """Share of the model's requests that are sent here."""
    token_s: float
    """One decode step through all stages and the links between them, in the mean over the paths."""


@dataclass(frozen=True)
class ModelPlan:
    """One model's share of the cluster."""

    model: str
    layers: int
    tokens_per_request: int
    wanted_requests_per_s: float | None
    replicas: tuple[Replica, ...]
    tokens_per_s: float
    """Of prompts and answers together."""
    bound_tokens_per_s: float
    """No placement on this model's groups of devices carries more."""
    method: str
    explanation: tuple[str, ...]
    gains: dict[str, float]
    """`<n> x <kind>` -> tokens/s that so many more devices of a kind would bring."""

    @property
    def requests_per_s(self) -> float:
        """Expected."""
        return self.tokens_per_s / self.tokens_per_request


@dataclass(frozen=True)
class ClusterPlan:
    """What `plan` came to."""

    cluster: str
    models: tuple[ModelPlan, ...]
    idle: tuple[str, ...]
    """Devices that nothing runs on."""
    atoms: dict[str, int]
    """Devices of each kind that were moved together."""
    took_s: float
    gains_cut_short: bool = False
    """The time was over before every kind's gain was known."""


def plan(
    topology: Topology,
    asks: Sequence[Ask],
    performance: PerformanceModel,
    *,
    budget_s: float = 10.0,
    tps: Sequence[int] = (1, 2, 4, 8),
    max_stages: int | None = None,
    max_num_seqs: int = 256,
    partial: bool = False,
    unavailable: Sequence[str] = (),
    seed: int = 0,
    clock: Callable[[], float] = time.perf_counter,
) -> ClusterPlan:
    """Place models on a cluster within a time budget.

    `max_stages` bounds the machines that a token passes (a chain of many slow devices has throughput, and patience);
    `partial`: requests may enter a stage in the middle of its layers.

    Raises:
        PlacementError: a model that no share of the cluster can hold, or an unknown device.
    """
    began = clock()
    for name in unavailable:
        if name not in topology.devices:
            raise PlacementError(f"cluster '{topology.name}' has no device '{name}'")
    kinds = collect(topology, unavailable, tps)
    deepest = max(ask.model.layers for ask in asks)
    limit_s = max(0.05, 0.03 * budget_s / len(asks))
    if len(asks) > 1:  # sharing looks at all pairs of halves again, in Python
        limit_s = min(limit_s, 0.5)
    atoms = atoms_for(kinds, deepest, limit_s)
    rates = [
        group_rates(ask, kinds, performance, topology, tps, max_num_seqs=max_num_seqs, max_stages=max_stages)
        for ask in asks
    ]
    tables_began = clock()
    tables = [Tables(ask, kinds, atoms, found) for ask, found in zip(asks, rates, strict=True)]
    # One more device makes a table three times as large: none is begun that would outlast the budget.
    ahead_s = 3.0 * (clock() - tables_began)
    alone = [float(table.by_state[-1]) for table in tables]
    for ask, best in zip(asks, alone, strict=True):
        if best <= 0.0:
            raise PlacementError(
                f"model '{ask.model.name}' ({ask.model.weight_bytes / 1e9:.1f} GB of weights) fits no way on cluster "
                f"'{topology.name}'{f' in at most {max_stages} stages' if max_stages else ''}"
            )
    wanted = [_wanted(ask, best) for ask, best in zip(asks, alone, strict=True)]
    shares = share(tables, wanted)
    taken: set[str] = set()
    seats = [_seat(kinds, table, counts, taken) for table, counts in zip(tables, shares, strict=True)]
    models = []
    for number, (ask, found, seated) in enumerate(zip(asks, rates, seats, strict=True)):
        left_s = 0.35 * (budget_s - (clock() - began)) / (len(asks) - number)
        models.append(_place(topology, ask, found, seated, max(0.0, left_s), partial=partial, seed=seed))
        if models[-1].tokens_per_s <= 0.0:
            raise PlacementError(
                f"model '{ask.model.name}' gets no share of cluster '{topology.name}' that holds all its layers"
            )
    now = [float(t.by_state[t.compositions.index(c)]) for t, c in zip(tables, shares, strict=True)]
    gains, cut_short = _gains(
        asks, kinds, atoms, rates, wanted=wanted, now=now, over=lambda: clock() - began + ahead_s > budget_s
    )
    models = [replace(model, gains=gain) for model, gain in zip(models, gains, strict=True)]
    used = {d for m in models for r in m.replicas for s in r.stages for d in s.devices}
    idle = tuple(d.id for kind in kinds for node in kind.nodes for d in node if d.id not in used)
    by_kind = {kind.name: atom for kind, atom in zip(kinds, atoms, strict=True)}
    return ClusterPlan(topology.name, tuple(models), idle, by_kind, clock() - began, cut_short)


def _wanted(ask: Ask, alone: float) -> float:
    """Tokens/s that a model's share is measured by: its demand, or what it could do with the whole cluster."""
    if ask.traffic.requests_per_s:
        return ask.traffic.requests_per_s * ask.traffic.tokens
    return alone


def _seat(kinds: Sequence[Kind], table: Tables, counts: Counts, taken: set[str]) -> list[Seated]:
    return seat(kinds, build(table, counts), taken)


def _place(
    topology: Topology,
    ask: Ask,
    rates: Mapping[tuple[str, int], StageRates],
    seats: Sequence[Seated],
    budget_s: float,
    *,
    partial: bool,
    seed: int,
) -> ModelPlan:
    """One model on the devices it has been given, judged with its real links; a search improves what it can."""
    flat = [(r, piece, devices) for r, seated in enumerate(seats) for piece, devices in seated]
    if not flat:
        return _model_plan(topology, ask, None)
    own_rates = tuple(_rates_of(piece, rates) for _, piece, _ in flat)
    machines = tuple(_machine(devices, own) for (*_, devices), own in zip(flat, own_rates, strict=True))
    links = _links(topology, ask, [devices for *_, devices in flat])
    runs = tuple(Run(piece.start, piece.count) for _, piece, _ in flat)
    whole = Problem(ask.model.layers, machines, links, partial=partial)
    walls = {(a, b): 0.0 for a, b in links if flat[a][0] != flat[b][0]}
    walled = replace(whole, links={**links, **walls})
    flow = max_flow(walled, runs)
    found = search(whole, budget_s=budget_s, seed=seed, warm=[runs])
    groups = [r for r, *_ in flat]
    problem, method = walled, "composed"
    if found.tokens_per_s > _WORTH_MESHING * flow.tokens_per_s:
        problem, runs, method = whole, found.placement, found.method
        flow = max_flow(whole, runs)
        groups = _meshes(len(flat), flow)
    placed = _Placed(
        problem, runs, flow, tuple(d for *_, d in flat), own_rates, tuple(groups), found.bound, method
    )
    return _model_plan(topology, ask, placed)


@dataclass(frozen=True)
class _Placed:
    problem: Problem
    runs: tuple[Run, ...]
    flow: Flow
    devices: tuple[tuple[Device, ...], ...]
    rates: tuple[StageRates, ...]
    groups: tuple[int, ...]
    """Replica of each machine."""
    bound: float
    method: str


def _model_plan(
    topology: Topology,
    ask: Ask,
    placed: _Placed | None,
) -> ModelPlan:
    if placed is None:
        return ModelPlan(ask.model.name, ask.model.layers, ask.traffic.tokens, ask.traffic.requests_per_s,
                         (), 0.0, 0.0, "none", (), {})  # fmt: skip
    flow = placed.flow
    replicas = []
    for group in sorted(set(placed.groups)):
        members = [i for i, g in enumerate(placed.groups) if g == group and flow.machines[i] > 0.0]
        if members:
            members.sort(key=lambda i: (placed.runs[i].start, i))
            replicas.append(_replica(topology, ask, placed, members))
    return ModelPlan(
        ask.model.name,
        ask.model.layers,
        ask.traffic.tokens,
        ask.traffic.requests_per_s,
        tuple(replicas),
        flow.tokens_per_s,
        max(placed.bound, flow.tokens_per_s),
        placed.method,
        tuple(explain(placed.problem, placed.runs, flow, placed.bound)),
        {},
    )


def _replica(
    topology: Topology,
    ask: Ask,
    placed: _Placed,
    members: Sequence[int],
) -> Replica:
    flow, runs = placed.flow, placed.runs
    place = {i: n for n, i in enumerate(members)}
    stages = tuple(
        Stage(
            tuple(device.id for device in placed.devices[i]),
            placed.devices[i][0].kind,
            runs[i].start,
            runs[i].count,
            placed.problem.rate(i, runs[i]),
            flow.machines[i],
        )
        for i in members
    )
    inside = {e: f for e, f in flow.links.items() if e[0] in place or e[1] in place}
    total = math.fsum(f for (a, _), f in inside.items() if a == SOURCE)
    hops = []
    seconds = 0.0
    for (a, b), amount in sorted(inside.items(), key=lambda item: (item[0][0], item[0][1])):
        leaving = total if a == SOURCE else flow.machines[a]
        hops.append(
            Hop(
                None if a == SOURCE else place[a],
                None if b == SINK else place[b],
                amount,
                placed.problem.link(a, b),
                amount / leaving if leaving else 0.0,
            )
        )
        if a != SOURCE and b != SINK:
            ends = placed.devices[a][0].id, placed.devices[b][0].id
            nbytes = ACTIVATION_BYTES * ask.model.hidden_size
            seconds += amount / total * topology.transfer_s(nbytes, *ends)
    for i in members:
        seconds += flow.machines[i] / total * placed.rates[i].step_s[runs[i].count - 1]
    return Replica(stages, tuple(hops), total, total / flow.tokens_per_s, seconds)


def _rates_of(piece: Piece, rates: Mapping[tuple[str, int], StageRates]) -> StageRates:
    kind, _, size = piece.label.partition("|")
    return rates[kind, int(size)]


def _machine(devices: tuple[Device, ...], rates: StageRates) -> Machine:
    kind = devices[0].kind if len(devices) == 1 else f"{devices[0].kind} TP{len(devices)}"
    name = group_name([device.id for device in devices])
    return Machine(name, kind, rates.tokens_per_s, rates.last_tokens_per_s)


def group_name(ids: Sequence[str]) -> str:
    """`n0/gpu0..3` for devices that follow each other on a node."""
    first = ids[0]
    if len(ids) == 1:
        return first
    head = first.rstrip("0123456789")
    numbers = [device.removeprefix(head) for device in ids]
    if all(number.isdigit() for number in numbers):
        values = [int(number) for number in numbers]
        if values == list(range(values[0], values[0] + len(values))):
            return f"{first}..{values[-1]}"
    return "+".join([first, *(device.rpartition("/")[2] for device in ids[1:])])


def _links(topology: Topology, ask: Ask, groups: Sequence[Sequence[Device]]) -> dict[tuple[int, int], float]:
    """Tokens/s between groups: their first devices hand the activations on."""
    per_token = ACTIVATION_BYTES * ask.model.hidden_size
    return {
        (a, b): topology.bandwidth_bytes_per_s(one[0].id, other[0].id) / per_token
        for a, one in enumerate(groups)
        for b, other in enumerate(groups)
        if a != b
    }


def _meshes(count: int, flow: Flow) -> list[int]:
    """Machines between which anything flows belong together."""
    group = list(range(count))
    for a, b in flow.links:
        if a >= 0 and b >= 0:
            one, other = group[a], group[b]
            group = [one if g == other else g for g in group]
    return group


def _gains(
    asks: Sequence[Ask],
    kinds: Sequence[Kind],
    atoms: Sequence[int],
    rates: Sequence[Mapping[tuple[str, int], StageRates]],
    *,
    wanted: Sequence[float],
    now: Sequence[float],
    over: Callable[[], bool],
) -> tuple[list[dict[str, float]], bool]:
    """What one more device of each kind (or the smallest group that can do anything) would bring each model."""
    gains: list[dict[str, float]] = [{} for _ in asks]
    largest = {kind.device: kind for kind in sorted(kinds, key=lambda kind: kind.count)}
    for kind in largest.values():
        sizes = sorted({tp for found in rates for name, tp in found if name == kind.name})
        if not sizes:
            continue
        if over():
            return gains, True
        extra = (kind.name, sizes[0])
        tables = [Tables(ask, kinds, atoms, found, extra) for ask, found in zip(asks, rates, strict=True)]
        for gain, table, counts, before in zip(gains, tables, share(tables, wanted), now, strict=True):
            after = float(table.by_state[table.compositions.index(counts)])
            gain[f"{sizes[0]} x {kind.device}"] = after - before
    return gains, False
