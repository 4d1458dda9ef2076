"""What int8 weights cost in quality: measured on recorded prompts, before anybody is served with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from execution.live.decode.shape import DecodeShape, Weights


@dataclass(frozen=True, slots=True)
class Quality:
    """The changed function beside the original, on the same tokens."""

    prompts: int
    tokens: int
    perplexity: float
    """Of the recorded text under the original."""
    perplexity_changed: float
    greedy_agreement: float
    """Share of positions at which both choose the same token."""
    logit_error_rms: float
    """Relative to the logits' own spread."""
    logit_error_max: float
    """Of one logit, absolute."""

    def __str__(self) -> str:
        return (
            f"{self.prompts} prompts, {self.tokens} tokens: perplexity {self.perplexity:.4g} -> "
            f"{self.perplexity_changed:.4g}, greedy choice the same at {100 * self.greedy_agreement:.1f} %, "
            f"logits off by {100 * self.logit_error_rms:.2f} % (rms), {self.logit_error_max:.3g} at most"
        )


def measure_quality(
    shape: DecodeShape,
    weights: Weights,
    changed: Weights,
    rotations: torch.Tensor,
    prompts: Sequence[Sequence[int]],
) -> Quality:
    """Both models read the same prompts, each token predicted from those before it; float32."""
    squares = spread = worst = 0.0
    same = tokens = 0
    losses = [0.0, 0.0]
    for prompt in prompts:
        ids = torch.tensor(list(prompt)[: rotations.shape[0]])
        both = [_logits(shape, w, rotations, ids) for w in (weights, changed)]
        ours, theirs = both[0][:-1], both[1][:-1]
        tokens += len(ours)
        squares += float((theirs - ours).square().sum())
        spread += float((ours - ours.mean(-1, keepdim=True)).square().sum())
        worst = max(worst, float((theirs - ours).abs().max())) if len(ours) else worst
        same += int((ours.argmax(-1) == theirs.argmax(-1)).sum())
        for i, logits in enumerate((ours, theirs)):
            losses[i] += float(torch.nn.functional.cross_entropy(logits, ids[1:], reduction="sum"))
    if not tokens:
        return Quality(len(prompts), 0, float("nan"), float("nan"), float("nan"), float("nan"), float("nan"))
    first, second = (float(torch.tensor(loss / tokens).exp()) for loss in losses)
    return Quality(len(prompts), tokens, first, second, same / tokens, (squares / spread) ** 0.5, worst)


def _logits(shape: DecodeShape, weights: Weights, rotations: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """A whole prompt at once, [tokens, vocabulary]."""
    x = weights.embed[ids]
    turn = rotations[: len(ids)]

    def unit(values: torch.Tensor) -> torch.Tensor:
        return values / torch.sqrt(values.square().sum(-1, keepdim=True) + shape.hidden * shape.eps)

    def through(values: torch.Tensor, pair: tuple[torch.Tensor, torch.Tensor | None]) -> torch.Tensor:
        out = values @ pair[0]
        return out if pair[1] is None else out + pair[1]

    for qkv, output, gate_up, down in weights.layers:
        heads = through(unit(x), qkv).view(len(ids), -1, shape.head_dim)
        count = shape.heads + shape.kv_heads
        pairs = torch.view_as_complex(
            heads[:, :count].reshape(*heads[:, :count].shape[:-1], -1, 2).contiguous()
        )
        turned = torch.view_as_real(pairs * turn).flatten(-2)
        core = torch.nn.functional.scaled_dot_product_attention(
            turned[:, : shape.heads].transpose(0, 1).unsqueeze(0),
            turned[:, shape.heads :].transpose(0, 1).unsqueeze(0),
            heads[:, count:].transpose(0, 1).unsqueeze(0),
            is_causal=True,
            enable_gqa=shape.heads != shape.kv_heads,
        )
        x = x + through(core.squeeze(0).transpose(0, 1).flatten(1), output)
        gate, up = through(unit(x), gate_up).chunk(2, dim=-1)
        x = x + through(torch.nn.functional.silu(gate) * up, down)
    x = unit(x)
    return through(x if weights.norm is None else x * weights.norm, weights.head)
