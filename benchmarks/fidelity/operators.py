"""Operator and layer tables that the coefficients were not fitted on: Vidur, Frontier, and Helix by folds.

These have no requests: the error of one operator's (or one layer's) time is reported as `op`.
Helix gives whole layers on devices that no other table covers: each model's rows are judged by a roofline
fitted on the other model's.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

from benchmarks.fidelity.errors import Group, Ledger
from hw_profiles.performance import PerformanceModel
from hw_profiles.performance.calibrate import helix, names
from hw_profiles.performance.calibrate.helix import LayerTime
from hw_profiles.performance.calibrate.node import node_of
from hw_profiles.performance.calibrate.rows import DataDir, Row, Sample
from hw_profiles.performance.calibrate.run import fit_whole_layers, helix_samples
from hw_profiles.performance.coefficients import DeviceCoefficients, EngineFit
from hw_profiles.performance.operators import Link, Multipliers, StageOperators
from hw_profiles.schema import DeviceProfile, ModelSpec

SOURCE = "operators"
MS = 1e-3
BARE = EngineFit(base_s=0.0, per_sequence_s=0.0)
HELIX_PROMPT_TOKENS = 763
HELIX_CONTEXT_TOKENS = 763 + 116
"""Helix profiles with the Azure conversation trace; its mean lengths stand in for what is not stated."""
VIDUR_OPS = ("attn_pre_proj", "attn_post_proj", "mlp_up_proj", "mlp_down_proj")


def judge(data: DataDir, performance: PerformanceModel, ledger: Ledger, *, quick: bool) -> None:
    """All tables that are there: every third row of the long ones, `quick` every twentieth."""
    step = 20 if quick else 3
    _vidur_mlp(data, performance, ledger, step)
    _vidur_all_reduce(data, performance, ledger, step)
    _frontier_attention(data, performance, ledger, step)
    _helix(data, performance, ledger)


def stage(
    known: DeviceCoefficients, device: DeviceProfile, model: ModelSpec, tp: int, layers: int = 1
) -> StageOperators:
    """Operators of a few layers, without the engine."""
    node = node_of(device, 2)
    a, b = node.devices
    return StageOperators(
        replace(known, engine=BARE),
        device,
        model,
        layers=layers,
        tp=tp,
        ep=1,
        link=Link(node.bandwidth_bytes_per_s(a, b), node.latency_s(a, b)),
        multipliers=Multipliers(),
    )


def _vidur_mlp(data: DataDir, performance: PerformanceModel, ledger: Ledger, step: int) -> None:
    """The four matrix products of a layer, summed."""
    for path in data.glob("vidur/compute/*/*/*/mlp.csv.gz"):
        _, _, device_name, _, model_name, _ = path.relative_to(data.root).parts
        device, model = names.device(device_name), names.model(model_name)
        if device is None or model is None:
            missing = device_name if device is None else model_name
            ledger.left_out[f"{SOURCE}: vidur: no profile of {missing}"] += 1
            continue
        known = performance.coefficients.of(device.name, device.class_)
        stages: dict[int, StageOperators] = {}
        for number, row in enumerate(data.rows(path)):
            if number % step:
                continue
            tp = int(row.positive("num_tensor_parallel_workers"))
            tokens = int(row.positive("num_tokens"))
            if model.heads % tp:
                continue
            at = stages.get(tp) or stages.setdefault(tp, stage(known, device, model, tp))
            measured_s = sum(row.number(f"time_stats.{op}.median") for op in VIDUR_OPS) * MS
            group = _group(
                "vidur matrix products", device, f"{model.name} tp{tp}", performance, _size(tokens)
            )
            ledger.add(group, op=(at.matrix_products_s(tokens), measured_s))


def _vidur_all_reduce(data: DataDir, performance: PerformanceModel, ledger: Ledger, step: int) -> None:
    model = names.model("Llama-2-7b-hf")
    for path in data.glob("vidur/network/*/all_reduce.csv.gz"):
        name = path.parent.name.partition("_")[0]
        device = names.device(name)
        if device is None or model is None:
            ledger.left_out[f"{SOURCE}: vidur: no profile of {name}"] += 1
            continue
        known = performance.coefficients.of(device.name, device.class_)
        for number, row in enumerate(data.rows(path)):
            devices = int(row.positive("num_workers"))
            if number % step or devices < 2 or row.number("devices_per_node") != devices:
                continue
            size = row.positive("size")
            at = stage(known, device, model, 1)
            group = _group(
                "vidur all-reduce", device, f"{devices} devices", performance, _size(size, "bytes")
            )
            ledger.add(
                group, op=(at.all_reduce_s(size, devices), row.positive("time_stats.all_reduce.median") * MS)
            )


def _frontier_attention(data: DataDir, performance: PerformanceModel, ledger: Ledger, step: int) -> None:
    for path in data.glob("frontier/compute/*/**/attention.csv.gz"):
        parts = path.relative_to(data.root).parts
        device, model = names.device(parts[2]), names.model(parts[-2])
        if device is None or model is None:
            ledger.left_out[
                f"{SOURCE}: frontier: no profile of {parts[2] if device is None else parts[-2]}"
            ] += 1
            continue
        known = performance.coefficients.of(device.name, device.class_)
        stages: dict[int, StageOperators] = {}
        for number, row in enumerate(data.rows(path)):
            if number % step or _is_true(row, "is_mixed_batch") or not row.has("batch_size"):
                continue
            tp = int(row.positive("num_tensor_parallel_workers"))
            at = stages.get(tp) or stages.setdefault(tp, stage(known, device, model, tp))
            predicted_s, column = _attention(row, at)
            if column:
                group = _group(f"frontier {column}", device, f"{model.name} tp{tp}", performance, "attention")
                ledger.add(group, op=(predicted_s, row.number(f"time_stats.{column}.median") * MS))


def _attention(row: Row, at: StageOperators) -> tuple[float, str]:
    """(predicted seconds, column of the measured ones); an empty column for rows of no use here."""
    batch, context = int(row.positive("batch_size")), int(row.number("kv_cache_size"))
    chunk = int(row.number("prefill_chunk_size"))
    if _is_true(row, "is_prefill"):
        if batch != 1 or chunk < 1:
            return 0.0, ""
        return at.prefill_attention_s(chunk, context), "attn_prefill"
    if context < 1:
        return 0.0, ""
    return at.decode_attention_s(batch, float(batch * context)), "attn_decode"


def _helix(data: DataDir, performance: PerformanceModel, ledger: Ledger) -> None:
    skipped: list[str] = []
    rows = helix.read(data, skipped)
    for line in skipped:
        ledger.left_out[f"{SOURCE}: helix: {line}"] += 1
    by_device: dict[str, dict[str, list[LayerTime]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        by_device[row.device.name][row.model.name].append(row)
    for by_model in by_device.values():
        for name, judged in by_model.items():
            _helix_fold(judged, by_model, name, performance, ledger)


def _helix_fold(
    judged: Sequence[LayerTime],
    by_model: Mapping[str, Sequence[LayerTime]],
    name: str,
    performance: PerformanceModel,
    ledger: Ledger,
) -> None:
    device, model = judged[0].device, judged[0].model
    known = performance.coefficients.of(device.name, device.class_)
    if known.operators["gemm"].source == "helix":
        others = [row for other, rows in by_model.items() if other != name for row in rows]
        samples: list[Sample] = helix_samples(others).get(device.name, [])
        first = performance.coefficients.classes[device.class_].operators["gemm"]
        gemm = fit_whole_layers(samples, device, first) if samples else first
        known = replace(known, operators={**known.operators, "gemm": gemm})
    stages = {tp: stage(known, device, model, tp) for tp in {row.tp for row in judged}}
    for row in judged:
        if model.heads % row.tp:
            continue
        at, batch = stages[row.tp], int(row.batch)
        predicted_s = at.dense_s(batch)
        if row.phase == "decode":
            predicted_s += at.decode_attention_s(batch, float(batch * HELIX_CONTEXT_TOKENS))
        else:
            whole, rest = divmod(batch, HELIX_PROMPT_TOKENS)
            predicted_s += whole * at.prefill_attention_s(HELIX_PROMPT_TOKENS, 0)
            predicted_s += at.prefill_attention_s(rest, 0)
        group = _group("helix layer", device, f"{model.name} tp{row.tp}", performance, row.phase)
        ledger.add(group, op=(predicted_s, row.time_s))


def _group(
    source: str, device: DeviceProfile, what: str, performance: PerformanceModel, regime: str
) -> Group:
    known = performance.coefficients.devices.get(device.name)
    table = (
        known is not None and known.operators["gemm"].rows > 0 and known.operators["gemm"].source != "helix"
    )
    return Group(source, device.name, what, "", regime, table=table)


def _size(value: float, unit: str = "tokens") -> str:
    if unit == "bytes":
        return "<= 1 MiB" if value <= 2**20 else "> 1 MiB"
    return "<= 256 tokens" if value <= 256 else "> 256 tokens"


def _is_true(row: Row, key: str) -> bool:
    return row.has(key) and row.text(key).lower() == "true"
