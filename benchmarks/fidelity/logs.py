"""Per-request serving logs (LLMServingSim's runs of vLLM), replayed request by request."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.fidelity.drive import Setup, UnservedError, simulate
from benchmarks.fidelity.errors import Group, Ledger
from hw_profiles.performance import InfeasibleError, PerformanceModel
from hw_profiles.performance.calibrate import serving_logs
from hw_profiles.performance.calibrate.engine import fit_serving
from hw_profiles.performance.calibrate.rows import DataDir
from hw_profiles.performance.calibrate.serving_logs import ServedRun
from hw_profiles.performance.defaults import assumed
from loop.contracts import Finish, Request
from loop.contracts.ports import PlanError

SOURCE = "serving logs"


def judge(data: DataDir, performance: PerformanceModel, ledger: Ledger, *, quick: bool) -> None:
    """Replay every run with engine overheads that its own requests had no part in; `quick` is no quicker: a
    run cut short is another run."""
    del quick
    skipped: list[str] = []
    runs = serving_logs.read(data, skipped)
    for line in skipped:
        ledger.left_out[f"{SOURCE}: {line}"] += 1
    known = {source["sha256"] for source in performance.coefficients.provenance.get("sources", [])}
    for run in runs:
        sha256 = data.used[f"{run.name}/requests.jsonl"].sha256
        try:
            world = performance if sha256 not in known else _without(run, runs, performance)
            _replay(run, world, ledger)
        except (InfeasibleError, PlanError, UnservedError) as error:
            ledger.left_out[f"{SOURCE}: {run.name}: {error}"] += 1


def _without(run: ServedRun, runs: Sequence[ServedRun], performance: PerformanceModel) -> PerformanceModel:
    """Engine overheads fitted on the other runs: of this device kind, else of any; else the assumed ones."""
    others = [other for other in runs if other.name != run.name]
    same = [other for other in others if other.device.name == run.device.name]
    start = assumed().classes["gpu"].engine
    if not others:
        return performance.with_engine(start)
    return performance.with_engine(fit_serving(performance, same or others, start))


def _replay(run: ServedRun, world: PerformanceModel, ledger: Ledger) -> None:
    setup = Setup(run.device, run.model, run.tp, run.pp, run.dp, run.max_num_seqs, run.max_num_batched_tokens)
    measured = run.requests
    requests = [
        Request(i, r.queued_s, run.model.name, r.input_tokens, r.output_tokens)
        for i, r in enumerate(measured)
    ]
    group = Group(
        SOURCE,
        run.device.name,
        f"{run.model.name} tp{run.tp} dp{run.dp}",
        run.engine,
        "open loop",
        table=run.device.name in world.coefficients.devices,
    )
    for record in simulate(world, setup, requests):
        if record.finish is not Finish.OK:
            ledger.left_out[f"{SOURCE}: {run.name}: request {record.finish}"] += 1
            continue
        real = measured[record.id]
        ttft_s = record.first_token_s - record.arrival_s
        e2e_s = record.last_token_s - record.arrival_s
        pairs = {"ttft": (ttft_s, real.ttft_s), "e2e": (e2e_s, real.e2e_s)}
        if real.output_tokens > 1:
            pairs["tpot"] = ((e2e_s - ttft_s) / (real.output_tokens - 1), real.tpot_s)
        ledger.add(group, **pairs)
