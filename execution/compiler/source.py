"""The reference of a subject: exported once, carried as bytes, run as eager or in float64.

subject = export_subject(module, "rms_norm", inputs, params, bucket=Bucket(1, 16), threads=2)
reference = Reference.of(subject)
reference.eager(*inputs, *params)      # what serves today
reference.exact(*inputs, *params)      # the same in float64, by which others are judged
"""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from execution.compiler.port import Bucket, CompileError, Setting, Subject, TensorSpec

_WIDER = {
    torch.float16: torch.float64,
    torch.bfloat16: torch.float64,
    torch.float32: torch.float64,
    torch.complex64: torch.complex128,
}


def spec_of(tensor: torch.Tensor) -> TensorSpec:
    """Shape and type."""
    return TensorSpec(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))


def dtype_of(spec: TensorSpec) -> torch.dtype:
    """The torch type. Raises CompileError when there is none of this name."""
    found = getattr(torch, spec.dtype, None)
    if not isinstance(found, torch.dtype):
        raise CompileError(f"torch has no type {spec.dtype!r}")
    return found


def export_subject(
    module: torch.nn.Module,
    op: str,
    inputs: Sequence[torch.Tensor],
    params: Sequence[torch.Tensor] = (),
    *,
    bucket: Bucket,
    threads: int,
    attrs: Mapping[str, Setting] | None = None,
    varying: Sequence[tuple[int, int]] | None = None,
    fast_math: bool = False,
) -> Subject:
    """The subject of a module without state: forward(*inputs, *params), with `bucket.most` rows in the inputs.

    `varying`: (input, dimension) that grow with the rows; None: dimension 0 of the first input, and of each other
    input where it is as long. The hash of the graph goes into `attrs` as `graph`. Raises CompileError when it does
    not export.
    """
    rows = inputs[0].shape[0] if inputs and inputs[0].ndim else 0
    if rows != bucket.most:
        raise CompileError(
            f"subject {op}: the first input has {rows} rows, the bucket {bucket} ends elsewhere"
        )
    if varying is None:
        varying = [(i, 0) for i, t in enumerate(inputs) if i == 0 or (t.ndim > 1 and t.shape[0] == rows)]
    arguments = (*inputs, *params)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.export.export(
                _Flat(module).eval(), arguments, dynamic_shapes=_dynamic(len(arguments), bucket, varying)
            )
            source = _saved(program)
    except CompileError as error:
        raise CompileError(f"subject {op}: {error}") from None
    except Exception as error:  # torch.export raises whatever the module's code and torch's tracer raise
        raise CompileError(f"subject {op}: does not export: {_first_line(error)}") from error
    told = dict(attrs or {})
    told.setdefault("graph", _graph_hash(program))
    return Subject(
        op=op,
        inputs=tuple(map(spec_of, inputs)),
        params=tuple(map(spec_of, params)),
        bucket=bucket,
        threads=threads,
        attrs=tuple(sorted(told.items())),
        source=source,
        device=inputs[0].device.type,
        fast_math=fast_math,
    )


