"""Times of the operators of one pipeline stage on one device kind.

A transformer layer is: norms, qkv GEMM, rope, attention, output GEMM, all-reduce, norm, gate-up GEMM,
activation, down GEMM (or the routed experts), all-reduce. All but attention cost by the number of tokens in
the iteration alone; attention costs by who attends to how much.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hw_profiles.performance.coefficients import DeviceCoefficients, Grid, OperatorFit

if TYPE_CHECKING:
    from hw_profiles.schema import DeviceProfile, ModelSpec

ACTIVATION_BYTES = 2
NODE_LATENCY_S = 1.2e-5
"""Links faster than this are inside a node: their latency is in the collectives' measured launch time."""
QUERY_BLOCK_TOKENS = 128
"""Query rows of one thread block of the attention kernel."""
ELEMENTWISE_TENSORS = 14
"""Hidden-size tensors that norms, residual adds, rope and cache writes of one layer read or write."""


@dataclass(frozen=True, slots=True)
class Link:
    """The slowest path inside a group of devices."""

    bytes_per_s: float
    latency_s: float


@dataclass(frozen=True, slots=True)
class Multipliers:
    """Factors on the nominal times, per op class; all 1.0 in the nominal world."""

    dense: float = 1.0
    attention: float = 1.0
    communication: float = 1.0
    overhead: float = 1.0
    start: float = 1.0


def peak_flops(device: DeviceProfile, dtype: str) -> float:
    """FLOP/s at this precision or the next wider one; 0.0 when the device cannot run a transformer."""
    try:
        return float(device.flops_for(dtype))
    except ValueError:
        return 0.0


