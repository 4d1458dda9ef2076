"""Measurements as samples: the FLOPs and bytes that `operators.py` will charge for the same call."""

from __future__ import annotations

from hw_profiles.performance.calibrate.rows import Sample
from hw_profiles.performance.operators import ACTIVATION_BYTES, ELEMENTWISE_TENSORS
from hw_profiles.schema import ModelSpec

AttentionShape = tuple[int, int, int]
"""(heads, kv_heads, head_dim) of one device."""


def gemm_sample(m: float, n: float, k: float, time_s: float, *, weight_bytes: float = 2.0) -> Sample:
    """(m x k) by (k x n)."""
    moved = weight_bytes * n * k + ACTIVATION_BYTES * m * (n + k)
    return Sample((n, k), m, 1.0, 2.0 * m * n * k, moved, time_s)


def decode_sample(n: float, kv_tokens: float, shape: AttentionShape, time_s: float) -> Sample:
    """`n` one-token queries over `kv_tokens` of context in total."""
    heads, kv_heads, head_dim = shape
    moved = 2.0 * ACTIVATION_BYTES * (kv_tokens * kv_heads + n * heads) * head_dim
    flops = 4.0 * kv_tokens * heads * head_dim
    return Sample(tuple(map(float, shape)), n, kv_tokens / n, flops, moved, time_s)


def prefill_sample(chunk: float, context: float, shape: AttentionShape, time_s: float) -> Sample:
    """A causal chunk over the context before it."""
    heads, kv_heads, head_dim = shape
    moved = 2.0 * ACTIVATION_BYTES * ((context + chunk) * kv_heads + chunk * heads) * head_dim
    flops = 4.0 * chunk * (context + 0.5 * chunk) * heads * head_dim
    return Sample(tuple(map(float, shape)), chunk, context + chunk, flops, moved, time_s)


def moe_sample(
    model: ModelSpec,
    tp: int,
    tokens: float,
    active: float,
    time_s: float,
) -> Sample:
    """Routed experts of one layer that touch `active` experts on this device."""
    if model.moe is None:
        raise ValueError(f"{model.name} has no experts")
    inter = model.moe.expert_intermediate_size / tp
    return moe_call(
        hidden=model.hidden_size,
        inter=inter,
        top_k=model.moe.top_k,
        tokens=tokens,
        rows=tokens * model.moe.top_k,
        active=active,
        time_s=time_s,
    )


def moe_call(
    *,
    hidden: float,
    inter: float,
    top_k: float,
    tokens: float,
    rows: float,
    active: float,
    time_s: float,
    weight_bytes: float = 2.0,
    matrices: int = 3,
) -> Sample:
    """`rows` = (token, expert) pairs computed here over `active` experts of this device."""
    weights = matrices * hidden * inter
    moved = weight_bytes * active * weights + 2.0 * ACTIVATION_BYTES * rows * hidden
    return Sample((hidden, inter, top_k), tokens, active, 2.0 * rows * weights, moved, time_s)


def elementwise_bytes(model: ModelSpec, tp: int, tokens: float) -> float:
    """Bytes that norms, residuals, rope and activation of one layer move."""
    moved = float(ACTIVATION_BYTES * tokens * ELEMENTWISE_TENSORS * model.hidden_size)
    if model.moe is None:
        moved += ACTIVATION_BYTES * tokens * 3 * model.intermediate_size / tp
    return moved
