"""Closed-loop serving tests (silicon_sample.csv): a fixed number of requests in flight, means of TTFT, TPOT.

Each test runs through the twin: `concurrency` requests in flight, each followed by another when it ends, so
many rounds. The first ones are of all ages (the rest of their answers is drawn evenly), so that the loop
starts near its steady state, and are not counted: how a harness ramped up is not in the table. The engine's overheads (kernel scale, base, per sequence) are fitted per system, model, engine
and precision on the other folds' TPOT, by a steady-state formula: a request lives through about `osl`
decode steps of the full batch, and the prompts of the others are processed between them. What the harness
and the HTTP front end add to TTFT, a constant and a share per prompt token, is fitted on the simulated and
measured TTFT of some of the other folds' rows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from random import Random

from benchmarks.fidelity.drive import Setup, UnservedError, simulate
from benchmarks.fidelity.errors import Group, Ledger
from benchmarks.fidelity.folds import folds
from hw_profiles.performance import InfeasibleError, PerformanceModel
from hw_profiles.performance.calibrate import silicon
from hw_profiles.performance.calibrate.engine import IterationSample, fit_front_end, fit_iterations
from hw_profiles.performance.calibrate.rows import DataDir
from hw_profiles.performance.calibrate.silicon import ClosedLoop
from hw_profiles.performance.coefficients import EngineFit
from loop.contracts import Finish, Request, RequestRecord
from loop.contracts.ports import PlanError

SOURCE = "closed loop"
ROUNDS = 4
"""Requests that count, per request in flight."""
FRONT_END_ROWS = 16
"""Rows that the front end's share is fitted on, at most twice as many."""
MIN_TRAINING = 8
BIG_MEMORY_BYTES = 70e9
"""vLLM's defaults differ for devices above this: 8192 tokens and 1024 sequences an iteration."""
BARE = EngineFit(base_s=0.0, per_sequence_s=0.0)


def judge(data: DataDir, performance: PerformanceModel, ledger: Ledger, *, quick: bool) -> None:
    """Every vLLM row whose system and model are carried; `quick`: a third of two of the five folds."""
    skipped: dict[str, int] = {}
    groups: dict[tuple[str, str, str, str], list[ClosedLoop]] = defaultdict(list)
    for test in silicon.read(data, skipped):
        name = test.model.name.partition("@")[0]
        groups[(test.device.name, name, test.engine, test.precision)].append(test)
    for reason, count in skipped.items():
        ledger.left_out[f"{SOURCE}: {reason}"] += count
    for (_, _, _, _), tests in sorted(groups.items()):
        for training, judged in islice(folds(tests, _key), 2 if quick else None):
            engine = _engine(performance, training, tests[0])
            front = _front_end(performance, engine, training)
            for test in judged[:: 3 if quick else 1]:
                first_s = front[0] + front[1] * test.input_tokens
                world = performance.with_engine(replace(engine, first_token_s=first_s))
                _judge_one(test, world, ledger)


def _key(test: ClosedLoop) -> tuple[object, ...]:
    return (test.tp, test.pp, test.concurrency, test.input_tokens, test.output_tokens)


def _engine(performance: PerformanceModel, training: Sequence[ClosedLoop], like: ClosedLoop) -> EngineFit:
    """Overheads fitted on other rows; with too few of them, the packaged ones (made from other runs)."""
    packaged = performance.coefficients.of(like.device.name, like.device.class_).engine
    bare = performance.with_engine(BARE)
    samples = []
    for test in training:
        try:
            samples.append(_steady_state(bare, test))
        except InfeasibleError:
            continue
    if len(samples) < MIN_TRAINING:
        return packaged
    fit = fit_iterations(samples, source=like.engine)
    return replace(fit, first_token_s=packaged.first_token_s)


