"""An exported graph as TIR functions and the order in which they are called.

    lowered = lower(subject, target)            # tvm.relax reads the source; fusion makes functions of it
    lowered.calls                               # ("fused_matmul_add", (arguments by number), shape of the result) ...

Without a virtual machine at run time: what Relax's main function does is a straight line of calls, which needs none.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from typing import Any

from execution.compiler.port import CompileError, Subject


@dataclass(frozen=True, slots=True)
class Call:
    """One function; tensors are numbered: arguments of the subject first, then results of calls."""

    function: str
    arguments: tuple[int, ...]
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, slots=True)
class Lowered:
    """The graph."""

    module: Any
    """IRModule: the functions, and Relax's main."""
    calls: tuple[Call, ...]
    results: tuple[int, ...]


def lower(subject: Subject, target: Any) -> Any:
    """Relax module of the subject's source, fused. Raises CompileError where the frontend cannot read it."""
    import torch  # noqa: PLC0415
    from tvm import relax, transform  # noqa: PLC0415
    from tvm.relax.frontend.torch import from_exported_program  # noqa: PLC0415

    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.export.load(io.BytesIO(subject.source)).run_decompositions({})
            module = from_exported_program(program, keep_params_as_input=False)
        passes = [
            relax.transform.DecomposeOpsForInference(),
            relax.transform.CanonicalizeBindings(),
            relax.get_pipeline("zero"),
            relax.transform.FoldConstant(),
            relax.transform.DeadCodeElimination(),
        ]
        with target:
            return transform.Sequential(passes)(module)
    except Exception as error:  # the frontend raises what it likes for what it does not know
        text = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise CompileError(
            f"metaschedule: cannot read {subject.op}: {type(error).__name__}: {text[-1] if text else ''}"
        ) from error


def straight_line(module: Any) -> Lowered:
    """The calls of a fused module. Raises CompileError where it does more than call TIR functions."""
    from tvm import ir, relax  # noqa: PLC0415

    main = module["main"]
    known: list[tuple[Any, tuple[int, ...]]] = [(parameter, (i,)) for i, parameter in enumerate(main.params)]
    calls: list[Call] = []

    def numbers(expr: Any) -> tuple[int, ...]:
        if isinstance(expr, relax.Tuple):
            return tuple(n for part in expr.fields for n in numbers(part))
        for variable, found in known:
            if variable.same_as(expr):
                return found
        raise CompileError(f"metaschedule: {type(expr).__name__} as an argument is more than it can do")

    for block in main.body.blocks:
        for binding in block.bindings:
            value = binding.value
            if isinstance(value, relax.Call) and value.op == ir.Op.get("relax.call_tir"):
                told = binding.var.ty
                shape = tuple(int(size) for size in told.shape.values)
                calls.append(
                    Call(_name_of(module, value.args[0]), numbers(value.args[1]), shape, str(told.dtype))
                )
                known.append((binding.var, (len(main.params) + len(calls) - 1,)))
            elif isinstance(value, relax.Call):
                raise CompileError(f"metaschedule: {value.op} is more than a call of a TIR function")
            else:
                known.append((binding.var, numbers(value)))
    return Lowered(module, tuple(calls), numbers(main.body.body))


def _name_of(module: Any, variable: Any) -> str:
    for name in module.get_global_vars():
        if name.same_as(variable):
            return str(name.name_hint)
    raise CompileError("metaschedule: a call of a function that is not there")
