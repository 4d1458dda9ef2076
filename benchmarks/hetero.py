"""A real pipeline over unlike units of this machine: proactive scheduling against a passive queue.

A stream of text batches of very different sizes is tokenised, embedded, sent through matrix work and finished
(benchmarks.hetero_work). Units are a thread of this process and processes with memories of their own, to which values
are copied through pipes, each on a core of its own; with `--gpus` also GPUs, which can embed and do matrix work. Every
result is compared with the serial one.

`passive`: one queue, first come first served, inputs are fetched once a unit has taken a task (StarPU's eager).
`dmdas`: each ready task goes to the unit that should end it first, transfers counted, with prefetch.
`proactive`: planned as a whole on performance models learned from earlier rounds and links measured at the start, inputs
fetched and units reserved ahead of need, work stolen where the forecast was wrong. Rounds are interleaved, in changing
order; medians. A machine with other load, or with one core, makes all three slower and alike.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import hetero_work as work
from benchmarks.common import (
    BenchmarkInputError,
    Options,
    Row,
    Target,
    parse_options,
    progress,
    publish,
    run_main,
)
from physical.runtime.executor import Outcome, execute, learn
from physical.runtime.kernels import Kernels
from physical.runtime.local import local_machine, measured, spread_over_cores
from physical.runtime.units import CUDA, PROCESS, THREAD, Units
from physical.scheduling.draw import gantt
from physical.scheduling.following import Following
from physical.scheduling.graph import Access, Data, Task, TaskGraph
from physical.scheduling.models import PerformanceModel
from physical.scheduling.planner import Planner
from physical.scheduling.port import Dispatcher
from physical.scheduling.problem import Problem
from physical.scheduling.queues import Dmdas, Eager
from physical.scheduling.trace import check

SIZES = (12_000, 24_000, 48_000, 160_000)
"""Bytes of text of a batch; drawn with falling probability."""
SHARES = (8, 6, 4, 2)
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
PLANNING_S = 0.05
"""Budget of a plan; counted in its time."""
WARM_ROUNDS = 2
HALF_LIFE = 24.0
"""Runs of a size class after which one counts half."""
HERE = "benchmarks.hetero_work"
GPU = "benchmarks.hetero_gpu"
KERNELS = Kernels(
    {
        (kernel, kind): f"{HERE}:{kernel}"
        for kernel in ("tokenise", "embed", "dense", "finish")
        for kind in (THREAD, PROCESS)
    }
    | {(kernel, CUDA): f"{GPU}:{kernel}" for kernel in ("embed", "dense")}
)


class Stream:
    """The batches of one run as a task graph."""

    def __init__(self, batches: int, seed: int) -> None:
        rng = random.Random(seed)
        sizes = rng.choices(SIZES, SHARES, k=batches)
        self.shared: dict[str, Any] = dict(work.weights(seed))
        self.texts = {f"text{i}": work.documents(rng.getrandbits(30), size) for i, size in enumerate(sizes)}
        data = [Data(name, float(value.nbytes), "host") for name, value in self.shared.items()]
        tasks: list[Task] = []
        for i, size in enumerate(sizes):
            tokens = size / 3.75
            rows = tokens / work.WINDOW
            parts = (
                ("text", size),
                ("ids", 4 * tokens),
                ("rows", 4 * work.WIDTH * rows),
                ("out", 4 * work.WIDTH * rows),
                ("told", 30 * rows),
            )
            data += [Data(f"{name}{i}", float(nbytes), "host") for name, nbytes in parts]
            for kernel, reads, writes in (
                ("tokenise", (f"text{i}",), f"ids{i}"),
                ("embed", (f"ids{i}", "table"), f"rows{i}"),
                ("dense", (f"rows{i}", "up", "mid", "down"), f"out{i}"),
                ("finish", (f"out{i}",), f"told{i}"),
            ):
                accesses = (*((name, Access.READ) for name in reads), (writes, Access.WRITE))
                tasks.append(Task(f"{kernel}{i}", kernel, float(size), accesses))
        self.graph = TaskGraph(f"stream of {batches}", tasks, data)
        self.wanted = tuple(f"told{i}" for i in range(batches))
        self.values: dict[str, Any] = {**self.shared, **self.texts}

    def expected(self) -> dict[str, bytes]:
        """The results of doing it one batch after the other."""
        return {
            f"told{name.removeprefix('text')}": work.serially(text, self.shared)
            for name, text in self.texts.items()
        }


Make = Callable[[Problem], Dispatcher]


def passive(problem: Problem) -> Dispatcher:
    """One queue."""
    del problem
    return Eager()


def dmdas(problem: Problem) -> Dispatcher:
    """StarPU's best."""
    del problem
    return Dmdas()


def proactive(problem: Problem) -> Dispatcher:
    """Plan, then follow the plan, stealing where it was wrong."""
    return Following(Planner(PLANNING_S).plan(problem, seed=0))


SYSTEMS: tuple[tuple[str, Make, bool], ...] = (
    ("passive", passive, False),
    ("passive with prefetch", passive, True),
    ("dmdas", dmdas, True),
    ("proactive without prefetch", proactive, False),
    ("proactive", proactive, True),
)


