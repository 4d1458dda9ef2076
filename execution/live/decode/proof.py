"""Is a compiled decode step right, harmless and faster? Everything here runs in the trial process.

Right: on every case each logit, and the keys and values that it writes, are as close to float64 as the original's
in float32, times `TIMES_EAGER`, or `RELATIVE` of the largest; rows that are not numbers in float64 must be reported
as such, and rows beside them must not notice. Harmless: no other place of the KV memory changes.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from execution.compiler.verdict import Numerics, Speed, Worst
from execution.engines.torch.decode import DecodeStep
from execution.engines.torch.step import Row
from execution.live.decode.cases import Case
from execution.live.decode.kernel import DecodeKernel
from execution.live.decode.reference import reference_step
from execution.live.decode.shape import DecodeShape, Weights
from execution.live.significance import paired_speed

TIMES_EAGER, RELATIVE = 4.0, 2e-5
_FENCE = 12345.0


@dataclass(frozen=True, slots=True)
class Bench:
    """What a compiled step is held against: the original on a KV memory that both share."""

    shape: DecodeShape
    weights: Weights
    """With which the compiled step computes (rounded ones, for int8)."""
    eager: DecodeStep
    kv: list[torch.Tensor]
    rotations: torch.Tensor


def check_numerics(bench: Bench, kernel: DecodeKernel, cases: Iterable[Case]) -> Numerics:
    """All cases; stops at the first that is wrong."""
    worst: Worst | None = None
    count = elements = 0
    squares: list[float] = []
    eager_squares: list[float] = []
    for case in cases:
        count += 1
        got, best, got_kv, touched = _run(bench, kernel, case)
        eager, _, eager_kv, _ = _run(bench, bench.eager, case)
        want, want_kv = reference_step(
            bench.shape,
            bench.weights,
            bench.rotations,
            list(case.tokens),
            list(case.positions),
            list(case.past),
        )
        if touched:
            return _wrong(count, elements, worst, f"{case.name}: it wrote to {touched}")
        sound = want.isfinite().all(dim=1)
        for row in (~sound).nonzero().flatten().tolist():
            if best[row] != -1:
                return _wrong(
                    count, elements, worst, f"{case.name}: row {row} is no number, and not reported so"
                )
        for row in sound.nonzero().flatten().tolist():
            if best[row] != int(got[row].argmax()):
                return _wrong(
                    count, elements, worst, f"{case.name}: row {row}: token {best[row]} is not the likeliest"
                )
        pairs = [("", got[sound], eager[sound], want[sound])]
        pairs += [
            (f" kv {i}", a[sound], b[sound], c[sound])
            for i, (a, b, c) in enumerate(zip(got_kv, eager_kv, want_kv, strict=True))
        ]
        for part, ours, theirs, right in pairs:
            elements += right.numel()
            found = _compare(case.name + part, ours, theirs, right)
            if found is None:
                continue
            if worst is None or found.error / found.allowed > worst.error / worst.allowed:
                worst = found
            if not found.error <= found.allowed:
                return _wrong(count, elements, found, f"wrong result: {found}")
        if case.speaks and bool(sound.any()):
            size = float(want[sound].square().mean())
            squares.append(float((got[sound] - want[sound]).square().mean()) / size)
            eager_squares.append(float((eager[sound] - want[sound]).square().mean()) / size)
    rms = [float(torch.tensor(s).mean().sqrt()) if s else 0.0 for s in (squares, eager_squares)]
    return Numerics(True, "", count, elements, worst, rms[0], rms[1])


def measure_speed(
    bench: Bench,
    kernel: DecodeKernel,
    case: Case,
    *,
    threads: int,
    pairs: int,
    min_gain: float,
    limit_s: float = 20.0,
) -> Speed:
    """The original and the compiled step in turn on one case."""
    rows = _place(bench, case)
    times: tuple[list[float], list[float]] = ([], [])
    calls = (lambda: bench.eager(rows), lambda: kernel(rows))
    until_s = time.perf_counter() + limit_s
    with torch.inference_mode():
        for call in calls * 3:
            call()
        for number in range(pairs):
            for which in (0, 1) if number % 2 else (1, 0):
                began_s = time.perf_counter()
                calls[which]()
                times[which].append(time.perf_counter() - began_s)
            if time.perf_counter() > until_s and number >= 8:
                break
    return paired_speed(*times, threads=threads, min_gain=min_gain)


def _place(bench: Bench, case: Case) -> list[Row]:
    """Put the case's past into the memory, a fence everywhere else."""
    for memory, past in zip(bench.kv, case.past, strict=True):
        for row, (lane, position) in enumerate(zip(case.lanes, case.positions, strict=True)):
            memory[lane, :, :position] = past[row, :, :position]
            memory[lane, :, position : position + 2] = _FENCE
    return [Row(*told) for told in zip(case.tokens, case.positions, case.lanes, strict=True)]


def _run(
    bench: Bench, step: DecodeKernel | DecodeStep, case: Case
) -> tuple[torch.Tensor, Sequence[int], list[torch.Tensor], str]:
    """(logits float64, tokens, what it wrote [layer][rows, ...] float64, what it wrote to unasked)."""
    rows = _place(bench, case)
    with torch.inference_mode():
        logits, best = step(rows)
    logits = logits.clone()
    written, touched = [], ""
    for layer, (memory, past) in enumerate(zip(bench.kv, case.past, strict=True)):
        new = []
        for row, (lane, position) in enumerate(zip(case.lanes, case.positions, strict=True)):
            new.append(memory[lane, :, position].double())
            before = past[row, :, :position]
            after = memory[lane, :, :position]
            beyond = memory[lane, :, position + 1 : position + 2]
            same = torch.equal(after.nan_to_num(7.0, 8.0, 9.0), before.nan_to_num(7.0, 8.0, 9.0))
            if not same or bool((beyond != _FENCE).any()):
                touched = f"layer {layer}, lane {lane} beside position {position}"
        written.append(torch.stack(new))
    return logits.double(), best or [], written, touched


def _compare(name: str, got: torch.Tensor, eager: torch.Tensor, want: torch.Tensor) -> Worst | None:
    if not want.numel():
        return None
    error = (got - want).abs()
    allowed = max(TIMES_EAGER * float((eager - want).abs().max()), RELATIVE * float(want.abs().max()), 1e-12)
    if bool(error.isnan().any()):
        error = error.nan_to_num(nan=float("inf"))
    place = int(error.argmax())
    index = tuple(int(i) for i in torch.unravel_index(torch.tensor(place), error.shape))
    return Worst(name, index, float(want[index]), float(got[index]), float(error[index]), allowed)


def _wrong(cases: int, elements: int, worst: Worst | None, reason: str) -> Numerics:
    return Numerics(False, reason, cases, elements, worst)
