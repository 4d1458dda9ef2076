"""Peak memory of branchy networks: as written, in program order, in the order found, with memory reused, in slices."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from benchmarks.graphing.families import Family
from benchmarks.graphing.timing import interleaved
from execution.graph.capture import capture
from execution.graph.form import Graph
from execution.graph.rebuild import rebuild
from execution.passes.memory_order import MemoryOrder, in_order_of, order_problem
from execution.passes.memory_reuse import Reuse
from execution.passes.memory_slices import MemorySlices
from execution.passes.order_exact import Solution
from execution.passes.order_problem import least_peak_bytes
from execution.regimes.memory import MeasuredPeak, allocator_peak_bytes, measured_peak

_MIB = 2.0**20


def peak_rows(families: Sequence[Family], rounds: int, seed: int) -> list[dict[str, Any]]:
    """One row a family; peaks in MiB, measured.

    `order_gain` is of the order alone, `reuse_gain` of order and writes in place, `gain` of both and slices, each over
    program order with values freed at their last use. `order_gain_at_most` is what no order can surpass: of the
    proven minimum, or of the operation that needs most whatever the order. `allocator_gain` counts all that torch's
    allocator hands out, workspaces of kernels included.
    """
    rows = []
    for family in families:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module = family.build().eval()
        inputs = family.inputs(torch.Generator().manual_seed(seed))
        graph = capture(module, inputs).graph
        found = MemoryOrder().solve(graph)
        reused, plan = Reuse().plan(graph)
        started_s = time.perf_counter()
        sliced, cuts = MemorySlices().plan(graph, (reused, plan))
        plan_s = time.perf_counter() - started_s
        calls = [module, rebuild(graph), rebuild(in_order_of(graph, found)), rebuild(reused), rebuild(sliced)]
        measured = [measured_peak(call, inputs) for call in calls]
        written, program, ordered, less, least = (peak.bytes for peak in measured)
        seconds = interleaved(calls[1:], inputs, rounds)
        before, after = (allocator_peak_bytes(call, inputs) for call in (calls[1], calls[4]))
        rows.append(
            {
                "part": "peaks", "what": family.name, "operations": len(graph.calls),
                "module_mib": written / _MIB, "program_mib": program / _MIB,
                "ordered_mib": ordered / _MIB, "reused_mib": less / _MIB, "sliced_mib": least / _MIB,
                "order_gain": program / ordered, "order_gain_at_most": program / _floor(graph, found),
                "proven": found.minimal, "reuse_gain": program / less, "gain": program / least,
                "gain_over_module": written / least, "allocator_gain": before / after,
                "regions": len(cuts.cuts), "work": cuts.work,
                "predicted_exactly": (found.program_peak_bytes, found.peak_bytes, plan.peak_bytes, cuts.peak_bytes)
                == (program, ordered, less, least),
                "bit_exact": _same_bits(measured),
                "allocator_program_mib": before / _MIB, "allocator_sliced_mib": after / _MIB, "plan_s": plan_s,
                **{f"{name}_time": s / seconds[0] for name, s in
                   zip(("ordered", "reused", "sliced"), seconds[1:], strict=True)},
            }
        )  # fmt: skip
    return rows


def _floor(graph: Graph, found: Solution) -> int:
    """Bytes below which no order of these operations goes."""
    if found.minimal:
        return found.peak_bytes
    problem = order_problem(graph)
    return max(least_peak_bytes(problem, i) for i in range(len(problem)))


def _same_bits(measured: Sequence[MeasuredPeak]) -> bool:
    answers = [tree_leaves(peak.answer) for peak in measured]
    return all(
        torch.equal(mine, theirs)
        for answer in answers[1:]
        for mine, theirs in zip(answer, answers[0], strict=True)
    )
