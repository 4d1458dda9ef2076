"""Kernels from TVM templates against the best peer that is there, family by family and size by size.

Peers: torch eager in the forms that a user would write (for norms also the engine's own and torch's fused one, for
linear layers both layouts, for attention grouped and shared heads), torch.compile in its default mode and with
max-autotune (one thread), torch's int8pack in its best type. All take part in the same interleaved rounds; a case's
ratio is the median time of the best peer over that of the kernel. The recipe of a kernel is chosen in rounds of their
own before. `tiny` are shapes of the built-in models, `wide` those of Llama-class models.

Dense GEMM is judged as the arbiter would serve it: eager, unless the kernel was faster in the first rounds; the ratio
is that of the later ones. Errors are the greatest difference from float64, as a share of the greatest element; those of
the best peer stand beside. Other load on the machine raises the times of two threads first: run it idle.
"""

from __future__ import annotations

import importlib.util
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.common import BenchmarkInputError, Options, Target, parse_options, publish, run_main

Call = Callable[[], Any]
TARGETS = {"rms_norm": 1.5, "elementwise": 1.5, "int8_linear": 1.2, "decode_attention": 1.1, "linear": 1.2}
SMALL_ROWS, SMALL_TARGET = 8, 2.0
MOST_ERROR = 1e-4


@dataclass
class Case:
    """One function at one size."""

    family: str
    name: str
    width: str
    """`tiny` or `wide`."""
    rows: int
    subject: Any
    inputs: tuple[Any, ...]
    params: tuple[Any, ...]
    exact: Call
    """The result in float64."""
    peers: dict[str, Call] = field(default_factory=dict)
    compiled: Any = None
    """Module for torch.compile; None: eager is what there is."""


def cases(options: Options, threads: int) -> Iterator[Case]:
    """All of them, in the order of the table."""
    yield from norms(options, threads)
    yield from chains(options, threads)
    yield from int8(options, threads)
    yield from attention(options, threads)
    yield from linear(options, threads)


def norms(options: Options, threads: int) -> Iterator[Case]:
    """The engine's UnitNorm; Llama's norm with its residual and weight."""
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
        subject = families.rms_norm(
            rows=bucket, hidden=hidden, eps=1e-5, unit=True, threads=threads, source=False
        )
        added = families.rms_norm(
            rows=bucket, hidden=hidden, eps=1e-5, residual=True, weight=True, threads=threads, source=False
        )
        unit = UnitNorm(hidden, 1e-5)
        root = torch.full((hidden,), hidden**-0.5)
        for rows in many:
            x, r, w = torch.randn(rows, hidden), torch.randn(rows, hidden), torch.randn(hidden)
            reference = families.RmsNorm(1e-5, unit=True)
            yield Case(
                "rms_norm", f"unit {hidden}", _width(hidden), rows, subject, (x,), (),
                bound(lambda x, m: m(x.double()), x, reference),
                {"engine": bound(lambda x, m: m(x), x, unit),
                 "rms_norm": bound(lambda x, h, w: functional.rms_norm(x, (h,), w, 1e-5), x, hidden, root)},
                unit,
            )  # fmt: skip
            both = families.RmsNorm(1e-5, residual=True)
            yield Case(
                "rms_norm", f"residual {hidden}", _width(hidden), rows, added, (x, r), (w,),
                bound(lambda x, r, w, m: m(x.double(), r.double(), w.double()), x, r, w, both),
                {"add, rms_norm": bound(_added_norm, x, r, w)},
                both,
            )  # fmt: skip


def chains(options: Options, threads: int) -> Iterator[Case]:
    """SwiGLU, and a longer chain with weights."""
    import torch  # noqa: PLC0415
    from torch import nn  # noqa: PLC0415
    from torch.nn import functional  # noqa: PLC0415

    from execution.compiler.backends.tvm import families  # noqa: PLC0415
    from execution.compiler.port import Bucket  # noqa: PLC0415

    class Gated(nn.Module):
        """A gate, a scale and a shift, GELU, and a residual."""

        def forward(self, x: Any, gate: Any, residual: Any, scale: Any, shift: Any) -> Any:
            """All [rows, n]; scale and shift [n]."""
            return functional.gelu(x * scale + shift) * torch.sigmoid(gate) + residual

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
        gated = Gated()
        chain = families.elementwise(Gated(), examples, weights, rows=bucket, threads=threads)
        for rows in many:
            x = torch.randn(rows, 2 * columns)
            yield Case(
                "elementwise", f"swiglu {columns}", _width(columns), rows, swiglu, (x,), (),
                bound(lambda x: families.Swiglu()(x.double()), x),
                {"eager": bound(lambda x, n: functional.silu(x[:, :n]).mul_(x[:, n:]), x, columns)},
                families.Swiglu(),
            )  # fmt: skip
            given = tuple(e[:rows].contiguous() for e in examples)
            yield Case(
                "elementwise", f"gated {columns}", _width(columns), rows, chain, given, weights,
                bound(lambda given, w: Gated()(*(t.double() for t in (*given, *w))), given, weights),
                {"eager": bound(lambda given, w, m: m(*given, *w), given, weights, gated)},
                Gated(),
            )  # fmt: skip


