"""A decode step in float64, written once more and plainly: what compiled steps are proven against."""

from __future__ import annotations

import torch

from execution.live.decode.shape import DecodeShape, Weights


def reference_step(  # noqa: PLR0917 what a step is made of
    shape: DecodeShape,
    weights: Weights,
    rotations: torch.Tensor,
    tokens: list[int],
    positions: list[int],
    past: list[torch.Tensor],
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """(logits [rows, vocabulary], new keys and values of each layer [rows, 2 * kv_heads, head_dim]), float64.

    `past[layer]`: [rows, 2 * kv_heads, at least max(positions), head_dim]; `rotations`: [length, 1, head_dim / 2].
    """
    rows = len(tokens)
    x = weights.embed[torch.tensor(tokens)].double()
    turn = rotations[torch.tensor(positions)].to(torch.complex128)
    written = []
    for layer, matrices in enumerate(weights.layers):
        qkv, output, gate_up, down = ((m.double(), 0.0 if b is None else b.double()) for m, b in matrices)
        heads = (_unit(x, shape) @ qkv[0] + qkv[1]).view(rows, -1, shape.head_dim)
        count = shape.heads + shape.kv_heads
        pairs = torch.view_as_complex(
            heads[:, :count].reshape(*heads[:, :count].shape[:-1], -1, 2).contiguous()
        )
        turned = torch.view_as_real(pairs * turn).flatten(-2)
        new = torch.cat((turned[:, shape.heads :], heads[:, count:]), 1)
        written.append(new)
        x = x + _attend(shape, turned[:, : shape.heads], new, past[layer], positions) @ output[0] + output[1]
        gate, up = (_unit(x, shape) @ gate_up[0] + gate_up[1]).chunk(2, dim=-1)
        x = x + (torch.nn.functional.silu(gate) * up) @ down[0] + down[1]
    x = _unit(x, shape)
    if weights.norm is not None:
        x = x * weights.norm.double()
    head, bias = weights.head
    return x @ head.double() + (0.0 if bias is None else bias.double()), written


def _unit(x: torch.Tensor, shape: DecodeShape) -> torch.Tensor:
    return x / torch.sqrt(x.square().sum(-1, keepdim=True) + shape.hidden * shape.eps)


def _attend(
    shape: DecodeShape, queries: torch.Tensor, new: torch.Tensor, past: torch.Tensor, positions: list[int]
) -> torch.Tensor:
    group = shape.heads // shape.kv_heads
    out = []
    for row, position in enumerate(positions):
        seen = torch.cat((past[row, :, :position].double(), new[row].unsqueeze(1)), 1)
        keys, values = seen[: shape.kv_heads], seen[shape.kv_heads :]
        scores = queries[row].view(shape.kv_heads, group, -1) @ keys.transpose(1, 2) / shape.head_dim**0.5
        out.append((scores.softmax(-1) @ values).flatten())
    return torch.stack(out)
