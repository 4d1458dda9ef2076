"""The last step of a fit from a journal: its requests are stepped through, queues and all, and scales adjusted."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import minimize

from hw_profiles.performance.calibrate.held import Floats
from hw_profiles.performance.calibrate.journal import WatchedReplica, WatchedRequest
from hw_profiles.performance.calibrate.stepping import step_through
from hw_profiles.performance.coefficients import StepFit
from hw_profiles.performance.measured import MeasuredReplica
from hw_profiles.performance.operators import Multipliers

MOST_REQUESTS = 1_500
"""The adjustment steps through at most so many."""

Requests = Mapping[int, Sequence[WatchedRequest]]
"""By replica."""


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Errors on requests that were not fitted on: median absolute relative error, and error of the mean."""

    requests: int
    e2e: float
    e2e_of_mean: float
    ttft: float


def adjusted(
    fit: StepFit, replicas: Sequence[WatchedReplica], requests: Requests, *, until_s: float
) -> StepFit:
    """Scale sizes and contexts, scale prompts, and move the time beside the steps, until the simulated times
    of requests are the measured ones (Nelder and Mead, 1965)."""
    arrived = sorted(r.arrival_s for served in requests.values() for r in served if r.arrival_s < until_s)
    from_s = arrived[max(0, len(arrived) - MOST_REQUESTS)]

    def scaled(x: Floats) -> StepFit:
        decode, prompt = math.exp(x[0]), math.exp(x[1])
        return replace(
            fit,
            sizes_s=tuple(decode * s for s in fit.sizes_s),
            per_kv_token_s=decode * fit.per_kv_token_s,
            per_prompt_s=prompt * fit.per_prompt_s,
            per_prompt_token_s=prompt * fit.per_prompt_token_s,
            per_pair_s=prompt * fit.per_pair_s,
            first_token_s=max(0.0, fit.first_token_s + 1e-3 * float(x[2])),
        )

    def loss(x: Floats) -> float:
        errors = []
        for r, (first_s, last_s) in stepped(scaled(x), replicas, requests, from_s=from_s, until_s=until_s):
            if r.clean and r.last_s < until_s:  # else its end depends on what came later
                e2e = math.log((last_s - r.arrival_s) / r.e2e_s)
                ttft = math.log((first_s - r.arrival_s) / (r.first_s - r.arrival_s))
                errors.append(min(abs(e2e), 1.0) + 0.25 * min(abs(ttft), 1.0))
        return float(np.mean(errors)) if errors else 0.0

    simplex = np.array([[0.0, 0.0, 0.0], [0.1, 0.0, 0.0], [0.0, 0.3, 0.0], [0.0, 0.0, 1.0]])
    found = minimize(
        loss,
        simplex[0],
        method="Nelder-Mead",
        options={"initial_simplex": simplex, "maxfev": 60, "xatol": 3e-3, "fatol": 3e-4},
    )
    return scaled(found.x)


def judge(
    fit: StepFit, replicas: Sequence[WatchedReplica], requests: Requests, *, ended_after_s: float
) -> HeldOut:
    """Step through a whole run with the fit, and compare what ended after a time."""
    e2e, ttft, simulated, measured = [], [], 0.0, 0.0
    for r, (first_s, last_s) in stepped(fit, replicas, requests, from_s=-math.inf, until_s=math.inf):
        if r.clean and r.last_s > ended_after_s:
            e2e.append(abs((last_s - r.arrival_s) / r.e2e_s - 1.0))
            ttft.append(abs((first_s - r.arrival_s) / (r.first_s - r.arrival_s) - 1.0))
            simulated += last_s - r.arrival_s
            measured += r.e2e_s
    if not e2e:
        return HeldOut(0, math.nan, math.nan, math.nan)
    return HeldOut(len(e2e), float(np.median(e2e)), abs(simulated / measured - 1.0), float(np.median(ttft)))


def stepped(
    fit: StepFit,
    replicas: Sequence[WatchedReplica],
    requests: Requests,
    *,
    from_s: float,
    until_s: float,
) -> list[tuple[WatchedRequest, tuple[float, float]]]:
    """Requests with their simulated (first token, last token) on the run's clock, each on its own replica."""
    times: list[tuple[WatchedRequest, tuple[float, float]]] = []
    for replica in replicas:
        served = sorted(
            (r for r in requests.get(replica.id, ()) if from_s <= r.arrival_s < until_s),
            key=lambda r: r.queued_s,
        )
        if not served:
            continue
        costs = MeasuredReplica(
            fit,
            Multipliers(),
            kv_bytes_per_token=1,
            busy_watts=0.0,
            idle_watts=0.0,
        )
        stepped = step_through(
            costs,
            [(r.arrival_s, r.input_tokens, r.output_tokens) for r in served],
            max_num_seqs=replica.max_num_seqs,
            max_num_batched_tokens=replica.max_num_batched_tokens,
            cached_tokens=[r.input_tokens - r.prefill_tokens for r in served],
            kv_capacity_tokens=replica.kv_capacity_tokens or math.inf,
            order=[r.scheduled_s for r in served],  # whatever the policy's priorities were
        )
        delay_s = fit.first_token_s
        times += [
            (r, (first_s + delay_s, last_s + delay_s))
            for r, (first_s, last_s) in zip(served, stepped, strict=True)
        ]
    return times