class StageOperators:
    """Operators of `layers` layers of `model`, sharded `tp` ways, experts spread over `ep` such groups."""

    def __init__(
        self,
        coefficients: DeviceCoefficients,
        device: DeviceProfile,
        model: ModelSpec,
        *,
        layers: int,
        tp: int,
        ep: int,
        link: Link,
        multipliers: Multipliers,
    ) -> None:
        self._fits = coefficients.operators
        self._model = model
        self._layers = layers
        self._tp = tp
        self._ep = ep
        self._link = link
        self._by = multipliers
        self._bandwidth = float(device.memory_bytes_per_s)
        self._peak = peak_flops(device, model.weight_dtype)
        self._peak_wide = peak_flops(device, "bf16")
        self._scale = coefficients.engine.kernel_scale
        self._weight = float(model.bytes_per_weight)
        self._kv_element = float(model.kv_bytes_per_element)
        heads = max(1, model.heads // tp)
        self._heads = heads
        self._kv_heads = max(1, model.kv_heads // tp)
        self._gemms = self._layer_gemms()
        head_shape = (model.hidden_size, max(1, model.vocab_size // tp))
        self._head = (head_shape, self._fit("gemm").residual.nearest(_log2(head_shape[1], head_shape[0])))
        attention_shape = _log2(self._heads, self._kv_heads, model.head_dim)
        self._decode_near = self._fit("attention_decode").residual.nearest(attention_shape)
        self._prefill_near = self._fit("attention_prefill").residual.nearest(attention_shape)
        inner = 1 if model.moe is not None else max(1, model.intermediate_size // tp)
        self._elementwise_near = self._fit("elementwise").residual.nearest(_log2(model.hidden_size, inner))
        self._mixed_near = (
            self._fits["attention_mixed"].residual.nearest(attention_shape)
            if "attention_mixed" in self._fits
            else ()
        )
        self._idle_block_s = coefficients.idle_block_s
        self._moe_near = self._moe_neighbours()

    def dense_s(self, tokens: int) -> float:
        """Everything but attention, experts and head, of all layers, for `tokens` in the batch."""
        if tokens <= 0:
            return 0.0
        layer_s = self.matrix_products_s(tokens) + self._elementwise_s(tokens)
        reduce_s = 0.0
        if self._tp > 1:
            moved = ACTIVATION_BYTES * tokens * self._model.hidden_size
            reduce_s = 2.0 * self.all_reduce_s(moved, self._tp) * self._by.communication
        return self._layers * (layer_s * self._scale * self._by.dense + reduce_s)

    def matrix_products_s(self, tokens: int) -> float:
        """The matrix products of one layer, experts aside."""
        return sum(self._gemm_s(tokens, k, n, near) for k, n, near in self._gemms)

    def experts_s(self, tokens: int) -> float:
        """Routed experts of all layers; `tokens` is the mean over the `ep` ranks. 0.0 for a dense model."""
        if tokens <= 0 or self._model.moe is None:
            return 0.0
        exchange_s = 0.0
        if self._ep > 1:
            moved = ACTIVATION_BYTES * tokens * self._ep * self._model.hidden_size
            exchange_s = self._exchange_s(moved) * self._by.communication
        return self._layers * (self._moe_s(tokens) * self._scale * self._by.dense + exchange_s)

    def head_s(self, sequences: int) -> float:
        """Final norm, logits and sampling of `sequences`."""
        if sequences <= 0:
            return 0.0
        (k, n), near = self._head
        # The output head stays in 16 bit whatever the layers are stored in.
        logits_s = self._gemm_s(sequences, k, n, near, head=True)
        sample = self._fit("sampler").roofline
        moved = 4.0 * sequences * self._model.vocab_size
        sample_s = sample.time_s(0.0, moved, self._peak, self._bandwidth)
        return (logits_s + sample_s) * self._scale * self._by.dense

    def decode_attention_s(self, sequences: int, kv_tokens: float, *, mixed: bool = False) -> float:
        """Attention of `sequences` one-token queries whose contexts sum to `kv_tokens`, all layers.

        `mixed`: in a batch that also holds prompt chunks, where the engine runs the kernel for ragged
        queries, which is slower for single tokens than the decode kernel.
        """
        if sequences <= 0:
            return 0.0
        name = "attention_mixed" if mixed and "attention_mixed" in self._fits else "attention_decode"
        fit = self._fits[name]
        width = self._kv_heads * self._model.head_dim
        moved = 2.0 * self._kv_element * kv_tokens * width
        moved += 2.0 * ACTIVATION_BYTES * sequences * self._heads * self._model.head_dim
        flops = 4.0 * kv_tokens * self._heads * self._model.head_dim
        time_s = fit.roofline.time_s(flops, moved, self._peak_wide, self._bandwidth)
        near = self._mixed_near if name == "attention_mixed" else self._decode_near
        residual = _residual(near, math.log2(sequences), math.log2(max(1.0, kv_tokens / sequences)))
        return self._layers * time_s * residual * self._scale * self._by.attention

    @property
    def idle_block_s(self) -> float:
        """Per decoding sequence and query block of the longest chunk in its batch, all layers."""
        return self._layers * self._heads * self._idle_block_s * self._scale * self._by.attention

    @property
    def attention_launch_s(self) -> float:
        """Fixed part of prompt attention, paid once an iteration however many chunks there are."""
        launch_s = self._fit("attention_prefill").roofline.launch_s
        return self._layers * launch_s * self._scale * self._by.attention

    def prefill_attention_s(self, chunk_tokens: int, context_tokens: int) -> float:
        """Attention of a prompt chunk over the context before it and itself, all layers, launch included."""
        if chunk_tokens <= 0:
            return 0.0
        fit = self._fit("attention_prefill")
        width = self._kv_heads * self._model.head_dim
        pairs = chunk_tokens * (context_tokens + 0.5 * chunk_tokens)
        flops = 4.0 * pairs * self._heads * self._model.head_dim
        moved = 2.0 * self._kv_element * (context_tokens + chunk_tokens) * width
        moved += 2.0 * ACTIVATION_BYTES * chunk_tokens * self._heads * self._model.head_dim
        time_s = fit.roofline.time_s(flops, moved, self._peak_wide, self._bandwidth)
        residual = _residual(
            self._prefill_near, math.log2(chunk_tokens), math.log2(context_tokens + chunk_tokens)
        )
        return self._layers * time_s * residual * self._scale * self._by.attention

    def _layer_gemms(self) -> list[tuple[int, int, tuple[tuple[float, Grid], ...]]]:
        m, tp = self._model, self._tp
        shapes = [
            (m.hidden_size, (self._heads + 2 * self._kv_heads) * m.head_dim),
            (self._heads * m.head_dim, m.hidden_size),
        ]
        if m.moe is None:
            inner = max(1, m.intermediate_size // tp)
            shapes += [(m.hidden_size, (m.mlp_matrices - 1) * inner), (inner, m.hidden_size)]
        else:
            shapes.append((m.hidden_size, m.moe.experts))
            if m.moe.shared_intermediate_size:
                shared = max(1, m.moe.shared_intermediate_size // tp)
                shapes += [(m.hidden_size, (m.mlp_matrices - 1) * shared), (shared, m.hidden_size)]
        return [(k, n, self._gemm_fit().residual.nearest(_log2(n, k))) for k, n in shapes]

    def _gemm_fit(self) -> OperatorFit:
        if self._weight <= 1 and "gemm-fp8" in self._fits:
            return self._fits["gemm-fp8"]
        return self._fits["gemm"]

    def _fit(self, name: str) -> OperatorFit:
        return self._fits[name]

    def _gemm_s(
        self, rows: int, k: int, n: int, near: tuple[tuple[float, Grid], ...], *, head: bool = False
    ) -> float:
        fit = self._fits["gemm"] if head else self._gemm_fit()
        weight = max(self._weight, ACTIVATION_BYTES) if head else self._weight
        peak = self._peak_wide if head else self._peak
        moved = weight * k * n + ACTIVATION_BYTES * rows * (k + n)
        time_s = fit.roofline.time_s(2.0 * rows * k * n, moved, peak, self._bandwidth)
        return time_s * _residual(near, math.log2(rows))

    def _elementwise_s(self, tokens: int) -> float:
        m = self._model
        moved = float(ACTIVATION_BYTES * tokens * ELEMENTWISE_TENSORS * m.hidden_size)
        if m.moe is None:
            moved += ACTIVATION_BYTES * tokens * 3 * m.intermediate_size / self._tp
        time_s = self._fit("elementwise").roofline.time_s(0.0, moved, self._peak, self._bandwidth)
        return time_s * _residual(self._elementwise_near, math.log2(tokens))

    def _moe_neighbours(self) -> tuple[tuple[float, Grid], ...]:
        moe = self._model.moe
        if moe is None:
            return ()
        shape = _log2(
            self._model.hidden_size,
            max(1, moe.expert_intermediate_size // self._tp),
            moe.top_k,
        )
        return self._moe_fit().residual.nearest(shape)

    def _moe_fit(self) -> OperatorFit:
        if self._weight <= 1 and "moe-fp8" in self._fits:
            return self._fits["moe-fp8"]
        return self._fits["moe"]

    def _moe_s(self, tokens: int) -> float:
        """Routed experts of one layer. With `ep` groups, each brings `tokens` and holds experts / ep."""
        moe = self._model.moe
        if moe is None:
            return 0.0
        local = max(1, moe.experts // self._ep)
        active = local * (1.0 - (1.0 - moe.top_k / moe.experts) ** (tokens * self._ep))
        weights = (
            float(self._model.mlp_matrices)
            * self._model.hidden_size
            * moe.expert_intermediate_size
            / self._tp
        )
        rows = tokens * moe.top_k
        moved = self._weight * active * weights + 2.0 * ACTIVATION_BYTES * rows * self._model.hidden_size
        time_s = self._moe_fit().roofline.time_s(2.0 * rows * weights, moved, self._peak, self._bandwidth)
        return time_s * _residual(self._moe_near, math.log2(tokens), math.log2(max(1.0, active)))

    def _exchange_s(self, gathered_bytes: float) -> float:
        """All-gather of all ranks' tokens before the experts, reduce-scatter of their results after."""
        fit = self._fit("all_reduce")
        moved = (self._ep - 1) / self._ep * gathered_bytes
        rate = self._link.bytes_per_s * fit.roofline.memory
        return 2.0 * (fit.roofline.launch_s + moved / rate)

    def all_reduce_s(self, message_bytes: float, devices: int) -> float:
        """Ring all-reduce of a message of this size; measured correction by size where there is one."""
        fit = self._fit("all_reduce")
        moved = 2.0 * (devices - 1) / devices * message_bytes
        time_s = fit.roofline.launch_s + moved / (self._link.bytes_per_s * fit.roofline.memory)
        if self._link.latency_s > NODE_LATENCY_S:
            time_s += 2.0 * math.log2(devices) * self._link.latency_s
        near = fit.residual.nearest(_log2(devices))
        return time_s * _residual(near, math.log2(max(1.0, message_bytes)))


def _log2(*sizes: float) -> tuple[float, ...]:
    return tuple(math.log2(max(1.0, size)) for size in sizes)


def _residual(near: Sequence[tuple[float, Grid]], x: float, y: float = 0.0) -> float:
    if not near:
        return 1.0
    residual = 0.0
    for weight, grid in near:
        residual += weight * grid.at(x, y)
    return math.exp(residual)
