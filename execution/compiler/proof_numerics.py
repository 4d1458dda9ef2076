"""Errors of a kernel against the float64 reference: each element within the tolerance of its family, all of them together
not much worse than eager (see execution.compiler.families for the rules)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from execution.compiler.families import Family, family_of
from execution.compiler.port import Subject
from execution.compiler.proof_cases import Case
from execution.compiler.source import Reference, outputs_of
from execution.compiler.verdict import Numerics, Worst

Call = Callable[..., Any]
"""A kernel with its prepared parameters bound: call(*inputs)."""
_FLOOR_NORMALS = 8.0


class _Sums:
    """Squares of errors, relative to the size of what they are errors of."""

    def __init__(self) -> None:
        self.error = self.eager = 0.0
        self.count = 0

    def add(self, error: torch.Tensor, eager: torch.Tensor, want: torch.Tensor) -> None:
        usable = torch.isfinite(want) & torch.isfinite(eager)
        size = want[usable].square().mean().sqrt().item() if bool(usable.any()) else 0.0
        if size > 0 and bool(torch.isfinite(error[usable]).all()):
            self.error += (error[usable] / size).square().sum().item()
            self.eager += (eager[usable] / size).square().sum().item()
            self.count += int(usable.sum())

    def rms(self) -> tuple[float, float]:
        count = max(self.count, 1)
        return math.sqrt(self.error / count), math.sqrt(self.eager / count)


def check_numerics(
    subject: Subject,
    call: Call,
    reference: Reference,
    params: Sequence[torch.Tensor],
    cases: Iterable[Case],
) -> Numerics:
    """Judge `call(*inputs)` on all cases; ends at the first element that is not allowed."""
    family = family_of(subject)
    sums = _Sums()
    worst: Worst | None = None
    closest = -1.0
    raises: list[str] = []
    seen = elements = 0
    eps = 0.0
    for case in cases:
        seen += 1
        try:
            got = outputs_of(call(*case.inputs))
        except Exception as error:  # noqa: BLE001 - a kernel may raise whatever its runtime raises
            if case.kind == "layout":
                raises.append(f"{case.name} ({type(error).__name__})")
                continue
            reason = f"raises on {case.name}: {type(error).__name__}: {str(error).strip()[:200]}"
            return Numerics(False, reason, seen, elements, worst, *sums.rms(), raises=tuple(raises))
        arguments = (*case.inputs, *params)
        want, eager = reference.exact(*arguments), outputs_of(reference.eager(*arguments))
        fault = _shape_fault(got, eager)
        if fault:
            return Numerics(
                False, f"{case.name}: {fault}", seen, elements, worst, *sums.rms(), raises=tuple(raises)
            )
        scales = _scales(family, reference, arguments, want, eager)
        for g, w, e, scale in zip(got, want, eager, scales, strict=True):
            allowed = _Allowed.of(scale, e, family.factor(subject))
            elements += w.numel()
            eps = max(eps, _eps(e))
            share, place = _compare(g, w, e, allowed, case=case, sums=sums)
            if share > closest and place is not None:
                closest, worst = share, place
            if share > 1:
                reason = f"wrong beyond {family.describe(subject)}: {place}"
                return Numerics(False, reason, seen, elements, worst, *sums.rms(), raises=tuple(raises))
    rms, eager_rms = sums.rms()
    limit = max(family.typical * eager_rms, family.typical_eps * eps)
    if subject.fast_math:
        limit *= family.fast_terms
    ok = rms <= limit
    reason = (
        f"within {family.describe(subject)}"
        if ok
        else f"typical error {rms:.3g} is above {limit:.3g} (eager: {eager_rms:.3g})"
    )
    return Numerics(ok, reason, seen, elements, worst, rms, eager_rms, tuple(raises))


def same_bits(one: Sequence[torch.Tensor], two: Sequence[torch.Tensor]) -> bool:
    """Equal to the last bit; NaN equals NaN."""
    return len(one) == len(two) and all(
        a.shape == b.shape
        and a.dtype == b.dtype
        and bool(torch.equal(torch.isnan(a), torch.isnan(b)))
        and bool(torch.equal(torch.nan_to_num(a), torch.nan_to_num(b)))
        if a.is_floating_point()
        else bool(torch.equal(a, b))
        for a, b in zip(one, two, strict=True)
    )


def check_determinism(call: Call, inputs: Sequence[torch.Tensor], times: int = 3) -> bool:
    """Whether the same call gives the same bits each time."""
    first = [t.clone() for t in outputs_of(call(*inputs))]
    return all(same_bits(first, outputs_of(call(*inputs))) for _ in range(times - 1))


def _shape_fault(got: Sequence[Any], eager: Sequence[torch.Tensor]) -> str:
    if len(got) != len(eager):
        return f"gives {len(got)} tensors instead of {len(eager)}"
    for g, e in zip(got, eager, strict=True):
        if not isinstance(g, torch.Tensor):
            return f"gives {type(g).__name__} instead of a tensor"
        if g.shape != e.shape or g.dtype != e.dtype:
            return f"gives {tuple(g.shape)} {g.dtype} instead of {tuple(e.shape)} {e.dtype}"
    return ""


def _eps(tensor: torch.Tensor) -> float:
    return torch.finfo(tensor.dtype).eps if tensor.is_floating_point() else 0.0


def _scales(
    family: Family,
    reference: Reference,
    arguments: Sequence[torch.Tensor],
    want: Sequence[torch.Tensor],
    eager: Sequence[torch.Tensor],
) -> tuple[torch.Tensor, ...]:
    """Sizes of what each element was added up from, in float64."""
    if family.scale == "absolute":
        return tuple(s.double() for s in reference.exact(*(_absolute(a) for a in arguments)))
    if family.scale == "row":
        return tuple(map(_row, want))
    return tuple(torch.maximum(w.abs().double(), _row(w) * _eps(e)) for w, e in zip(want, eager, strict=True))


@dataclass(frozen=True, slots=True)
class _Allowed:
    """What an element of an output may be."""

    error: torch.Tensor
    overflows: torch.Tensor
    """Terms are beyond the type's range, so that sums of some of them may be: not finite is right, too."""
    top: float

    @classmethod
    def of(cls, scale: torch.Tensor, like: torch.Tensor, factor: float) -> _Allowed:
        if not like.is_floating_point():
            return cls(torch.zeros_like(scale), torch.zeros_like(scale, dtype=torch.bool), math.inf)
        info = torch.finfo(like.dtype)
        error = scale.nan_to_num(0, 0, 0) * (factor * info.eps) + _FLOOR_NORMALS * info.smallest_normal
        return cls(error, torch.isfinite(scale) & (scale > info.max), info.max)


