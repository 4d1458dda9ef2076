"""Generators: workloads for those who have no trace files, clearly named as generated.

The fitted ones take their parameters from `data/` (see fit.py); `poisson` and `gamma` are plain stochastic
processes with lognormal lengths.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from execution.workload import lengths, profiles, sessions
from execution.workload.arrivals import Family, renewal_times
from execution.workload.errors import WorkloadError
from execution.workload.profiles import Fitted, Stream
from loop.contracts import Request, Workload

MAX_REQUESTS = 20_000_000
PLAIN = ("gamma", "poisson")


@dataclass(frozen=True, slots=True)
class LognormalLengths:
    """Token counts, by median and 99th percentile, cut at `longest`."""

    median: float
    p99: float
    longest: int = 131_072


SHORT_CHAT = (LognormalLengths(600, 4000), LognormalLengths(150, 700, 4096))


def names() -> list[str]:
    """All generators."""
    return sorted([*profiles.names(), *PLAIN])


def generate(
    name: str,
    *,
    model: str,
    seed: int = 0,
    start_s: float | None = None,
    duration_s: float | None = None,
    rate_scale: float = 1.0,
) -> Workload:
    """A workload from the generator `name` (with or without `generated:` before it).

    `start_s` and `duration_s` None are the generator's own; the rate profile repeats beyond its end.
    `rate_scale` multiplies the rate. Equal arguments give equal workloads.

    Raises:
        WorkloadError: for an unknown name, an interval that is none, or over 20 million requests.
    """
    short = name.removeprefix("generated:")
    if short == "poisson":
        return gamma(2.0 * rate_scale, duration_s or 600.0, model=model, seed=seed, cv=1.0)
    if short == "gamma":
        return gamma(2.0 * rate_scale, duration_s or 600.0, model=model, seed=seed)
    if short not in profiles.names():
        raise WorkloadError(f"no generator {name!r}; known: {', '.join(names())}")
    return from_fitted(
        profiles.packaged(short),
        model=model,
        seed=seed,
        start_s=start_s,
        duration_s=duration_s,
        rate_scale=rate_scale,
    )


def from_fitted(
    fitted: Fitted,
    *,
    model: str,
    seed: int = 0,
    start_s: float | None = None,
    duration_s: float | None = None,
    rate_scale: float = 1.0,
) -> Workload:
    """A workload from fitted parameters; arguments as in `generate`."""
    start_s = fitted.start_s if start_s is None else start_s
    duration_s = fitted.duration_s if duration_s is None else duration_s
    check(start_s, duration_s, rate_scale)
    expected = rate_scale * duration_s * sum(max(s.arrivals.rates_per_s) for s in fitted.streams)
    if expected > MAX_REQUESTS:
        raise WorkloadError(
            f"{fitted.generator}: about {expected:.3g} requests in {duration_s:g} s; the limit is "
            f"{MAX_REQUESTS}: ask for a shorter duration or a smaller rate scale"
        )
    requests: list[Request] = []
    for index, stream in enumerate(fitted.streams):
        rng = np.random.default_rng([seed, index])
        times = renewal_times(
            rng,
            [rate * rate_scale for rate in stream.arrivals.rates_per_s],
            stream.arrivals.bin_s,
            stream.arrivals.cv,
            family=stream.arrivals.family,
            start_s=start_s,
            duration_s=duration_s,
        ).tolist()
        requests += _requests(rng, fitted, stream, times, model=model, end_s=duration_s)
    return _workload(
        fitted.generator,
        requests,
        block_tokens=fitted.block_tokens,
        note=f"profile from {start_s:g} s for {duration_s:g} s, rate x {rate_scale:g}, seed {seed}",
    )


def _requests(
    rng: np.random.Generator, fitted: Fitted, stream: Stream, times: list[float], *, model: str, end_s: float
) -> list[Request]:
    if stream.sessions is not None:
        return sessions.generate(
            rng,
            stream,
            times,
            model=model,
            block_tokens=fitted.block_tokens,
            end_s=end_s,
            longest_tokens=int(fitted.statistics.get("input_longest", 131_072)),
        )
    inputs, outputs = lengths.sample_pairs(
        rng, stream.input_tokens, stream.output_tokens, stream.rank_correlation, len(times)
    )
    rows = zip(times, inputs.tolist(), outputs.tolist(), strict=True)
    return [Request(0, time, model, n, m) for time, n, m in rows]


def poisson(
    rate_per_s: float,
    duration_s: float,
    *,
    model: str,
    seed: int = 0,
    input_tokens: LognormalLengths = SHORT_CHAT[0],
    output_tokens: LognormalLengths = SHORT_CHAT[1],
) -> Workload:
    """Poisson arrivals with lognormal lengths."""
    return gamma(
        rate_per_s,
        duration_s,
        model=model,
        seed=seed,
        cv=1.0,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
    )


def gamma(
    rate_per_s: float,
    duration_s: float,
    *,
    model: str,
    seed: int = 0,
    cv: float = 2.0,
    family: Family = Family.GAMMA,
    input_tokens: LognormalLengths = SHORT_CHAT[0],
    output_tokens: LognormalLengths = SHORT_CHAT[1],
) -> Workload:
    """Renewal arrivals of constant rate and the given CV, with lognormal lengths.

    Raises:
        WorkloadError: for a rate, duration or CV out of range, or over 20 million requests.
    """
    check(0.0, duration_s, rate_per_s)
    if not 0 <= cv <= 400:
        raise WorkloadError(f"CV {cv:g}: must be between 0 and 400")
    if rate_per_s * duration_s > MAX_REQUESTS:
        raise WorkloadError(f"{rate_per_s:g}/s for {duration_s:g} s is over {MAX_REQUESTS} requests")
    rng = np.random.default_rng(seed)
    times = renewal_times(rng, [rate_per_s], duration_s, cv, family=family)
    tables = [lengths.lognormal_table(t.median, t.p99, t.longest) for t in (input_tokens, output_tokens)]
    inputs, outputs = (lengths.sample(rng, table, len(times)) for table in tables)
    rows = zip(times.tolist(), inputs.tolist(), outputs.tolist(), strict=True)
    name = "poisson" if cv == 1.0 and family is Family.GAMMA else family.value
    return _workload(
        name,
        [Request(0, time, model, n, m) for time, n, m in rows],
        block_tokens=512,
        note=f"{rate_per_s:g}/s for {duration_s:g} s, CV {cv:g}, seed {seed}",
    )


def check(start_s: float, duration_s: float, rate: float) -> None:
    """Refuse an interval or a rate that makes no workload."""
    positive = all(math.isfinite(value) and value > 0 for value in (duration_s, rate))
    if not positive or not (math.isfinite(start_s) and start_s >= 0):
        raise WorkloadError(
            f"cannot generate {duration_s:g} s from {start_s:g} s at rate {rate:g}: "
            "start must be >= 0, duration and rate > 0"
        )


def _workload(name: str, requests: list[Request], *, block_tokens: int, note: str) -> Workload:
    if not requests:
        raise WorkloadError(f"{name}: no request falls into the interval ({note}); ask for more time or rate")
    requests.sort(key=lambda request: request.arrival_s)
    return Workload(
        name=f"generated-{name}",
        requests=tuple(Request(i, *r[1:]) for i, r in enumerate(requests)),
        source=f"generated:{name}",
        generated=True,
        block_tokens=block_tokens,
        notes={"01.generated": note},
    )
