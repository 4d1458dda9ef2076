"""Subjects that the templates know, with their references: how the rest of the system asks for kernels.

    rms_norm(rows=Bucket(1, 8), hidden=256, eps=1e-5, unit=True, threads=1)           # the engine's UnitNorm
    linear(rows=..., inputs=..., outputs=..., bias=False)                             # the engine's Projection
    elementwise(module, example inputs, rows=...)                                     # any pointwise module

Each gives a Subject whose source is the reference, exported (execution.compiler.source). Exporting takes a second or
so: `source=False` leaves it out (elementwise needs it).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from execution.compiler.port import Bucket, Setting, Subject, TensorSpec
from execution.compiler.source import export_subject

Tensors = Sequence[torch.Tensor]


class RmsNorm(nn.Module):
    """(x[, residual][, weight]): x / rms(x), or x / sqrt(sum(x^2) + hidden eps) with `unit`."""

    def __init__(self, eps: float, *, unit: bool = False, residual: bool = False) -> None:
        super().__init__()
        self._eps, self._unit, self._residual = eps, unit, residual

    def forward(self, x: torch.Tensor, *more: torch.Tensor) -> Any:
        """[rows, hidden]; with a residual (sum, its norm)."""
        rest = list(more)
        if self._residual:
            x = x + rest.pop(0)
        if self._unit:
            total = x.square().sum(-1, keepdim=True) + self._eps * x.shape[-1]
        else:
            total = x.square().mean(-1, keepdim=True) + self._eps
        y = x / total.sqrt()
        if rest:
            y = y * rest[0]
        return (x, y) if self._residual else y


class LayerNorm(nn.Module):
    """(x[, weight, bias])."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self._eps = eps

    def forward(self, x: torch.Tensor, *params: torch.Tensor) -> torch.Tensor:
        """[rows, hidden]."""
        weight, bias = params or (None, None)
        return functional.layer_norm(x, (x.shape[-1],), weight, bias, self._eps)


class Swiglu(nn.Module):
    """silu of the first half, times the second."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[rows, 2 n] to [rows, n]."""
        gate, up = x.chunk(2, dim=-1)
        return functional.silu(gate) * up


class Gelu(nn.Module):
    """x times the normal distribution function."""

    def __init__(self, approximate: str = "none") -> None:
        super().__init__()
        self._approximate = approximate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Any shape."""
        return functional.gelu(x, approximate=self._approximate)


class Softmax(nn.Module):
    """Over the last dimension."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Any shape."""
        return torch.softmax(x, dim=-1)


_ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "": lambda x: x,
    "relu": functional.relu,
    "silu": functional.silu,
    "gelu": functional.gelu,
}


class Linear(nn.Module):
    """(x, weight[, bias]), then an activation."""

    def __init__(self, layout: str, epilogue: str = "") -> None:
        super().__init__()
        self._layout, self._epilogue = layout, epilogue

    def forward(self, x: torch.Tensor, weight: torch.Tensor, *bias: torch.Tensor) -> torch.Tensor:
        """[rows, inputs] to [rows, outputs]."""
        y = x @ (weight if self._layout == "inputs_outputs" else weight.t())
        return _ACTIVATIONS[self._epilogue](y + bias[0] if bias else y)


class Int8Linear(nn.Module):
    """(x, weight int8, scale[, bias]), then an activation."""

    def __init__(self, layout: str, epilogue: str = "") -> None:
        super().__init__()
        self._layout, self._epilogue = layout, epilogue

    def forward(
        self, x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, *bias: torch.Tensor
    ) -> torch.Tensor:
        """[rows, inputs] to [rows, outputs]."""
        full = weight.to(x.dtype)
        y = (x @ (full if self._layout == "inputs_outputs" else full.t())) * scale
        return _ACTIVATIONS[self._epilogue](y + bias[0] if bias else y)


class DecodeAttention(nn.Module):
    """One query a row over the first `lengths` positions of its lane."""

    def __init__(self, heads: int, kv_heads: int, head_dim: int) -> None:
        super().__init__()
        self._heads, self._kv_heads, self._head_dim = heads, kv_heads, head_dim

    def forward(
        self, queries: torch.Tensor, kv: torch.Tensor, lanes: torch.Tensor, lengths: torch.Tensor
    ) -> torch.Tensor:
        """[rows, heads, head_dim] to [rows, heads * head_dim]."""
        mine = kv.index_select(0, lanes)
        keys, values = mine[:, : self._kv_heads], mine[:, self._kv_heads :]
        shared = queries.reshape(queries.shape[0], self._kv_heads, -1, self._head_dim)
        seen = torch.arange(kv.shape[2], device=kv.device) < lengths.unsqueeze(1)
        scores = shared @ keys.transpose(-1, -2) * self._head_dim**-0.5
        scores = torch.where(seen[:, None, None], scores, -torch.inf)
        clean = torch.where(seen[:, None, :, None], values, 0.0)
        return (torch.softmax(scores, dim=-1) @ clean).reshape(queries.shape[0], -1)


def rms_norm(
    *,
    rows: Bucket,
    hidden: int,
    eps: float,
    unit: bool = False,
    residual: bool = False,
    weight: bool = False,
    threads: int = 1,
    source: bool = True,
) -> Subject:
    """The engine's UnitNorm is `unit=True`."""
    inputs = (_spec(rows.most, hidden),) * (1 + residual)
    params = (_spec(hidden),) * weight
    attrs = {"eps": eps, "residual": residual, "unit": unit}
    return _subject(
        "rms_norm", RmsNorm(eps, unit=unit, residual=residual), inputs, params, rows, threads, attrs, source
    )


