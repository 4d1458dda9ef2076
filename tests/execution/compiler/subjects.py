"""Subjects of every family, small, with inputs and weights from a seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn import functional

from execution.compiler.port import Bucket, Subject
from execution.compiler.source import export_subject


@dataclass
class Call:
    """A module without state, and what it is called with."""

    op: str
    run: Callable[..., Any]
    inputs: tuple[torch.Tensor, ...]
    params: tuple[torch.Tensor, ...] = ()
    attrs: dict[str, Any] = field(default_factory=dict)

    def subject(self, *, threads: int = 1, fast_math: bool = False, fixed: bool = False) -> Subject:
        """With a bucket from one row to all, or of all."""
        rows = self.inputs[0].shape[0]
        key = (self.run.__qualname__, self.inputs[0].device.type, threads, fast_math, fixed, rows)
        if key not in _EXPORTED:  # half a second each
            _EXPORTED[key] = export_subject(
                _Module(self.run),
                self.op,
                self.inputs,
                self.params,
                bucket=Bucket(rows if fixed else 1, rows),
                threads=threads,
                attrs=self.attrs,
                fast_math=fast_math,
            )
        return _EXPORTED[key]


_EXPORTED: dict[tuple[Any, ...], Subject] = {}


class _Module(torch.nn.Module):
    def __init__(self, run: Callable[..., Any]) -> None:
        super().__init__()
        self.run = run

    def forward(self, *arguments: torch.Tensor) -> Any:
        return self.run(*arguments)


def _normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def rms_norm() -> Call:
    def run(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return functional.rms_norm(x, (x.shape[-1],), weight, 1e-6)

    return Call("rms_norm", run, (_normal(16, 64),), (_normal(64, seed=1),), {"eps": 1e-6})


def linear() -> Call:
    def run(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return torch.addmm(bias, x, weight)

    return Call("linear", run, (_normal(16, 64),), (_normal(64, 48, seed=1), _normal(48, seed=2)))


def int8_linear() -> Call:
    def run(x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, weight.to(x.dtype)) * scale

    weight = torch.randint(-127, 128, (48, 64), generator=torch.Generator().manual_seed(1), dtype=torch.int8)
    return Call("int8_linear", run, (_normal(8, 64),), (weight, _normal(48, seed=2).abs() * 0.01))


def swiglu() -> Call:
    def run(x: torch.Tensor) -> torch.Tensor:
        gate, up = x.chunk(2, dim=-1)
        return functional.silu(gate).mul_(up)

    return Call("swiglu", run, (_normal(16, 64),))


def softmax() -> Call:
    return Call("softmax", lambda x: torch.softmax(x, -1), (_normal(16, 64),))


def decode_attention() -> Call:
    def run(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return functional.scaled_dot_product_attention(q, k, v)

    return Call(
        "decode_attention",
        run,
        (_normal(4, 2, 1, 16), _normal(4, 2, 24, 16, seed=1), _normal(4, 2, 24, 16, seed=2)),
    )


def graph() -> Call:
    def run(x: torch.Tensor, one: torch.Tensor, two: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = torch.tanh(x @ one)
        return hidden @ two + x, hidden.amax(-1)

    return Call("graph", run, (_normal(8, 32),), (_normal(32, 40, seed=1), _normal(40, 32, seed=2)))


def doubled() -> Call:
    """What tests/execution/compiler/faulty.py computes."""

    def run(x: torch.Tensor) -> torch.Tensor:
        for _ in range(8):
            x = x + x
        for _ in range(8):
            x = x * 0.5
        return x * 2

    return Call("elementwise", run, (_normal(8, 33),))


CALLS: dict[str, Callable[[], Call]] = {
    f.__name__: f for f in (rms_norm, linear, int8_linear, swiglu, softmax, decode_attention, graph)
}
