"""The placement problem: layers of a model on unlike machines, and the flow of tokens through them.

Each machine holds one run of consecutive layers. Requests flow from the source through machines whose runs join
up until all layers are passed; the objective is the most tokens/s that can flow (Mei et al., Helix, ASPLOS 2025).
A machine's rate falls with the number of layers that it holds; links carry so many tokens/s.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

SOURCE, SINK = -1, -2
"""Ends of the flow, beside the machines' indices."""


class PlacementError(ValueError):
    """A problem or placement that does not hold together; the message names the machine and the rule."""


@dataclass(frozen=True)
class Machine:
    """What holds layers: a device, or a group of devices that work as one."""

    name: str
    kind: str
    tokens_per_s: tuple[float, ...]
    """Rate with 1, 2, 3... layers; its length is the most layers that fit."""

    last_tokens_per_s: tuple[float, ...] = ()
    """The same where its run ends with the last layer, so that it has the model's head, too; empty: as any other."""

    @property
    def max_layers(self) -> int:
        """The most layers that it can hold."""
        return len(self.tokens_per_s)

    def rate(self, layers: int, *, last: bool = False) -> float:
        """Tokens/s with so many layers, the model's last among them or not; 0 with none."""
        table = self.last_tokens_per_s if last and self.last_tokens_per_s else self.tokens_per_s
        return table[layers - 1] if layers > 0 else 0.0


@dataclass(frozen=True)
class Problem:
    """Machines, the links between them, and a model of `layers` layers."""

    layers: int
    machines: tuple[Machine, ...]
    links: Mapping[tuple[int, int], float] = field(default_factory=dict)
    """(from, to) -> tokens/s; SOURCE and SINK are ends too. A pair that is not named has `default_link`."""
    default_link: float = math.inf
    """Tokens/s of links that are not named; 0: there are none."""
    partial: bool = False
    """May a request enter a machine in the middle of its layers? Else runs must join end to start."""
    must_hold: bool = False
    """Must each machine hold at least one layer, as in Helix's published models? Else it may stay idle."""

    def __post_init__(self) -> None:
        if self.layers < 1:
            raise PlacementError(f"a model of {self.layers} layers: at least 1 is needed")
        if not self.machines:
            raise PlacementError("no machines to place layers on")
        for machine in self.machines:
            if machine.last_tokens_per_s and len(machine.last_tokens_per_s) != machine.max_layers:
                raise PlacementError(
                    f"machine '{machine.name}': as many rates with the last layer as without"
                )
            if any(
                not (rate >= 0.0 and math.isfinite(rate))
                for rate in machine.tokens_per_s + machine.last_tokens_per_s
            ):
                raise PlacementError(f"machine '{machine.name}': rates must be finite and not negative")
        ends = {SOURCE, SINK, *range(len(self.machines))}
        for (a, b), rate in self.links.items():
            if a not in ends or b not in ends or a == b:
                raise PlacementError(f"link {a} -> {b}: no such ends")
            if not rate >= 0.0:
                raise PlacementError(f"link {a} -> {b}: {rate} tokens/s")

    def link(self, a: int, b: int) -> float:
        """Tokens/s from a to b."""
        return self.links.get((a, b), self.default_link)

    def most(self, machine: int) -> int:
        """The most layers this machine can hold of this model."""
        return min(self.machines[machine].max_layers, self.layers)

    def rate(self, machine: int, run: Run) -> float:
        """Tokens/s of a machine with a run."""
        return self.machines[machine].rate(run.count, last=run.end == self.layers)

    @property
    def plain(self) -> bool:
        """True where the last layers cost what others cost."""
        return not any(machine.last_tokens_per_s for machine in self.machines)

    @cached_property
    def loose_links(self) -> bool:
        """True where no link can ever bind: each carries what the slower of its ends could take at best."""
        count = len(self.machines)
        peak = [max(m.tokens_per_s + m.last_tokens_per_s, default=0.0) for m in self.machines]
        for i in range(count):
            if self.link(SOURCE, i) < peak[i] or self.link(i, SINK) < peak[i]:
                return False
        if not self.links:
            return self.default_link >= max(peak)
        return all(
            self.link(i, j) >= min(peak[i], peak[j]) for i in range(count) for j in range(count) if i != j
        )

    @cached_property
    def kinds(self) -> tuple[tuple[tuple[float, ...], tuple[int, ...]], ...]:
        """(rates, machines) of machines whose rates are all the same, in order of first appearance."""
        found: dict[tuple[tuple[float, ...], tuple[float, ...]], list[int]] = {}
        for index, machine in enumerate(self.machines):
            rates = machine.tokens_per_s[: self.layers]
            found.setdefault((rates, machine.last_tokens_per_s[: self.layers]), []).append(index)
        return tuple((rates, tuple(members)) for (rates, _), members in found.items())


@dataclass(frozen=True)
class Run:
    """Consecutive layers on one machine: `start` to `start + count - 1`; count 0: idle."""

    start: int
    count: int

    @property
    def end(self) -> int:
        """One past the last layer."""
        return self.start + self.count


IDLE = Run(0, 0)
Placement = tuple[Run, ...]
"""One run for each machine, in their order."""


def check(problem: Problem, placement: Sequence[Run]) -> None:
    """Raises PlacementError where a placement breaks a rule of the problem."""
    if len(placement) != len(problem.machines):
        raise PlacementError(f"{len(placement)} runs for {len(problem.machines)} machines")
    for index, (machine, run) in enumerate(zip(problem.machines, placement, strict=True)):
        if run.count == 0 and problem.must_hold:
            raise PlacementError(f"machine '{machine.name}' holds no layer, and must")
        if not 0 <= run.count <= problem.most(index):
            raise PlacementError(
                f"machine '{machine.name}': {run.count} layers, it holds at most {problem.most(index)}"
            )
        if run.start < 0 or run.end > problem.layers:
            raise PlacementError(
                f"machine '{machine.name}': layers {run.start} to {run.end - 1} of {problem.layers}"
            )


def joins(problem: Problem, before: Run, after: Run) -> bool:
    """Whether a request can go from one run straight to another."""
    if before.count == 0 or after.count == 0:
        return False
    if problem.partial:
        return after.start <= before.end < after.end
    return before.end == after.start
