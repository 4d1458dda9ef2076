"""Decode attention: one token a lane, KV where the engine keeps it."""

from __future__ import annotations

import math
from collections.abc import Iterator

from benchmarks.common import Options
from benchmarks.kernelling.case import Case, bound, width_of


def cases(options: Options, threads: int) -> Iterator[Case]:
    """Against SDPA in the forms that a user would write."""
    import torch  # noqa: PLC0415
    from torch.nn.functional import scaled_dot_product_attention as sdpa  # noqa: PLC0415

    from execution.compiler.backends.tvm import families  # noqa: PLC0415
    from execution.compiler.port import Bucket  # noqa: PLC0415

    sizes = [(4, 2, 64, 4, 100), (8, 4, 64, 16, 300), (32, 8, 128, 1, 2000), (32, 8, 64, 8, 500)]
    if options.quick:
        sizes = [sizes[0], sizes[3]]
    for heads, kv_heads, dim, rows, length in sizes:
        positions = 2 ** math.ceil(math.log2(length + 1))
        subject = families.decode_attention(
            rows=Bucket(1, rows), heads=heads, kv_heads=kv_heads, head_dim=dim, lanes=rows, positions=positions,
            threads=threads, source=False,
        )  # fmt: skip
        kv = torch.randn(rows, 2 * kv_heads, positions, dim)
        queries = torch.randn(rows, heads, dim)
        single = queries.unsqueeze(2)
        lanes, lengths = torch.arange(rows), torch.full((rows,), length)
        keys, values = kv[:, :kv_heads, :length], kv[:, kv_heads:, :length]
        mask = torch.zeros(rows, 1, 1, length)
        shared = queries.view(rows, kv_heads, -1, dim)
        module = families.DecodeAttention(heads, kv_heads, dim)
        dense = (keys.contiguous(), values.contiguous())
        yield Case(
            "decode_attention", f"{heads}/{kv_heads} heads of {dim}, {length} tokens", width_of(heads * dim), rows,
            subject, (queries, kv, lanes, lengths), (),
            bound(lambda m, q, kv, a, b: m(q.double(), kv.double(), a, b), module, queries, kv, lanes, lengths),
            {"engine's": bound(lambda q, k, v, m: sdpa(q, k, v, attn_mask=m), shared, keys, values, mask),
             "shared heads, no mask": bound(sdpa, shared, keys, values),
             "grouped": bound(lambda q, k, v: sdpa(q, k, v, enable_gqa=True), single, keys, values),
             "copied keys": bound(lambda q, kv: sdpa(q, *kv), shared, dense)},
            flops=4.0 * rows * heads * length * dim, moved=8.0 * rows * kv_heads * length * dim,
        )  # fmt: skip