def int8(options: Options, threads: int) -> Iterator[Case]:
    """Weights of one byte, activations in float32."""
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
                "int8_linear", f"{inputs}x{outputs}", _width(inputs), rows, subject, (x,), (weight, scale),
                bound(lambda x, w, s: (x.double() @ w.double().t()) * s.double(), x, weight, scale), peers,
            )  # fmt: skip


def attention(options: Options, threads: int) -> Iterator[Case]:
    """One token a lane, KV where the engine keeps it."""
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
            "decode_attention", f"{heads}/{kv_heads} heads of {dim}, {length} tokens", _width(heads * dim), rows,
            subject, (queries, kv, lanes, lengths), (),
            bound(lambda m, q, kv, a, b: m(q.double(), kv.double(), a, b), module, queries, kv, lanes, lengths),
            {"engine's": bound(lambda q, k, v, m: sdpa(q, k, v, attn_mask=m), shared, keys, values, mask),
             "shared heads, no mask": bound(sdpa, shared, keys, values),
             "grouped": bound(lambda q, k, v: sdpa(q, k, v, enable_gqa=True), single, keys, values),
             "copied keys": bound(lambda q, kv: sdpa(q, *kv), shared, dense)},
        )  # fmt: skip


def linear(options: Options, threads: int) -> Iterator[Case]:
    """Few rows, and as many as a GEMM has."""
    import torch  # noqa: PLC0415
    from torch.nn import functional  # noqa: PLC0415

    from execution.compiler.backends.tvm import families  # noqa: PLC0415
    from execution.compiler.port import Bucket  # noqa: PLC0415

    sizes = ((256, 2048), (4096, 4096)) if options.quick else (
        (256, 512), (256, 2048), (1024, 256), (2048, 2048), (4096, 4096),
    )  # fmt: skip
    for inputs, outputs in sizes:
        by_inputs = torch.randn(inputs, outputs)
        by_outputs = by_inputs.t().contiguous()
        for rows in (1, 4, 128) if options.quick else (1, 2, 4, 8, 16, 32, 128):
            x = torch.randn(rows, inputs)
            subject = families.linear(
                rows=Bucket(rows, rows), inputs=inputs, outputs=outputs, threads=threads, source=False
            )
            yield Case(
                "linear" if rows <= SMALL_ROWS else "gemm", f"{inputs}x{outputs}", _width(inputs), rows, subject,
                (x,), (by_inputs,),
                bound(lambda x, w: x.double() @ w.double(), x, by_inputs),
                {"mm": bound(torch.mm, x, by_inputs),
                 "linear": bound(functional.linear, x, by_outputs)},
            )  # fmt: skip


def bound(function: Callable[..., Any], *arguments: Any) -> Call:
    """The function with its arguments."""
    return partial(function, *arguments)


def kernels(case: Case, built: dict[str, Any], scratch: Path) -> dict[str, Call]:
    """The case's kernels by recipe, each compiled once for all cases of its subject."""
    from execution.compiler.backends.tvm import TemplateBackend  # noqa: PLC0415

    backend = TemplateBackend()
    found: dict[str, Call] = {}
    for recipe in backend.recipes(case.subject):
        key = f"{case.subject.key}-{recipe.name}"
        if key not in built:
            folder = scratch / str(len(built))
            backend.compile(case.subject, recipe, folder)
            built[key] = backend.load(case.subject, recipe, folder)
        kernel = built[key]
        prepared = kernel.prepare(case.params)
        found[recipe.name] = bound(lambda k, p, x: k(*x, *p), kernel, prepared, case.inputs)
    return found


