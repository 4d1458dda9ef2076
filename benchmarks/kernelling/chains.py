"""Fused elementwise chains: SwiGLU, and a longer one with weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.common import Options
from benchmarks.kernelling.case import Case, bound, width_of


def gated() -> Any:
    """A module of a gate, a scale and a shift, GELU, and a residual."""
    import torch  # noqa: PLC0415
    from torch.nn import functional  # noqa: PLC0415

    class Gated(torch.nn.Module):
        """All [rows, n]; scale and shift [n]."""

        def forward(self, x: Any, gate: Any, residual: Any, scale: Any, shift: Any) -> Any:
            """[rows, n]."""
            return functional.gelu(x * scale + shift) * torch.sigmoid(gate) + residual

    return Gated()


def cases(options: Options, threads: int) -> Iterator[Case]:
    """Each at the sizes of small and of large models."""
    import torch  # noqa: PLC0415
    from torch.nn import functional  # noqa: PLC0415

    from execution.compiler.backends.tvm import families  # noqa: PLC0415
    from execution.compiler.port import Bucket  # noqa: PLC0415

    sizes: tuple[tuple[int, tuple[int, ...]], ...] = (
        (1024, (1, 8, 128)),
        (4096, (1, 8, 128)),
        (11008, (1, 8)),
    )
    if options.quick:
        sizes = ((1024, (1, 128)), (4096, (8,)))
    for columns, many in sizes:
        bucket = Bucket(1, max(many))
        swiglu = families.swiglu(rows=bucket, inner=columns, threads=threads, source=False)
        examples = [torch.randn(bucket.most, columns) for _ in range(3)]
        weights = (torch.randn(columns), torch.randn(columns))
        module = gated()
        with torch.inference_mode(False):
            plain = [torch.ones(bucket.most, columns) for _ in range(3)]
            scales = [torch.ones(columns) for _ in range(2)]
            chain = families.elementwise(module, plain, scales, rows=bucket, threads=threads)
        for rows in many:
            x = torch.randn(rows, 2 * columns)
            yield Case(
                "elementwise", f"swiglu {columns}", width_of(columns), rows, swiglu, (x,), (),
                bound(lambda x: families.Swiglu()(x.double()), x),
                {"eager": bound(lambda x, n: functional.silu(x[:, :n]).mul_(x[:, n:]), x, columns)},
                families.Swiglu(),
            )  # fmt: skip
            given = tuple(e[:rows].contiguous() for e in examples)
            yield Case(
                "elementwise", f"gated {columns}", width_of(columns), rows, chain, given, weights,
                bound(lambda given, w, m: m(*(t.double() for t in (*given, *w))), given, weights, module),
                {"eager": bound(lambda given, w, m: m(*given, *w), given, weights, module)},
                module,
            )  # fmt: skip
