"""The serving engine's own modules of a built-in model, at rows of decode steps and of prompts, in its buckets."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.common import Options
from benchmarks.kernelling.case import Case, bound

MODEL = "tiny-llama"
ROWS = (1, 2, 4, 8, 13, 16, 32, 64, 128, 256, 300, 512)
QUICK_ROWS = (1, 8, 64, 512)


def cases(options: Options, threads: int) -> Iterator[Case]:
    """UnitNorm, the five projections, and SwiGLU; peers are the modules themselves."""
    import torch  # noqa: PLC0415

    from execution.compiler.backends.tvm import families  # noqa: PLC0415
    from execution.compiler.port import Bucket  # noqa: PLC0415
    from execution.engines.models import load_config  # noqa: PLC0415
    from execution.engines.torch.model import Activation, Projection, UnitNorm  # noqa: PLC0415
    from execution.live.sampler import bucket_of  # noqa: PLC0415

    config = load_config(MODEL)
    hidden, inner, eps = config.hidden_size, config.intermediate_size, config.rms_norm_eps
    heads = (config.num_attention_heads + 2 * config.num_key_value_heads) * config.head_dim
    shapes = {
        "qkv": (hidden, heads),
        "output": (config.num_attention_heads * config.head_dim, hidden),
        "gate_up": (hidden, 2 * inner),
        "down": (inner, hidden),
        "head": (hidden, config.vocab_size),
    }
    norm, activation = UnitNorm(hidden, eps), Activation()
    weights = {name: torch.randn(shape) / shape[0] ** 0.5 for name, shape in shapes.items()}
    for rows in QUICK_ROWS if options.quick else ROWS:
        bucket = Bucket(*bucket_of(rows))
        x = torch.randn(rows, hidden)
        subject = families.rms_norm(
            rows=bucket, hidden=hidden, eps=eps, unit=True, threads=threads, source=False
        )
        yield Case(
            "engine", "norm", MODEL, rows, subject, (x,), (),
            bound(lambda x, m: m(x.double()), x, families.RmsNorm(eps, unit=True)), {"eager": bound(norm, x)},
        )  # fmt: skip
        wide = torch.randn(rows, 2 * inner)
        subject = families.swiglu(rows=bucket, inner=inner, threads=threads, source=False)
        yield Case(
            "engine", "activation", MODEL, rows, subject, (wide,), (),
            bound(lambda x, m: m(x.double()), wide, families.Swiglu()), {"eager": bound(activation, wide)},
        )  # fmt: skip
        for name, (inputs, outputs) in shapes.items():
            x, weight = torch.randn(rows, inputs), weights[name]
            subject = families.linear(
                rows=bucket, inputs=inputs, outputs=outputs, threads=threads, source=False
            )
            yield Case(
                "engine", f"{name} {inputs}x{outputs}", MODEL, rows, subject, (x,), (weight,),
                bound(lambda x, w: x.double() @ w.double(), x, weight),
                {"eager": bound(Projection(weight, None), x)}, flops=2.0 * rows * inputs * outputs,
            )  # fmt: skip
