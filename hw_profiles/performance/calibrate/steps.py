"""Fitting the steps of an engine from what its replicas were seen to do (StepFit).

First a regression: durations on what their steps held (held.py), none negative, towards least relative error.
Then three scales are adjusted until simulated requests take as long as measured ones (adjust.py). Both on the first
part of the run; the error is of the rest.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy.optimize import nnls

from hw_profiles.performance.calibrate.adjust import HeldOut, Requests, adjusted, judge
from hw_profiles.performance.calibrate.held import Floats, StepTime, Stretches, joined, stretches
from hw_profiles.performance.calibrate.journal import WatchedReplica, WatchedRequest
from hw_profiles.performance.calibrate.rows import DataError
from hw_profiles.performance.coefficients import StepFit

LEAST_REQUESTS = 60
LEAST_STEPS = 500
LEAST_VARIATION = 0.05
"""Of batch sizes and of prompt lengths, as a share of their mean; less cannot be told apart."""
ROWS_A_SIZE = 40
"""Stretches that a batch size of its own must stand on."""
MOST_SIZES = 8
SMOOTHNESS = 0.1
"""A bend of the cost by batch size weighs like the errors of this share of all stretches."""
SPREADINGS = 4
"""Times that steps are spread over time anew, by the latest fit."""
ROUNDS = 12
FLOOR = 0.02
"""Relative errors below this weigh alike."""
TRAIN_SHARE = 0.7
CONTENTIONS = tuple(0.05 * i for i in range(31))


def fit_steps(
    replicas: Sequence[WatchedReplica], requests: Requests, *, source: str
) -> tuple[StepFit, HeldOut]:
    """Fit one engine's steps from requests by replica, all of one model and device kind.

    Raises:
        DataError: too few requests, or too uniform ones to tell the parts of a step apart.
    """
    everything = sorted((r for served in requests.values() for r in served), key=lambda r: r.arrival_s)
    clean = [r for r in everything if r.clean]
    _check(clean, source)
    split_s = sorted(r.last_s for r in clean)[int(TRAIN_SHARE * len(clean))]
    base = _frame(replicas, source)
    _check_rows(_rows(replicas, requests, _first_guess(clean)), source)
    tuned = adjusted(
        _converged(base, replicas, requests, clean, until_s=split_s), replicas, requests, until_s=split_s
    )
    held_out = judge(tuned, replicas, requests, ended_after_s=split_s)
    final = adjusted(_converged(base, replicas, requests, clean), replicas, requests, until_s=math.inf)
    return replace(final, error=held_out.e2e, rows=len(clean)), held_out


def _check(clean: Sequence[WatchedRequest], source: str) -> None:
    steps = sum(r.output_tokens - 1 for r in clean)
    if len(clean) < LEAST_REQUESTS or steps < LEAST_STEPS:
        raise DataError(
            f"{source}: {len(clean)} finished requests with {steps} tokens after the first are too few to fit "
            f"an engine; at least {LEAST_REQUESTS} and {LEAST_STEPS} are needed: let it serve some traffic "
            "(`loop loadtest`)"
        )
    prompts = np.array([float(r.prefill_tokens) for r in clean])
    if float(prompts.std() / prompts.mean()) < LEAST_VARIATION:
        raise DataError(
            f"{source}: all prompts are about {prompts.mean():.0f} tokens long: what a prompt costs cannot be "
            "told from what its tokens cost; send prompts of different lengths"
        )


def _check_rows(rows: Stretches, source: str) -> None:
    decoding = rows.where(rows.firsts == 0.0)
    batches = decoding.sequences / decoding.steps
    if float(batches.std() / batches.mean()) < LEAST_VARIATION:
        raise DataError(
            f"{source}: always about {batches.mean():.1f} requests ran together: what a step costs cannot be told "
            "from what each request in it costs; send traffic that comes and goes (Poisson, not one by one)"
        )


def _rows(
    replicas: Sequence[WatchedReplica], requests: Requests, step_s: StepTime, *, padded: bool = False
) -> Stretches:
    parts = []
    for replica in replicas:
        own = requests.get(replica.id, ())
        others = [requests[other] for other in requests if other != replica.id and requests[other]]
        if own:
            budget_tokens = replica.max_num_batched_tokens
            parts.append(stretches(own, others, budget_tokens=budget_tokens, step_s=step_s, padded=padded))
    return joined(parts)


def _frame(replicas: Sequence[WatchedReplica], source: str) -> StepFit:
    """What is known without a fit."""
    starts = [r.start_s for r in replicas if r.start_s is not None]
    return StepFit(
        sizes=(1,),
        sizes_s=(0.0,),
        per_kv_token_s=0.0,
        per_prompt_s=0.0,
        per_prompt_token_s=0.0,
        per_pair_s=0.0,
        first_token_s=0.0,
        start_s=float(np.median(starts)) if starts else 0.0,
        kv_capacity_tokens=min((r.kv_capacity_tokens for r in replicas if r.kv_capacity_tokens), default=0),
        engine=", ".join(sorted({r.engine for r in replicas})),
        source=source,
    )


def _converged(
    base: StepFit,
    replicas: Sequence[WatchedReplica],
    requests: Requests,
    clean: Sequence[WatchedRequest],
    *,
    until_s: float = math.inf,
) -> StepFit:
    """Fit, spread the steps over time by the fit, and fit again; with contexts as they are and with padded ones,
    whichever explains more."""
    fits = []
    for padded in (False, True):
        step_s = _first_guess([r for r in clean if r.last_s < until_s] or clean)
        fit, error = replace(base, padded=padded), math.inf
        for spreading in range(SPREADINGS):
            rows = _rows(replicas, requests, step_s, padded=padded)
            last = spreading == SPREADINGS - 1
            fit, error = _regress(
                rows.where(rows.ends_s < until_s), fit, CONTENTIONS if last else CONTENTIONS[:1]
            )
            step_s = _step_time(fit)
        fits.append((error, padded, fit))
    return min(fits, key=lambda found: found[:2])[2]


def _first_guess(clean: Sequence[WatchedRequest]) -> StepTime:
    """All steps as long as those of the fastest answers."""
    tpots = [(r.last_s - r.first_s) / (r.output_tokens - 1) for r in clean if r.output_tokens > 1]
    typical_s = float(np.quantile(tpots, 0.1)) if tpots else 1e-3

    def step_s(sequences: int, context_tokens: float) -> float:
        del sequences, context_tokens
        return typical_s

    return step_s


def _step_time(fit: StepFit) -> StepTime:
    def step_s(sequences: int, context_tokens: float) -> float:
        return fit.size_s(sequences) + fit.per_kv_token_s * context_tokens

    return step_s


# ---- the regression ------------------------------------------------------------------------------------------------


def _regress(rows: Stretches, frame: StepFit, contentions: Sequence[float]) -> tuple[StepFit, float]:
    """Costs by non-negative least squares, re-weighted towards least absolute relative error; and that error."""
    sizes = _sizes(rows)
    columns = np.column_stack(
        [
            *_size_columns(rows, sizes),
            rows.context_tokens,
            rows.prompts,
            rows.prompt_tokens,
            rows.pairs,
            rows.firsts,
        ]
    )
    candidates = contentions if float(rows.others.std()) > 0.1 else contentions[:1]
    typical_s = float(np.median(rows.duration_s / rows.steps))
    smooth = _smoothness(sizes, columns.shape[1], typical_s, math.sqrt(SMOOTHNESS * len(rows)))
    fits = [
        (_least_absolute(columns, rows.duration_s / (1.0 + c * rows.others), smooth), c) for c in candidates
    ]
    (solution, error), contention = min(fits, key=lambda fit: (fit[0][1], fit[1]))
    # Costs are as they were on average: with the others as busy as they were.
    solution = solution * (1.0 + contention * float(np.average(rows.others, weights=rows.duration_s)))
    base_s, *slopes = solution[: len(sizes)].tolist()
    costs = [base_s]
    for (low, high), slope in zip(itertools.pairwise(sizes), slopes, strict=True):
        costs.append(costs[-1] + slope * (high - low))
    context, prompt, token, pair, first = solution[len(sizes) :].tolist()
    fit = replace(
        frame,
        sizes=tuple(sizes),
        sizes_s=tuple(costs),
        per_kv_token_s=context,
        per_prompt_s=prompt,
        per_prompt_token_s=token,
        per_pair_s=pair,
        first_token_s=first,
        contention=contention,
    )
    return fit, error


def _sizes(rows: Stretches) -> list[int]:
    """Batch sizes at which the cost may bend: evenly many stretches between two of them."""
    batches = np.sort((rows.sequences / rows.steps)[rows.firsts == 0.0])
    count = int(np.clip(len(batches) // ROWS_A_SIZE, 1, MOST_SIZES - 1))
    found = [1]
    for q in np.linspace(0.0, 1.0, count + 1)[1:]:
        size = math.ceil(float(np.quantile(batches, q)))
        if size > found[-1]:
            found.append(size)
    return found if len(found) > 1 else [1, 2]


def _size_columns(rows: Stretches, sizes: Sequence[int]) -> list[Floats]:
    """A step, and for each piece between two sizes how far the batch reaches into it."""
    batch = np.maximum(rows.sequences / rows.steps, 1.0)
    columns = [rows.steps]
    for i, (low, high) in enumerate(itertools.pairwise(sizes)):
        top = math.inf if i == len(sizes) - 2 else high - low
        columns.append(rows.steps * np.clip(batch - low, 0.0, top))
    return columns


def _smoothness(sizes: Sequence[int], columns: int, step_s: float, weight: float) -> Floats:
    """Rows that hold the slopes of neighbouring pieces together, in units of a typical step."""
    rows = np.zeros((max(0, len(sizes) - 2), columns))
    for i in range(len(rows)):
        reach = (sizes[i + 2] - sizes[i]) / step_s
        rows[i, 1 + i], rows[i, 2 + i] = reach, -reach
    return weight * rows


def _least_absolute(columns: Floats, measured: Floats, smooth: Floats) -> tuple[Floats, float]:
    """(coefficients, mean absolute relative error)."""
    scales = np.maximum(columns.max(axis=0, initial=0.0), 1e-30)
    weights = np.ones(len(measured))
    solution: Floats = np.zeros(columns.shape[1])
    error = math.inf
    for _ in range(ROUNDS):
        scaled = columns / scales * (weights / measured)[:, None]
        stacked = np.vstack([scaled, smooth / scales])
        solution = nnls(stacked, np.concatenate([weights, np.zeros(len(smooth))]))[0] / scales
        errors = np.abs(columns @ solution / measured - 1.0)
        error = float(np.minimum(errors, 1.0).mean())
        weights = 1.0 / np.sqrt(np.maximum(errors, FLOOR))
    return solution, error
