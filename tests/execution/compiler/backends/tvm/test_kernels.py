"""Templates, compiled and called: right for all rows of a bucket, odd sizes, slices and what is not finite."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from execution.compiler.backends.tvm import TemplateBackend, families  # noqa: E402
from execution.compiler.backends.tvm.backend import missing  # noqa: E402
from execution.compiler.port import Bucket, CompileError, Recipe, Subject  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.skipif(missing() is not None, reason=str(missing()))]
BACKEND = TemplateBackend()


def draw(*shape: int, seed: int = 0) -> Any:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def kernel_of(subject: Subject, folder: Path, recipe: Recipe | None = None) -> Any:
    chosen = recipe or BACKEND.recipes(subject)[0]
    BACKEND.compile(subject, chosen, folder)
    return BACKEND.load(subject, chosen, folder)


def close(got: Any, want: Any, eps: float = 1e-6) -> None:
    pairs = zip(
        got if isinstance(got, tuple) else (got,), want if isinstance(want, tuple) else (want,), strict=True
    )
    for g, w in pairs:
        assert g.dtype == torch.float32
        assert g.is_contiguous()
        torch.testing.assert_close(g.double(), w, rtol=0, atol=eps * float(w.abs().max()))


def exact(module: Any, *arguments: Any) -> Any:
    return module(*(a.double() if a.is_floating_point() else a for a in arguments))


@pytest.mark.parametrize("hidden", [5, 64, 131])
@pytest.mark.parametrize("threads", [1, 2])
def test_rms_norm(tmp_path: Path, hidden: int, threads: int) -> None:
    rows = Bucket(1, 9)
    unit = families.rms_norm(rows=rows, hidden=hidden, eps=1e-5, unit=True, threads=threads, source=False)
    both = families.rms_norm(
        rows=rows, hidden=hidden, eps=1e-5, residual=True, weight=True, threads=threads, source=False
    )
    recipe = BACKEND.recipes(unit)[-1]
    one, two = kernel_of(unit, tmp_path / "a", recipe), kernel_of(both, tmp_path / "b", recipe)
    weight = draw(hidden, seed=1)
    for count in (1, 2, 9):
        wide = draw(count, hidden + 3)
        x, residual = wide[:, 1 : hidden + 1], draw(count, hidden, seed=2)  # misaligned, and rows apart
        close(one(x), exact(families.RmsNorm(1e-5, unit=True), x))
        module = families.RmsNorm(1e-5, residual=True)
        close(two(x, residual, *two.prepare((weight,))), exact(module, x, residual, weight))


def test_the_other_rows_by_themselves(tmp_path: Path) -> None:
    rows, x = Bucket(1, 4), draw(4, 77)
    norm = kernel_of(families.layer_norm(rows=rows, hidden=77, source=False), tmp_path / "a")
    params = (draw(77, seed=1), draw(77, seed=2))
    close(norm(x, *norm.prepare(params)), exact(families.LayerNorm(1e-5), x, *params))
    softmax = kernel_of(families.softmax(rows=rows, columns=77, source=False), tmp_path / "b")
    close(softmax(x), exact(families.Softmax(), x))
    strange = x.clone()
    strange[0, 3], strange[1, 76], strange[2] = math.nan, -math.inf, -math.inf
    torch.testing.assert_close(softmax(strange), torch.softmax(strange, -1), equal_nan=True)


def test_activations(tmp_path: Path) -> None:
    x = torch.linspace(-30, 30, 2 * 4096).reshape(2, 4096)
    x[0, :5] = torch.tensor([math.nan, math.inf, 1e-40, 1e30, -1e30])
    for name, subject, module in (
        ("swiglu", families.swiglu(rows=Bucket(2, 2), inner=2048, source=False), families.Swiglu()),
        (
            "gelu",
            families.gelu(rows=Bucket(2, 2), columns=4096, source=False),
            lambda x: 0.5 * x * torch.special.erfc(-x / 2**0.5),
        ),
    ):
        got, want = kernel_of(subject, tmp_path / name)(x), module(x.double())
        wrong = (got.double() - want).abs() > 5e-7 * want.abs() + 1e-37
        assert not wrong.any(), (
            name,
            x.flatten()[wrong.flatten().nonzero()[:5]],
            got[wrong][:5],
            want[wrong][:5],
        )
        assert torch.equal(got.isnan(), want.isnan())


def test_a_chain(tmp_path: Path) -> None:
    class Chain(torch.nn.Module):
        def forward(self, x: Any, factor: Any, scale: Any) -> Any:
            a, b = x.chunk(2, -1)
            y = torch.nn.functional.gelu(a * scale, approximate="tanh").mul_(b) / (b.abs() + 1)
            return torch.tanh(y) - factor.clamp(-0.5, 0.5), torch.exp(-y.square())

    inputs, params = (draw(6, 66), draw(6, 1, seed=1)), (draw(33, seed=2),)
    subject = families.elementwise(Chain(), inputs, params, rows=Bucket(6, 6))
    kernel = kernel_of(subject, tmp_path)
    close(kernel(*inputs, *kernel.prepare(params)), exact(Chain(), *inputs, *params))


LINEAR = [(1, 1), (2, 2), (3, 4), (5, 8), (1, 16)]


@pytest.mark.parametrize(("least", "most"), LINEAR)
def test_linear(tmp_path: Path, least: int, most: int) -> None:
    weight, bias = draw(67, 41), draw(41, seed=1)
    subject = families.linear(
        rows=Bucket(least, most), inputs=67, outputs=41, bias=True, epilogue="silu", threads=2, source=False
    )
    kernel = kernel_of(subject, tmp_path)
    prepared = kernel.prepare((weight, bias))
    for count in range(1, most + 2):  # also one more than it was made for
        x = draw(count, 67, seed=count)
        close(kernel(x, *prepared), exact(families.Linear("inputs_outputs", "silu"), x, weight, bias))


@pytest.mark.parametrize("rows", [1, 3])
def test_linear_in_streams(tmp_path: Path, rows: int) -> None:
    """A weight that outgrows the second-level cache, and fills no whole panel."""
    inputs, outputs = 1030, 1037
    weight, x = draw(inputs, outputs), draw(rows, inputs, seed=1)
    subject = families.linear(rows=Bucket(rows, rows), inputs=inputs, outputs=outputs, source=False)
    for number, recipe in enumerate(BACKEND.recipes(subject)):
        kernel = kernel_of(subject, tmp_path / str(number), recipe)
        want = exact(families.Linear("inputs_outputs"), x, weight)
        close(kernel(x, *kernel.prepare((weight,))), want, 5e-6)  # a thousand terms
    assert int(dict(BACKEND.recipes(subject)[0].settings)["streams"]) > 1


def test_linear_of_many_rows(tmp_path: Path) -> None:
    weight = draw(41, 67)
    subject = families.linear(
        rows=Bucket(33, 64), inputs=67, outputs=41, layout="outputs_inputs", threads=2, source=False
    )
    for number, recipe in enumerate(BACKEND.recipes(subject)):
        kernel = kernel_of(subject, tmp_path / str(number), recipe)
        prepared = kernel.prepare((weight,))
        for count in (1, 33, 35, 47, 64, 100):
            x = draw(count, 67, seed=count)
            close(kernel(x, *prepared), exact(families.Linear("outputs_inputs"), x, weight))


@pytest.mark.parametrize("columns", [1, 7, 8, 24, 25, 33, 57, 64, 107])
def test_activations_of_all_widths(tmp_path: Path, columns: int) -> None:
    x = draw(3, 2 * columns)
    subject = families.swiglu(rows=Bucket(1, 3), inner=columns, source=False)
    close(kernel_of(subject, tmp_path, BACKEND.recipes(subject)[-1])(x), exact(families.Swiglu(), x))


@pytest.mark.parametrize("fast", [False, True])
def test_int8_linear(tmp_path: Path, *, fast: bool) -> None:
    weight = torch.randint(-127, 128, (41, 67), generator=torch.Generator().manual_seed(0), dtype=torch.int8)
    scale = draw(41, seed=1).abs()
    subject = families.int8_linear(
        rows=Bucket(1, 5), inputs=67, outputs=41, fast_math=fast, threads=2, source=False
    )
    kernel = kernel_of(subject, tmp_path)
    integers = dict(BACKEND.recipes(subject)[0].settings)["activations"] == "int8"
    for count in (1, 4, 5):
        x = draw(count, 67, seed=count)
        want = exact(families.Int8Linear("outputs_inputs"), x, weight, scale)
        close(kernel(x, *kernel.prepare((weight, scale))), want, 0.02 if integers else 1e-6)
    x[1, 2] = math.nan
    got = kernel(x, *kernel.prepare((weight, scale)))
    assert got[1].isnan().all()
    assert got[[0, 2, 3, 4]].isfinite().all()


@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(4, 2, 32), (3, 1, 64), (4, 4, 16)])
def test_decode_attention(tmp_path: Path, heads: int, kv_heads: int, dim: int) -> None:
    lanes, positions = 5, 100
    subject = families.decode_attention(
        rows=Bucket(1, 4), heads=heads, kv_heads=kv_heads, head_dim=dim, lanes=lanes, positions=positions,
        threads=2, source=False,
    )  # fmt: skip
    kernel = kernel_of(subject, tmp_path)
    kv = draw(lanes, 2 * kv_heads, positions, dim)
    lengths = torch.tensor([1, 37, positions, 64])
    where = torch.tensor([3, 0, 4, 1])
    queries = draw(4, heads + 2, dim, seed=1)[:, :heads]  # as the engine cuts them out of one projection
    want = exact(families.DecodeAttention(heads, kv_heads, dim), queries, kv, where, lengths)
    for lane, length in zip(where, lengths, strict=True):
        kv[lane, :, length:] = math.nan  # nobody may look there
    close(kernel(queries, kv, where, lengths), want)
    close(kernel(queries[1:3], kv, where[1:3], lengths[1:3]), want[1:3])


def test_another_process_needs_no_tvm(tmp_path: Path) -> None:
    subject = families.swiglu(rows=Bucket(1, 4), inner=24, threads=2, source=False)
    recipe = next(r for r in BACKEND.recipes(subject) if dict(r.settings)["threads"] == 2)
    BACKEND.compile(subject, recipe, tmp_path)
    text = f"""
