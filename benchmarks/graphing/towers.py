"""Many small networks side by side: horizontal fusion against eager and torch.compile of the unfused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.graphing.timing import interleaved
from execution.graph.capture import capture
from execution.graph.rebuild import rebuild
from execution.passes.horizontal import Horizontal
from execution.passes.horizontal_trial import MeasuredHorizontal
from execution.passes.pipeline import Pipeline


@dataclass(frozen=True, slots=True)
class TowerCase:
    """Towers of one shape."""

    count: int
    rows: int
    inputs: int
    hidden: int
    outputs: int
    shared: bool
    """All take the same input; else each takes its own."""

    def __str__(self) -> str:
        where = "one input" if self.shared else "own inputs"
        return f"{self.count} towers {self.inputs}-{self.hidden}-{self.outputs}, {self.rows} rows, {where}"


CASES = (
    TowerCase(16, 8, 64, 64, 32, shared=False),
    TowerCase(24, 4, 32, 64, 64, shared=True),
    TowerCase(32, 16, 32, 48, 32, shared=False),
    TowerCase(32, 64, 64, 64, 16, shared=True),
)


class ManyTowers(nn.Module):
    """Two linears with GELU and layer norm each, concatenated."""

    def __init__(self, case: TowerCase) -> None:
        super().__init__()
        self.shared = case.shared
        self.first = nn.ModuleList(nn.Linear(case.inputs, case.hidden) for _ in range(case.count))
        self.norms = nn.ModuleList(nn.LayerNorm(case.hidden) for _ in range(case.count))
        self.second = nn.ModuleList(nn.Linear(case.hidden, case.outputs) for _ in range(case.count))

    def forward(self, x: Tensor) -> Tensor:
        """(rows, inputs) or (rows, towers, inputs) -> (rows, towers * outputs)."""
        outs = []
        for i, (first, norm, second) in enumerate(zip(self.first, self.norms, self.second, strict=True)):
            own = x if self.shared else x[:, i]
            outs.append(second(norm(functional.gelu(first(own)))))
        return torch.cat(outs, dim=1)


def tower_rows(
    cases: Sequence[TowerCase], threads: int, rounds: int, *, compiled: bool, seed: int
) -> list[dict[str, Any]]:
    """One row a case; `gain` against the best of eager and (where a compiler is) torch.compile of the unfused."""
    rows = []
    for case in cases:
        torch._dynamo.reset()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module = ManyTowers(case).eval()
        shape = (case.rows, case.inputs) if case.shared else (case.rows, case.count, case.inputs)
        x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        graph = Pipeline.parse("cse,dce")(capture(module, (x,)).graph)
        merged = Horizontal()(graph)
        calls: dict[str, Any] = {"eager": module, "merged": rebuild(merged)}
        if compiled:
            calls["compiled"] = torch.compile(module, dynamic=False)
            calls["merged, compiled"] = torch.compile(rebuild(merged), dynamic=False)
        seconds = dict(zip(calls, interleaved(list(calls.values()), (x,), rounds), strict=True))
        apart = min(s for name, s in seconds.items() if not name.startswith("merged"))
        together = min(s for name, s in seconds.items() if name.startswith("merged"))
        with torch.no_grad():
            reference = module(x)
            error = max(float((call(x) - reference).abs().max()) for call in calls.values())
        kept = sum(trial.gain >= 1.05 for trial in MeasuredHorizontal(rounds=9).trials(graph))
        rows.append(
            {
                "part": "towers", "threads": threads, "what": str(case),
                **{f"{name}_us": 1e6 * s for name, s in seconds.items()},
                "gain": apart / together, "worst_error": error, "kept_by_trial": bool(kept),
            }
        )  # fmt: skip
    return rows
