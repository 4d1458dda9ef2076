"""Does the twin predict this machine? A minute of traffic calibrates it, another minute with other load judges it.

Real engines run as replicas in processes of their own behind the dispatcher, steered by a policy; every request is
journaled. `profiles calibrate --from-journal` fits the engine on the first minute (Poisson arrivals). Then the engines
are started again, as `loop serve` is after a calibration: what policies are told of a replica's speed comes of the
calibrated model. The second minute has other arrivals (bursty), another rate and other lengths; its requests are
replayed in the twin, and each one's E2E time is compared with what really happened. `as recorded`: each request goes
where it really went, so that the engine's speed alone is judged; `same policy`: the policy decides again, in the twin. `uncalibrated` is the twin with the
packaged coefficients. `at best` is calibrated on the judged minute itself: what no calibration on another minute can
beat by much, since it knows how fast the machine was in this one. Rates are chosen from the engines' own throughput,
measured first. Run it idle: what else runs on the machine slows the engines down and not the twin.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime as dt
import os
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import (
    BenchmarkInputError,
    Options,
    Target,
    parse_options,
    progress,
    publish,
    run_main,
)
from execution.engines.registry import ADAPTERS, tokenizer_of
from execution.replicas.dispatcher import Dispatcher, ServedModel
from execution.replicas.manager import ManagerOptions, ReplicaManager
from execution.replicas.prefixes import BLOCK_TOKENS, block_hashes
from execution.replicas.remote import RemoteEngine
from execution.workload import LognormalLengths, gamma
from hw_profiles import load_cluster, load_model
from hw_profiles.performance import InfeasibleError, PerformanceModel, ReplicaPerformance
from hw_profiles.performance.calibrate.rows import DataError
from hw_profiles.performance.calibrate.watched import Watched, calibrate_from_journal
from hw_profiles.performance.files import read_coefficients
from loop.compose.counterfactual import Errors, compare, read_stretch, replay_in_twin
from loop.contracts import Finish, Plan, ReplicaSpec, Request, RequestRecord
from loop.contracts.engine import EngineError, EngineLimits, EngineSpec, SamplingParams, ServeRequest
from loop.journal_serving import ServedReplica, ServedRequest, ServingJournal
from loop.logs import configure_logging
from physical.placement.options import device_views
from strategy.baselines import load_baseline

CLUSTER = "local-2"
POLICY = "least_loaded"
LIMITS = EngineLimits(max_num_seqs=32, max_num_batched_tokens=512)
E2E_TARGET = 0.10
PROBE_REQUESTS, PROBE_OUTPUT = 32, 32


@dataclass(frozen=True, slots=True)
class Load:
    """One minute's traffic."""

    name: str
    share: float
    """Of the throughput that the probe measured, counted in requests of these lengths. Full batches decode several
    times faster than small ones, so that engines are busy most of the time at a third of it."""
    cv: float
    """Of the times between arrivals; 1: Poisson."""
    input_tokens: LognormalLengths
    output_tokens: LognormalLengths


CALIBRATION = Load("calibration", 0.5, 1.0, LognormalLengths(120, 700, 1200), LognormalLengths(40, 200, 400))
JUDGED = Load("judged", 0.6, 1.5, LognormalLengths(250, 1000, 1400), LognormalLengths(25, 150, 300))


@dataclass(frozen=True, slots=True)
class Served:
    """What one stretch of traffic left: records, with the prefixes of their prompts."""

    records: tuple[tuple[RequestRecord, tuple[int, ...]], ...]
    replicas: tuple[ServedReplica, ...]


