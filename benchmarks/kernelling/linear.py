"""Linear layers of few rows, and of as many as a GEMM has."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.common import Options
from benchmarks.kernelling.case import Case, bound, width_of
from benchmarks.kernelling.timing import Call

SMALL_ROWS = 8


def cases(options: Options, threads: int) -> Iterator[Case]:
    """Against both layouts of the weight, where it is large also in huge pages as ours is."""
    import torch  # noqa: PLC0415

    from execution.compiler.backends.tvm import families  # noqa: PLC0415
    from execution.compiler.port import Bucket  # noqa: PLC0415

    sizes = ((256, 2048), (4096, 4096)) if options.quick else (
        (256, 512), (256, 2048), (1024, 256), (2048, 2048), (4096, 4096),
    )  # fmt: skip
    for inputs, outputs in sizes:
        weight = torch.randn(inputs, outputs)
        layouts = _layouts(weight)
        for rows in (1, 4, 128) if options.quick else (1, 2, 4, 8, 16, 32, 128):
            x = torch.randn(rows, inputs)
            subject = families.linear(
                rows=Bucket(rows, rows), inputs=inputs, outputs=outputs, threads=threads, source=False
            )
            yield Case(
                "linear" if rows <= SMALL_ROWS else "gemm", f"{inputs}x{outputs}", width_of(inputs), rows, subject,
                (x,), (weight,),
                bound(lambda x, w: x.double() @ w.double(), x, weight),
                {name: _peer(name, x, w) for name, w in layouts.items()},
                flops=2.0 * rows * inputs * outputs,
            )  # fmt: skip


def _layouts(weight: Any) -> dict[str, Any]:
    from execution.compiler.backends.tvm import pages  # noqa: PLC0415

    found = {"mm": weight, "linear": weight.t().contiguous()}
    if weight.numel() * weight.element_size() > pages.HUGE_BYTES:
        for name in tuple(found):
            found[f"{name}, huge pages"] = pages.zeros(found[name].shape, weight).copy_(found[name])
    return found


def _peer(name: str, x: Any, weight: Any) -> Call:
    import torch  # noqa: PLC0415
    from torch.nn import functional  # noqa: PLC0415

    return bound(torch.mm if name.startswith("mm") else functional.linear, x, weight)
