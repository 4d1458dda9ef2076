"""Figures as people read them."""

from __future__ import annotations

_DECIMAL = (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3))
_BINARY = (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10))


def si(value: float, unit: str) -> str:
    """Three digits with a decimal prefix: `3.35 TB/s`."""
    for prefix, size in _DECIMAL:
        if value >= size:
            return f"{three(value / size)} {prefix}{unit}"
    return f"{three(value)} {unit}"


def three(value: float) -> str:
    """Three digits, without an exponent: 989, 31.5, 0.126, 1979."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def memory(nbytes: float) -> str:
    """Binary prefix: `79.6 GiB`."""
    for unit, size in _BINARY:
        if nbytes >= size:
            return f"{three(nbytes / size)} {unit}"
    return f"{nbytes:.0f} B"


def microseconds(seconds: float) -> str:
    """`5 us`; the CLI's tables and pictures show latencies only so."""
    return f"{three(seconds * 1e6)} us"


def count(value: float) -> str:
    """`70.6 B` parameters, `128 k` tokens."""
    for suffix, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{three(value / size)} {suffix}"
    return f"{value:.0f}"
