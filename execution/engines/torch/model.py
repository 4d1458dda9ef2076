"""The model: a decoder of the Llama family as a tree of named modules, each of which can be replaced.

    name                           takes                                     gives
    embed                          tokens [rows]                             [rows, hidden]
    layers.I                       x [rows, hidden], Step                    [rows, hidden]
    layers.I.attention_norm        x [rows, hidden]                          [rows, hidden]
    layers.I.attention             normed x [rows, hidden], Step             [rows, hidden], to add to x
    layers.I.attention.qkv         normed x [rows, hidden]                   [rows, (heads + 2 kv_heads) * head_dim]
    layers.I.attention.core        queries [rows, heads, head_dim], Step     [rows, heads * head_dim]
    layers.I.attention.output      [rows, heads * head_dim]                  [rows, hidden]
    layers.I.mlp_norm              x [rows, hidden]                          [rows, hidden]
    layers.I.mlp                   normed x [rows, hidden]                   [rows, hidden], to add to x
    layers.I.mlp.gate_up           normed x [rows, hidden]                   [rows, 2 * intermediate]
    layers.I.mlp.activation        [rows, 2 * intermediate]                  [rows, intermediate]
    layers.I.mlp.down              [rows, intermediate]                      [rows, hidden]
    norm                           x [rows, hidden]                          [rows, hidden]
    head                           normed x [rows, hidden]                   logits [rows, vocabulary]
    decode                         rows that decode (decode.py)              logits [rows, vocabulary], tokens or None

A module may write to nothing but its own new tensors (`layers.I.attention` and `decode` also write KV). `decode` is
a whole step without prompts, through all of the others unless it is replaced. Weights that work
together are stored together (qkv; gate and up), query and key rows are in pairs (rope.py), and the weight of each
norm is folded into the projection behind it, so that a norm is x / rms(x) alone; tied embeddings keep theirs.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional

from execution.engines.models import EngineModelConfig
from execution.engines.torch.rope import interleave
from execution.engines.torch.step import DecodeGroup, PromptGroup, Step
from execution.engines.torch.weights import Tensors


class Projection(nn.Module):
    """x @ weight + bias. Weights are stored [inputs, outputs]: for few rows on a CPU that is a fifth faster."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.weight: torch.Tensor
        self.bias: torch.Tensor | None
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[rows, inputs] to [rows, outputs]."""
        return torch.mm(x, self.weight) if self.bias is None else torch.addmm(self.bias, x, self.weight)


class UnitNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) (Zhang and Sennrich, 2019), times `weight` where there is one."""

    def __init__(self, hidden: int, eps: float, weight: torch.Tensor | None = None) -> None:
        super().__init__()
        self.weight: torch.Tensor | None
        self._shift: torch.Tensor
        self.register_buffer("weight", weight)
        self.register_buffer("_shift", torch.tensor(math.sqrt(eps * hidden)), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Sums in float32 whatever the type."""
        size = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        # size = sqrt(sum(x^2) + hidden * eps); the missing sqrt(hidden) is folded with the weight
        scaled: torch.Tensor = x / size.hypot_(self._shift)
        if self.weight is not None:
            scaled = scaled * self.weight
        return scaled.to(x.dtype)


class Activation(nn.Module):
    """SwiGLU (Shazeer, 2020): silu of the first half, times the second."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[rows, 2 n] to [rows, n]."""
        gate, up = x.chunk(2, dim=-1)
        return functional.silu(gate).mul_(up)


class Mlp(nn.Module):
    """The feed-forward half of a layer."""

    def __init__(self, gate_up: nn.Module, down: nn.Module) -> None:
        super().__init__()
        self.gate_up = gate_up
        self.activation = Activation()
        self.down = down

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[rows, hidden] to [rows, hidden]."""
        return self.down(self.activation(self.gate_up(x)))  # type: ignore[no-any-return]


class AttentionCore(nn.Module):
    """Softmax attention over the KV of each row's lane, grouped query heads sharing their keys."""

    def __init__(self, layer: int, heads: int, kv_heads: int, head_dim: int) -> None:
        super().__init__()
        self._layer, self._heads, self._kv_heads, self._head_dim = layer, heads, kv_heads, head_dim

    def forward(self, queries: torch.Tensor, step: Step) -> torch.Tensor:
        """[rows, heads, head_dim] to [rows, heads * head_dim]."""
        kv = step.kv[self._layer]
        if step.decode is not None and not step.prompts:
            return self._decode(queries, kv, step.decode)
        out = queries.new_empty((queries.shape[0], self._heads * self._head_dim))
        if step.decode is not None:
            out[: step.decode.rows] = self._decode(queries[: step.decode.rows], kv, step.decode)
        for group in step.prompts:
            out[group.first : group.last] = self._prompt(queries[group.first : group.last], kv, group)
        return out

    def _decode(self, queries: torch.Tensor, kv: torch.Tensor, group: DecodeGroup) -> torch.Tensor:
        """One query a lane; the heads that share keys stand as rows of one small matrix."""
        if group.scatter is not None:
            spread = queries.new_zeros((group.lanes, *queries.shape[1:]))
            queries = spread.index_copy_(0, group.scatter, queries)
        keys = kv[: group.lanes, : self._kv_heads, : group.length]
        values = kv[: group.lanes, self._kv_heads :, : group.length]
        shared = queries.reshape(group.lanes, self._kv_heads, -1, self._head_dim)
        out = functional.scaled_dot_product_attention(shared, keys, values, attn_mask=group.mask)
        out = out.reshape(group.lanes, -1)
        return out if group.scatter is None else out.index_select(0, group.scatter)

    def _prompt(self, queries: torch.Tensor, kv: torch.Tensor, group: PromptGroup) -> torch.Tensor:
        end = group.start + group.last - group.first
        lane = kv[group.lane : group.lane + 1]
        out = functional.scaled_dot_product_attention(
            queries.transpose(0, 1).unsqueeze(0),
            lane[:, : self._kv_heads, :end],
            lane[:, self._kv_heads :, :end],
            attn_mask=group.mask,
            is_causal=group.mask is None,
            enable_gqa=self._heads != self._kv_heads,
        )
        return out.squeeze(0).transpose(0, 1).flatten(1)


class Attention(nn.Module):
    """Project, rotate, remember, attend, project back."""

    def __init__(self, layer: int, config: EngineModelConfig, qkv: nn.Module, output: nn.Module) -> None:
        super().__init__()
        self._layer = layer
        self._heads, self._kv_heads = config.num_attention_heads, config.num_key_value_heads
        self._head_dim = config.head_dim
        self.qkv = qkv
        self.core = AttentionCore(layer, self._heads, self._kv_heads, self._head_dim)
        self.output = output

    def forward(self, x: torch.Tensor, step: Step) -> torch.Tensor:
        """[rows, hidden] to [rows, hidden]; writes the rows' keys and values to `step.kv`."""
        heads = self.qkv(x).view(x.shape[0], self._heads + 2 * self._kv_heads, self._head_dim)
        rotated = heads[:, : self._heads + self._kv_heads]
        pairs = rotated.float().unflatten(-1, (-1, 2))  # float32 itself where it is float32
        turned = torch.view_as_complex(pairs).mul_(step.rotations)
        if heads.dtype != torch.float32:
            rotated.copy_(torch.view_as_real(turned).flatten(-2))
        step.kv[self._layer].index_put_((step.lanes, step.heads, step.positions), heads[:, self._heads :])
        return self.output(self.core(heads[:, : self._heads], step))  # type: ignore[no-any-return]


class DecoderLayer(nn.Module):
    """Attention, then the feed-forward half, each added to what came in."""

    def __init__(
        self, attention: Attention, mlp: Mlp, attention_norm: nn.Module, mlp_norm: nn.Module
    ) -> None:
        super().__init__()
        self.attention_norm = attention_norm
        self.attention = attention
        self.mlp_norm = mlp_norm
        self.mlp = mlp

    def forward(self, x: torch.Tensor, step: Step) -> torch.Tensor:
        """[rows, hidden] to [rows, hidden]."""
        x = x + self.attention(self.attention_norm(x), step)
        return x + self.mlp(self.mlp_norm(x))  # type: ignore[no-any-return]


class Decoder(nn.Module):
    """The whole model."""

    def __init__(
        self, embed: nn.Module, layers: list[DecoderLayer], norm: nn.Module, head: nn.Module
    ) -> None:
        super().__init__()
        self.embed = embed
        self.layers = nn.ModuleList(layers)
        self.norm = norm
        self.head = head

    def forward(self, step: Step) -> torch.Tensor:
        """Logits of the wanted rows [wanted, vocabulary], float32."""
        x = self.embed(step.tokens)
        for layer in self.layers:
            x = layer(x, step)
        if step.wanted is not None:
            x = x.index_select(0, step.wanted)
        return self.head(self.norm(x)).float()  # type: ignore[no-any-return]


def build_model(
    config: EngineModelConfig, weights: Tensors, dtype: torch.dtype, device: torch.device
) -> Decoder:
    """The model of a checkpoint; takes the tensors out of `weights` as it goes, to need little memory."""
    hidden, eps = config.hidden_size, config.rms_norm_eps
    root = math.sqrt(hidden)

    def take(name: str) -> torch.Tensor:
        return weights.pop(name).float()

    def linear(names: list[str], norm: torch.Tensor | None = None) -> Projection:
        parts = [take(f"{name}.weight") for name in names]
        biases = [take(f"{name}.bias") for name in names if f"{name}.bias" in weights]
        rotated = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
        for i, name in enumerate(names):
            heads = rotated.get(name.rpartition(".")[2])
            if heads:
                parts[i] = interleave(parts[i], heads)
                if biases:
                    biases[i] = interleave(biases[i], heads)
        weight = torch.cat(parts) if norm is None else torch.cat(parts) * (norm * root)
        bias = torch.cat(biases).to(device, dtype) if biases else None
        return Projection(weight.to(device, dtype).t().contiguous(), bias)

    layers = []
    for i in range(config.num_hidden_layers):
        prefix = f"model.layers.{i}."
        before, after = (
            take(f"{prefix}input_layernorm.weight"),
            take(f"{prefix}post_attention_layernorm.weight"),
        )
        qkv = linear([f"{prefix}self_attn.{name}_proj" for name in "qkv"], before)
        output = linear([f"{prefix}self_attn.o_proj"])
        gate_up = linear([f"{prefix}mlp.gate_proj", f"{prefix}mlp.up_proj"], after)
        down = linear([f"{prefix}mlp.down_proj"])
        norms = (UnitNorm(hidden, eps).to(device), UnitNorm(hidden, eps).to(device))
        layers.append(DecoderLayer(Attention(i, config, qkv, output), Mlp(gate_up, down), *norms))
    table = take("model.embed_tokens.weight").to(device, dtype)
    embed = nn.Embedding(table.shape[0], table.shape[1], _weight=table, _freeze=True)
    final = take("model.norm.weight")
    if config.tie_word_embeddings:
        norm = UnitNorm(hidden, eps, (final * root)).to(device)
        head: Projection = Projection(table.t(), None)  # a view: the table is stored once
    else:
        norm = UnitNorm(hidden, eps).to(device)
        head = linear(["lm_head"], final)
    return Decoder(embed, layers, norm, head).eval()