def compiled_peers(case: Case, options: Options, threads: int) -> dict[str, Call]:
    """torch.compile of the case, where there is a C++ compiler for it."""
    import torch  # noqa: PLC0415

    if case.compiled is None:
        return {}
    found: dict[str, Call] = {}
    modes = ["default"] if options.quick or threads > 1 else ["default", "max-autotune-no-cudagraphs"]
    for mode in modes:
        torch._dynamo.reset()
        function = torch.compile(case.compiled, mode=mode, dynamic=False)
        given = (*case.inputs, *case.params)
        try:
            function(*given)  # type: ignore[no-untyped-call]
        except Exception as error:  # noqa: BLE001 - no compiler, or one that fails: then it is no peer
            print(f"  torch.compile {mode}: {type(error).__name__}", file=sys.stderr)
            continue
        found[f"torch.compile {mode}"] = bound(lambda f, x: f(*x), function, given)
    return found


def interleaved(calls: Mapping[str, Call], rounds: int, each_s: float = 0.003) -> dict[str, float]:
    """Median seconds of each, in rounds in which all take turns."""
    repeats = {}
    for name, call in calls.items():
        call()
        began = time.perf_counter()
        call()
        repeats[name] = max(1, int(each_s / max(time.perf_counter() - began, 1e-7)))
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds):
        order = list(calls)
        turn = number % len(order)
        for name in order[turn:] + order[:turn]:
            call, count = calls[name], repeats[name]
            call()
            began = time.perf_counter()
            for _ in range(count):
                call()
            taken[name].append((time.perf_counter() - began) / count)
    return {name: statistics.median(times) for name, times in taken.items()}


def measure(
    case: Case, options: Options, threads: int, built: dict[str, Any], scratch: Path
) -> dict[str, Any]:
    """One row of the table."""
    rounds = (3, 5) if options.quick else (3, 9)
    mine = kernels(case, built, scratch)
    peers = {**case.peers, **compiled_peers(case, options, threads)}
    row: dict[str, Any] = {
        "family": case.family, "case": case.name, "width": case.width, "rows": case.rows, "threads": threads
    }  # fmt: skip
    first = interleaved({**mine, **peers}, rounds[0])
    recipe = min(mine, key=first.__getitem__) if mine else None
    quickest = min(peers, key=first.__getitem__)
    if case.family == "gemm":
        picked = recipe if recipe is not None and first[recipe] < 0.95 * first[quickest] else None
        row["picked"] = "tvm" if picked else "eager"
        recipe = picked
    if recipe is None:
        return {**row, "peer": quickest, "peer_us": 1e6 * first[quickest], "ratio": 1.0}
    judged = interleaved({recipe: mine[recipe], **peers}, rounds[1])
    best = min(peers, key=judged.__getitem__)
    exact = case.exact()
    return {
        **row,
        "peer": best,
        "peer_us": 1e6 * judged[best],
        "tvm_us": 1e6 * judged[recipe],
        "ratio": judged[best] / judged[recipe],
        "error": error_of(mine[recipe](), exact),
        "peer_error": error_of(peers[best](), exact),
        "recipe": recipe,
    }


def error_of(result: Any, exact: Any) -> float:
    """Greatest difference from the exact result, as a share of its greatest element."""
    pairs = zip(_tensors(result), _tensors(exact), strict=True)
    return max(
        float((got.double().reshape(want.shape) - want).abs().max() / want.abs().max()) for got, want in pairs
    )


def start_up(scratch: Path) -> list[dict[str, Any]]:
    """What a serving process pays: imports, loading, and one call beyond its arithmetic."""
    import torch  # noqa: PLC0415

    from execution.compiler.backends.tvm import TemplateBackend, families  # noqa: PLC0415
    from execution.compiler.port import Bucket  # noqa: PLC0415

    backend = TemplateBackend()
    subject = families.rms_norm(rows=Bucket(1, 8), hidden=8, eps=1e-5, source=False)
    recipe = backend.recipes(subject)[0]
    began = time.perf_counter()
    backend.compile(subject, recipe, scratch / "start")
    rows = [{"case": "compile rms_norm", "ms": 1e3 * (time.perf_counter() - began)}]
    text = (
        "import sys, time; import torch; t = time.perf_counter(); import tvm_ffi; a = time.perf_counter()\n"
        "from pathlib import Path; from execution.compiler.backends.tvm import TemplateBackend, families\n"
        "from execution.compiler.port import Bucket\n"
        "s = families.rms_norm(rows=Bucket(1, 8), hidden=8, eps=1e-5, source=False); b = TemplateBackend()\n"
        "r = b.recipes(s)[0]; c = time.perf_counter(); k = b.load(s, r, Path(sys.argv[1]))\n"
        "k(torch.ones(1, 8)); print(a - t, time.perf_counter() - c, 'tvm' in sys.modules)"
    )
    done = subprocess.run(  # noqa: S603 - this interpreter, our own text
        [sys.executable, "-c", text, str(scratch / "start")], capture_output=True, text=True, check=True
    )
    imported, loaded, heavy = done.stdout.split()
    rows.append({"case": "import tvm_ffi in a new process (tvm itself: no)", "ms": 1e3 * float(imported)})
    rows.append({"case": "load there, first call included", "ms": 1e3 * float(loaded)})
    if heavy != "False":
        raise RuntimeError("loading a kernel imported tvm")
    kernel = backend.load(subject, recipe, scratch / "start")
    x = torch.ones(1, 8)
    out = torch.empty(1, 8)
    taken = interleaved({"kernel": lambda: kernel(x), "function": lambda: kernel.function(x, out)}, 15)
    rows.append({"case": "one call, result allocated", "ms": 1e3 * taken["kernel"]})
    rows.append({"case": "one call of the bare function", "ms": 1e3 * taken["function"]})
    return rows


