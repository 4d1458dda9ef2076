"""Peak memory of branchy networks: as written, in program order, in the order found, and with memory reused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from benchmarks.graphing.families import Family
from benchmarks.graphing.timing import interleaved
from execution.graph.capture import capture
from execution.graph.rebuild import rebuild
from execution.passes.memory_order import MemoryOrder
from execution.passes.memory_reuse import Reuse
from execution.regimes.memory import allocator_peak_bytes, measured_peak

_MIB = 2.0**20


def peak_rows(families: Sequence[Family], rounds: int, seed: int) -> list[dict[str, Any]]:
    """One row a family; peaks in MiB, measured; `order_gain` is of the order alone."""
    rows = []
    for family in families:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module = family.build().eval()
        inputs = family.inputs(torch.Generator().manual_seed(seed))
        graph = capture(module, inputs).graph
        found = MemoryOrder().solve(graph)
        reused, plan = Reuse().plan(graph)
        calls = [module, rebuild(graph), rebuild(MemoryOrder()(graph)), rebuild(reused)]
        measured = [measured_peak(call, inputs) for call in calls]
        written, program, ordered, less = (peak.bytes for peak in measured)
        answers = [tree_leaves(peak.answer) for peak in measured]
        exact = all(
            torch.equal(mine, theirs)
            for answer in answers[1:]
            for mine, theirs in zip(answer, answers[0], strict=True)
        )
        seconds = interleaved(calls[1:], inputs, rounds)
        rows.append(
            {
                "part": "peaks", "what": family.name, "operations": len(graph.calls),
                "module_mib": written / _MIB, "program_mib": program / _MIB,
                "ordered_mib": ordered / _MIB, "reused_mib": less / _MIB,
                "order_gain": program / ordered, "gain": program / less, "gain_over_module": written / less,
                "predicted_exactly": (found.program_peak_bytes, found.peak_bytes, plan.peak_bytes)
                == (program, ordered, less),
                "bit_exact": exact, "found_by": found.how, "minimal": found.minimal,
                "allocator_program_mib": allocator_peak_bytes(calls[1], inputs) / _MIB,
                "allocator_reused_mib": allocator_peak_bytes(calls[3], inputs) / _MIB,
                "ordered_time": seconds[1] / seconds[0], "reused_time": seconds[2] / seconds[0],
            }
        )  # fmt: skip
    return rows
