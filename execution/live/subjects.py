"""Modules as subjects of compilation: under the family that templates know them by, else as the graph that they are.

subject = engine_subject(module, x, Bucket(1, 8), threads=1)
kernel(x, *kernel.prepare(engine_weights(module, subject)))
"""

from __future__ import annotations

import torch
from torch import nn

from execution.compiler.port import Bucket, Subject
from execution.compiler.source import Reference
from execution.engines.torch.model import Activation, Projection, UnitNorm
from execution.graph.node import GraphError
from execution.graph.subject import parameters_of, subject_of

_ALIKE = 1e-4
"""What a family's reference may differ from the module, of the largest value: the order of sums."""


def engine_subject(module: nn.Module, x: torch.Tensor, bucket: Bucket, threads: int) -> Subject:
    """The subject of a module that takes one tensor [rows, ...]: of its family where it has one, and where the family's
    reference gives on `x` what the module gives; else its graph. Raises GraphError, CompileError."""
    if x.dtype == torch.float32 and x.device.type == "cpu" and x.dim() == 2:
        found = _of_family(module, x.shape[1], bucket, threads)
        if found is not None:
            _check_alike(found, module, x)
            return found
    return subject_of(module, (x,), op="graph", bucket=bucket, threads=threads)


def engine_weights(module: nn.Module, subject: Subject) -> tuple[torch.Tensor, ...]:
    """The module's weights that its `engine_subject` takes after the input, in its order."""
    if subject.op == "graph":
        return parameters_of(module)
    found = (getattr(module, "weight", None), getattr(module, "bias", None))
    return tuple(tensor.detach() for tensor in found if isinstance(tensor, torch.Tensor))


def _of_family(module: nn.Module, columns: int, rows: Bucket, threads: int) -> Subject | None:
    """None: no family knows it. What is derived from a known class may do something else, and is unknown."""
    from execution.compiler.backends.tvm import families  # noqa: PLC0415 no tvm yet, but slow all the same

    kind, weight = type(module), getattr(module, "weight", None)
    with torch.inference_mode(False):  # nothing that is exported may be of inference mode
        if isinstance(module, UnitNorm) and kind is UnitNorm:
            eps = float(module._shift) ** 2 / columns
            return families.rms_norm(
                rows=rows, hidden=columns, eps=eps, unit=True, weight=weight is not None, threads=threads
            )
        if isinstance(module, nn.RMSNorm) and kind is nn.RMSNorm and len(module.normalized_shape) == 1:
            eps = torch.finfo(torch.float32).eps if module.eps is None else module.eps
            return families.rms_norm(
                rows=rows, hidden=columns, eps=eps, weight=weight is not None, threads=threads
            )
        if isinstance(module, Projection | nn.Linear) and kind in {Projection, nn.Linear}:
            layout = "inputs_outputs" if isinstance(module, Projection) else "outputs_inputs"
            outputs = module.weight.shape[1 if isinstance(module, Projection) else 0]
            bias = module.bias is not None
            return families.linear(
                rows=rows, inputs=columns, outputs=outputs, bias=bias, layout=layout, threads=threads
            )
        if kind is Activation:
            return families.swiglu(rows=rows, inner=columns // 2, threads=threads)
    return None


def _check_alike(subject: Subject, module: nn.Module, x: torch.Tensor) -> None:
    """Back ends are judged by the family's reference: it must be the module's. Raises GraphError."""
    with torch.inference_mode():
        ours, right = Reference.of(subject).eager(x, *engine_weights(module, subject)), module(x)
        off, size = float((ours - right).abs().max()), float(right.abs().max())
    if not off <= _ALIKE * max(size, torch.finfo(torch.float32).tiny):
        raise GraphError(f"{type(module).__name__} is no {subject.op}: {off:.3g} off, of {size:.3g}")
