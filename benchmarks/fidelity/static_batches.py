"""Static batches (Splitwise's runs): equal prompts at once, then decode until all are done.

The engine is of 2023: its overheads are fitted per device kind and model on the other folds' prompt and
token times, and it takes all prompts of a batch in one iteration. Batches that its KV cache cannot hold
were swapped or queued in ways that the table does not tell: they are judged as a regime of their own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from benchmarks.fidelity.drive import Setup, UnservedError, simulate
from benchmarks.fidelity.errors import Group, Ledger
from benchmarks.fidelity.folds import folds
from hw_profiles.performance import InfeasibleError, PerformanceModel
from hw_profiles.performance.calibrate import names, splitwise
from hw_profiles.performance.calibrate.engine import IterationSample, fit_iterations
from hw_profiles.performance.calibrate.rows import DataDir
from hw_profiles.performance.calibrate.splitwise import BatchRun
from hw_profiles.performance.coefficients import EngineFit
from hw_profiles.schema import DeviceProfile, ModelSpec
from loop.contracts import Finish, Request
from loop.contracts.ports import PlanError

SOURCE = "static batches"
MIN_SAMPLES = 6
BARE = EngineFit(base_s=0.0, per_sequence_s=0.0)
Pair = tuple[DeviceProfile, ModelSpec]


def judge(data: DataDir, performance: PerformanceModel, ledger: Ledger, *, quick: bool) -> None:
    """Every row whose device and model are carried, 5 folds by configuration."""
    groups: dict[tuple[str, str], list[BatchRun]] = defaultdict(list)
    pairs: dict[tuple[str, str], Pair] = {}
    for run in splitwise.read(data):
        device, model = names.device(run.hardware), names.model(run.model)
        if device is None or model is None:
            ledger.left_out[f"{SOURCE}: no profile of {run.hardware if device is None else run.model}"] += 1
            continue
        key = (device.name, model.name)
        groups[key].append(run)
        pairs[key] = (device, model)
    for key, runs in sorted(groups.items()):
        for training, judged in folds(runs, _key):
            engine = _engine(performance, training, pairs[key])
            # Too few other rows: the packaged engine, which is a later one but saw none of these.
            world = performance if engine is None else performance.with_engine(engine)
            _judge_fold(world, judged, pairs[key], ledger, quick=quick)


def _key(run: BatchRun) -> tuple[int, ...]:
    return (run.tp, run.prompt_tokens, run.batch, run.output_tokens)


def _setup(run: BatchRun, pair: Pair) -> Setup:
    tokens = run.batch * run.prompt_tokens
    return Setup(*pair, tp=run.tp, max_num_seqs=run.batch, max_num_batched_tokens=tokens + run.batch)


def _holds(capacity_tokens: int, run: BatchRun) -> bool:
    return run.batch * (run.prompt_tokens + run.output_tokens) <= capacity_tokens


def _ended_early(run: BatchRun) -> bool:
    """The row's own times say that fewer tokens came than it states: how many is not known."""
    return run.e2e_s < 0.9 * (run.prompt_s + (run.output_tokens - 1) * run.token_s)


def _engine(performance: PerformanceModel, runs: Sequence[BatchRun], pair: Pair) -> EngineFit | None:
    bare = performance.with_engine(BARE)
    samples = []
    for run in runs:
        try:
            perf = _setup(run, pair).replica(bare)
        except InfeasibleError:
            continue
        if not _holds(perf.kv_capacity_tokens, run):
            continue
        n, prompt = run.batch, run.prompt_tokens
        samples.append(IterationSample(perf.iteration_s(0, 0, ((prompt, 0),) * n), n, run.prompt_s))
        step_s = perf.decode_step_s(n, n * (prompt + run.output_tokens // 2))
        if run.token_s > 0:
            samples.append(IterationSample(step_s, n, run.token_s))
    return fit_iterations(samples, source="splitwise") if len(samples) >= MIN_SAMPLES else None


def _judge_fold(
    world: PerformanceModel, runs: Sequence[BatchRun], pair: Pair, ledger: Ledger, *, quick: bool
) -> None:
    cache: dict[tuple[int, ...], tuple[float, float, float] | None] = {}
    for run in runs[:: 5 if quick else 1]:
        key = _key(run)
        if key not in cache:
            cache[key] = _predict(world, run, pair)
        predicted = cache[key]
        if predicted is None:
            ledger.left_out[f"{SOURCE}: {pair[1].name} tp{run.tp} does not fit {pair[0].name}"] += 1
            continue
        holds = _holds(_setup(run, pair).replica(world).kv_capacity_tokens, run)
        regime = "one request" if run.batch == 1 else "batch" if holds else "batch beyond the KV cache"
        group = Group(
            SOURCE,
            pair[0].name,
            f"{run.model} tp{run.tp}",
            "vllm 2023",
            regime,
            table=holds and pair[0].name in world.coefficients.devices,
        )
        ttft_s, tpot_s, e2e_s = predicted
        ledger.add(group, ttft=(ttft_s, run.prompt_s), tpot=(tpot_s, run.token_s))
        if _ended_early(run):
            ledger.left_out[f"{SOURCE}: E2E of an answer that ended before its stated length"] += 1
        else:
            ledger.add(group, e2e=(e2e_s, run.e2e_s))


def _predict(world: PerformanceModel, run: BatchRun, pair: Pair) -> tuple[float, float, float] | None:
    """(prompt, token, end to end) seconds of the batch's last request."""
    requests = [Request(i, 0.0, pair[1].name, run.prompt_tokens, run.output_tokens) for i in range(run.batch)]
    try:
        records = simulate(world, _setup(run, pair), requests)
    except (PlanError, InfeasibleError, UnservedError):
        return None
    if any(record.finish is not Finish.OK for record in records):
        return None
    start_s = records[0].arrival_s
    first_s = max(r.first_token_s for r in records) - start_s
    last_s = max(r.last_token_s for r in records) - start_s
    return first_s, (last_s - first_s) / max(1, run.output_tokens - 1), last_s