class Live:
    """Real engines behind a dispatcher, on this event loop."""

    def __init__(
        self, engine: str, model: str, replicas: int, seed: int, performance: PerformanceModel | None = None
    ) -> None:
        """`performance`: what policies are told of a replica's speed is this, times the speed that was observed, as
        in `loop serve`; None: the packaged model."""
        self._engine, self._model, self._seed = engine, model, seed
        self._records: list[RequestRecord] = []
        self._hashes: dict[int, tuple[int, ...]] = {}
        topology = load_cluster(CLUSTER)
        devices = list(topology.devices)[:replicas]
        if len(devices) < replicas:
            raise BenchmarkInputError(f"--replicas {replicas}: cluster {CLUSTER} has {len(devices)} slots")
        self._plan = Plan(
            tuple(
                ReplicaSpec(
                    model,
                    (name,),
                    max_num_seqs=LIMITS.max_num_seqs,
                    max_num_batched_tokens=LIMITS.max_num_batched_tokens,
                )
                for name in devices
            )
        )
        self._topology, self._performance = topology, performance or PerformanceModel.load()
        self._manager = ReplicaManager(
            self._build, device_views(topology), [model], options=ManagerOptions(), costs=self._costs
        )
        self._dispatcher = self._fresh_dispatcher()
        self._vocabulary = 256

    def _fresh_dispatcher(self) -> Dispatcher:
        """One that has seen no request: what answers' lengths are expected to be is learned from those that come."""
        served = ServedModel(self._model, tokenizer_of(self._spec()), 2048)
        return Dispatcher(self._manager, [served], load_baseline(POLICY), sink=self._records.append)

    def _spec(self) -> EngineSpec:
        own: dict[str, dict[str, str | int | float | bool]] = {
            "torch": {"threads": 1},
            "simulated": {"device": "cpu-slot", "cluster": CLUSTER, "answer_tokens": 0.0},
        }
        return EngineSpec(self._engine, self._model, limits=LIMITS, seed=0, options=own.get(self._engine, {}))

    def _build(self, spec: ReplicaSpec) -> RemoteEngine:
        del spec
        return RemoteEngine(self._spec(), env={"OMP_NUM_THREADS": "1"})

    def _costs(self, spec: ReplicaSpec) -> ReplicaPerformance | None:
        devices = [self._topology.devices[name] for name in spec.devices]
        try:
            return self._performance.replica(
                load_model(spec.model), devices, spec.tp, spec.pp, self._topology
            )
        except InfeasibleError:
            return None

    async def start(self) -> None:
        """All replicas ready, and warm. Raises EngineError."""
        await self._manager.apply(self._plan)
        await self._manager.settled()
        missing = len(self._plan.replicas) - len(self._manager.serving(self._model))
        if missing:
            raise EngineError(f"{missing} of {len(self._plan.replicas)} replicas did not start")

    async def close(self) -> None:
        """End all processes."""
        await self._manager.close()

    async def throughput(self) -> tuple[float, float]:
        """(prompt tokens, answer tokens) a second that the engines can do together, by two short bursts."""
        rng = random.Random(f"probe/{self._seed}")
        found = []
        for inputs, outputs in ((400, 1), (16, PROBE_OUTPUT)):
            for _ in range(2):  # the first one warms up
                began_s = time.monotonic()
                await asyncio.gather(
                    *(self._ask(f"probe-{i}", _prompt(rng, inputs), outputs) for i in range(PROBE_REQUESTS))
                )
                elapsed_s = time.monotonic() - began_s
            found.append(PROBE_REQUESTS * (inputs if outputs == 1 else outputs) / elapsed_s)
        self._dispatcher = self._fresh_dispatcher()  # the probe's answers are no sample of what comes
        return found[0], found[1]

    async def serve(self, requests: Sequence[Request], salt: str) -> Served:
        """Send requests when they are due, in an open loop; wait for all."""
        self._records.clear()
        self._hashes.clear()
        rng = random.Random(f"{salt}/{self._seed}")
        prompts = [_prompt(rng, r.input_tokens) for r in requests]
        tasks = []
        began_s = time.monotonic()
        for request, prompt in zip(requests, prompts, strict=True):
            await asyncio.sleep(max(0.0, began_s + request.arrival_s - time.monotonic()))
            name = f"{salt}-{request.id}"
            tasks.append(asyncio.create_task(self._ask(name, prompt, request.output_tokens)))
        await asyncio.gather(*tasks)
        records = sorted(self._records, key=lambda r: r.id)
        hashes = [block_hashes(prompt) for prompt in prompts]
        return Served(tuple(zip(records, hashes, strict=True)), self._served_replicas())

    def _served_replicas(self) -> tuple[ServedReplica, ...]:
        specs = {spec.devices: spec for spec in self._plan.replicas}
        origin_s = self._dispatcher.origin_s
        return tuple(
            ServedReplica(
                id=r.id,
                spec=specs[r.devices],
                engine=self._engine,
                started_s=r.started_s - origin_s,
                ready_s=None if r.ready_s is None else r.ready_s - origin_s,
                kv_capacity_tokens=None if r.info is None else r.info.kv_capacity_tokens,
                max_model_len=None if r.info is None else r.info.max_model_len,
                block_tokens=None if r.info is None else r.info.block_tokens,
            )
            for r in self._manager.replicas()
        )

    async def _ask(self, name: str, prompt: tuple[int, ...], output_tokens: int) -> None:
        sampling = SamplingParams(max_tokens=output_tokens, temperature=0.0, ignore_eos=True)
        request = ServeRequest(name, self._model, prompt, sampling)
        async for _ in self._dispatcher.serve(request):
            pass