def _front_end(
    performance: PerformanceModel, engine: EngineFit, training: Sequence[ClosedLoop]
) -> tuple[float, float]:
    """(seconds per request, seconds per prompt token) that TTFT has beyond the engine."""
    world = performance.with_engine(replace(engine, first_token_s=0.0))
    step = max(1, len(training) // FRONT_END_ROWS)
    simulated, tokens, measured = [], [], []
    for test in sorted(training, key=lambda test: test.place)[::step]:
        try:
            ttft_s, _, _ = _means(_run(test, world, rounds=1), test)
        except (PlanError, InfeasibleError, UnservedError):
            continue
        simulated.append(ttft_s)
        tokens.append(test.input_tokens)
        measured.append(test.ttft_s)
    if len(measured) < MIN_TRAINING:
        return engine.first_token_s, 0.0
    return fit_front_end(simulated, tokens, measured)


def _steady_state(bare: PerformanceModel, test: ClosedLoop) -> IterationSample:
    """TPOT of kernels alone: a decode step of the full batch, plus its share of the others' prompts."""
    setup = _setup(test)
    perf = setup.replica(bare)
    n, isl, osl = test.concurrency, test.input_tokens, test.output_tokens
    capacity = max(1, perf.kv_capacity_tokens // (isl + osl))
    n = min(n, capacity, setup.max_num_seqs)
    kv = int(n * (isl + osl / 2))
    step_s = perf.decode_step_s(n, kv)
    prompt_s, done = 0.0, 0
    while done < isl:
        chunk = min(isl - done, setup.max_num_batched_tokens - n)
        prompt_s += perf.iteration_s(n, kv, ((chunk, done),)) - step_s
        done += chunk
    return IterationSample(step_s + (n - 1) * prompt_s / osl, n, test.tpot_s)


def _setup(test: ClosedLoop) -> Setup:
    big = test.device.memory_bytes > BIG_MEMORY_BYTES
    return Setup(
        test.device,
        test.model,
        test.tp,
        test.pp,
        max_num_seqs=1024 if big else 256,
        max_num_batched_tokens=8192 if big else 2048,
    )


def _judge_one(test: ClosedLoop, world: PerformanceModel, ledger: Ledger) -> None:
    try:
        ttft_s, tpot_s, e2e_s = _means(_run(test, world, ROUNDS), test)
    except (PlanError, InfeasibleError, UnservedError) as error:
        ledger.left_out[f"{SOURCE}: {error}"] += 1
        return
    group = Group(
        SOURCE,
        test.device.name,
        f"{test.model.name.partition('@')[0]} {test.precision}",
        test.engine,
        f"isl {test.input_tokens} osl {test.output_tokens}",
        table=_measured(world, test),
    )
    ledger.add(group, ttft=(ttft_s, test.ttft_s), tpot=(tpot_s, test.tpot_s), e2e=(e2e_s, test.e2e_s))


def _means(records: Sequence[RequestRecord], test: ClosedLoop) -> tuple[float, float, float]:
    """Mean TTFT, TPOT and E2E of the requests that count, in seconds."""
    served = [r for r in records if r.finish is Finish.OK and r.id >= test.concurrency]
    if not served:
        raise UnservedError(
            f"no request of {test.input_tokens} + {test.output_tokens} tokens could be served"
        )
    ttft_s = sum(r.first_token_s - r.arrival_s for r in served) / len(served)
    answers = [r for r in served if r.output_tokens > 1]
    if not answers:
        raise UnservedError("answers of one token have no TPOT")
    tpot_s = sum((r.last_token_s - r.first_token_s) / (r.output_tokens - 1) for r in answers) / len(answers)
    e2e_s = sum(r.last_token_s - r.arrival_s for r in served) / len(served)
    return ttft_s, tpot_s, e2e_s


def _measured(world: PerformanceModel, test: ClosedLoop) -> bool:
    """Were matrix products of this precision measured on this very device kind?"""
    known = world.coefficients.devices.get(test.device.name)
    fit = known.operators.get("gemm-fp8" if test.precision == "fp8" else "gemm") if known else None
    return fit is not None and fit.rows > 0 and test.precision != "fp4"


def _run(test: ClosedLoop, world: PerformanceModel, rounds: int) -> list[RequestRecord]:
    random = Random(f"{test.input_tokens}/{test.output_tokens}/{test.concurrency}")
    left = test.concurrency * rounds
    number = test.concurrency

    def request(index: int, arrival_s: float) -> Request:
        low = 0.8 if test.varied else 1.0
        prompt, answer = (
            max(1, round(size * random.uniform(low, 1.0))) for size in (test.input_tokens, test.output_tokens)
        )
        if index < test.concurrency:
            answer = random.randint(1, answer)
        return Request(index, arrival_s, test.model.name, prompt, answer)

    def follow_up(record: RequestRecord) -> Request | None:
        nonlocal left, number
        if left == 0:
            return None
        left -= 1
        number += 1
        return request(number - 1, record.last_token_s)

    first = [request(i, 0.0) for i in range(test.concurrency)]
    return simulate(world, _setup(test), first, follow_up=follow_up)