def layer_norm(
    *,
    rows: Bucket,
    hidden: int,
    eps: float = 1e-5,
    affine: bool = True,
    threads: int = 1,
    source: bool = True,
) -> Subject:
    """Layer normalisation (Ba et al., 2016)."""
    params = (_spec(hidden),) * (2 * affine)
    return _subject(
        "layer_norm", LayerNorm(eps), (_spec(rows.most, hidden),), params, rows, threads, {"eps": eps}, source
    )


def softmax(*, rows: Bucket, columns: int, threads: int = 1, source: bool = True) -> Subject:
    """Over columns."""
    return _subject("softmax", Softmax(), (_spec(rows.most, columns),), (), rows, threads, {}, source)


def swiglu(
    *, rows: Bucket, inner: int, threads: int = 1, fast_math: bool = False, source: bool = True
) -> Subject:
    """[rows, 2 inner] to [rows, inner]."""
    inputs = (_spec(rows.most, 2 * inner),)
    return _subject("swiglu", Swiglu(), inputs, (), rows, threads, {}, source, fast_math=fast_math)


def gelu(
    *, rows: Bucket, columns: int, approximate: str = "none", threads: int = 1, source: bool = True
) -> Subject:
    """Element by element."""
    attrs = {"approximate": approximate} if approximate != "none" else {}
    inputs = (_spec(rows.most, columns),)
    return _subject("gelu", Gelu(approximate), inputs, (), rows, threads, attrs, source)


def linear(
    *,
    rows: Bucket,
    inputs: int,
    outputs: int,
    bias: bool = False,
    layout: str = "inputs_outputs",
    epilogue: str = "",
    threads: int = 1,
    source: bool = True,
) -> Subject:
    """The engine's Projection is `layout="inputs_outputs"`, nn.Linear `"outputs_inputs"`."""
    params = (_weight(inputs, outputs, layout, "float32"), *(_spec(outputs),) * bias)
    attrs = {"layout": layout, **({"epilogue": epilogue} if epilogue else {})}
    module = Linear(layout, epilogue)
    return _subject("linear", module, (_spec(rows.most, inputs),), params, rows, threads, attrs, source)


def int8_linear(
    *,
    rows: Bucket,
    inputs: int,
    outputs: int,
    bias: bool = False,
    layout: str = "outputs_inputs",
    epilogue: str = "",
    threads: int = 1,
    fast_math: bool = False,
    source: bool = True,
) -> Subject:
    """Parameters: weight int8 in the layout, scale [outputs], bias."""
    params = (_weight(inputs, outputs, layout, "int8"), _spec(outputs), *(_spec(outputs),) * bias)
    attrs = {"layout": layout, **({"epilogue": epilogue} if epilogue else {})}
    module = Int8Linear(layout, epilogue)
    given = (_spec(rows.most, inputs),)
    return _subject("int8_linear", module, given, params, rows, threads, attrs, source, fast_math=fast_math)


def decode_attention(
    *,
    rows: Bucket,
    heads: int,
    kv_heads: int,
    head_dim: int,
    lanes: int,
    positions: int,
    threads: int = 1,
    source: bool = True,
) -> Subject:
    """`lanes` and `positions` of the KV memory; fewer are in use."""
    inputs = (
        _spec(rows.most, heads, head_dim),
        _spec(lanes, 2 * kv_heads, positions, head_dim),
        TensorSpec((rows.most,), "int64"),
        TensorSpec((rows.most,), "int64"),
    )
    attrs = {"heads": heads, "kv_heads": kv_heads, "head_dim": head_dim}
    module = DecodeAttention(heads, kv_heads, head_dim)
    varying = [(0, 0), (2, 0), (3, 0)]
    return _subject("decode_attention", module, inputs, (), rows, threads, attrs, source, varying=varying)


def elementwise(
    module: nn.Module,
    inputs: Tensors,
    params: Tensors = (),
    *,
    rows: Bucket,
    threads: int = 1,
    fast_math: bool = False,
) -> Subject:
    """Any module without state: forward(*inputs, *params); examples as of `rows.most` rows."""
    return export_subject(
        module, "elementwise", inputs, params, bucket=rows, threads=threads, fast_math=fast_math
    )


def _subject(  # noqa: PLR0917
    op: str,
    module: nn.Module,
    inputs: tuple[TensorSpec, ...],
    params: tuple[TensorSpec, ...],
    rows: Bucket,
    threads: int,
    attrs: Mapping[str, Setting],
    source: bool,  # noqa: FBT001
    *,
    varying: Sequence[tuple[int, int]] | None = None,
    fast_math: bool = False,
) -> Subject:
    if not source:
        return Subject(op, inputs, params, rows, threads, tuple(sorted(attrs.items())), fast_math=fast_math)
    return export_subject(
        module,
        op,
        [_example(spec) for spec in inputs],
        [_example(spec) for spec in params],
        bucket=rows,
        threads=threads,
        attrs=attrs,
        varying=varying,
        fast_math=fast_math,
    )


def _example(spec: TensorSpec) -> torch.Tensor:
    return torch.ones(spec.shape, dtype=getattr(torch, spec.dtype))


def _spec(*shape: int) -> TensorSpec:
    return TensorSpec(shape, "float32")


def _weight(inputs: int, outputs: int, layout: str, dtype: str) -> TensorSpec:
    shape = (inputs, outputs) if layout == "inputs_outputs" else (outputs, inputs)
    return TensorSpec(shape, dtype)
