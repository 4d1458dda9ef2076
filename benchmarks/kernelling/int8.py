"""Linear layers with weights of one byte, activations in float32."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.common import Options
from benchmarks.kernelling.case import Case, bound, width_of
from benchmarks.kernelling.timing import Call


def cases(options: Options, threads: int) -> Iterator[Case]:
    """One row, and a few, against torch's int8pack in its best type."""
    import torch  # noqa: PLC0415

    from execution.compiler.backends.tvm import families  # noqa: PLC0415
    from execution.compiler.port import Bucket  # noqa: PLC0415

    sizes = (
        ((256, 2048), (4096, 4096))
        if options.quick
        else ((256, 2048), (1024, 256), (2048, 2048), (4096, 4096))
    )
    for inputs, outputs in sizes:
        weight = torch.randint(-127, 128, (outputs, inputs), dtype=torch.int8)
        scale = torch.rand(outputs) / 1000
        short = scale.bfloat16()
        for rows in (1,) if options.quick else (1, 4, 8):
            x = torch.randn(rows, inputs)
            halves = x.bfloat16()
            peers: dict[str, Call] = {
                "int8pack bfloat16": bound(torch._weight_int8pack_mm, halves, weight, short)
            }
            if inputs * outputs <= 2**21:  # elsewhere a hundred times slower: it would only take time
                peers["int8pack float32"] = bound(torch._weight_int8pack_mm, x, weight, scale)
            subject = families.int8_linear(
                rows=Bucket(rows, rows), inputs=inputs, outputs=outputs, threads=threads, source=False
            )
            yield Case(
                "int8_linear", f"{inputs}x{outputs}", width_of(inputs), rows, subject, (x,), (weight, scale),
                bound(lambda x, w, s: (x.double() @ w.double().t()) * s.double(), x, weight, scale), peers,
                flops=2.0 * rows * inputs * outputs,
            )  # fmt: skip
