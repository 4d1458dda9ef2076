"""Rotary position embeddings (Su et al., 2021) and the ways to stretch them, as one table of rotations.

The table holds cos + i sin of every (position, pair of values), so that rotating queries and keys is one complex
product. `interleave` reorders rows of the query and key projections from halves (as stored by transformers) to
pairs; attention does not see the difference, since both sides are reordered alike.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from execution.engines.models import EngineModelConfig
from loop.contracts.engine import EngineError


def rotation_table(config: EngineModelConfig, length: int, device: torch.device) -> torch.Tensor:
    """Rotations [length, 1, head_dim / 2], complex64. Raises EngineError for a missing constant."""
    frequencies, amplitude = inverse_frequencies(config)
    angles = torch.outer(torch.arange(length, dtype=torch.float32), frequencies)
    table = torch.complex(angles.cos() * amplitude, angles.sin() * amplitude)
    return table.unsqueeze(1).to(device)


def inverse_frequencies(config: EngineModelConfig) -> tuple[torch.Tensor, float]:
    """(radians a position of each pair [head_dim / 2], factor on queries and keys).

    `dynamic` stretches only beyond the trained length, which the engine does not serve: it is the default here.
    """
    scaling = config.rope_scaling
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.int64).float() / config.head_dim
    plain = 1.0 / (config.rope_theta**exponents)
    match scaling.get("rope_type", "default"):
        case "linear":
            return plain / _constant(scaling, "factor"), 1.0
        case "llama3":
            return _llama3(plain, scaling), 1.0
        case "yarn":
            return _yarn(plain, config)
        case _:
            return plain, 1.0


def interleave(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of a query or key projection (or bias), reordered so that each rotated pair is adjacent."""
    head_dim = weight.shape[0] // heads
    return weight.view(heads, 2, head_dim // 2, -1).transpose(1, 2).reshape(weight.shape)


def _llama3(plain: torch.Tensor, scaling: Mapping[str, Any]) -> torch.Tensor:
    """Long waves stretched, short ones kept, a ramp between (Llama 3.1, Meta, 2024)."""
    factor = _constant(scaling, "factor")
    low, high = _constant(scaling, "low_freq_factor"), _constant(scaling, "high_freq_factor")
    trained = _constant(scaling, "original_max_position_embeddings")
    waves = 2 * math.pi / plain
    ramp = (trained / waves - low) / (high - low)
    between = (1 - ramp) * plain / factor + ramp * plain
    stretched = torch.where(waves > trained / low, plain / factor, plain)
    return torch.where((waves <= trained / low) & (waves >= trained / high), between, stretched)


def _yarn(plain: torch.Tensor, config: EngineModelConfig) -> tuple[torch.Tensor, float]:
    """YaRN (Peng et al., 2023): by-parts interpolation, and attention sharpened by a factor."""
    scaling, dim = config.rope_scaling, config.head_dim
    trained = float(scaling.get("original_max_position_embeddings") or config.max_position_embeddings)
    factor = float(scaling.get("factor") or config.max_position_embeddings / trained)

    def turn(rotations: float) -> float:
        """The pair that makes so many rotations in the trained length."""
        return dim * math.log(trained / (rotations * 2 * math.pi)) / (2 * math.log(config.rope_theta))

    low, high = turn(float(scaling.get("beta_fast") or 32.0)), turn(float(scaling.get("beta_slow") or 1.0))
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    ramp = ((torch.arange(dim // 2, dtype=torch.float32) - low) / max(high - low, 0.001)).clamp(0, 1)
    return plain / factor * ramp + plain * (1 - ramp), _yarn_amplitude(scaling, factor)


def _yarn_amplitude(scaling: Mapping[str, Any], factor: float) -> float:
    def scale(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    given = scaling.get("attention_factor")
    if given is not None:
        return float(given)
    if scaling.get("mscale") and scaling.get("mscale_all_dim"):
        return scale(float(scaling["mscale"])) / scale(float(scaling["mscale_all_dim"]))
    return scale(1.0)


def _constant(scaling: Mapping[str, Any], name: str) -> float:
    value = scaling.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        raise EngineError(f"rope_scaling: {name}: a positive number is expected, not {value!r}")
    return float(value)
