"""One function at one size, with those who can compute it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from benchmarks.kernelling.timing import Call


@dataclass
class Case:
    """A kernel's subject, the arguments of its call, and its peers."""

    family: str
    name: str
    width: str
    """`tiny`: shapes of the built-in models; `wide`: of Llama-class models."""
    rows: int
    subject: Any
    inputs: tuple[Any, ...]
    params: tuple[Any, ...]
    exact: Call
    """The result in float64."""
    peers: dict[str, Call] = field(default_factory=dict)
    compiled: Any = None
    """Module for torch.compile; None: eager is what there is."""
    flops: float = 0.0
    """Multiplications and additions of a call, where they may be what is waited for; else 0."""
    moved: float = 0.0
    """Bytes that a call must read and write at least; 0: arguments and results once."""

    def bytes_with(self, results: Sequence[Any]) -> float:
        """What a call must read and write at least."""
        if self.moved:
            return self.moved
        return float(sum(t.numel() * t.element_size() for t in (*self.inputs, *self.params, *results)))


def bound(function: Callable[..., Any], *arguments: Any) -> Call:
    """The function with its arguments."""
    return partial(function, *arguments)


def width_of(size: int) -> str:
    """Of a row of so many numbers."""
    return "tiny" if size <= 1024 else "wide"
