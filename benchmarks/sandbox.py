"""What the sandbox costs: the crossing of a live dispatch, replacing a killed worker, starting, a scoring job.

*Overhead* is the wall time of `SandboxedPolicy.dispatch` (route and priority in one crossing) less the time that
the same two functions of the same policy take in this process, measured beside it on the same arguments (their
median is subtracted). `bare`: one replica set of 16 that does not change, no prefixes; `realistic`: 16 replicas of
which one or two changed since the last request, and the cached tokens of each. The policy scans all replicas
(the baseline least_loaded). Requests follow each other at once, so that worker and caller sit side by side where
another CPU is free; `in turns` is the same on one CPU (docs/sandbox.md), and has no target. Rounds are interleaved, and each figure is the median over the rounds of that round's
quantile. Replacing is timed from the dispatch that finds its worker dead to the answer of the next
one, the policy loaded again: with a spare, and without one. Other load on the machine raises the upper quantiles first:
run it idle.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.common import Options, Target, parse_options, progress, publish, run_main
from loop.contracts import Memo, PolicyFault, PolicySource, ReplicaView, RequestView, Role
from loop.logs import configure_logging
from strategy.baselines import load_baseline
from strategy.evolve.sandbox import PoolJob, SandboxedPolicy, SandboxLimits, WorkerPool, WorkerSupply

REPLICAS = 16
MODEL = "llama-3.1-8b"
POLICY = "least_loaded"
P50_TARGET_US, P99_TARGET_US, REPLACE_TARGET_S = 20.0, 150.0, 0.1
LIMITS = SandboxLimits(max_kills=1_000_000, route_s=1.0)
Question = tuple[RequestView, Sequence[ReplicaView]]


def echo(init_payload: bytes) -> Callable[[bytes], bytes]:
    """Entry point of the scoring pool: the cheapest job there is, next to ballast in the template's memory."""
    ballast = [bytes(64) for _ in range(int(init_payload))]

    def answer(payload: bytes) -> bytes:
        return payload if ballast else b""

    return answer


def questions(count: int, seed: int, *, realistic: bool) -> Iterator[Question]:
    """Requests and what the router knows of the replicas."""
    rng = random.Random(seed)
    views = [_view(i, rng) for i in range(REPLICAS)]
    for number in range(count):
        cached: tuple[int, ...] = ()
        if realistic:
            for i in rng.sample(range(REPLICAS), rng.choice((1, 2))):
                views[i] = _view(i, rng)
            cached = tuple(16 * rng.randrange(20) for _ in range(REPLICAS))
        yield RequestView(number, MODEL, float(number), number + 0.5, 900, 200.0, 0, 0, cached), views