def targets_of(rows: Sequence[Mapping[str, Any]]) -> list[Target]:
    """The issue's figures: geometric mean over cases, and the worst case."""
    found: list[Target] = []

    def add(name: str, chosen: Sequence[Mapping[str, Any]], least: float) -> None:
        ratios = [float(row["ratio"]) for row in chosen]
        if ratios:
            mean = math.exp(statistics.fmean(math.log(r) for r in ratios))
            found.append(Target(f"{name}/mean", mean, least, "higher", "x"))
            found.append(Target(f"{name}/worst", min(ratios), least, "higher", "x"))

    measured = [row for row in rows if "ratio" in row]
    for threads in (1, 2):
        these = [row for row in measured if row["threads"] == threads]
        for family, least in TARGETS.items():
            chosen = [row for row in these if row["family"] == family]
            if family == "int8_linear":
                chosen = [row for row in chosen if row["rows"] == 1]
            if family == "linear" and threads != 1:
                continue
            add(f"{family}/{threads} threads", chosen, least)
            if family in {"rms_norm", "elementwise"}:
                small = [row for row in chosen if row["rows"] <= SMALL_ROWS]
                add(f"{family}, small/{threads} threads", small, SMALL_TARGET)
        gemm = [float(row["ratio"]) for row in these if row["family"] == "gemm"]
        if gemm:
            found.append(Target(f"gemm/{threads} threads/worst as picked", min(gemm), 1.0, "higher", "x"))
    errors = [float(row["error"]) for row in measured if "error" in row]
    found.append(Target("error/worst", max(errors, default=math.nan), MOST_ERROR, "lower"))
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    options = parse_options("kernels", __doc__, argv)
    if importlib.util.find_spec("torch") is None:
        raise BenchmarkInputError("kernels: torch is not installed: pip install 'autopoiesis[torch]'")
    from execution.compiler.backends.tvm.backend import missing  # noqa: PLC0415

    lacking = missing()
    if lacking is not None:
        raise BenchmarkInputError(f"kernels: {lacking}")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "autopoiesis" / "inductor"
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache))
    import torch  # noqa: PLC0415

    torch.manual_seed(options.seed)
    torch._dynamo.config.cache_size_limit = 1024
    rows: list[dict[str, Any]] = []
    built: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch, torch.inference_mode():
        for threads in (1, 2) if (os.cpu_count() or 1) > 1 else (1,):
            torch.set_num_threads(threads)
            for case in cases(options, threads):
                rows.append(measure(case, options, threads, built, Path(scratch)))
                _say(options, rows[-1])
        more = start_up(Path(scratch))
    return publish(options, [*rows, *more], targets_of(rows))


def _say(options: Options, row: Mapping[str, Any]) -> None:
    if not options.json:
        print(
            f"  {row['family']} {row['case']}, {row['rows']} rows, {row['threads']} threads: {row['ratio']:.2f}",
            file=sys.stderr,
            flush=True,
        )


def _added_norm(x: Any, residual: Any, weight: Any) -> tuple[Any, Any]:
    from torch.nn import functional  # noqa: PLC0415

    total = x + residual
    return total, functional.rms_norm(total, (x.shape[-1],), weight, 1e-5)


def _tensors(result: Any) -> tuple[Any, ...]:
    return tuple(result) if isinstance(result, tuple | list) else (result,)


def _width(size: int) -> str:
    return "tiny" if size <= 1024 else "wide"


if __name__ == "__main__":
    sys.exit(run_main(main))