import sys, torch
from pathlib import Path
from execution.compiler.backends.tvm import TemplateBackend, families
from execution.compiler.port import Bucket
s = families.swiglu(rows=Bucket(1, 4), inner=24, threads=2, source=False)
b = TemplateBackend()
r = next(r for r in b.recipes(s) if r.name == {recipe.name!r})
x = torch.linspace(-3, 3, 4 * 48).reshape(4, 48)
k = b.load(s, r, Path({str(tmp_path)!r}))
print(float((k(x) - families.Swiglu()(x)).abs().max()) < 1e-6, "tvm" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"]


def spoil(folder: Path, kind: str) -> None:
    if kind == "gone":
        (folder / "kernel.so").unlink()
    elif kind == "no json":
        (folder / "kernel.json").write_text("{")
    else:
        told = (folder / "kernel.json").read_text()
        (folder / "kernel.json").write_text(told.replace(BACKEND.versions()["processor"], "another CPU"))


@pytest.mark.parametrize("kind", ["gone", "no json", "another CPU"])
def test_what_cannot_be_loaded_says_so(tmp_path: Path, kind: str) -> None:
    subject = families.swiglu(rows=Bucket(1, 1), inner=8, source=False)
    recipe: Sequence[Recipe] = BACKEND.recipes(subject)
    BACKEND.compile(subject, recipe[0], tmp_path)
    spoil(tmp_path, kind)
    with pytest.raises(CompileError, match=r"kernel|another CPU"):
        BACKEND.load(subject, recipe[0], tmp_path)


def test_wrong_arguments_raise(tmp_path: Path) -> None:
    kernel = kernel_of(families.swiglu(rows=Bucket(1, 4), inner=8, source=False), tmp_path)
    for wrong in (draw(2, 17), draw(2, 16).double(), draw(2, 2, 8)):
        with pytest.raises((ValueError, TypeError)):
            kernel(wrong)