def load_program(subject: Subject) -> torch.export.ExportedProgram:
    """What the subject's source holds. Raises CompileError when that is nothing."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.load(io.BytesIO(subject.source))
            program.example_inputs = (_examples(subject), {})
            return program
    except CompileError:
        raise
    except Exception as error:  # a torn archive fails in many ways
        raise CompileError(
            f"subject {subject.op}: its source cannot be read: {_first_line(error)}"
        ) from error


class Reference:
    """A loaded source."""

    def __init__(self, subject: Subject, program: torch.export.ExportedProgram) -> None:
        self.subject = subject
        self.program = program
        self._inputs = len(subject.inputs)
        self._bound = _bound(program)
        self._module: fx.GraphModule = program.graph_module
        self._forward = self._module.forward
        self.varying = _varying(program, self._inputs, len(self._bound))
        """(input, dimension) that grow with the rows."""

    @classmethod
    def of(cls, subject: Subject) -> Reference:
        """Load it. Raises CompileError."""
        return cls(subject, load_program(subject))

    def eager(self, *arguments: torch.Tensor) -> Any:
        """The reference as torch runs it op by op, without the checks of an exported module."""
        out = self._forward(*self._bound, *arguments)
        return out[0] if isinstance(out, tuple | list) and len(out) == 1 else out

    def exact(self, *arguments: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The same with all floating point in float64."""
        wide = [_widen(a) for a in (*self._bound, *arguments)]
        return outputs_of(_Wide(self._module).run(*wide))

    def placeholders(self) -> list[fx.Node]:
        """Of inputs and parameters, in order."""
        return _placeholders(self._module)[len(self._bound) :]

    def output_like(self, *arguments: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Empty tensors of the shapes and types that a call would give."""
        meta = [a.to("meta") for a in (*self._bound, *arguments)]
        device = arguments[0].device
        return tuple(
            torch.empty(t.shape, dtype=t.dtype, device=device) for t in outputs_of(self._module(*meta))
        )


def outputs_of(result: Any) -> tuple[torch.Tensor, ...]:
    """A kernel's answer as a tuple, one tensor or several."""
    return tuple(result) if isinstance(result, tuple | list) else (result,)


def _saved(program: torch.export.ExportedProgram) -> bytes:
    """Without the tensors it was exported with: they may be weights of many megabytes. Raises CompileError."""
    written = [
        node
        for node in program.graph_module.graph.nodes
        if node.op == "call_function"
        and getattr(getattr(node.target, "_schema", None), "is_mutable", False)
        and isinstance(node.args[0], fx.Node)
        and node.args[0].op == "placeholder"
    ]
    if written:
        raise CompileError(f"it writes to its own buffers or arguments ({len(written)} of them)")
    program.example_inputs = None
    held = io.BytesIO()
    torch.export.save(program, held)
    return held.getvalue()


def _examples(subject: Subject) -> tuple[torch.Tensor, ...]:
    """Arguments of the right shapes and types, for those who want some."""
    return tuple(
        torch.ones(spec.shape, dtype=dtype_of(spec), device=subject.device)
        for spec in (*subject.inputs, *subject.params)
    )


class _Flat(torch.nn.Module):
    """forward(*arguments) of a callable module, so that argument names say nothing."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *arguments: torch.Tensor) -> Any:
        return self.inner(*arguments)


def _dynamic(count: int, bucket: Bucket, varying: Sequence[tuple[int, int]]) -> Any:
    shapes: list[dict[int, Any] | None] = [None] * count
    if bucket.least != bucket.most:
        rows = torch.export.Dim("rows", min=bucket.least, max=bucket.most)
        for index, dim in varying:
            shapes[index] = {**(shapes[index] or {}), dim: rows}
    return (tuple(shapes),)


def _graph_hash(program: torch.export.ExportedProgram) -> str:
    text = hashlib.sha256(str(program.graph_module.code).encode())
    for tensor in _bound(program):
        data = tensor.detach().cpu().contiguous()
        text.update(str((tuple(data.shape), data.dtype)).encode())
        text.update(data.view(torch.uint8).numpy().tobytes() if data.ndim else repr(data.item()).encode())
    return text.hexdigest()[:16]


def _bound(program: torch.export.ExportedProgram) -> list[torch.Tensor]:
    """Constants that the graph takes before its arguments."""
    found = []
    for spec in program.graph_signature.input_specs:
        if spec.kind.name == "USER_INPUT":
            continue
        target = spec.target or ""
        tensor = program.constants.get(target, program.state_dict.get(target))
        if not isinstance(tensor, torch.Tensor):
            raise CompileError(f"subject's source holds {target!r} ({spec.kind.name}), which is no tensor")
        found.append(tensor.detach())
    return found


def _placeholders(module: fx.GraphModule) -> list[fx.Node]:
    return [node for node in module.graph.nodes if node.op == "placeholder"]


def _varying(program: torch.export.ExportedProgram, inputs: int, bound: int) -> tuple[tuple[int, int], ...]:
    found, first = [], None
    for index, node in enumerate(_placeholders(program.graph_module)[bound : bound + inputs]):
        value = node.meta.get("val")
        for dim, size in enumerate(getattr(value, "shape", ())):
            if isinstance(size, torch.SymInt):
                name = str(size)
                first = first or name
                if name == first:
                    found.append((index, dim))
    return tuple(found)


def _widen(value: Any) -> Any:
    if isinstance(value, torch.Tensor) and value.dtype in _WIDER:
        return value.to(_WIDER[value.dtype])
    return _WIDER.get(value, value) if isinstance(value, torch.dtype) else value


def _int8pack_mm(x: torch.Tensor, weight: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    return (x @ weight.to(x.dtype).t()) * scales


_IN_FLOAT64: Mapping[str, Callable[..., Any]] = {"aten::_weight_int8pack_mm": _int8pack_mm}
"""Ops that torch has for short types only."""


class _Wide(fx.Interpreter):
    """Runs a graph with float64 in the place of shorter types."""

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        name = target.name().split(".")[0] if hasattr(target, "name") and callable(target.name) else ""
        target = _IN_FLOAT64.get(name, target)
        return super().call_function(
            target, fx.node.map_aggregate(args, _widen), fx.node.map_aggregate(kwargs, _widen)
        )


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0] if text else ''}"