def _prompt(rng: random.Random, tokens: int) -> tuple[int, ...]:
    return tuple(rng.randrange(256) for _ in range(tokens))


def traffic(
    load: Load, speeds: tuple[float, float], duration_s: float, model: str, seed: int
) -> Sequence[Request]:
    """Requests at the load's share of what the engines can do."""
    sample = gamma(
        50.0,
        60.0,
        model=model,
        seed=seed,
        cv=load.cv,
        input_tokens=load.input_tokens,
        output_tokens=load.output_tokens,
    ).requests
    seconds = sum(r.input_tokens / speeds[0] + r.output_tokens / speeds[1] for r in sample) / len(sample)
    return gamma(
        load.share / seconds,
        duration_s,
        model=model,
        seed=seed,
        cv=load.cv,
        input_tokens=load.input_tokens,
        output_tokens=load.output_tokens,
    ).requests


def keep(path: Path, served: Served) -> None:
    """Write a run into the journal, as `loop serve` does."""
    config = {"kind": "serving", "cluster": CLUSTER, "block_tokens": BLOCK_TOKENS}
    journal = ServingJournal(path, config=config)
    try:
        for replica in served.replicas:
            journal.replica(replica)
        journal.requests(
            ServedRequest(record, str(record.id), 0, POLICY, record.output_tokens, hashes)
            for record, hashes in served.records
        )
        journal.finish()
    finally:
        journal.close()


async def drive(
    options: Options,
    path: Path,
    number: int,
    duration_s: float,
    *,
    speeds: tuple[float, float] | None,
    performance: PerformanceModel | None,
) -> tuple[dict[str, Any], tuple[float, float]]:
    """Start the engines, serve the first or second minute, and journal it as a run; returns what came of it, and the
    throughput that rates are chosen from (of the first minute's engines)."""
    extra, load = options.extra, (CALIBRATION, JUDGED)[number]
    live = Live(extra.engine, extra.model, extra.replicas, options.seed, performance)
    try:
        with progress(options, f"starting {extra.replicas} replicas of {extra.engine}"):
            await live.start()
        with progress(options, "measuring their throughput"):
            found = await live.throughput()  # the second time to warm them up
        requests = traffic(load, speeds or found, duration_s, extra.model, options.seed + number)
        with progress(options, f"{load.name}: {len(requests)} requests in {duration_s:g} s"):
            cpu_s, began_s = time.process_time(), time.monotonic()
            served = await live.serve(requests, load.name)
            cpu_share = (time.process_time() - cpu_s) / (time.monotonic() - began_s)
    finally:
        await live.close()
    keep(path, served)
    return _traffic_row(load, served, duration_s, cpu_share), speeds or found


def _traffic_row(load: Load, served: Served, duration_s: float, cpu_share: float) -> dict[str, Any]:
    ok = [r for r, _ in served.records if r.finish is Finish.OK]
    return {
        "case": f"traffic/{load.name}",
        "requests": len(served.records),
        "served": len(ok),
        "rate_per_s": len(served.records) / duration_s,
        "e2e_mean_s": sum(r.last_token_s - r.arrival_s for r in ok) / max(1, len(ok)),
        "ttft_mean_s": sum(r.first_token_s - r.arrival_s for r in ok) / max(1, len(ok)),
        "dispatcher_cpu": cpu_share,
    }


