"""Requests under load while policies are swapped, plans change, and replicas are killed: is any answer harmed?

Replicas are real processes (execution.replicas.remote) of the simulated engine, or of the torch engine with `--engine
torch`; each answer is known beforehand, token by token, from an engine that nobody disturbed. Policies live in
sandboxes: baselines and programs of the built-in synthesiser in turn. Clients ask again as soon as they have their
answer; swaps, plans and kills (SIGKILL to the busiest replica) come as requests finish, evenly spread.

*Pause*: the swap itself and the whole first decision of the new policy, for so long no other request can be
dispatched; policies are loaded before, and asked a few times, in a thread. *Stall*: the longest time in the 100 ms around a swap in which the
event loop did nothing else, beside the same midway between two swaps: it holds what loading costs the others, and
whatever else the machine does.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.common import BenchmarkInputError, Options, Target, parse_options, progress, publish, run_main
from benchmarks.swapping.cases import Case, answered, questions
from benchmarks.swapping.clients import Outcome, ask_by_http, ask_directly
from benchmarks.swapping.disturb import Disturber, plans_on, schedule
from benchmarks.swapping.wardrobe import Wardrobe
from execution.replicas.dispatcher import Dispatcher, ServedModel
from execution.replicas.events import ReplicaEvent, ReplicaEventKind
from execution.replicas.manager import ManagerOptions, ReplicaManager
from execution.replicas.remote import RemoteEngine
from loop.contracts import (
    DeviceView,
    EngineLimits,
    EngineSpec,
    Memo,
    ReplicaSpec,
    ReplicaView,
    RequestRecord,
    RequestView,
)
from loop.gateway import Gateway, GatewayConfig, loop_factory
from loop.logs import configure_logging

PAUSE_TARGET_MS = 5.0
AROUND_S = 0.1
_BEAT_S = 0.001


@dataclass(frozen=True, slots=True)
class Size:
    """How much is done."""

    requests: int
    cases: int
    concurrency: int
    swaps: int
    plans: int
    kills: int
    devices: int
    most_tokens: int
    seqs: int


SIZES = {
    ("simulated", False): Size(10_000, 2_000, 256, 50, 5, 5, 6, 32, 64),
    ("simulated", True): Size(1_500, 500, 96, 12, 3, 2, 4, 24, 64),
    ("torch", False): Size(600, 60, 16, 20, 5, 5, 3, 24, 16),
    ("torch", True): Size(150, 30, 8, 6, 2, 1, 3, 16, 16),
}
MODELS = {"simulated": "llama-3.1-8b", "torch": "tiny-llama"}
OPTIONS: dict[str, dict[str, str | int | float | bool]] = {
    "simulated": {"answer_tokens": 0.0, "time_scale": 4.0},
    "torch": {"threads": 1},
}


class Heartbeat:
    """Notes for how long the event loop was busy with something else."""

    def __init__(self) -> None:
        self._late: list[tuple[float, float]] = []

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            due_s = time.monotonic() + _BEAT_S
            await asyncio.sleep(_BEAT_S)
            now_s = time.monotonic()
            self._late.append((now_s, now_s - due_s))

    def longest_s(self, around_s: float) -> float:
        """The longest stall within `AROUND_S` of a moment."""
        return max((late for at, late in self._late if abs(at - around_s) <= AROUND_S / 2), default=0.0)


@dataclass(frozen=True, slots=True)
class Run:
    """One run with all its disturbances."""

    outcomes: list[Outcome]
    records: list[RequestRecord]
    events: list[ReplicaEvent]
    disturber: Disturber
    pauses_s: list[float]
    decisions_s: list[float]
    stalls_s: list[float]
    stalls_between_s: list[float]
    moves: int
    policies: int
    wall_s: float
    leftover: int
    """Processes that were still there in the end."""


async def run_once(options: Options, size: Size, cases: Sequence[Case], *, gateway: bool) -> Run:
    """Serve all requests through all disturbances."""
    engine, model = options.extra.engine, MODELS[options.extra.engine]
    names = [f"d{i}" for i in range(size.devices)]
    events: list[ReplicaEvent] = []
    manager = ReplicaManager(
        lambda spec: RemoteEngine(_engine_spec(engine, spec)),
        [DeviceView(name, "slot", "n0", True, 1.0, None, 1 << 30, 0.0, spot=False) for name in names],
        [model],
        options=ManagerOptions(overlap=True, max_deaths=20, drain_limit_s=20.0, backoff_s=0.05),
        events=events.append,
    )
    wardrobe = Wardrobe(options.seed)
    heart = Heartbeat()
    beating = asyncio.create_task(heart.run())
    try:
        layouts = plans_on(model, names, size.seqs)
        await manager.apply(layouts[0])
        await manager.settled()
        if not manager.serving(model):
            raise BenchmarkInputError(f"swap: no replica came up: {events[-1].reason}")
        first = manager.serving(model)[0]
        records: list[RequestRecord] = []

        def sink(record: RequestRecord) -> None:
            records.append(record)
            disturber.finished()

        dispatcher = Dispatcher(
            manager,
            [ServedModel(model, first.engine.tokenizer, first.engine.info.max_model_len)],
            await wardrobe.next(),
            Memo(),
            sink=sink,
        )
        acts = schedule(size.requests, size.swaps, size.plans, size.kills)
        decisions_s = timed(dispatcher)
        disturber = Disturber(size.requests, manager, dispatcher, wardrobe, layouts, acts)
        disturbing = asyncio.create_task(disturber.run())
        began_s = time.perf_counter()
        outcomes = await _asked(dispatcher, model, cases, size, gateway=gateway)
        wall_s = time.perf_counter() - began_s
        async with asyncio.timeout(120.0):
            await disturbing
        swapped = disturber.swapped_s
        between = [(a + b) / 2 for a, b in itertools.pairwise(swapped)]
        pids = {e.pid for e in events if e.pid is not None}
        await manager.close()
        return Run(
            outcomes,
            records,
            events,
            disturber,
            list(dispatcher.desk.swap_pauses_s),
            decisions_s,
            [heart.longest_s(s) for s in swapped],
            [heart.longest_s(s) for s in between],
            dispatcher.moves,
            len(wardrobe.kinds),
            wall_s,
            sum(_exists(pid) for pid in pids),
        )
    finally:
        beating.cancel()
        await manager.close()
        wardrobe.close()


def timed(dispatcher: Dispatcher) -> list[float]:
    """Collects how long each decision takes, what the pause is to be compared with."""
    taken_s: list[float] = []
    decide = dispatcher.desk.decide

    def timing(request: RequestView, replicas: Sequence[ReplicaView]) -> tuple[int, float]:
        began_s = time.perf_counter()
        try:
            return decide(request, replicas)
        finally:
            taken_s.append(time.perf_counter() - began_s)

    dispatcher.desk.decide = timing  # type: ignore[method-assign]
    return taken_s


async def _asked(
    dispatcher: Dispatcher, model: str, cases: Sequence[Case], size: Size, *, gateway: bool
) -> list[Outcome]:
    if not gateway:
        return await ask_directly(dispatcher, model, cases, size.requests, size.concurrency)
    async with Gateway(dispatcher, GatewayConfig(port=0)) as server:
        return await ask_by_http(server.url, model, cases, size.requests, size.concurrency)


def judge(run: Run, size: Size, mode: str) -> tuple[list[dict[str, Any]], list[Target]]:
    """Rows and targets of one run."""
    per_request = Counter(record.id for record in run.records)
    lost = sum(o.lost for o in run.outcomes)
    twice = sum(o.finals > 1 or o.repeated for o in run.outcomes) + sum(n > 1 for n in per_request.values())
    corrupted = sum(o.corrupted for o in run.outcomes)
    done = run.disturber.done
    died = sum(e.kind is ReplicaEventKind.DIED for e in run.events)
    figures: dict[str, float] = {
        "requests": len(run.outcomes),
        "lost": lost,
        "answered twice": twice,
        "corrupted": corrupted,
        "lost a replica and went on": sum(record.retries > 0 for record in run.records),
        "replicas lost by requests": sum(record.retries for record in run.records),
        "taken back from queues": run.moves,
        "requests/s": len(run.outcomes) / run.wall_s,
        "seconds": run.wall_s,
        "policy swaps": done["swap"],
        "different policies": run.policies,
        "decisions that a policy did not give": run.disturber.faults,
        "reconfigurations": done["plan"],
        "replicas killed": done["kill"],
        "deaths noticed": died,
        "processes left": run.leftover,
    }
    for what, taken_s in (
        ("pause", run.pauses_s),
        ("any decision", run.decisions_s),
        ("stall around a swap", run.stalls_s),
        ("stall between swaps", run.stalls_between_s),
    ):
        for name, value_s in (
            ("p50", _quantile(taken_s, 0.5)),
            ("p90", _quantile(taken_s, 0.9)),
            ("p99", _quantile(taken_s, 0.99)),
            ("longest", max(taken_s, default=float("nan"))),
        ):
            figures[f"{what}, {name}, ms"] = 1e3 * value_s
    rows: list[dict[str, Any]] = [
        {"case": mode, "what": what, "value": value} for what, value in figures.items()
    ]
    rows += [
        {"case": mode, "what": text, "value": count}
        for text, count in Counter(o.error for o in run.outcomes if o.error).most_common(3)
    ]
    targets = [
        Target(f"lost/{mode}", lost, 0, "lower"),
        Target(f"answered_twice/{mode}", twice, 0, "lower"),
        Target(f"corrupted/{mode}", corrupted, 0, "lower"),
        Target(f"pause_p99_ms/{mode}", 1e3 * _quantile(run.pauses_s, 0.99), PAUSE_TARGET_MS, "lower", "ms"),
        Target(f"swaps/{mode}", done["swap"], size.swaps, "higher"),
        Target(f"reconfigurations/{mode}", done["plan"], size.plans, "higher"),
        Target(f"kills/{mode}", min(done["kill"], died), size.kills, "higher"),
    ]
    return rows, targets


async def measure(options: Options) -> tuple[list[dict[str, Any]], list[Target]]:
    """All modes that were asked for."""
    engine = options.extra.engine
    size = SIZES[engine, options.quick]
    asked = questions(size.cases, options.seed, greedy=engine == "torch", most_tokens=size.most_tokens)
    with progress(options, f"{len(asked)} answers of an undisturbed engine"):
        cases = await answered(
            _engine_spec(engine, ReplicaSpec(MODELS[engine], ("d0",)), at_once=True), asked
        )
    rows: list[dict[str, Any]] = []
    targets: list[Target] = []
    modes = (
        ("direct", "gateway") if options.extra.both else ("gateway" if options.extra.gateway else "direct",)
    )
    for mode in modes:
        with progress(options, f"{size.requests} requests, {mode}"):
            run = await run_once(options, size, cases, gateway=mode == "gateway")
        more, met = judge(run, size, f"{engine}/{mode}")
        rows += more
        targets += met
    return rows, targets


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    options = parse_options("swap", __doc__, argv, extend=_extend)
    configure_logging(50)  # replicas die on purpose here
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        rows, targets = runner.run(measure(options))
    return publish(options, rows, targets)


def _extend(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--engine", choices=sorted(MODELS), default="simulated", help="default: simulated")
    way = parser.add_mutually_exclusive_group()
    way.add_argument(
        "--gateway", action="store_true", help="through the HTTP gateway instead of the dispatcher itself"
    )
    way.add_argument("--both", action="store_true", help="one run each way")


def _engine_spec(engine: str, spec: ReplicaSpec, *, at_once: bool = False) -> EngineSpec:
    """`at_once`: the simulated engine takes no time for its steps."""
    options = dict(OPTIONS[engine])
    if at_once and engine == "simulated":
        options["time_scale"] = 0.0
    limits = EngineLimits(spec.max_num_seqs, min(spec.max_num_batched_tokens, 2048))
    return EngineSpec(engine, spec.model, limits=limits, seed=11, options=options)


def _quantile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else float("nan")


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(run_main(main))
