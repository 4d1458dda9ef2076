"""Inputs on which a kernel is judged: what was recorded, every end of the bucket, numbers and layouts out of the ordinary."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from execution.compiler.families import Special, family_of
from execution.compiler.port import Subject, TensorSpec
from execution.compiler.source import Reference, dtype_of

Kind = Literal["ordinary", "extreme", "layout"]
_MAX_RECORDED = 8


@dataclass(frozen=True, slots=True)
class Case:
    """One call."""

    name: str
    kind: Kind
    """`ordinary`: errors count for the typical error; `extreme`: they do not; `layout`: may also be refused."""
    inputs: tuple[torch.Tensor, ...]


def cases_of(
    subject: Subject, reference: Reference, recorded: Sequence[Sequence[torch.Tensor]], seed: int = 0
) -> Iterator[Case]:
    """All cases of a subject, the same for the same seed."""
    dice = torch.Generator().manual_seed(seed)
    for number, inputs in enumerate(recorded[:_MAX_RECORDED]):
        yield Case(f"recorded {number}", "ordinary", tuple(inputs))
    sizes = _sizes(subject)
    for rows in sizes:
        if recorded:
            base = resized(recorded[0], rows, reference.varying)
            yield Case(f"recorded 0 with {rows} rows", "ordinary", base)
        yield Case(f"normal, {rows} rows", "ordinary", synthetic(subject, reference, rows, recorded, dice))
    base = synthetic(subject, reference, sizes[min(1, len(sizes) - 1)], recorded, dice)
    for special in family_of(subject).specials:
        yield Case(special, "extreme", tuple(_special(t, special, dice) for t in base))
    yield Case("storage offset", "layout", tuple(map(shifted, base)))
    yield Case("strided", "layout", tuple(map(strided, base)))
    yield Case("transposed", "layout", tuple(map(transposed, base)))


def _sizes(subject: Subject) -> list[int]:
    """Both ends, one row where it is in the bucket, the middle and an odd one."""
    least, most = subject.bucket.least, subject.bucket.most
    wanted = {least, least + 1, (least + most) // 2 | 1, most - 1, most}
    return sorted(rows for rows in wanted if rows in subject.bucket)


def resized(
    inputs: Sequence[torch.Tensor], rows: int, varying: Sequence[tuple[int, int]]
) -> tuple[torch.Tensor, ...]:
    """The same call with more or fewer rows: those that are there, over and over."""
    out = list(inputs)
    for index, dim in varying:
        have = out[index].shape[dim]
        if have != rows:
            out[index] = out[index].index_select(dim, torch.arange(rows, device=out[index].device) % have)
    return tuple(out)


def synthetic(
    subject: Subject,
    reference: Reference,
    rows: int,
    recorded: Sequence[Sequence[torch.Tensor]],
    dice: torch.Generator,
) -> tuple[torch.Tensor, ...]:
    """Normal numbers of the scale of what was recorded; indices and masks are taken from there."""
    made = []
    for index, spec in enumerate(subject.inputs):
        seen = recorded[0][index] if recorded else None
        made.append(random_like(spec, seen, dice, subject.device))
    return resized(made, rows, reference.varying)


def random_like(
    spec: TensorSpec, seen: torch.Tensor | None, dice: torch.Generator, device: str = "cpu"
) -> torch.Tensor:
    """Numbers for one tensor: floating ones are drawn, others are those seen, or small integers."""
    dtype = dtype_of(spec)
    shape = spec.shape if seen is None else tuple(seen.shape)
    if dtype.is_floating_point or dtype.is_complex:
        wide = torch.complex64 if dtype.is_complex else torch.float32
        drawn = torch.randn(shape, generator=dice, dtype=wide).to(dtype).to(device)
        if seen is None or not seen.numel():
            return drawn
        if not bool(torch.isfinite(seen).all()):  # a mask: its infinities have a meaning
            return seen
        size = seen.abs().float().square().mean().sqrt()
        return (drawn * size).to(dtype) if size > 0 else drawn
    if seen is not None:
        return seen
    if dtype == torch.bool:
        return (torch.rand(shape, generator=dice) < 0.5).to(device)
    low = -127 if dtype == torch.int8 else 0
    return torch.randint(low, 2 if low == 0 else 128, shape, generator=dice).to(dtype).to(device)


def _special(tensor: torch.Tensor, special: Special, dice: torch.Generator) -> torch.Tensor:
    if not tensor.is_floating_point() or not tensor.numel() or not bool(torch.isfinite(tensor).all()):
        return tensor
    info = torch.finfo(tensor.dtype)
    if special in ("nan", "inf", "-inf"):
        out = tensor.clone()
        flat = out.view(-1)
        places = torch.randint(0, flat.numel(), (max(1, out.shape[0] // 2),), generator=dice).to(out.device)
        flat[places] = float(special)
        return out
    if special == "mixed":
        powers = torch.randint(-6, 7, tensor.shape, generator=dice).to(tensor.device)
        return (tensor.double() * 10.0**powers).clamp(-info.max, info.max).to(tensor.dtype)
    if special == "constant":
        return torch.full_like(tensor, 0.1)
    if special in ("zero", "-0.0"):
        return torch.full_like(tensor, 0.0 if special == "zero" else -0.0)
    least = 2.0**-149 if tensor.dtype == torch.float32 else info.smallest_normal / 8
    size = {"denormal": least * 1000, "tiny": info.smallest_normal * 1e4, "huge": info.max / 8}[special]
    return (tensor.double().clamp(-4, 4) * size).clamp(-info.max, info.max).to(tensor.dtype)


def shifted(tensor: torch.Tensor) -> torch.Tensor:
    """The same, contiguous, one element into its storage: aligned to nothing more than its element."""
    room = tensor.new_empty(tensor.numel() + 1)
    out = room[1:].view(tensor.shape)
    return out.copy_(tensor)


def strided(tensor: torch.Tensor) -> torch.Tensor:
    """The same as columns of something wider."""
    if not tensor.ndim:
        return tensor
    room = tensor.new_zeros((*tensor.shape[:-1], tensor.shape[-1] + 3))
    out = room[..., 1 : 1 + tensor.shape[-1]]
    return out.copy_(tensor)


def transposed(tensor: torch.Tensor) -> torch.Tensor:
    """The same with the last two dimensions stored the other way round."""
    if tensor.ndim < 2:
        return tensor
    return tensor.transpose(-1, -2).contiguous().transpose(-1, -2)
