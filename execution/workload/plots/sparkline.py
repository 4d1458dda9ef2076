"""A series of numbers as one line of block characters."""

from __future__ import annotations

from collections.abc import Sequence

BLOCKS = "▁▂▃▄▅▆▇█"
ASCII_BLOCKS = ".:-=+*#@"


def sparkline(values: Sequence[float], *, ascii_only: bool = False) -> str:
    """One character a value, from 0 (lowest) to the largest value (highest); empty of nothing."""
    blocks = ASCII_BLOCKS if ascii_only else BLOCKS
    top = max(values, default=0.0)
    if top <= 0:
        return blocks[0] * len(values)
    return "".join(blocks[min(int(value / top * len(blocks)), len(blocks) - 1)] for value in values)
