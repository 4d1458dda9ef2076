"""Memory by slices: the stretches of a graph where its memory peaks are run slice by slice, bit for bit the same.

    MemorySlices()(graph)
    graph, plan = MemorySlices().plan(graph)       # and the figures: regions, slices, extra work, peaks

Which stretches, and how finely, is found by dynamic programming over places where little is live: the lowest peak that
costs at most `work` times the graph's FLOPs (convolutions compute the rows twice that two slices need), and among those
the least work. Each region is then tried on random inputs, in this process and at its thread count; an operation whose
slices have other bits than the whole is cut otherwise or not at all. What is not in a region keeps the order and the
writes in place of `memory_reuse`, which is also what is given back where slices do not help.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from execution.graph.form import Graph
from execution.passes.base import register
from execution.passes.editor import Editor
from execution.passes.memory_order import in_order_of, order_problem
from execution.passes.memory_reuse import Reuse, in_order, with_reuse
from execution.passes.order_exact import SearchBudget, Solution, minimal_order
from execution.passes.order_problem import peak_bytes
from execution.passes.slice_makers import GraphMaker, TensorMaker
from execution.passes.slice_search import Cut, SliceSearch

_ROUNDS = 12
"""Of search and trial."""


@dataclass(frozen=True, slots=True)
class SlicePlan:
    """What was found."""

    peak_bytes: int
    program_peak_bytes: int
    cuts: tuple[Cut, ...]
    work: float
    """FLOPs, as a multiple of the graph's."""
    refused: tuple[str, ...]
    """Operations whose slices had other bits, and were cut otherwise."""


@register("memory_slices")
@dataclass(frozen=True, slots=True)
class MemorySlices:
    """Pass: regions in slices, then order and reuse as `memory_reuse`; never more memory than that."""

    beam: int = 16
    states: int = 3_000
    work: float = 1.5
    """FLOPs at most, as a multiple of the graph's."""
    slices: int = 8
    """At most, a region."""

    def __call__(self, graph: Graph) -> Graph:
        """The graph of the lowest peak; the very same graph when nothing lowers it."""
        return self.plan(graph)[0]

    def plan(self, graph: Graph, known: tuple[Graph, Solution] | None = None) -> tuple[Graph, SlicePlan]:
        """The graph and the figures; `known`: what memory_reuse found, where somebody has asked it."""
        reused, solution = known or Reuse(self.beam, self.states).plan(graph)
        plain = order_problem(graph)
        program = peak_bytes(plain, plain.program)
        best, plan = reused, SlicePlan(solution.peak_bytes, program, (), 1.0, ())
        if graph.symbols:
            return best, plan
        for ordered in self._orders(graph):
            cuts, refused = self._proven(ordered)
            if not cuts:
                continue
            made, peak = _sliced(ordered, cuts)
            if peak < plan.peak_bytes:
                whole = max(1.0, graph.total_cost().flops)
                work = 1.0 + sum(cut.extra_flops for cut in cuts) / whole
                best, plan = made, SlicePlan(peak, program, tuple(cuts), work, tuple(sorted(refused)))
        return best, plan

    def _orders(self, graph: Graph) -> list[Graph]:
        """The graph as it is, and in the order that needs least when nothing is cut."""
        problem = with_reuse(graph, order_problem(graph))
        solution = minimal_order(problem, SearchBudget(self.beam, self.states))
        ordered = in_order_of(graph, solution)
        return [graph] if ordered is graph else [graph, ordered]

    def _proven(self, graph: Graph) -> tuple[list[Cut], set[str]]:
        """Cuts whose every slice has the bits of the whole, and what was refused on the way."""
        search = SliceSearch(graph, work=self.work, most=self.slices)
        refused: set[str] = set()
        proven: set[tuple[object, ...]] = set()
        for _ in range(_ROUNDS):
            cuts = search.best()
            clean = True
            for cut in cuts:
                if cut.key in proven:
                    continue
                different = _different(cut)
                if different:
                    clean = False
                    refused |= different
                    search.refuse(different, cut)
                else:
                    proven.add(cut.key)
            if clean:
                return cuts, refused
        return [], refused


def _different(cut: Cut) -> set[str]:
    """Operations of a region whose slices have other bits than the whole, on random inputs."""
    with torch.no_grad():
        maker = TensorMaker(cut.region, torch.Generator().manual_seed(0))
        cut.region.run(maker, cut.slices)
    return maker.different


def _sliced(graph: Graph, cuts: Sequence[Cut]) -> tuple[Graph, int]:
    """The graph with its regions in slices and writes in place, and its peak."""
    first = {cut.region.nodes[0].name: cut for cut in cuts}
    inside = {node.name for cut in cuts for node in cut.region.nodes}
    editor = Editor(graph)
    maker = GraphMaker(editor)
    for node in graph:
        if node.name in first:
            first[node.name].region.run(maker, first[node.name].slices)
        elif node.name not in inside:
            editor.copy(node)
    made = editor.finish()
    problem = with_reuse(made, order_problem(made))
    peak = peak_bytes(problem, problem.program)
    return in_order(made, Solution(problem.program, peak, "slices", False, 1, peak, {})), peak
