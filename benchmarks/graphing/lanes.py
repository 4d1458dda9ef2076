"""Independent branches side by side: two lanes of one thread against one lane of two threads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.graphing.timing import interleaved
from execution.graph.capture import capture
from execution.graph.rebuild import rebuild
from execution.passes.calm import Calm
from execution.passes.overlap import Overlap, OverlapModule


def lane_rows(
    cases: Sequence[tuple[str, torch.nn.Module, tuple[Tensor, ...]]], rounds: int
) -> list[dict[str, Any]]:
    """One row a case; `gain` of two lanes over the better of one lane with one and with two threads."""
    rows = []
    before = torch.get_num_threads()
    for name, module, inputs in cases:
        graph = Calm()(capture(module, inputs).graph)
        plain = rebuild(graph)
        plan = Overlap(2).plan(graph)
        lanes = OverlapModule(graph, plan, threads=1)

        def with_threads(count: int, run: Any = plain) -> Any:
            def call(*given: Tensor) -> Any:
                torch.set_num_threads(count)
                return run(*given)

            return call

        try:
            with torch.no_grad():
                torch.set_num_threads(1)
                one, two = plain(*inputs), lanes(*inputs)
            same = all(
                torch.equal(a, b)
                for a, b in zip(
                    one if isinstance(one, tuple) else (one,),
                    two if isinstance(two, tuple) else (two,),
                    strict=True,
                )
            )
            calls = [with_threads(1), with_threads(2), with_threads(1, lanes)]
            single_s, double_s, lanes_s = interleaved(calls, inputs, rounds)
        finally:
            lanes.close()
            torch.set_num_threads(before)
        rows.append(
            {
                "part": "overlap", "threads": 2, "what": name, "one_thread_ms": 1e3 * single_s,
                "two_threads_ms": 1e3 * double_s, "two_lanes_ms": 1e3 * lanes_s,
                "gain": min(single_s, double_s) / lanes_s, "expected_gain": plan.gain, "bit_exact": same,
            }
        )  # fmt: skip
    return rows
