"""How many requests the twin simulates per second, in one process, policy calls included; and whether its
memory is flat over a day of a million requests.

Two plain policies (take turns; scan all replicas for the least load) and two shipped baselines drive 8 and 64
replicas of an 8B model on the mixed cluster, under a generated stream with the lengths of the Azure 2023
conversation trace (lognormal, means of 1155 input and 211 output tokens), at 60 % of what the replicas can do.
`requests_per_s` is by the clock on the wall, of one process, generating the stream included: the median of
interleaved runs with the performance model's tables warm, between the slowest and the fastest of them. `cpu_per_s`
is the same by the CPU seconds of the process; it exceeds the former as far as others took the machine's cores.
`cold_cpu_per_s` is a run with a performance model of its own that has computed nothing yet.
"""

from __future__ import annotations

import argparse
import math
import random
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import Options, Target, parse_options, progress, publish, run_main
from execution.twin import Twin
from hw_profiles import load_cluster, load_model
from hw_profiles.performance import PerformanceModel
from loop.contracts import (
    EMPTY_PLAN,
    Memo,
    Observation,
    Plan,
    Policy,
    ReplicaSpec,
    ReplicaView,
    Request,
    RequestRecord,
    RequestView,
)
from strategy.baselines import load_baseline

CLUSTER, MODEL = "mixed-64", "llama-3.1-8b"
INPUT_MEAN, OUTPUT_MEAN, SIGMA = 1155.0, 211.0, 0.9
LOAD = 0.6
DAY_S = 86_400.0
TARGET_PER_S = 10_000.0
TARGET_BYTES = 2e9
SIZES = (8, 64)
REPEATS = 5


class Turns:
    """The replicas take turns."""

    name, digest = "turns", "bench-turns"

    def should_replan(self, obs: Observation, memo: Memo) -> bool:
        """Never."""
        del obs, memo
        return False

    def plan(self, obs: Observation, budget_s: float, memo: Memo) -> Plan:
        """Nothing: the benchmark applies its own."""
        del obs, budget_s, memo
        return EMPTY_PLAN

    def route(self, request: RequestView, replicas: Sequence[ReplicaView], memo: Memo) -> int:
        """The next one."""
        del request
        turn = memo.get("turn", 0.0)
        memo["turn"] = turn + 1.0
        return int(turn) % len(replicas)

    def priority(self, request: RequestView, replica: ReplicaView, memo: Memo) -> float:
        """First come, first served."""
        del request, replica, memo
        return 0.0


class Scan(Turns):
    """The replica that works off its backlog first."""

    name, digest = "scan", "bench-scan"

    def route(self, request: RequestView, replicas: Sequence[ReplicaView], memo: Memo) -> int:
        """Looks at every replica."""
        del request, memo
        best, least = 0, math.inf
        for i, r in enumerate(replicas):
            backlog = r.waiting_tokens / r.prefill_tokens_per_s + r.outstanding_tokens / r.decode_tokens_per_s
            if backlog < least:
                best, least = i, backlog
        return best


@dataclass(frozen=True, slots=True)
class Outcome:
    """One run."""

    requests: int
    cpu_s: float
    wall_s: float
    virtual_s: float
    ttft_p50_s: float


class Counter:
    """A sink that keeps the times to first token, and the memory in use on the way."""

    def __init__(self, every: int) -> None:
        self.count = 0
        self.ttft_s: list[float] = []
        self.resident: list[float] = []
        self._every = every

    def __call__(self, record: RequestRecord) -> None:
        """A request is done."""
        self.count += 1
        if self.count % 16 == 0:
            self.ttft_s.append(record.first_token_s - record.arrival_s)
        if self.count % self._every == 0:
            self.resident.append(resident_bytes())


def stream(count: int, rate_per_s: float, start_s: float, seed: int, *, diurnal: bool) -> Iterator[Request]:
    """Poisson arrivals with lognormal lengths; `diurnal`: the rate swings by half over a day."""
    rng = random.Random(seed)
    input_mu, output_mu = (math.log(mean) - SIGMA**2 / 2 for mean in (INPUT_MEAN, OUTPUT_MEAN))
    at_s = start_s
    for number in range(count):
        swing = 1.0 + 0.5 * math.sin(2.0 * math.pi * at_s / DAY_S) if diurnal else 1.0
        at_s += rng.expovariate(rate_per_s * swing)
        prompt = min(max(int(rng.lognormvariate(input_mu, SIGMA)), 1), 16_000)
        output = min(max(int(rng.lognormvariate(output_mu, SIGMA)), 1), 4_000)
        yield Request(number, at_s, MODEL, prompt, output)


