"""Memory of a replica: what its weights take, and how many tokens of KV cache the rest holds."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hw_profiles.schema import ModelSpec

MEMORY_UTILISATION = 0.9
"""vLLM's default `gpu_memory_utilization`."""
RUNTIME_BYTES = 1.3e9
"""Context, collectives' buffers and captured graphs of one process."""
PROFILED_TOKENS = 8192
"""Tokens of the forward pass by which vLLM measures peak activation memory."""
MIN_KV_TOKENS = 2048
"""A replica that holds less than this (or than the model's own context) serves nobody."""


class InfeasibleError(ValueError):
    """A model that does not fit the devices, or devices that cannot run it; the message names both."""


def kv_bytes_per_token_per_device(model: ModelSpec, tp: int, pp: int) -> float:
    """KV heads are split over tp, and repeated when there are fewer heads than devices."""
    heads = max(1, -(-model.kv_heads // tp))
    per_head = model.kv_bytes_per_token / (model.kv_heads * model.layers)
    return float(per_head * heads * -(-model.layers // pp))


def weight_bytes_per_device(model: ModelSpec, tp: int, pp: int, ep: int = 1) -> float:
    """Weights on one device; `ep` > 1 spreads the experts over that many replicas of the rest."""
    total = float(model.weight_bytes)
    if model.moe is not None and ep > 1:
        experts = 3.0 * model.hidden_size * model.moe.expert_intermediate_size * model.moe.experts
        total -= experts * model.layers * model.bytes_per_weight * (1.0 - 1.0 / ep)
    return total / (tp * pp)


def activation_bytes(model: ModelSpec, tp: int) -> float:
    """Peak activations of the profiling pass: the widest layer, and fp32 logits of 256 sequences."""
    width = 4 * model.hidden_size + 3 * model.intermediate_size // tp
    if model.moe is not None:
        width = 4 * model.hidden_size + 3 * model.moe.top_k * model.moe.expert_intermediate_size // tp
    return 2.0 * PROFILED_TOKENS * width + 2 * 4.0 * 256 * model.vocab_size


def kv_capacity_tokens(
    model: ModelSpec, memory_bytes: float, *, tp: int, pp: int, ep: int = 1, class_: str = "gpu"
) -> int:
    """Tokens of KV cache that fit the smallest device of the group. Negative when the weights do not."""
    reserve = activation_bytes(model, tp) + (RUNTIME_BYTES if class_ == "gpu" else 0.0)
    free = memory_bytes * MEMORY_UTILISATION - weight_bytes_per_device(model, tp, pp, ep) - reserve
    return int(free / kv_bytes_per_token_per_device(model, tp, pp))