def crossing_us(
    policy: SandboxedPolicy, count: int, seed: int, *, realistic: bool
) -> tuple[list[float], float]:
    """(overheads of one round in microseconds, median microseconds of the policy itself)."""
    trusted, memo, own_memo = load_baseline(POLICY), Memo(), Memo()
    crossed: list[float] = []
    own: list[float] = []
    for request, views in questions(count, seed, realistic=realistic):
        began = time.perf_counter()
        index, priority = policy.dispatch(request, views, memo)
        crossed.append(time.perf_counter() - began)
        began = time.perf_counter()
        expected = trusted.route(request, views, own_memo)
        value = trusted.priority(request, views[expected], own_memo)
        own.append(time.perf_counter() - began)
        if (index, priority) != (expected, value):
            raise RuntimeError(f"the sandbox answered {index, priority}, the policy {expected, value}")
    inside_s = statistics.median(own)
    return [1e6 * (t - inside_s) for t in crossed[count // 10 :]], 1e6 * inside_s


def measure_crossings(options: Options) -> tuple[list[dict[str, Any]], list[Target]]:
    """Overhead of a dispatch, bare and realistic; also where worker and caller may only take turns."""
    count, rounds = (10_000, 3) if options.quick else (20_000, 9)
    cases = ("bare", "realistic")
    found: dict[tuple[str, bool], list[tuple[list[float], float]]] = {
        (case, beside): [] for beside in (True, False) for case in cases
    }
    turns = replace(LIMITS, side_by_side=False)
    with SandboxedPolicy(_source(), LIMITS) as free, SandboxedPolicy(_source(), turns) as bound:
        for number in range(rounds):
            with progress(options, f"crossings, round {number + 1} of {rounds}"):
                for (case, beside), taken in found.items():
                    seed, policy = options.seed + number, free if beside else bound
                    taken.append(crossing_us(policy, count, seed, realistic=case == "realistic"))
    rows, targets = [], []
    for (case, beside), taken in found.items():
        p50, p99, p999 = (
            statistics.median(_quantile(times, q) for times, _ in taken) for q in (0.5, 0.99, 0.999)
        )
        best = min(_quantile(times, 0.5) for times, _ in taken)
        policy_us = statistics.median(own for _, own in taken)
        name = f"overhead/{case}" if beside else f"overhead/{case}, in turns"
        rows.append(
            {"case": name, "unit": "us", "p50": p50, "p99": p99, "p999": p999, "best_p50": best,
             "policy_itself": policy_us, "count": count * rounds}
        )  # fmt: skip
        if beside:
            targets.append(Target(f"overhead_p50_us/{case}", p50, P50_TARGET_US, "lower", "us"))
            targets.append(Target(f"overhead_p99_us/{case}", p99, P99_TARGET_US, "lower", "us"))
    return rows, targets


def measure_replacement(options: Options) -> tuple[list[dict[str, Any]], list[Target]]:
    """Seconds from the dispatch that finds its worker dead to the next answer."""
    times = 5 if options.quick else 25
    rows, targets = [], []
    for case, spares in (("with spare", 1), ("without spare", 0)):
        with (
            WorkerSupply(LIMITS, spares) as supply,
            SandboxedPolicy(_source(), LIMITS, supply=supply) as policy,
        ):
            taken = [_replaced_s(policy) for _ in range(times)]
        rows.append(_row(f"replace killed worker/{case}", taken))
        targets.append(Target(f"replace_s/{case}", statistics.median(taken), REPLACE_TARGET_S, "lower", "s"))
    return rows, targets


def measure_start(options: Options) -> list[dict[str, Any]]:
    """Seconds to start: a process's first policy brings the template up, the others are forked from it."""
    times = 5 if options.quick else 25
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        with SandboxedPolicy(_source(), LIMITS):
            taken.append(time.perf_counter() - began)
    return [_row("start a policy (template up)", taken)]


def measure_jobs(options: Options) -> list[dict[str, Any]]:
    """Seconds for a scoring job that does nothing, in a process of its own; and the template's start."""
    times = 20 if options.quick else 100
    rows = []
    for ballast in (1, 500_000):
        began = time.perf_counter()
        with WorkerPool(1, "benchmarks.sandbox:echo", str(ballast).encode()) as pool:
            pool.wait_ready()
            started_s = time.perf_counter() - began
            taken = []
            for _ in range(times):
                began = time.perf_counter()
                answers = list(pool.run([PoolJob(b"x", 30.0)]))
                taken.append(time.perf_counter() - began)
                if answers != [(0, b"x")]:
                    raise RuntimeError(f"a scoring job answered {answers}")
        rows.append({**_row(f"scoring job, {ballast:,} objects held", taken), "template_start_s": started_s})
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    options = parse_options("sandbox", __doc__, argv)
    configure_logging()  # to stderr: the workers that are killed here are logged
    began = time.perf_counter()
    with SandboxedPolicy(_source(), LIMITS) as policy:
        first_s, layers = time.perf_counter() - began, policy.layers
    rows, targets = measure_crossings(options)
    more, met = measure_replacement(options)
    rows += [*more, *measure_start(options), *measure_jobs(options)]
    rows.append({"case": "start the first policy", "unit": "s", "p50": first_s, "count": 1})
    rows.append({"case": "layers that hold: " + ", ".join(layers)})
    return publish(options, rows, [*targets, *met])


def _replaced_s(policy: SandboxedPolicy) -> float:
    """Kill the worker, and ask until another one answers."""
    request, views = next(questions(1, 0, realistic=False))
    policy.dispatch(request, views, Memo())
    time.sleep(0.05)  # requests come now and then; the spare is ready by the next fault
    os.kill(policy.pid, signal.SIGKILL)
    while Path(f"/proc/{policy.pid}").exists():
        time.sleep(0.0005)
    began = time.perf_counter()
    with contextlib.suppress(PolicyFault):
        policy.dispatch(request, views, Memo())  # notices, and puts another worker in its place
    policy.dispatch(request, views, Memo())
    return time.perf_counter() - began


def _row(case: str, taken_s: Sequence[float]) -> dict[str, Any]:
    return {
        "case": case,
        "unit": "s",
        "p50": statistics.median(taken_s),
        "p99": _quantile(taken_s, 0.99),
        "count": len(taken_s),
    }


def _quantile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def _source() -> PolicySource:
    return load_baseline(POLICY).as_source()


def _view(number: int, rng: random.Random) -> ReplicaView:
    return ReplicaView(
        id=number,
        model=MODEL,
        role=Role.MIXED,
        kind="h100-sxm",
        node=f"n{number // 8:02}",
        tp=1,
        pp=1,
        ready_in_s=0.0,
        running=rng.randrange(200),
        waiting=rng.randrange(9),
        waiting_tokens=rng.randrange(20_000),
        kv_tokens=rng.randrange(400_000),
        kv_capacity_tokens=400_000,
        outstanding_tokens=rng.random() * 40_000,
        max_num_seqs=256,
        max_num_batched_tokens=8192,
        prefill_tokens_per_s=30_000.0,
        decode_step_s=0.02 + 0.01 * rng.random(),
        decode_tokens_per_s=6_000.0,
        speed=1.0,
    )


if __name__ == "__main__":
    sys.exit(run_main(main))
