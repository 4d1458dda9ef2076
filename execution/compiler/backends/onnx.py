"""ONNX Runtime: exported by torch.onnx, optimised and run by its CPU provider; inputs and outputs are bound where they lie."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from execution.compiler.backends.present import module_missing, version
from execution.compiler.port import CompileError, Kernel, Recipe, Subject, Tensor

_MODEL = "kernel.onnx"
_KINDS = {
    "float32": 1,
    "uint8": 2,
    "int8": 3,
    "int16": 5,
    "int32": 6,
    "int64": 7,
    "bool": 9,
    "float16": 10,
    "float64": 11,
    "bfloat16": 16,
}
"""Types as onnx.TensorProto numbers them."""
_INEXACT = ("swiglu",)
"""Its logistic function is a rational approximation: off by percents where its value is near 0."""


class OnnxBackend:
    """See the module."""

    name = "onnxruntime"

    def unavailable(self) -> str | None:
        """Without onnxruntime, onnx or onnxscript."""
        for module in ("torch", "onnxruntime", "onnx", "onnxscript"):
            if reason := module_missing(module, module):
                return reason
        return None

    def versions(self) -> Mapping[str, str]:
        """Of the four packages."""
        return {name: version(name) for name in ("torch", "onnxruntime", "onnx", "onnxscript")}

    def recipes(self, subject: Subject) -> Sequence[Recipe]:
        """One; CPU only, and not where its arithmetic is known to be too rough."""
        known = all(spec.dtype in _KINDS for spec in (*subject.inputs, *subject.params))
        if subject.device != "cpu" or not known or (subject.op in _INEXACT and not subject.fast_math):
            return ()
        return (Recipe(self.name, "default", expected_compile_s=4.0),)

    def compile(self, subject: Subject, recipe: Recipe, folder: Path) -> None:
        """Export, and let the runtime write its optimised graph."""
        import onnxruntime  # noqa: PLC0415 - heavy
        import torch  # noqa: PLC0415 - heavy

        from execution.compiler.source import load_program  # noqa: PLC0415 - imports torch

        draft = folder / "draft.onnx"
        try:
            with warnings.catch_warnings(), torch.no_grad():
                warnings.simplefilter("ignore")
                exported = torch.onnx.export(
                    load_program(subject), dynamo=True, verbose=False, custom_translation_table=_missing()
                )
                if exported is None:
                    raise CompileError("torch.onnx.export gave nothing")
                exported.save(str(draft))
            options = onnxruntime.SessionOptions()
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
            options.optimized_model_filepath = str(folder / _MODEL)
            options.log_severity_level = 3
            onnxruntime.InferenceSession(str(draft), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            if isinstance(error, MemoryError):
                raise
            raise CompileError(
                f"onnxruntime {recipe.name}: {subject.op}: {type(error).__name__}: {str(error).strip()[:1000]}"
            ) from error
        finally:
            for left in folder.glob("draft.onnx*"):
                left.unlink()

    def load(self, subject: Subject, recipe: Recipe, folder: Path) -> Kernel:
        """A session on `subject.threads` threads."""
        import onnxruntime  # noqa: PLC0415 - heavy

        from execution.compiler.source import Reference  # noqa: PLC0415 - imports torch

        path = folder / _MODEL
        if not path.is_file():
            raise CompileError(f"onnxruntime {recipe.name}: {folder} holds no {_MODEL}")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = subject.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # it was done
        # waiting threads would take the CPU from torch's own
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's own exceptions have no common public base
            raise CompileError(f"onnxruntime {recipe.name}: {path}: {str(error).strip()[:500]}") from error
        return _OnnxKernel(session, Reference.of(subject))


class _OnnxKernel:
    """Binds pointers, weights once; nothing is copied."""

    def __init__(self, session: Any, reference: Any) -> None:
        import onnxruntime  # noqa: PLC0415 - loaded long since

        self._session = session
        self._names = [i.name for i in session.get_inputs()]
        self._outputs = [o.name for o in session.get_outputs()]
        self._output_like = reference.output_like
        # the public methods take some microseconds for each tensor, and numpy's types only
        self._binding = session.io_binding()._iobinding
        self._run = session._sess.run_with_iobinding
        self._cpu = onnxruntime.capi.onnxruntime_pybind11_state.OrtDevice(0, 0, 0)
        self._bound: list[Any] = [None] * len(self._names)
        self._outs: dict[tuple[Any, ...], list[tuple[Any, Any, int]]] = {}

    def prepare(self, params: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return tuple(p.detach().contiguous() for p in params)

    def __call__(self, *arguments: Tensor) -> Tensor:
        import torch  # noqa: PLC0415 - loaded long since

        given = [a if a.is_contiguous() else a.contiguous() for a in arguments]
        bound, binding = self._bound, self._binding
        for place, tensor in enumerate(given):
            told = (tensor.data_ptr(), tensor.shape)
            if bound[place] != told:
                binding.bind_input(self._names[place], self._cpu, _kind(tensor), tensor.shape, told[0])
                bound[place] = told
        key = tuple(a.shape for a in given)
        plan = self._outs.get(key)
        if plan is None:
            plan = self._outs[key] = [(t.shape, t.dtype, _kind(t)) for t in self._output_like(*given)]
        out = [torch.empty(shape, dtype=dtype) for shape, dtype, _ in plan]
        for name, tensor, (shape, _, kind) in zip(self._outputs, out, plan, strict=True):
            binding.bind_output(name, self._cpu, kind, shape, tensor.data_ptr())
        self._run(binding, None)
        return out[0] if len(out) == 1 else tuple(out)


def _missing() -> dict[Any, Any]:
    """Operations that torch's exporter does not know."""
    import torch  # noqa: PLC0415 - loaded long since
    from onnxscript import opset18  # noqa: PLC0415 - heavy

    op: Any = opset18

    def hypot(one: Any, other: Any) -> Any:
        one, other = op.Abs(one), op.Abs(other)
        large, small = op.Max(one, other), op.Min(one, other)
        zero = op.Sub(large, large)  # NaN for infinity, which Where leaves out
        ratio = op.Where(op.Greater(small, zero), op.Div(small, large), zero)
        found = op.Mul(
            large, op.Sqrt(op.Add(op.Mul(ratio, ratio), op.CastLike(op.Constant(value_float=1.0), large)))
        )
        return op.Where(op.IsInf(large), large, found)

    return {torch.ops.prims.hypot.default: hypot, torch.ops.aten.hypot.default: hypot}


def _kind(tensor: Any) -> int:
    return _KINDS[str(tensor.dtype).removeprefix("torch.")]