def run(
    performance: PerformanceModel,
    policy: Policy,
    replicas: int,
    count: int,
    seed: int,
    *,
    over_s: float | None = None,
    sink: Counter | None = None,
) -> Outcome:
    """Simulate `count` requests; over so many seconds, or at LOAD of what the replicas can do."""
    topology = load_cluster(CLUSTER)
    model = load_model(MODEL)
    counter = sink or Counter(count)
    twin = Twin(topology=topology, models={MODEL: model}, performance=performance, sink=counter, seed=seed)
    twin.use(policy, Memo())
    devices = list(topology.devices)
    devices = devices[:: len(devices) // replicas][:replicas]
    specs = tuple(ReplicaSpec(MODEL, (name,), max_num_batched_tokens=2048) for name in devices)
    twin.run_until(twin.apply(Plan(specs)).expected_s + 1.0)
    start_s = twin.now_s
    shares = [bearable_per_s(view) for view in twin.snapshot().replicas]
    # Turns give every replica the same, so that the slowest one sets the limit.
    bearable = len(shares) * min(shares) if policy.name == "turns" else sum(shares)
    rate = count / over_s if over_s else LOAD * bearable
    twin.submit(stream(count, rate, start_s, seed, diurnal=over_s is not None))
    began_s, began_cpu_s = time.perf_counter(), time.process_time()
    if not twin.run_until_idle():
        raise RuntimeError(f"{policy.name} got stuck at {twin.now_s} s")
    cpu_s, wall_s = time.process_time() - began_cpu_s, time.perf_counter() - began_s
    return Outcome(counter.count, cpu_s, wall_s, twin.now_s - start_s, statistics.median(counter.ttft_s))


def bearable_per_s(view: ReplicaView) -> float:
    """Requests per second that a replica is estimated to bear."""
    return 1.0 / (INPUT_MEAN / view.prefill_tokens_per_s + OUTPUT_MEAN / view.decode_tokens_per_s)


def policies() -> dict[str, Policy]:
    """By name; the shipped baselines answer to their own."""
    return {
        "turns": Turns(),
        "scan": Scan(),
        "round_robin": load_baseline("round_robin"),
        "least_loaded": load_baseline("least_loaded"),
    }


def measure_speed(options: Options) -> tuple[list[dict[str, Any]], list[Target]]:
    """Requests per second of each policy on each cluster size; the target is about all of them."""
    count, repeats = (6_000, 3) if options.quick else (20_000, REPEATS)
    cases = [(name, replicas) for replicas in SIZES for name in policies()]
    cold = {
        (name, size): run(PerformanceModel.load(), policies()[name], size, count, options.seed)
        for name, size in cases
    }
    performance = PerformanceModel.load()
    for name, size in cases:
        run(performance, policies()[name], size, count // 4, options.seed)
    outcomes: dict[tuple[str, int], list[Outcome]] = {case: [] for case in cases}
    for repeat in range(repeats):
        with progress(options, f"round {repeat + 1} of {repeats}"):
            for name, size in cases:
                outcomes[name, size].append(run(performance, policies()[name], size, count, options.seed))
    rows = []
    targets = []
    for (name, size), runs in outcomes.items():
        rates = [run.requests / run.wall_s for run in runs]
        rate = statistics.median(rates)
        rows.append(
            {
                "case": f"{name}/{size}",
                "requests": count,
                "requests_per_s": rate,
                "slowest_per_s": min(rates),
                "fastest_per_s": max(rates),
                "cpu_per_s": statistics.median(run.requests / run.cpu_s for run in runs),
                "cold_cpu_per_s": cold[name, size].requests / cold[name, size].cpu_s,
                "times_real_time": statistics.median(run.virtual_s / run.wall_s for run in runs),
                "ttft_p50_s": runs[0].ttft_p50_s,
                "peak_mb": None,
                "growth_mb": None,
            }
        )
        targets.append(Target(f"requests_per_s/{name}/{size}", rate, TARGET_PER_S, "higher", "1/s"))
    return rows, targets


def measure_day(options: Options) -> tuple[dict[str, Any], Target]:
    """A day of a million requests (fewer with --quick) in a process of its own: its peak memory."""
    count = 50_000 if options.quick else 1_000_000
    with progress(options, f"a day of {count:,} requests"):
        done = subprocess.run(  # noqa: S603 - this very module, with a number and a seed
            [sys.executable, "-m", "benchmarks.twin_speed", "--day", str(count), "--seed", str(options.seed)],
            cwd=Path(__file__).resolve().parent.parent,
            capture_output=True,
            text=True,
            check=True,
        )
    cpu_s, wall_s, virtual_s, ttft_s, early, late, peak = map(float, done.stdout.split())
    row = {
        "case": "day/scan/64",
        "requests": count,
        "requests_per_s": count / wall_s,
        "slowest_per_s": None,
        "fastest_per_s": None,
        "cpu_per_s": count / cpu_s,
        "cold_cpu_per_s": None,
        "times_real_time": virtual_s / wall_s,
        "ttft_p50_s": ttft_s,
        "peak_mb": peak / 1e6,
        "growth_mb": (late - early) / 1e6,
    }
    return row, Target("day_peak_bytes", peak, TARGET_BYTES, "lower", "B")


def day(count: int, seed: int) -> int:
    """The day itself: prints its figures for `measure_day`."""
    counter = Counter(max(1, count // 10))
    outcome = run(
        PerformanceModel.load(), Scan(), 64, count, seed, over_s=DAY_S * count / 1_000_000, sink=counter
    )
    early, late = counter.resident[1], counter.resident[-1]
    print(outcome.cpu_s, outcome.wall_s, outcome.virtual_s, outcome.ttft_p50_s, early, late, peak_bytes())
    return 0


def resident_bytes() -> float:
    """Memory of this process now (Linux; elsewhere its peak)."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return peak_bytes()
    return float(pages * resource.getpagesize())


def peak_bytes() -> float:
    """Most memory that this process has had."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak if sys.platform == "darwin" else peak * 1024)


def _add_day(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--day", type=int, metavar="COUNT", help="only simulate a day of COUNT requests; print raw figures"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    options = parse_options("twin_speed", __doc__, argv, extend=_add_day)
    if options.extra.day is not None:
        return day(options.extra.day, options.seed)
    rows, targets = measure_speed(options)
    row, target = measure_day(options)
    return publish(options, [*rows, row], [*targets, target])


if __name__ == "__main__":
    sys.exit(run_main(main))
