"""RMSNorm: the engine's UnitNorm, and Llama's with its residual and weight."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.common import Options
from benchmarks.kernelling.case import Case, bound, width_of

EPS = 1e-5


def cases(options: Options, threads: int) -> Iterator[Case]:
    """Each at the sizes of small and of large models."""
    import torch  # noqa: PLC0415
    from torch.nn import functional  # noqa: PLC0415

    from execution.compiler.backends.tvm import families  # noqa: PLC0415
    from execution.compiler.port import Bucket  # noqa: PLC0415
    from execution.engines.torch.model import UnitNorm  # noqa: PLC0415

    sizes: tuple[tuple[int, tuple[int, ...]], ...] = (
        (256, (1, 8, 128)),
        (2048, (1, 8, 512)),
        (4096, (8, 128)),
    )
    if options.quick:
        sizes = ((256, (1, 128)), (4096, (8,)))
    for hidden, many in sizes:
        bucket = Bucket(1, max(many))
        plain = families.rms_norm(
            rows=bucket, hidden=hidden, eps=EPS, unit=True, threads=threads, source=False
        )
        added = families.rms_norm(
            rows=bucket, hidden=hidden, eps=EPS, residual=True, weight=True, threads=threads, source=False
        )
        unit = UnitNorm(hidden, EPS)
        root = torch.full((hidden,), hidden**-0.5)
        for rows in many:
            x, r, w = torch.randn(rows, hidden), torch.randn(rows, hidden), torch.randn(hidden)
            reference = families.RmsNorm(EPS, unit=True)
            yield Case(
                "rms_norm", f"unit {hidden}", width_of(hidden), rows, plain, (x,), (),
                bound(lambda x, m: m(x.double()), x, reference),
                {"engine": bound(lambda x, m: m(x), x, unit),
                 "rms_norm": bound(lambda x, h, w: functional.rms_norm(x, (h,), w, EPS), x, hidden, root)},
                unit,
            )  # fmt: skip
            both = families.RmsNorm(EPS, residual=True)
            yield Case(
                "rms_norm", f"residual {hidden}", width_of(hidden), rows, added, (x, r), (w,),
                bound(lambda x, r, w, m: m(x.double(), r.double(), w.double()), x, r, w, both),
                {"add, rms_norm": bound(_added_norm, x, r, w)},
                both,
            )  # fmt: skip


def _added_norm(x: Any, residual: Any, weight: Any) -> tuple[Any, Any]:
    from torch.nn import functional  # noqa: PLC0415

    total = x + residual
    return total, functional.rms_norm(total, (x.shape[-1],), weight, EPS)