def judge(path: Path, watched: Watched, performance: PerformanceModel) -> list[dict[str, Any]]:
    """Errors of the twin on both runs of the journal."""
    rows = [
        {
            "case": "fit/held out of the calibration",
            "requests": watched.held_out.requests,
            "e2e_median": watched.held_out.e2e,
            "ttft_median": watched.held_out.ttft,
            "e2e_of_mean": watched.held_out.e2e_of_mean,
        }
    ]
    journal = ServingJournal(path)
    try:
        first, second = (read_stretch(journal, run) for run in (1, 2))
    finally:
        journal.close()
    rows.append(_row("calibration/as recorded", compare(first, replay_in_twin(first, performance))))
    policy = load_baseline(POLICY)
    cases = {
        "judged/as recorded": replay_in_twin(second, performance),
        "judged/same policy": replay_in_twin(second, performance, policy),
        "judged/uncalibrated": replay_in_twin(second, PerformanceModel.load()),
    }
    rows += [_row(name, compare(second, records)) for name, records in cases.items()]
    best = _at_best(path)
    if best is not None:
        rows.append(_row("judged/at best", compare(second, replay_in_twin(second, best))))
    return rows


def _at_best(path: Path) -> PerformanceModel | None:
    """Calibrated on the judged minute itself; None: too little happened in it."""
    try:
        coefficients, _ = calibrate_from_journal(path, read_coefficients(), date="", run=2)
    except DataError:
        return None
    return PerformanceModel(coefficients)


def _row(case: str, errors: Errors) -> dict[str, Any]:
    return {
        "case": case,
        "requests": errors.requests,
        "e2e_median": errors.e2e_median,
        "e2e_p90": errors.e2e_p90,
        "ttft_median": errors.ttft_median,
        "tpot_median": errors.tpot_median,
        "e2e_of_mean": errors.e2e_of_mean,
        "ttft_of_mean": errors.ttft_of_mean,
    }


def measure(options: Options) -> tuple[list[dict[str, Any]], list[Target]]:
    """The whole of it."""
    if options.extra.engine not in ADAPTERS:
        raise BenchmarkInputError(f"--engine {options.extra.engine}: there are {', '.join(ADAPTERS)}")
    duration_s = options.extra.seconds or (12.0 if options.quick else 60.0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(options.extra.journal or folder) / "journal.sqlite"
        if path.exists():
            raise BenchmarkInputError(f"{path}: is there already (--journal)")
        load_before = os.getloadavg()[0]
        date = dt.datetime.now(tz=dt.UTC).date().isoformat()
        try:
            first, speeds = asyncio.run(drive(options, path, 0, duration_s, speeds=None, performance=None))
            with progress(options, "calibrating"):
                coefficients, found = calibrate_from_journal(path, read_coefficients(), date=date, run=1)
            calibrated = PerformanceModel(coefficients)
            second, _ = asyncio.run(
                drive(options, path, 1, duration_s, speeds=speeds, performance=calibrated)
            )
        except (EngineError, DataError) as error:
            raise BenchmarkInputError(f"counterfactual: {error}") from error
        rows = [first, second, *judge(path, found[0], calibrated)]
    rows.append({"case": "machine", "load_before": load_before, "load_after": os.getloadavg()[0]})
    by_case = {row["case"]: row for row in rows}
    targets = [
        Target(f"e2e_median_error/{name}", by_case[f"judged/{name}"]["e2e_median"], E2E_TARGET, "lower")
        for name in ("as recorded", "same policy")
    ]
    return rows, targets


def _extend(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--engine", default="torch", help="torch, vllm or simulated (default: torch)")
    parser.add_argument("--model", default="tiny-llama", help="built-in model (default: tiny-llama)")
    parser.add_argument("--replicas", type=int, default=2, help="engine processes (default: 2)")
    parser.add_argument("--seconds", type=float, default=0.0, help="of each stretch (default: 60, quick 12)")
    parser.add_argument("--journal", help="keep the journal in this folder")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    options = parse_options("counterfactual", __doc__, argv, extend=_extend)
    configure_logging()
    rows, targets = measure(options)
    return publish(options, rows, targets)


if __name__ == "__main__":
    sys.exit(run_main(main))
