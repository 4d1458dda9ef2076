"""Fit generators to trace files: rate profile, burstiness, joint lengths, conversations; with provenance.

Reads what a data directory has (azure/, mooncake/, servegen/language/m-large, m-small) and gives one Fitted
each; `autopoiesis execution workload fit` writes them into the package.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from execution.workload import lengths, sessions
from execution.workload.arrivals import Family
from execution.workload.errors import WorkloadError
from execution.workload.profiles import FORMAT, Arrivals, Fitted, Stream
from execution.workload.readers import azure, mooncake, servegen
from execution.workload.statistics import describe, gap_cv, rank_correlation
from loop.contracts import Workload

Floats = NDArray[np.float64]
LONG_TOKENS = 16_384
"""Prompts from this length on are what `long-context` is fitted to."""
SERVEGEN_START_S = 36_000.0
"""Ten in the morning of the first day: the default interval of the ServeGen generators."""
_MODEL = "fit"
_AZURE = "Azure LLM inference trace 2023 (Patel et al. 2024, Splitwise, ISCA), CC-BY 4.0"
_MOONCAKE = "Mooncake FAST'25 conversation trace (Qin et al. 2025), Apache-2.0"
_SERVEGEN = "ServeGen top clients (Xiang et al. 2025), Apache-2.0"


def fit_directory(data_dir: Path) -> Iterator[Fitted]:
    """Fit every generator whose trace is in `data_dir`.

    Raises:
        WorkloadError: when the directory holds none of the traces, or one of them is malformed.
    """
    jobs: list[tuple[str, Callable[[Path], list[Fitted]]]] = [
        ("azure/*conv*.csv", lambda path: [_azure("azure-conv", path)]),
        ("azure/*code*.csv", lambda path: [_azure("azure-code", path)]),
        ("mooncake/*conversation*.jsonl", _mooncake),
        ("servegen/language/m-large", lambda path: [fit_servegen("servegen-m-large", path)]),
        ("servegen/language/m-small", lambda path: [fit_servegen("servegen-m-small", path)]),
    ]
    found = False
    for pattern, job in jobs:
        for path in sorted(data_dir.glob(pattern))[:1]:
            found = True
            yield from job(path)
    if not found:
        patterns = ", ".join(pattern for pattern, _ in jobs)
        raise WorkloadError(f"{data_dir}: holds none of {patterns}")


def _azure(name: str, path: Path) -> Fitted:
    return fit_trace(name, azure.read(path, model=_MODEL), bin_s=60.0, provenance=_origin(path, _AZURE))


def _mooncake(path: Path) -> list[Fitted]:
    whole = mooncake.read(path, model=_MODEL)
    origin = _origin(path, _MOONCAKE)
    long = [r._replace(block_hashes=()) for r in whole.requests if r.input_tokens >= LONG_TOKENS]
    fitted = [fit_trace("mooncake-conversation", whole, bin_s=300.0, provenance=origin)]
    if long:
        note = {"selection": f"prompts of at least {LONG_TOKENS} tokens, prefixes dropped"}
        only = replace(whole, requests=tuple(long))
        fitted.append(fit_trace("long-context", only, bin_s=300.0, provenance={**origin, **note}))
    return fitted


def fit_trace(name: str, workload: Workload, *, bin_s: float, provenance: Mapping[str, str]) -> Fitted:
    """Fit one stream to a trace; conversations are fitted where it has block hashes."""
    requests = workload.requests
    times = np.array([request.arrival_s for request in requests])
    turns = None
    if any(request.block_hashes for request in requests):
        common = sessions.common_prefix(requests)
        turns = sessions.turns(requests, common)
    first = [r for i, r in enumerate(requests) if turns is None or turns[i].parent is None]
    first_times = np.array([request.arrival_s for request in first])
    inputs = np.array([request.input_tokens for request in first])
    outputs = np.array([request.output_tokens for request in first])
    stream = Stream(
        name="all",
        arrivals=fit_arrivals(first_times, bin_s, end_s=float(times[-1])),
        input_tokens=tuple(lengths.quantile_table(inputs)),
        output_tokens=tuple(lengths.quantile_table(outputs)),
        rank_correlation=round(rank_correlation(inputs, outputs), 4),
        sessions=sessions.fit(requests, turns, common, workload.block_tokens) if turns else None,
    )
    return Fitted(
        format=FORMAT,
        generator=name,
        provenance=dict(provenance),
        block_tokens=workload.block_tokens,
        duration_s=round(float(times[-1]), 3),
        streams=(stream,),
        statistics=statistics(workload),
    )


def fit_arrivals(times: Floats, bin_s: float, *, end_s: float) -> Arrivals:
    """Rate profile in bins of `bin_s`, and the CV of the gaps once the profile is taken out.

    Times that were rounded (many requests at one instant) say nothing about single gaps: there, the CV comes
    from the dispersion of counts, which tends to CV^2 for a renewal process (Cox 1962).
    """
    bins = max(1, math.ceil(end_s / bin_s))
    edges = np.append(np.arange(bins) * bin_s, end_s)
    counts, _ = np.histogram(times, edges)
    rates = counts / np.diff(edges)
    operational = np.interp(times, edges, np.append(0.0, np.cumsum(counts)))
    if len(np.unique(times)) > 0.5 * len(times):
        cv = gap_cv(operational)
    else:
        # Thirty expected arrivals a bin: wide enough for the dispersion to settle, many enough to measure it.
        size = np.histogram(operational, bins=max(2, len(times) // 30), range=(0.0, float(len(times))))[0]
        cv = math.sqrt(float(size.var() / size.mean()))
    return Arrivals(bin_s=bin_s, rates_per_s=tuple(round(float(rate), 5) for rate in rates), cv=round(cv, 4))


def fit_servegen(name: str, path: Path) -> Fitted:
    """One stream for each client of a ServeGen directory: rates each 10 min, median CV, mean length distributions."""
    streams = [_client_stream(client) for client in servegen.clients(path)]
    sample = servegen.read(
        path, model=_MODEL, start_s=SERVEGEN_START_S, duration_s=servegen.DEFAULT_DURATION_S
    )
    files = sorted(path.glob("chunk-*"))
    return Fitted(
        format=FORMAT,
        generator=name,
        provenance={
            "source": _SERVEGEN,
            "files": ", ".join(file.name for file in files),
            "sha256": hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest(),
            "selection": "the clients in the directory, not all of the service; inputs and outputs independent",
        },
        block_tokens=512,
        duration_s=servegen.DEFAULT_DURATION_S,
        start_s=SERVEGEN_START_S,
        streams=tuple(streams),
        statistics=statistics(sample),
    )


def _client_stream(client: servegen.Client) -> Stream:
    busy = [window for window in client.windows if window.rate_per_s > 0]
    rates = np.zeros(1 + int(client.windows[-1].start_s // servegen.WINDOW_S))
    for window in busy:
        rates[int(window.start_s // servegen.WINDOW_S)] = window.rate_per_s
    weights = np.array([window.rate_per_s for window in busy])
    order = np.argsort([window.cv for window in busy])
    middle = order[np.searchsorted(np.cumsum(weights[order]), weights.sum() / 2)]
    weibull = sum(window.rate_per_s for window in busy if window.family is Family.WEIBULL)
    inputs, outputs = _mean_lengths(client, busy)
    return Stream(
        name=f"client-{client.number}",
        arrivals=Arrivals(
            bin_s=servegen.WINDOW_S,
            rates_per_s=tuple(float(f"{rate:.4g}") for rate in rates),
            cv=round(busy[int(middle)].cv, 4),
            family=Family.WEIBULL if weibull > weights.sum() / 2 else Family.GAMMA,
        ),
        input_tokens=tuple(inputs),
        output_tokens=tuple(outputs),
        rank_correlation=0.0,
    )


def _mean_lengths(
    client: servegen.Client, busy: list[servegen.RateWindow]
) -> tuple[list[float], list[float]]:
    """Quantile tables over the first day, each 6 h weighted with its requests."""
    values: tuple[list[Floats], list[Floats]] = ([], [])
    weights: tuple[list[Floats], list[Floats]] = ([], [])
    starts = sorted({window.start_s // servegen.PDF_S * servegen.PDF_S for window in busy})
    for start_s in starts[:8]:
        mass = sum(w.rate_per_s for w in busy if w.start_s // servegen.PDF_S * servegen.PDF_S == start_s)
        for side, pdf in enumerate(client.lengths(start_s)):
            values[side].append(pdf.values.astype(np.float64))
            weights[side].append(np.diff(pdf.cumulative, prepend=0.0) * mass)
    tables = [
        lengths.quantile_table(np.concatenate(v), np.concatenate(w))
        for v, w in zip(values, weights, strict=True)
    ]
    return tables[0], tables[1]


def statistics(workload: Workload) -> dict[str, float]:
    """The figures in which generated and real requests are compared."""
    numbers = describe(workload)
    figures = {
        "count": float(numbers.count),
        "rate_per_s": numbers.rate_per_s,
        "peak_rate_per_s": numbers.peak_rate_per_s,
        "cv": numbers.cv,
        "rank_correlation": numbers.rank_correlation,
        "prefix_sharing": numbers.prefix_sharing,
    }
    for side, table in (("input", numbers.input_tokens), ("output", numbers.output_tokens)):
        figures |= {f"{side}_{key}": getattr(table, key) for key in ("mean", "p50", "p90", "p99", "longest")}
    return {key: round(float(value), 4) for key, value in figures.items()}


def _origin(path: Path, source: str) -> dict[str, str]:
    return {
        "source": source,
        "files": path.name,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
