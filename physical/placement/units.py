"""From device pools to units: which devices work as one group, which model gets them, and what layers they hold.

A kind's devices are a pool. Groups of 1, 2, 4... devices of one node (tensor parallel) are the offers that a table of
`compose` is made of, first for each kind alone, then over all kinds in atoms of as many devices as keep the table
small. Models share the cluster so that the least served, by its demand, is served best.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hw_profiles import Device, ModelSpec, Topology
from hw_profiles.performance import PerformanceModel
from physical.placement.compose import Compositions, Counts, Offer, Piece, machine_offer, splits
from physical.placement.pools import WORK_PER_S
from physical.placement.rates import StageRates, Traffic, stage_rates


@dataclass(frozen=True)
class Kind:
    """Devices of one kind, node by node, as many on each."""

    name: str
    """That of the devices, and how many a node has where that differs."""
    device: str
    nodes: tuple[tuple[Device, ...], ...]

    @property
    def count(self) -> int:
        """Devices in all."""
        return sum(map(len, self.nodes))

    def group(self, tp: int) -> tuple[Device, ...] | None:
        """Some devices of one node, that of the fewest that are enough; None where no node has so many."""
        fitting = [node for node in self.nodes if len(node) >= tp]
        return min(fitting, key=len)[:tp] if fitting else None


@dataclass(frozen=True)
class Ask:
    """A model and what is asked of it."""

    model: ModelSpec
    traffic: Traffic


class Tables:
    """What every multiset of devices can do for one model."""

    def __init__(
        self,
        ask: Ask,
        kinds: Sequence[Kind],
        atoms: Sequence[int],
        rates: Mapping[tuple[str, int], StageRates],
        extra: tuple[str, int] | None = None,
    ) -> None:
        """`extra`: one more group (kind, tensor-parallel size) beside all that is there."""
        layers = ask.model.layers
        counts = [kind.count // atom for kind, atom in zip(kinds, atoms, strict=True)]
        offers = []
        for place, (kind, atom, count) in enumerate(zip(kinds, atoms, counts, strict=True)):
            fine = self._fine(kind, atom * count, rates, layers)
            if fine is None:
                continue
            for number in range(1, count + 1):
                need = [number if i == place else 0 for i in range(len(kinds))]
                offers.append(_nested(fine, atom * number, tuple(need + [0] * (extra is not None))))
        if extra is not None:
            counts.append(1)
            if extra in rates:
                alone = tuple([0] * len(kinds) + [1])
                spread = _spread(rates[extra], layers)
                offers.append(machine_offer(f"{extra[0]}|{extra[1]}", alone, spread, layers))
        self.compositions = Compositions(layers, counts, offers)
        self.atoms = tuple(atoms)

    @property
    def by_state(self) -> npt.NDArray[np.float64]:
        """Tokens/s through all layers, by number of the multiset."""
        found: npt.NDArray[np.float64] = self.compositions.table[:, -1]
        return found

    @staticmethod
    def _fine(
        kind: Kind, count: int, rates: Mapping[tuple[str, int], StageRates], layers: int
    ) -> Compositions | None:
        """One kind's devices one by one."""
        offers = [
            # The head's cost is spread over the layers here; the placement that results is judged exactly.
            machine_offer(f"{kind.name}|{tp}", (tp,), _spread(found, layers), layers)
            for (name, tp), found in rates.items()
            if name == kind.name and tp <= count
        ]
        return Compositions(layers, (count,), offers) if offers and count else None


def collect(
    topology: Topology, unavailable: Sequence[str] = (), tps: Sequence[int] = (1, 2, 4, 8)
) -> list[Kind]:
    """The cluster's kinds; FPGAs serve no model.

    Where all groups are powers of two, a node with another number of devices counts as several (7 as 4, 2 and 1), so
    that whatever adds up also finds seats; parts of a size are a kind of their own.
    """
    powers = all(tp & (tp - 1) == 0 for tp in tps)
    found: dict[str, dict[int, list[tuple[Device, ...]]]] = {}
    for ids in topology.nodes.values():
        here: dict[str, list[Device]] = {}
        for device in (topology.devices[i] for i in ids if i not in unavailable):
            if device.profile.class_ != "fpga":
                here.setdefault(device.kind, []).append(device)
        for name, devices in here.items():
            rest = devices
            while rest:
                size = 1 << (len(rest).bit_length() - 1) if powers else len(rest)
                found.setdefault(name, {}).setdefault(size, []).append(tuple(rest[:size]))
                rest = rest[size:]
    return [
        Kind(name if len(sizes) == 1 else f"{name} of {size}", name, tuple(nodes))
        for name, sizes in found.items()
        for size, nodes in sizes.items()
    ]


