"""Reader of Splitwise's measured runs: `splitwise_sim/perf_model.csv` (Patel et al., ISCA 2024).

One row is one batch: `batch_size` prompts of `prompt_size`, then `token_size` tokens each. `prompt_time`,
`token_time` and `e2e_time` are milliseconds: the prompt phase, one later token, and all of it.
"""

from __future__ import annotations

from dataclasses import dataclass

from hw_profiles.performance.calibrate.rows import DataDir, DataError

MS = 1e-3
PATTERN = "splitwise_sim/perf_model.csv"


@dataclass(frozen=True, slots=True)
class BatchRun:
    """One row, in seconds."""

    model: str
    hardware: str
    tp: int
    prompt_tokens: int
    batch: int
    output_tokens: int
    prompt_s: float
    token_s: float
    e2e_s: float
    power: float
    """Average power, as a share of TDP."""
    place: str


def read(data: DataDir) -> list[BatchRun]:
    """All rows, in order; none when the file is absent. Raises DataError."""
    found = []
    for path in data.glob(PATTERN):
        for row in data.rows(path):
            run = BatchRun(
                model=row.text("model"),
                hardware=row.text("hardware"),
                tp=int(row.positive("tensor_parallel")),
                prompt_tokens=int(row.positive("prompt_size")),
                batch=int(row.positive("batch_size")),
                output_tokens=int(row.positive("token_size")),
                prompt_s=row.positive("prompt_time") * MS,
                token_s=row.positive("token_time") * MS if row.has("token_time") else 0.0,
                e2e_s=row.positive("e2e_time") * MS,
                power=row.number("average_power"),
                place=row.place,
            )
            if run.prompt_s > run.e2e_s:
                raise DataError(f"{row.place}: prompt_time is longer than e2e_time")
            found.append(run)
    return found
