"""Weights as the compiled step reads them: panels of columns, int8 with scales where asked for.

Int8 is symmetric, one scale an output channel (column), nearest rounding; it changes the function.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from execution.live.decode.shape import Weights


@dataclass(frozen=True, slots=True)
class Packed:
    """One matrix in panels [columns / panel, inputs, panel]."""

    panels: torch.Tensor
    scales: torch.Tensor | None
    """Of each (padded) column; None: not quantised."""
    bias: torch.Tensor | None


def quantised(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(int8 [inputs, outputs], scales [outputs]) of a matrix [inputs, outputs]."""
    scales = matrix.abs().amax(dim=0) / 127
    scales = torch.where(scales > 0, scales, torch.ones_like(scales))
    return (matrix / scales).round_().clamp_(-127, 127).to(torch.int8), scales


def rounded(weights: Weights) -> Weights:
    """The weights as int8 stands for them, in float32: what an int8 step computes with."""

    def one(pair: tuple[torch.Tensor, torch.Tensor | None]) -> tuple[torch.Tensor, torch.Tensor | None]:
        values, scales = quantised(pair[0])
        return values.float() * scales, pair[1]

    layers = tuple(tuple(one(pair) for pair in layer) for layer in weights.layers)
    return replace(weights, layers=layers, head=one(weights.head))


def pack(
    pair: tuple[torch.Tensor, torch.Tensor | None], panel: int, *, halves: bool = False, int8: bool = False
) -> Packed:
    """Pack one matrix [inputs, outputs]; `halves`: panels of its two halves take turns (gate and up)."""
    matrix, bias = pair
    return Packed(
        *_panels(_columns(matrix, panel, halves=halves), panel, int8=int8),
        None if bias is None else _columns(bias.unsqueeze(0), panel, halves=halves).flatten().contiguous(),
    )


def _columns(matrix: torch.Tensor, panel: int, *, halves: bool) -> torch.Tensor:
    """Padded to whole panels."""
    if not halves:
        return torch.nn.functional.pad(matrix, (0, -matrix.shape[1] % panel))
    gate, up = (_columns(half, panel, halves=False) for half in matrix.chunk(2, dim=1))
    depth = matrix.shape[0]
    return torch.stack((gate.view(depth, -1, panel), up.view(depth, -1, panel)), 2).view(depth, -1)


def _panels(matrix: torch.Tensor, panel: int, *, int8: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
    scales = None
    if int8:
        matrix, scales = quantised(matrix)
    return matrix.view(matrix.shape[0], -1, panel).transpose(0, 1).contiguous(), scales