def group_rates(
    ask: Ask,
    kinds: Sequence[Kind],
    performance: PerformanceModel,
    topology: Topology,
    tps: Sequence[int],
    *,
    max_num_seqs: int,
    max_stages: int | None,
) -> dict[tuple[str, int], StageRates]:
    """(kind, tensor-parallel size) -> rates, where that fits."""
    least = -(-ask.model.layers // max_stages) if max_stages else 1
    found = {}
    for kind in kinds:
        for tp in tps:
            group = kind.group(tp)
            if group is None:
                continue
            rates = stage_rates(
                ask.model,
                group,
                performance,
                topology,
                ask.traffic,
                max_num_seqs=max_num_seqs,
                least_layers=least,
            )
            if rates is not None:
                found[kind.name, tp] = rates
    return found


def atoms_for(kinds: Sequence[Kind], layers: int, limit_s: float) -> list[int]:
    """Devices of each kind that stay together, so that a table takes at most `limit_s`; powers of two that divide
    every node of the kind where they can."""
    atoms = [1] * len(kinds)
    while True:
        counts = [kind.count // atom for kind, atom in zip(kinds, atoms, strict=True)]
        if splits(counts) * layers / WORK_PER_S <= limit_s:
            return atoms
        growing = [i for i, count in enumerate(counts) if count > 1]
        if not growing:
            return atoms
        # Whichever stays whole when doubled first, then the most numerous.
        widest = max(growing, key=lambda i: (_divides(kinds[i], 2 * atoms[i]), counts[i]))
        atoms[widest] *= 2


def share(tables: Sequence[Tables], wanted: Sequence[float]) -> list[Counts]:
    """Atoms of each kind for each model, so that the smallest of tokens/s over `wanted` is as large as can be."""
    first = tables[0].compositions
    states = np.array(np.unravel_index(np.arange(len(first.table)), [n + 1 for n in first.counts])).T
    value = tables[0].by_state / wanted[0]
    chosen: list[npt.NDArray[np.intp]] = []
    for table, want in zip(tables[1:], wanted[1:], strict=True):
        mine = table.by_state / want
        joint, pick = np.zeros_like(value), np.zeros(len(value), dtype=np.intp)
        for index, state in enumerate(states):
            parts = np.nonzero((states <= state).all(axis=1))[0]
            worth = np.minimum(mine[parts], value[index - parts])
            best = int(np.argmax(worth))
            joint[index], pick[index] = worth[best], parts[best]
        value = joint
        chosen.append(pick)
    result: list[Counts] = []
    index = len(states) - 1
    for pick in reversed(chosen):
        result.append(tuple(int(n) for n in states[pick[index]]))
        index -= int(pick[index])
    result.append(tuple(int(n) for n in states[index]))
    return result[::-1]


def build(table: Tables, counts: Counts) -> list[list[Piece]]:
    """The replicas' groups of devices and their layers, labels `<kind>|<tp>`."""
    return table.compositions.build(counts)


def seat(
    kinds: Sequence[Kind], replicas: Sequence[Sequence[Piece]], taken: set[str]
) -> list[list[tuple[Piece, tuple[Device, ...]]]]:
    """Devices for each piece, none of `taken` (to which they are added). Large groups first, so that none finds its
    node in splinters; a replica stays on as few nodes as it can. A group that finds no seat is left out."""
    by_name = {kind.name: kind for kind in kinds}
    order = sorted(
        ((r, piece) for r, pieces in enumerate(replicas) for piece in pieces),
        key=lambda pair: (-_size(pair[1]), pair[0], pair[1].start),
    )
    seated: list[list[tuple[Piece, tuple[Device, ...]]]] = [[] for _ in replicas]
    for r, piece in order:
        size = _size(piece)
        used = {device.node for _, devices in seated[r] for device in devices}
        free = [
            [device for device in node if device.id not in taken]
            for node in by_name[piece.label.partition("|")[0]].nodes
        ]
        fitting = [node for node in free if len(node) >= size]
        if not fitting:
            continue
        node = min(fitting, key=lambda devices: (devices[0].node not in used, len(devices)))
        group = tuple(node[:size])
        taken.update(device.id for device in group)
        seated[r].append((piece, group))
    for pairs in seated:
        pairs.sort(key=lambda pair: pair[0].start)
    return seated


def _size(piece: Piece) -> int:
    return int(piece.label.partition("|")[2])


def _nested(fine: Compositions, devices: int, need: Counts) -> Offer:
    def pieces(start: int, count: int) -> list[list[Piece]]:
        return fine.build((devices,), start, count)

    return Offer(need, fine.table[fine.index((devices,))], pieces)


def _spread(rates: StageRates, layers: int) -> tuple[float, ...]:
    """Rates with k/L-ths of the head's time."""
    return tuple(
        0.0 if plain <= 0.0 else 1.0 / (1.0 / plain + (1.0 / last - 1.0 / plain) * k / layers)
        for k, (plain, last) in enumerate(zip(rates.tokens_per_s, rates.last_tokens_per_s, strict=True), 1)
    )


def _divides(kind: Kind, atom: int) -> bool:
    return kind.count % atom == 0 and all(len(node) % atom == 0 for node in kind.nodes)
