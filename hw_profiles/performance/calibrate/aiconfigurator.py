"""Reader of aiconfigurator's kernel tables: `aiconfigurator/<system>/<op>/<framework>/<version>/*.csv.gz`.

Latencies are milliseconds. Only bf16 and fp8 rows of the kernels that vLLM runs are used.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from hw_profiles.performance.calibrate import names
from hw_profiles.performance.calibrate.rows import DataDir, Sample
from hw_profiles.performance.calibrate.shapes import decode_sample, gemm_sample, moe_call, prefill_sample

MS = 1e-3
CUSTOM_MAX_BYTES = 8 * 2**20
"""vLLM's own all-reduce takes messages up to this size; NCCL the rest."""
MIN_GEMM_SIDE = 256
"""Narrower matrices do not occur in the models that are served."""
ROUTING = "power_law_1.01"
"""Expert popularity nearest to what routers really do; the tables also hold balanced routing."""


def read(data: DataDir, skipped: list[str]) -> dict[str, dict[str, list[Sample]]]:
    """Samples by device kind and operator."""
    found: dict[str, dict[str, list[Sample]]] = defaultdict(lambda: defaultdict(list))
    readers = {
        "gemm/vllm/*/gemm_perf": _gemm,
        "attention/vllm/*/context_attention_perf": _context,
        "attention/vllm/*/generation_attention_perf": _generation,
        "moe/vllm/*/moe_perf": _moe,
        "comm/vllm/*/custom_allreduce_perf": _custom_all_reduce,
        "comm/nccl/*/nccl_perf": _nccl,
    }
    for pattern, reader in readers.items():
        for path in data.glob(f"aiconfigurator/*/{pattern}.csv.gz"):
            system = path.relative_to(data.root).parts[1]
            device = names.device(system)
            if device is None:
                skipped.append(f"{path.relative_to(data.root)}: no profile of {system}")
                continue
            reader(data, path, found[device.name])
    return {kind: dict(ops) for kind, ops in found.items()}


def _gemm(data: DataDir, path: Path, into: dict[str, list[Sample]]) -> None:
    for row in data.rows(path):
        m, n, k = row.positive("m"), row.positive("n"), row.positive("k")
        if min(n, k) < MIN_GEMM_SIDE:
            continue
        dtype = row.text("gemm_dtype")
        time_s = row.positive("latency") * MS
        if dtype == "bfloat16":
            into["gemm"].append(gemm_sample(m, n, k, time_s))
        elif dtype == "fp8":
            into["gemm-fp8"].append(gemm_sample(m, n, k, time_s, weight_bytes=1.0))


def _context(data: DataDir, path: Path, into: dict[str, list[Sample]]) -> None:
    for row in data.rows(path):
        if row.number("batch_size") != 1:
            continue
        shape = (
            int(row.positive("num_heads")),
            int(row.positive("num_key_value_heads")),
            int(row.positive("head_dim")),
        )
        time_s = row.positive("latency") * MS
        into["attention_prefill"].append(
            prefill_sample(row.positive("isl"), row.number("step"), shape, time_s)
        )


def _generation(data: DataDir, path: Path, into: dict[str, list[Sample]]) -> None:
    for row in data.rows(path):
        n, length = row.positive("batch_size"), row.number("step") + row.positive("isl")
        shape = (
            int(row.positive("num_heads")),
            int(row.positive("num_key_value_heads")),
            int(row.positive("head_dim")),
        )
        into["attention_decode"].append(decode_sample(n, n * length, shape, row.positive("latency") * MS))


def _moe(data: DataDir, path: Path, into: dict[str, list[Sample]]) -> None:
    for row in data.rows(path):
        if row.text("distribution") != ROUTING or row.number("moe_ep_size") != 1:
            continue
        dtype = row.text("moe_dtype")
        if dtype not in {"bfloat16", "fp8"}:
            continue
        tokens, top_k, experts = (row.positive(key) for key in ("num_tokens", "topk", "num_experts"))
        sample = moe_call(
            hidden=row.positive("hidden_size"),
            inter=row.positive("inter_size") / row.positive("moe_tp_size"),
            top_k=top_k,
            tokens=tokens,
            rows=tokens * top_k,
            active=experts * (1.0 - (1.0 - top_k / experts) ** tokens),
            time_s=row.positive("latency") * MS,
            weight_bytes=2.0 if dtype == "bfloat16" else 1.0,
        )
        into["moe" if dtype == "bfloat16" else "moe-fp8"].append(sample)


def _custom_all_reduce(data: DataDir, path: Path, into: dict[str, list[Sample]]) -> None:
    for row in data.rows(path):
        if row.text("backend") == "vllm_graph" and row.positive("message_size") <= CUSTOM_MAX_BYTES:
            into["all_reduce"].append(
                _all_reduce_sample(
                    row.positive("num_gpus"), row.positive("message_size"), row.positive("latency")
                )
            )


def _nccl(data: DataDir, path: Path, into: dict[str, list[Sample]]) -> None:
    for row in data.rows(path):
        if row.text("op_name") != "all_reduce" or row.text("nccl_dtype") != "half":
            continue
        size = row.positive("message_size")
        if size > CUSTOM_MAX_BYTES:
            into["all_reduce"].append(
                _all_reduce_sample(row.positive("num_gpus"), size, row.positive("latency"))
            )


def _all_reduce_sample(devices: float, message_bytes: float, latency_ms: float) -> Sample:
    """A ring moves 2 (p - 1) / p of the message through each link."""
    moved = 2.0 * (devices - 1.0) / devices * message_bytes
    return Sample((devices,), message_bytes, 1.0, 0.0, moved, latency_ms * MS)
