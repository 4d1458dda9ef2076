"""The kernels of benchmarks.hetero that a GPU can do, on tensors."""

from __future__ import annotations

import torch

from benchmarks.hetero_work import WIDTH, WINDOW


def embed(tokens: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """As hetero_work.embed."""
    rows = tokens.shape[0] // WINDOW
    return table[tokens[: rows * WINDOW].long()].view(rows, WINDOW, WIDTH).mean(dim=1)


def dense(rows: torch.Tensor, up: torch.Tensor, mid: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    """As hetero_work.dense."""
    return torch.relu(torch.relu(rows @ up) @ mid) @ down
