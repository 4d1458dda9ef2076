"""KV memory: one lane a running sequence, contiguous, so that attention of the whole batch reads it in place.

A lane has room for the longest sequence, but memory is touched as sequences grow (on a GPU it is all allocated at
once). How much they may hold together is accounted for in blocks. Lanes are kept dense: when a sequence ends, the
one in the highest lane moves into its place.
"""

from __future__ import annotations

import numpy as np
import torch

from execution.engines.models import EngineModelConfig
from loop.contracts.engine import EngineError


class LaneCache:
    """Keys and values of all running sequences. Not thread-safe: it belongs to the step thread."""

    def __init__(
        self, config: EngineModelConfig, lanes: int, length: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.lanes, self.length, self.device, self.dtype = lanes, length, device, dtype
        kinds = 2 * config.num_key_value_heads
        shape = (lanes, kinds, length, config.head_dim)
        try:
            self.layers = [_zeros(shape, dtype, device) for _ in range(config.num_hidden_layers)]
        except (RuntimeError, MemoryError) as error:
            raise EngineError(
                f"no memory for the KV of {lanes} lanes of {length} tokens: lower max_model_len or max_lanes: {error}"
            ) from error
        self.heads = torch.arange(kinds, device=device).unsqueeze(0)
        self._ends = torch.arange(length, device=device)
        self._open = torch.zeros((), dtype=dtype, device=device)
        self._shut = torch.full((), -torch.inf, dtype=dtype, device=device)

    def mask_of(self, lengths: torch.Tensor, width: int) -> torch.Tensor:
        """[rows, width]: 0 for the first `lengths` positions of each row, -inf after them."""
        return torch.where(self._ends[:width] < lengths.unsqueeze(1), self._open, self._shut)

    def move(self, source: int, target: int, tokens: int) -> None:
        """Copy the first tokens of a lane to another one."""
        for layer in self.layers:
            layer[target, :, :tokens] = layer[source, :, :tokens]

    def clear(self, lane: int) -> None:
        """Forget a lane whose values are not numbers: masked values must be finite, or they spoil sums."""
        for layer in self.layers:
            layer[lane].zero_()


class BlockBudget:
    """How many blocks of KV running sequences may hold together."""

    __slots__ = ("block_tokens", "capacity", "free")

    def __init__(self, capacity_tokens: int, block_tokens: int) -> None:
        self.block_tokens = block_tokens
        self.capacity = capacity_tokens // block_tokens
        self.free = self.capacity

    def blocks_for(self, tokens: int) -> int:
        """Blocks that hold so many tokens."""
        return -(-tokens // self.block_tokens)


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Zeros; on CPU memory that costs nothing until it is written to."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    raw = np.zeros(int(np.prod(shape)) * dtype.itemsize, dtype=np.uint8)
    return torch.from_numpy(raw).view(dtype).view(shape)
