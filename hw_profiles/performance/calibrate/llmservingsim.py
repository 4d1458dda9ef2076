"""Reader of LLMServingSim's layer profiles: `profiler/perf/<device>/<org>/<model>/<dtype>/tp<N>/`.

Times are microseconds of one call on one device. `attention.csv` holds a batch of one prompt chunk
(`prefill_chunk` tokens after `kv_prefill` of context) and `n_decode` sequences of `kv_decode` context each.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from hw_profiles.performance.calibrate import names
from hw_profiles.performance.calibrate.rows import DataDir, DataError, Sample
from hw_profiles.performance.calibrate.shapes import (
    decode_sample,
    elementwise_bytes,
    gemm_sample,
    moe_sample,
    prefill_sample,
)
from hw_profiles.performance.operators import QUERY_BLOCK_TOKENS
from hw_profiles.schema import ModelSpec

PATTERN = "llmservingsim/profiler/perf/*/*/*/*/tp*/{}.csv"
US = 1e-6
ELEMENTWISE = {"layernorm": 2.0, "qk_norm": 1.0, "rotary_emb": 1.0, "act_fn": 1.0}
"""Calls per layer of the operators that are not matrix products."""


@dataclass(slots=True)
class Profile:
    """Samples of one device kind, by operator; and the cost of idle query blocks in mixed batches."""

    samples: dict[str, list[Sample]] = field(default_factory=lambda: defaultdict(list))
    idle_block_s: list[float] = field(default_factory=list)


def read(data: DataDir, skipped: list[str]) -> dict[str, Profile]:
    """Profiles by device kind; directories of devices or models that are not carried go to `skipped`."""
    found: dict[str, Profile] = defaultdict(Profile)
    for path in data.glob(PATTERN.format("dense")):
        place = path.parent.relative_to(data.root)
        device_name, model_name = place.parts[3], place.parts[5]
        device, model = names.device(device_name), names.model(model_name)
        if device is None or model is None:
            skipped.append(f"{place}: no profile of {device_name if device is None else model_name}")
            continue
        tp = _tensor_parallel(path)
        profile = found[device.name]
        _read_dense(data, path, model, tp, profile)
        _read_head(data, path.with_name("per_sequence.csv"), model, tp, profile)
        _read_attention(data, path.with_name("attention.csv"), model, tp, profile)
        _read_moe(data, path.with_name("moe.csv"), model, tp, profile)
    return dict(found)


def _tensor_parallel(path: Path) -> int:
    match = re.fullmatch(r"tp(\d+)", path.parent.name)
    if match is None or int(match[1]) < 1:
        raise DataError(f"{path.parent}: not a directory name of the form tpN")
    return int(match[1])


def _read_dense(data: DataDir, path: Path, model: ModelSpec, tp: int, into: Profile) -> None:
    head = model.head_dim
    query, keys = model.heads // tp * head, max(1, model.kv_heads // tp) * head
    inner = model.intermediate_size // tp
    gemms = {
        "qkv_proj": (query + 2 * keys, model.hidden_size),
        "o_proj": (model.hidden_size, query),
        "gate_up_proj": ((model.mlp_matrices - 1) * inner, model.hidden_size),
        "down_proj": (model.hidden_size, inner),
    }
    elementwise: dict[float, float] = defaultdict(float)
    for row in data.rows(path):
        layer, tokens, time_s = row.text("layer"), row.positive("tokens"), row.positive("time_us") * US
        if layer in gemms:
            n, k = gemms[layer]
            into.samples["gemm"].append(gemm_sample(tokens, n, k, time_s))
        elif layer in ELEMENTWISE:
            elementwise[tokens] += ELEMENTWISE[layer] * time_s
    shape = (float(model.hidden_size), 1.0 if model.moe is not None else float(inner))
    for tokens, time_s in sorted(elementwise.items()):
        moved = elementwise_bytes(model, tp, tokens)
        into.samples["elementwise"].append(Sample(shape, tokens, 1.0, 0.0, moved, time_s))


def _read_head(data: DataDir, path: Path, model: ModelSpec, tp: int, into: Profile) -> None:
    if not path.is_file():
        return
    for row in data.rows(path):
        count, time_s = row.positive("sequences"), row.positive("time_us") * US
        if row.text("layer") == "lm_head":
            into.samples["gemm"].append(gemm_sample(count, model.vocab_size // tp, model.hidden_size, time_s))
        elif row.text("layer") == "sampler":
            moved = 4.0 * count * model.vocab_size
            into.samples["sampler"].append(Sample((1.0,), count, 1.0, 0.0, moved, time_s))


def _read_moe(data: DataDir, path: Path, model: ModelSpec, tp: int, into: Profile) -> None:
    """`activated_experts` are what the batch touches, so they stand for the experts held locally."""
    if not path.is_file() or model.moe is None:
        return
    for row in data.rows(path):
        tokens, active = row.positive("tokens"), row.positive("activated_experts")
        into.samples["moe"].append(moe_sample(model, tp, tokens, active, row.positive("time_us") * US))


def _read_attention(data: DataDir, path: Path, model: ModelSpec, tp: int, into: Profile) -> None:
    if not path.is_file():
        return
    heads, kv_heads = model.heads // tp, max(1, model.kv_heads // tp)
    table: dict[tuple[int, int, int, int], float] = {}
    for row in data.rows(path):
        key = tuple(
            int(row.number(column)) for column in ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode")
        )
        chunk, context, n, kv = key
        time_s = row.positive("time_us") * US
        table[(chunk, context, n, kv)] = time_s
        if n == 0 and chunk > 0:
            into.samples["attention_prefill"].append(
                prefill_sample(chunk, context, (heads, kv_heads, model.head_dim), time_s)
            )
        elif chunk == 0 and n > 0 and kv > 0:
            into.samples["attention_decode"].append(
                decode_sample(n, n * kv, (heads, kv_heads, model.head_dim), time_s)
            )
    _split_mixed(table, (heads, kv_heads, model.head_dim), into)


def _split_mixed(
    table: dict[tuple[int, int, int, int], float], shape: tuple[int, int, int], into: Profile
) -> None:
    """What decoding sequences add to a batch that holds a prompt chunk, chunk by chunk.

    Added time = attention_mixed(n, kv) + n * chunk blocks * idle_block: in the variable-length kernel a
    decoding sequence is launched as many query blocks as the longest chunk needs, all but one idle.
    """
    added: dict[tuple[int, int], list[tuple[int, float]]] = defaultdict(list)
    for (chunk, context, n, kv), time_s in sorted(table.items()):
        alone_s = table.get((chunk, context, 0, 0))
        if chunk > 0 and n > 0 and kv > 0 and alone_s is not None and context <= 4096:
            added[(n, kv)].append((chunk, time_s - alone_s))
    heads = shape[0]
    for (n, kv), pairs in sorted(added.items()):
        small = [extra for chunk, extra in pairs if chunk <= 128]
        large = [(chunk, extra) for chunk, extra in pairs if chunk >= 1024]
        base = float(np.median(small)) if small else 0.0
        if base <= 1e-6:
            continue
        into.samples["attention_mixed"].append(decode_sample(n, n * kv, shape, base))
        if n >= 16 and kv <= 1024:
            blocks = [(extra - base) * QUERY_BLOCK_TOKENS / (n * heads * chunk) for chunk, extra in large]
            into.idle_block_s.extend(blocks)
