"""The first run of a kernel, in a process that may die of it: what worker.py's forked children do.

`run` tells each stage before it begins, so that a crash has a place:

    load, prepare       the artifact is loaded, the weights are packed
    guarded             calls on fenced copies: inputs and weights unchanged, nothing beyond their ends, outputs new
    numerics            errors on all cases (proof_numerics)
    determinism         the same bits twice
    speed               paired runs against eager, or against another kernel (proof_speed)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from execution.compiler.backends import make_backend
from execution.compiler.fences import Fenced
from execution.compiler.port import Kernel, Subject
from execution.compiler.proof_cases import Case, cases_of, synthetic
from execution.compiler.proof_numerics import check_determinism, check_numerics, same_bits
from execution.compiler.proof_speed import compare_steps
from execution.compiler.source import Reference, outputs_of
from execution.compiler.verdict import Trial

Tell = Callable[[dict[str, Any]], None]
_GUARDED_CALLS = 2


class TrialFault(RuntimeError):
    """The kernel did what a kernel must not do."""


def save_samples(
    path: Path, inputs: Sequence[Sequence[torch.Tensor]], params: Sequence[torch.Tensor]
) -> None:
    """For `run` in another process; on the CPU, contiguous."""
    kept = [[t.detach().cpu().clone() for t in call] for call in inputs]
    torch.save({"inputs": kept, "params": [t.detach().cpu() for t in params]}, path)


def run(request: Mapping[str, Any], tell: Tell) -> None:
    """One job: `trial` (all but speed) or `speed`. Tells `trial`, `numerics`, `deterministic`, `speed`, or `fault`."""
    subject: Subject = request["subject"]
    torch.set_num_threads(subject.threads)
    with torch.inference_mode():
        calls = _Calls.of(subject, Path(request["samples"]))
        if request["job"] == "speed":
            _speed(request, calls, tell)
        else:
            _try(request, calls, tell)


@dataclass(frozen=True, slots=True)
class _Calls:
    """A subject, and what it is called with."""

    subject: Subject
    reference: Reference
    recorded: tuple[tuple[torch.Tensor, ...], ...]
    params: tuple[torch.Tensor, ...]

    @classmethod
    def of(cls, subject: Subject, path: Path) -> _Calls:
        told = torch.load(path, weights_only=True, map_location=subject.device)
        params = tuple(told["params"])
        if len(params) != len(subject.params):
            raise ValueError(f"{len(params)} parameters recorded, {len(subject.params)} declared")
        return cls(subject, Reference.of(subject), tuple(map(tuple, told["inputs"])), params)


def _load(told: Mapping[str, Any], subject: Subject) -> Kernel:
    return make_backend(told["backend"]).load(subject, told["recipe"], Path(told["folder"]))


def _try(request: Mapping[str, Any], calls: _Calls, tell: Tell) -> None:
    subject, reference, params = calls.subject, calls.reference, calls.params
    start_s = time.monotonic()
    tell({"stage": "load"})
    kernel = _load(request, subject)
    cases = list(cases_of(subject, reference, calls.recorded))
    fence = subject.device == "cpu"
    tell({"stage": "prepare"})
    fenced_params = [Fenced(t) for t in params] if fence else []
    weights = tuple(f.tensor for f in fenced_params) if fence else params
    prepared = tuple(kernel.prepare(weights))
    count = 0
    for case in _guarded_cases(cases):
        tell({"stage": "guarded", "case": case.name})
        count += _guarded(kernel, case, prepared, fenced_params, fence=fence)
    watched = ("inputs unchanged", "outputs are new") + (("fenced inputs and weights",) if fence else ())
    if request.get("heap"):
        watched += ("heap",)
    trial = Trial(True, "ran, and touched only what is its own", count, time.monotonic() - start_s, watched)
    tell({"trial": asdict(trial)})
    tell({"stage": "numerics"})
    numerics = check_numerics(subject, lambda *inputs: kernel(*inputs, *prepared), reference, params, cases)
    tell({"numerics": asdict(numerics)})
    if not numerics.ok:
        return
    tell({"stage": "determinism"})
    tell({"deterministic": check_determinism(lambda *i: kernel(*i, *prepared), cases[0].inputs)})


def _guarded_cases(cases: Sequence[Case]) -> list[Case]:
    """A few ordinary ones: recorded, both ends of the bucket."""
    ordinary = [case for case in cases if case.kind == "ordinary"]
    return list(
        {case.name: case for case in (ordinary[0], ordinary[len(ordinary) // 2], ordinary[-1])}.values()
    )


def _guarded(
    kernel: Kernel, case: Case, prepared: tuple[Any, ...], weights: Sequence[Fenced], *, fence: bool
) -> int:
    """Calls made. Raises TrialFault."""
    fenced = [Fenced(t) for t in case.inputs] if fence else []
    inputs = tuple(f.tensor for f in fenced) if fence else case.inputs
    was = [t.clone() for t in inputs]
    first = outputs_of(kernel(*inputs, *prepared))
    kept = [t.clone() for t in first]
    for _ in range(_GUARDED_CALLS - 1):
        again = outputs_of(kernel(*inputs, *prepared))
        _check_new(case, first, again, (*inputs, *(w.tensor for w in weights)))
        if not same_bits(kept, first):
            raise TrialFault(f"{case.name}: a later call changed the output of an earlier one")
    for number, guard in enumerate(fenced):
        if fault := guard.fault():
            raise TrialFault(f"{case.name}: input {number} {fault}")
    if not fence and not same_bits(was, inputs):
        raise TrialFault(f"{case.name}: an input was written to")
    for number, guard in enumerate(weights):
        if fault := guard.fault():
            raise TrialFault(f"{case.name}: parameter {number} {fault}")
    return _GUARDED_CALLS


def _check_new(
    case: Case, first: Sequence[torch.Tensor], again: Sequence[torch.Tensor], others: Sequence[torch.Tensor]
) -> None:
    taken = {t.untyped_storage().data_ptr() for t in (*others, *first) if t.numel()}
    if any(t.numel() and t.untyped_storage().data_ptr() in taken for t in again):
        raise TrialFault(f"{case.name}: an output shares memory with an input or with an earlier output")


def _speed(request: Mapping[str, Any], calls: _Calls, tell: Tell) -> None:
    subject, reference, recorded, params = calls.subject, calls.reference, calls.recorded, calls.params
    tell({"stage": "load"})
    after = _bound(_load(request, subject), params)
    against = request.get("against")
    before = _bound(_load(against, subject), params) if against else lambda *i: reference.eager(*i, *params)
    dice = torch.Generator().manual_seed(0)
    ends = sorted({subject.bucket.least, subject.bucket.most})
    inputs = recorded or [synthetic(subject, reference, rows, recorded, dice) for rows in ends]
    tell({"stage": "speed"})
    settings = {name: request[name] for name in ("min_gain", "error_rate", "limit_s") if name in request}
    speed = compare_steps(
        _round(before, inputs, subject.device),
        _round(after, inputs, subject.device),
        threads=subject.threads,
        **settings,
    )
    tell({"speed": asdict(speed)})


def _bound(kernel: Kernel, params: tuple[torch.Tensor, ...]) -> Callable[..., Any]:
    prepared = tuple(kernel.prepare(params))
    return lambda *inputs: kernel(*inputs, *prepared)


def _round(
    call: Callable[..., Any], inputs: Sequence[tuple[torch.Tensor, ...]], device: str
) -> Callable[[], None]:
    """All recorded calls, one after the other."""

    def run_all() -> None:
        for one in inputs:
            call(*one)
        if device != "cpu":
            torch.cuda.synchronize()

    return run_all
