"""What is right passes, what is not is found, and the verdict says where."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from execution.compiler.families import FAMILIES, family_of  # noqa: E402
from execution.compiler.port import Bucket, CompileError, Subject  # noqa: E402
from execution.compiler.proof_cases import cases_of, resized, shifted, strided, transposed  # noqa: E402
from execution.compiler.proof_numerics import check_determinism, check_numerics, same_bits  # noqa: E402
from execution.compiler.source import Reference, export_subject  # noqa: E402
from execution.compiler.verdict import Numerics  # noqa: E402
from tests.examples import some_slow  # noqa: E402
from tests.execution.compiler import subjects  # noqa: E402


@pytest.fixture(
    scope="module", params=["rms_norm", "linear", "int8_linear", "swiglu", "softmax", "decode_attention"]
)
def known(request: pytest.FixtureRequest) -> tuple[Subject, Reference, subjects.Call]:
    call = subjects.CALLS[request.param]()
    subject = call.subject()
    return subject, Reference.of(subject), call


def judge(
    known: tuple[Subject, Reference, subjects.Call], spoil: Callable[[Any], Any] = lambda out: out
) -> Numerics:
    subject, reference, call = known
    with torch.inference_mode():
        return check_numerics(
            subject,
            lambda *inputs: spoil(reference.eager(*inputs, *call.params)),
            reference,
            call.params,
            cases_of(subject, reference, [call.inputs]),
        )


@pytest.mark.slow
def test_eager_passes_everywhere(known: tuple[Subject, Reference, subjects.Call]) -> None:
    numerics = judge(known)
    assert numerics.ok, numerics.reason
    assert numerics.cases >= 18
    assert numerics.raises == ()
    assert numerics.error_rms == numerics.eager_error_rms
    assert numerics.error_rms < 1e-6
    assert numerics.worst is not None
    assert numerics.worst.error <= numerics.worst.allowed


SPOILS: dict[str, Callable[[Any], Any]] = {
    "a thousandth": lambda out: out * 1.001,
    "two hundred thousandths": lambda out: out * (1 + 5e-3),
    "bfloat16 on the way": lambda out: out.bfloat16().float(),
    "nan": lambda out: out * float("nan"),
    "no nan": lambda out: out.nan_to_num(0.0),
    "one element": lambda out: out.index_add(
        -1, torch.tensor([out.shape[-1] - 1]), torch.full((*out.shape[:-1], 1), 0.01)
    ),
    "shape": lambda out: out[..., :-1],
    "type": lambda out: out.double(),
    "two": lambda out: (out, out),
    "none": lambda out: None,
}


@pytest.mark.slow
@pytest.mark.parametrize("spoil", ["a thousandth", "one element"])
def test_what_is_wrong_is_found_in_every_family(
    known: tuple[Subject, Reference, subjects.Call], spoil: str
) -> None:
    numerics = judge(known, SPOILS[spoil])
    assert not numerics.ok
    assert numerics.worst is not None
    assert numerics.worst.error > numerics.worst.allowed
    assert numerics.worst.case in numerics.reason


@pytest.mark.parametrize("spoil", SPOILS)
@pytest.mark.parametrize("name", some_slow(["rms_norm", "linear"], "linear"))
def test_whatever_is_wrong_is_found(name: str, spoil: str) -> None:
    call = subjects.CALLS[name]()
    subject = call.subject()
    numerics = judge((subject, Reference.of(subject), call), SPOILS[spoil])
    assert not numerics.ok
    assert numerics.reason


def test_a_wrong_last_row_of_a_full_bucket_is_found() -> None:
    call = subjects.rms_norm()
    subject = call.subject()
    reference = Reference.of(subject)

    def wrong(x: Any) -> Any:
        out = reference.eager(x, *call.params).clone()
        if out.shape[0] == subject.bucket.most:
            out[-1] *= 1.01
        return out

    few = [(call.inputs[0][:3],)]  # what was recorded would not show it
    numerics = check_numerics(subject, wrong, reference, call.params, cases_of(subject, reference, few))
    assert not numerics.ok
    assert numerics.worst is not None
    assert numerics.worst.index[0] == subject.bucket.most - 1


def test_less_exact_than_eager_all_over_is_refused() -> None:
    call = subjects.linear()
    subject = call.subject()
    reference = Reference.of(subject)
    exact = judge_with(subject, reference, call, lambda *a: reference.eager(*a, *call.params))
    assert exact.ok
    worse = judge_with(subject, reference, call, lambda *a: reference.eager(*a, *call.params) * (1 + 4e-6))
    assert not worse.ok
    assert "typical error" in worse.reason


def judge_with(
    subject: Subject, reference: Reference, call: subjects.Call, kernel: Callable[..., Any]
) -> Numerics:
    ordinary = [c for c in cases_of(subject, reference, [call.inputs]) if c.kind == "ordinary"]
    return check_numerics(subject, kernel, reference, call.params, ordinary)


def test_fast_math_only_where_it_was_asked_for() -> None:
    call = subjects.swiglu()
    strict, fast = call.subject(), call.subject(fast_math=True)
    assert strict.key != fast.key
    reference = Reference.of(strict)

    def roughly(x: Any) -> Any:
        return reference.eager(x) * (1 + 2e-5)

    assert not judge_with(strict, reference, call, roughly).ok
    assert judge_with(fast, reference, call, roughly).ok


def test_odd_layouts_may_be_refused_but_not_be_wrong() -> None:
    call = subjects.rms_norm()
    subject = call.subject()
    reference = Reference.of(subject)

    def picky(x: Any) -> Any:
        if not x.is_contiguous():
            raise ValueError("not contiguous")
        return reference.eager(x, *call.params)

    cases = list(cases_of(subject, reference, [call.inputs]))
    numerics = check_numerics(subject, picky, reference, call.params, cases)
    assert numerics.ok, numerics.reason
    assert numerics.raises == ("strided (ValueError)", "transposed (ValueError)")

    def blind(x: Any) -> Any:
        flat = torch.as_strided(x, x.shape, (x.shape[1], 1), x.storage_offset())  # takes it for contiguous
        return reference.eager(flat, *call.params)

    numerics = check_numerics(subject, blind, reference, call.params, cases)
    assert not numerics.ok
    assert numerics.reason.count("strided") or numerics.reason.count("transposed")


def test_what_raises_on_ordinary_input_is_refused() -> None:
    call = subjects.rms_norm()
    subject = call.subject()
    reference = Reference.of(subject)

    def raising(x: Any) -> Any:
        raise ZeroDivisionError("by zero")

    numerics = judge_with(subject, reference, call, raising)
    assert not numerics.ok
    assert "ZeroDivisionError: by zero" in numerics.reason


def test_where_eager_overflows_a_kernel_may_do_so_too_or_better() -> None:
    call = subjects.rms_norm()
    subject = call.subject()
    reference = Reference.of(subject)
    huge = [c for c in cases_of(subject, reference, [call.inputs]) if c.name == "huge"]
    weight, eps = call.params[0], 1e-6

    def better(x: Any) -> Any:
        wide = x.double()
        return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight).float()

    def worse(x: Any) -> Any:
        return torch.ones_like(x)

    assert check_numerics(subject, better, reference, call.params, huge).ok
    assert not check_numerics(subject, worse, reference, call.params, huge).ok


def test_cases_are_the_same_each_time_and_cover_the_bucket() -> None:
    call = subjects.rms_norm()
    subject = call.subject()
    reference = Reference.of(subject)
    one, two = (list(cases_of(subject, reference, [call.inputs])) for _ in range(2))
    assert [c.name for c in one] == [c.name for c in two]
    assert all(same_bits(a.inputs, b.inputs) for a, b in zip(one, two, strict=True))
    rows = {c.inputs[0].shape[0] for c in one}
    assert {1, 2, subject.bucket.most - 1, subject.bucket.most} <= rows
    assert all(r in subject.bucket for r in rows)
    for name in ("nan", "inf", "-inf", "denormal", "huge", "-0.0"):
        assert name in {c.name for c in one}
    (denormal,) = (c.inputs[0] for c in one if c.name == "denormal")
    assert 0 < denormal.abs().max() < torch.finfo(torch.float32).smallest_normal


def test_layouts_are_what_they_say() -> None:
    x = torch.arange(12.0).view(3, 4)
    for made in (shifted(x), strided(x), transposed(x)):
        assert torch.equal(made, x)
    assert shifted(x).storage_offset() == 1
    assert shifted(x).is_contiguous()
    assert not strided(x).is_contiguous()
    assert transposed(x).stride() == (1, 3)
    assert torch.equal(resized((x,), 5, [(0, 0)])[0][3:], x[:2])


def test_determinism_and_bits() -> None:
    nan = torch.tensor([1.0, float("nan"), float("inf")])
    assert same_bits([nan], [nan.clone()])
    assert not same_bits([nan], [torch.tensor([1.0, 2.0, float("inf")])])
    assert not same_bits([nan], [nan.double()])
    count = iter(range(100))
    assert check_determinism(lambda x: x + 1, [nan])
    assert not check_determinism(lambda x: x + next(count), [nan])


def test_every_family_states_its_tolerance() -> None:
    subject = subjects.rms_norm().subject()
    assert family_of(subject).name == "rms_norm"
    assert "eps" in family_of(subject).describe(subject)
    assert set(FAMILIES) >= {
        "rms_norm",
        "linear",
        "int8_linear",
        "swiglu",
        "elementwise",
        "decode_attention",
        "graph",
    }


def test_what_does_not_export_is_one_clear_error() -> None:
    class Branches(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return x * 2 if x.sum() > 0 else x

    with pytest.raises(CompileError, match="subject graph: does not export"):
        export_subject(Branches(), "graph", (torch.ones(4, 4),), bucket=Bucket(4, 4), threads=1)
    with pytest.raises(CompileError, match="first input has 3 rows"):
        export_subject(torch.nn.Identity(), "graph", (torch.ones(3, 4),), bucket=Bucket(1, 4), threads=1)
