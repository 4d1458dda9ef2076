"""A whole decode step as one module that can be replaced: one more token for each of some lanes."""

from __future__ import annotations

from collections.abc import Sequence as Seq

import torch
from torch import nn

from execution.engines.torch.kv import LaneCache
from execution.engines.torch.step import Row, build_step


class DecodeStep(nn.Module):
    """Through the model's modules, as they are at the time.

    A replacement takes rows sorted by lane, writes their KV, and gives their logits [rows, vocabulary] (float32) and
    the likeliest token of each (-1 where they are not numbers), or None: the engine looks for itself. Its `serves`,
    if it has one, tells whether so many rows are better given to it apart from the prompts of the same step.
    """

    def __init__(self, model: nn.Module, cache: LaneCache, table: torch.Tensor) -> None:
        super().__init__()
        self.model = model
        self.cache = cache
        self.table = table

    def forward(self, rows: Seq[Row]) -> tuple[torch.Tensor, list[int] | None]:
        """See the class."""
        return self.model(build_step(rows, [], self.cache, self.table)), None
