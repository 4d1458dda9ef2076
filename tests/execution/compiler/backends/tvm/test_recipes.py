"""What the back ends say without compiling anything."""

from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")

from execution.compiler.backends.tvm import MetaSchedule, TemplateBackend, families, pages, panels  # noqa: E402
from execution.compiler.backends.tvm.cpu import Cpu  # noqa: E402
from execution.compiler.port import Bucket, Subject, TensorSpec  # noqa: E402

AVX2 = Cpu(8, 16, 32768, 524288, "some", ("avx2", "fma"))
AVX512 = Cpu(16, 32, 32768, 1 << 20, "other", ("avx2", "fma", "avx512f", "avx512bw"))


def linear(rows: int, **more: object) -> Subject:
    return families.linear(
        rows=Bucket(rows, rows), inputs=64, outputs=512, source=False, **{"threads": 1, **more}
    )


@pytest.mark.parametrize("cpu", [AVX2, AVX512])
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 8, 16, 32, 64, 512])
def test_sums_and_factors_fit_into_the_registers(cpu: Cpu, rows: int) -> None:
    recipes = TemplateBackend(cpu).recipes(linear(rows))
    assert recipes
    for recipe in recipes:
        told = dict(recipe.settings)
        tile, width = int(told["tile"]), int(told["width"])
        assert tile <= rows
        assert tile * width + 2 <= cpu.registers


def test_only_weights_that_outgrow_the_caches_are_read_in_streams() -> None:
    def streams(inputs: int, rows: int) -> set[int]:
        subject = families.linear(rows=Bucket(1, rows), inputs=inputs, outputs=512, source=False)
        return {int(dict(r.settings)["streams"]) for r in TemplateBackend(AVX2).recipes(subject)}

    assert streams(64, 1) == {1}
    assert max(streams(4096, 1)) == 8
    assert streams(4096, 512) == {1}


def test_wider_vectors_make_other_recipes() -> None:
    names = [[r.name for r in TemplateBackend(cpu).recipes(linear(4))] for cpu in (AVX2, AVX512)]
    assert names[0] != names[1]


def test_the_same_for_the_same() -> None:
    backend = TemplateBackend(AVX2)
    assert backend.recipes(linear(4)) == backend.recipes(linear(4))
    assert len({r.name for r in backend.recipes(linear(4))}) == len(backend.recipes(linear(4)))


def test_threads_only_where_there_are_some() -> None:
    assert {dict(r.settings)["threads"] for r in TemplateBackend(AVX2).recipes(linear(4))} == {1}
    two = TemplateBackend(AVX2).recipes(linear(4, threads=2))
    assert {dict(r.settings)["threads"] for r in two} == {1, 2}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"op": "cumsum"}, "no template for 'cumsum'"),
        ({"device": "cuda"}, "not cuda"),
        ({"bucket": Bucket(1, 2048)}, "1024 at most"),
        ({"inputs": (TensorSpec((4, 65), "float32"),)}, "shapes do not fit"),
        ({"inputs": (TensorSpec((4, 64), "bfloat16"),)}, "bfloat16"),
        ({"attrs": (("epilogue", "tan"),)}, "epilogue 'tan'"),
        ({"attrs": (("layout", "blocked"),)}, "layout 'blocked'"),
    ],
)
def test_refusals_say_why(change: dict[str, object], reason: str) -> None:
    backend, subject = TemplateBackend(AVX2), replace(linear(4), **change)
    assert backend.recipes(subject) == ()
    assert reason in (backend.refusal(subject) or "")


def test_integers_for_activations_only_with_fast_math() -> None:
    def kinds(*, fast: bool) -> set[object]:
        subject = families.int8_linear(rows=Bucket(1, 1), inputs=64, outputs=64, fast_math=fast, source=False)
        return {dict(r.settings)["activations"] for r in TemplateBackend(AVX2).recipes(subject)}

    def streams(kind: str) -> set[int]:
        subject = families.int8_linear(
            rows=Bucket(1, 1), inputs=4096, outputs=512, fast_math=True, source=False
        )
        told = [dict(r.settings) for r in TemplateBackend(AVX2).recipes(subject)]
        return {int(t["streams"]) for t in told if t["activations"] == kind}

    assert streams("int8") == {1}
    assert max(streams("float32")) > 1
    assert kinds(fast=False) == {"float32"}
    assert kinds(fast=True) == {"float32", "int8"}


def test_attention_refuses_heads_that_fill_no_vector() -> None:
    subject = families.decode_attention(
        rows=Bucket(1, 2), heads=2, kv_heads=1, head_dim=12, lanes=2, positions=8, source=False
    )
    assert TemplateBackend(AVX2).recipes(subject) == []
    assert TemplateBackend(Cpu(4, 32, 32768, 524288, "arm", ())).recipes(subject)


@pytest.mark.parametrize(("width", "streams"), [(8, 1), (16, 1), (24, 1), (16, 2), (24, 3)])
def test_panels_hold_the_whole_weight(width: int, streams: int) -> None:
    weight = torch.arange(5.0 * 21).reshape(5, 21)
    packed = panels.packed(weight, width, streams)
    assert packed.shape == (-(-21 // width) * streams, 5, width // streams)
    back = packed.transpose(0, 1).reshape(5, -1)
    assert torch.equal(back[:, :21], weight)
    assert not back[:, 21:].any()


def test_memory_of_large_weights_is_zero_aligned_and_lives_as_long_as_its_views() -> None:
    like = torch.empty(0)
    assert pages.zeros((3, 5), like).shape == (3, 5)
    large = pages.zeros((3, 1 << 18), like)
    assert large.data_ptr() % pages.HUGE_BYTES == 0
    assert not large.any()
    row = large.fill_(7.0)[2]
    del large
    assert (row == 7.0).all()
    assert pages.zeros((1 << 22,), like.to(torch.int8)).dtype == torch.int8


def test_metaschedule_wants_fixed_shapes_and_a_source() -> None:
    backend = MetaSchedule()
    subject = families.rms_norm(rows=Bucket(4, 4), hidden=8, eps=1e-5, source=False)
    assert "no source" in (backend.refusal(subject) or "")
    subject = replace(subject, source=b"something")
    assert [r.name for r in backend.recipes(subject)] == ["metaschedule 32 trials", "metaschedule 64 trials"]
    assert backend.recipes(replace(subject, bucket=Bucket(1, 4))) == ()
    assert "fixed shapes" in (backend.refusal(replace(subject, bucket=Bucket(1, 4))) or "")
