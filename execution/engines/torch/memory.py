"""How much of everything there is room for."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from execution.engines.models import EngineModelConfig
from execution.engines.torch.options import TorchOptions
from loop.contracts.engine import EngineError, EngineLimits

_GIB = 2**30


@dataclass(frozen=True, slots=True)
class Room:
    """Sizes of an engine's memory."""

    lanes: int
    """Sequences that can run at once."""
    max_model_len: int
    kv_tokens: int
    """Of all running sequences together."""
    prefix_tokens: int
    """Kept for reuse."""


def plan_memory(
    config: EngineModelConfig,
    options: TorchOptions,
    limits: EngineLimits,
    device: torch.device,
    item_bytes: int,
) -> Room:
    """Sizes as the options say, or as memory allows. Raises EngineError when not one sequence has room."""
    token_bytes = config.kv_values_per_token * item_bytes
    memory_bytes = options.kv_memory_bytes or _free_bytes(device)
    prefixes = 0.2 if options.prefix_cache and not options.prefix_cache_tokens else 0.0
    affordable = int(memory_bytes * (1 - prefixes)) // token_bytes
    trained = config.max_position_embeddings
    length = min(options.max_model_len or trained, trained)
    if device.type != "cpu" and not options.max_model_len:
        length = min(length, max(affordable // limits.max_num_seqs, 2048))  # rather many lanes than long ones
    kv_tokens = options.kv_capacity_tokens or affordable
    length = min(length, kv_tokens // options.block_tokens * options.block_tokens)
    if options.max_model_len > trained:
        raise EngineError(
            f"torch engine: option max_model_len: {options.max_model_len}, but the model has {trained}"
        )
    if length < 2:
        raise EngineError(
            f"torch engine: {kv_tokens} tokens of KV ({token_bytes} bytes each, {memory_bytes} bytes in all) hold "
            "no sequence: raise kv_capacity_tokens or kv_memory_bytes"
        )
    lanes = options.max_lanes or max(limits.max_num_seqs, 256)
    if device.type == "cpu":
        # Untouched memory is free there, but address space beyond all memory is refused.
        lanes = max(1, min(lanes, _total_bytes() // (length * token_bytes)))
    else:
        lanes = max(1, min(lanes, affordable // length))
    kv_tokens = min(kv_tokens, lanes * length)
    wanted = options.prefix_cache_tokens or min(kv_tokens, 65_536, max(affordable // 4, options.block_tokens))
    return Room(lanes, length, kv_tokens, wanted if options.prefix_cache else 0)


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(0.85 * torch.cuda.mem_get_info(device)[0])
    return min(8 * _GIB, _available_bytes() // 4)


def _available_bytes() -> int:
    """Memory that can be had without swapping, as Linux tells; else half of all."""
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return _total_bytes() // 2


def _total_bytes() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 8 * _GIB