def _row(want: torch.Tensor) -> torch.Tensor:
    """The largest finite element of each row, for each of its elements."""
    sizes = want.abs().double().nan_to_num(0, 0, 0)
    return sizes.amax(-1, keepdim=True).expand_as(want) if want.ndim and want.shape[-1] else sizes


def _absolute(argument: torch.Tensor) -> torch.Tensor:
    if not argument.is_floating_point():
        return argument.abs() if argument.dtype == torch.int8 else argument
    return argument.abs()


def _right(got: torch.Tensor, want: torch.Tensor, allowed: _Allowed) -> torch.Tensor:
    """Share of what is allowed that an error takes; infinite where the kind of number is wrong."""
    share = (got - want).abs() / allowed.error.clamp_min(5e-324)
    share = torch.where(torch.isnan(share) | torch.isinf(want), torch.inf, share)
    beyond = (want.abs() > allowed.top * (1 - 2**-30)) & torch.isinf(got) & (got.sign() == want.sign())
    fine = (got == want) | beyond | (allowed.overflows & ~torch.isfinite(got))
    share = torch.where(fine, 0.0, share)
    return torch.where(torch.isnan(want), torch.where(torch.isnan(got), 0.0, torch.inf), share)


def _compare(
    got: torch.Tensor, want: torch.Tensor, eager: torch.Tensor, allowed: _Allowed, *, case: Case, sums: _Sums
) -> tuple[float, Worst | None]:
    """Largest share of what is allowed, and where."""
    if not want.numel():
        return 0.0, None
    g, w, e = got.double(), want.double(), eager.double()
    share, share_eager = _right(g, w, allowed), _right(e, w, allowed)
    missed = (share > 1) & (share_eager > 1)
    as_eager = missed & (
        (torch.isnan(g) & torch.isnan(e))
        | (g == e)
        | (~torch.isfinite(e) & ~torch.isfinite(g))
        | (share <= 2 * share_eager) & torch.isfinite(g)
    )
    share = torch.where(as_eager, 0.0, share)
    if case.kind == "ordinary":
        sums.add((g - w).abs(), (e - w).abs(), w)
    flat = int(share.argmax())
    index = tuple(int(i) for i in torch.unravel_index(torch.tensor(flat), share.shape)) if share.ndim else ()
    place = Worst(
        case=case.name,
        index=index,
        want=w[index].item(),
        got=g[index].item(),
        error=(g - w).abs()[index].item(),
        allowed=allowed.error[index].item(),
    )
    return share.max().item(), place