def run_once(
    stream: Stream, units: Units, problem: Problem, make: Make, *, prefetch: bool
) -> tuple[Outcome, float]:
    """Execute, check results and rules; (outcome, seconds with planning)."""
    began_s = time.perf_counter()
    dispatcher = make(problem)
    outcome = execute(
        problem, dispatcher, units, KERNELS, stream.values, wanted=stream.wanted, prefetch=prefetch
    )
    elapsed_s = time.perf_counter() - began_s
    check(outcome.trace)
    return outcome, elapsed_s


def measure(options: Options) -> tuple[list[Row], list[Target]]:
    """Warm rounds teach the models, then all systems take turns."""
    extra = options.extra
    batches = extra.batches or (16 if options.quick else 64)
    rounds = extra.rounds or (3 if options.quick else 9)
    stream = Stream(batches, options.seed)
    with progress(options, "serial reference"):
        began_s = time.perf_counter()
        expected = stream.expected()
        serial_s = time.perf_counter() - began_s
    machine = local_machine(extra.threads, extra.processes, extra.gpus)
    found: dict[str, list[tuple[Outcome, float]]] = {name: [] for name, _, _ in SYSTEMS}
    model = PerformanceModel(half_life=HALF_LIFE)
    with Units(
        machine, cores=spread_over_cores(machine), environment=dict.fromkeys(THREAD_VARIABLES, "1")
    ) as units:
        with progress(options, "measuring links"):
            machine = measured(units)
        for number in range(WARM_ROUNDS + rounds):
            order = SYSTEMS[number % len(SYSTEMS) :] + SYSTEMS[: number % len(SYSTEMS)]
            with progress(options, f"round {number + 1} of {WARM_ROUNDS + rounds}"):
                for name, make, prefetch in order if number >= WARM_ROUNDS else SYSTEMS[:2]:
                    exploring = 1.0 if number < WARM_ROUNDS else 0.0
                    durations = model.durations(deviations=exploring, able=KERNELS.pairs)
                    problem = Problem(stream.graph, machine, durations)
                    outcome, elapsed_s = run_once(stream, units, problem, make, prefetch=prefetch)
                    if outcome.results != expected:
                        raise BenchmarkInputError(f"hetero: the results of '{name}' are not the serial ones")
                    learn(model, outcome.trace)
                    if number >= WARM_ROUNDS:
                        found[name].append((outcome, elapsed_s))
    if extra.gantt:
        best = min(found["proactive"], key=lambda pair: pair[1])[0]
        Path(extra.gantt).write_text(gantt(best.trace), encoding="utf-8")
    rows = [_row(name, runs, serial_s) for name, runs in found.items()]
    rows.append({"case": "serial, one core", "time_s": serial_s, "speedup": 1.0})
    return rows, _targets(found)


def _row(name: str, runs: Sequence[tuple[Outcome, float]], serial_s: float) -> Row:
    def median(value: Callable[[Outcome], float]) -> float:
        return statistics.median(value(outcome) for outcome, _ in runs)

    time_s = statistics.median(elapsed_s for _, elapsed_s in runs)
    return {
        "case": name,
        "time_s": time_s,
        "speedup": serial_s / time_s,
        "idle_share": median(lambda o: o.trace.idle_share()),
        "moved_mb": median(lambda o: o.trace.moved_bytes) / 1e6,
        "prefetch_hits": median(lambda o: o.prefetch_hits),
        "waited_ms": 1e3 * median(lambda o: o.waited_s),
        "stolen": median(lambda o: float(o.trace.stolen)),
        "rounds": len(runs),
    }


def _targets(found: dict[str, list[tuple[Outcome, float]]]) -> list[Target]:
    """Paired by round."""
    pairs = zip(found["passive"], found["proactive"], strict=True)
    ratio = statistics.median(passive_s / proactive_s for (_, passive_s), (_, proactive_s) in pairs)
    return [Target("passive_over_proactive_time", ratio, 1.0, "higher", "x")]


def _extend(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--threads", type=int, default=1, help="units in this process (default: 1)")
    parser.add_argument(
        "--processes", type=int, default=1, help="units with a memory of their own (default: 1)"
    )
    parser.add_argument("--gpus", type=int, default=0, help="CUDA devices; needs torch (default: 0)")
    parser.add_argument("--batches", type=int, default=0, help="of the stream (default: 64, quick 16)")
    parser.add_argument("--rounds", type=int, default=0, help="of each system (default: 9, quick 3)")
    parser.add_argument("--gantt", help="write the best proactive round as SVG to this file")


def _with_one_thread_a_unit(argv: Sequence[str]) -> None:
    """Begin again where numpy's arithmetic would use several threads: it reads that once, when it is loaded."""
    if any(os.environ.get(name) != "1" for name in THREAD_VARIABLES):
        environment = {**os.environ, **dict.fromkeys(THREAD_VARIABLES, "1")}
        os.execve(  # noqa: S606  # this program itself
            sys.executable, [sys.executable, "-m", "benchmarks.hetero", *argv], environment
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    options = parse_options("hetero", __doc__, argv, extend=_extend)
    rows, targets = measure(options)
    return publish(options, rows, targets)


if __name__ == "__main__":
    _with_one_thread_a_unit(sys.argv[1:])
    sys.exit(run_main(main))
