"""Horizontal fusion where it is measured to win: each connected set of groups is timed with and without.

    MeasuredHorizontal()(graph)

What is timed is the part of the graph that the groups touch, on random inputs of its shapes, at torch's thread count of
the moment; the two forms take turns. The outcome depends on the machine: it is no value, and belongs before a back end
on the machine that serves, not into a golden file.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from execution.graph.form import Graph
from execution.graph.node import Node, Ref, TensorValue
from execution.graph.rebuild import rebuild
from execution.passes.base import register
from execution.passes.horizontal import Horizontal, merge
from execution.passes.horizontal_groups import Group, components


@dataclass(frozen=True, slots=True)
class Trial:
    """One component, timed."""

    component: int
    members: int
    apart_s: float
    merged_s: float

    @property
    def gain(self) -> float:
        """How many times faster merged is."""
        return self.apart_s / self.merged_s


@register(
    "measured_horizontal", exact=False, tolerance="sums in another order: a few ulp of the largest term"
)
@dataclass(frozen=True, slots=True)
class MeasuredHorizontal:
    """Pass: `horizontal`, but only what wins here and now."""

    gain: float = 1.05
    rounds: int = 15
    least_members: int = 2
    least_towers: int = 4
    most_rows: int = 4096

    def __call__(self, graph: Graph) -> Graph:
        """The graph with the winners merged; the very same graph when nothing wins."""
        groups = self._finder.groups(graph)
        won = [trial.component for trial in self.trials(graph) if trial.gain >= self.gain]
        return merge(graph, groups, won) if won else graph

    def trials(self, graph: Graph) -> list[Trial]:
        """Every component with its times."""
        groups = self._finder.groups(graph)
        return [try_component(graph, groups, c, self.rounds) for c in components(groups)]

    @property
    def _finder(self) -> Horizontal:
        return Horizontal(self.least_members, self.least_towers, self.most_rows)


def try_component(graph: Graph, groups: Sequence[Group], component: int, rounds: int) -> Trial:
    """Time one component's part of the graph, apart and merged."""
    chosen = [group for group in groups if group.joins == component]
    members = [name for group in chosen for name in group.members]
    part = region(graph, members)
    merged = Horizontal(2, 2, 1 << 30)(part)
    generator = torch.Generator().manual_seed(0)
    inputs = [_random(node, generator) for node in part.inputs]
    apart_s, merged_s = _race([rebuild(part), rebuild(merged)], inputs, rounds)
    return Trial(component, len(members), apart_s, merged_s)


def region(graph: Graph, names: Collection[str]) -> Graph:
    """These nodes and the joins and splits at their borders as a graph of its own; all else becomes inputs."""
    inside = set(names)
    for name in names:
        inside.update(user for user in graph.users[name] if graph[user].op in _JOINS)
        inside.update(ref for ref in graph[name].refs() if graph[ref].op == "operator.getitem")
    inside.update(ref for name in list(inside) for ref in graph[name].refs() if graph[ref].op in _SPLITS)
    nodes: list[Node] = []
    for node in graph:
        if node.name in inside or node.name in _holders_of(graph, inside):
            nodes.append(node)
        elif any(user in inside for user in graph.users[node.name]):
            nodes.append(Node(node.name, "input", "input", value=node.value, target=node.name))
    taken = [n.name for n in nodes if n.kind == "call" and _leaves(graph, n.name, inside)]
    output = Node("output", "output", "output", tuple(Ref(name) for name in taken))
    return Graph(f"{graph.name}.part", [*nodes, output], tensors=graph.tensors)


_JOINS = ("aten.stack.default", "aten.cat.default")
_SPLITS = ("aten.unbind.int", "aten.split.Tensor")


def _holders_of(graph: Graph, inside: Collection[str]) -> set[str]:
    held = {node.name for node in graph.holders}
    return {ref for name in inside for ref in graph[name].refs() if ref in held}


def _leaves(graph: Graph, name: str, inside: Collection[str]) -> bool:
    return isinstance(graph[name].value, TensorValue) and any(
        user not in inside for user in graph.users[name]
    )


def _random(node: Node, generator: torch.Generator) -> Tensor:
    value = node.value
    assert isinstance(value, TensorValue)  # noqa: S101 members take tensors
    dtype = getattr(torch, value.dtype)
    shape = [int(dim) for dim in value.shape]
    made = torch.randn(shape, generator=generator)
    return made.to(dtype) if dtype.is_floating_point else torch.zeros(shape, dtype=dtype)


def _race(calls: Sequence[Callable[..., Any]], inputs: Sequence[Tensor], rounds: int) -> list[float]:
    seconds: list[list[float]] = [[] for _ in calls]
    with torch.no_grad():
        for at in range(rounds + 2):
            for i, call in enumerate(calls):
                started_s = time.perf_counter()
                call(*inputs)
                if at >= 2:
                    seconds[i].append(time.perf_counter() - started_s)
    return [statistics.median(each) for each in seconds]
