"""The conformance suite against every back end that is registered and installed here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from execution.compiler.backends import BACKENDS, make_backend, usable  # noqa: E402
from execution.compiler.port import CompileError, Recipe, Subject  # noqa: E402
from tests.execution.compiler import subjects  # noqa: E402
from tests.execution.compiler.backends.conformance import Conformance, check_description, imports_of  # noqa: E402

ROOT = Path(__file__).parents[4]
FEW = {"inductor": ("rms_norm", "graph"), "metaschedule": ("rms_norm",)}
"""Compilers that take long see fewer subjects."""
SKIPPED_RECIPES = {"metaschedule": 1}
"""How many recipes of those that tune."""


@pytest.fixture(scope="module")
def made() -> Callable[[str], Subject]:
    held: dict[str, Subject] = {}

    def get(name: str) -> Subject:
        if name not in held:
            held[name] = subjects.CALLS[name]().subject(fixed=name in ("decode_attention",))
        return held[name]

    return get


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def backend_or_skip(name: str) -> None:
    missing = usable([name])[1]
    if missing:
        pytest.skip(missing[name])


@pytest.mark.parametrize("name", BACKENDS)
def test_description(name: str, made: Callable[[str], Subject]) -> None:
    backend_or_skip(name)
    check_description(
        lambda: make_backend(name), name, [made(call) for call in ("rms_norm", "linear", "swiglu")]
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", BACKENDS)
def test_asking_imports_nothing_heavy(name: str) -> None:
    backend_or_skip(name)
    assert imports_of(name, ROOT) == ""


def run_all(name: str, subject: Subject, call: subjects.Call, recipes: list[Recipe], folder: Path) -> None:
    for number, recipe in enumerate(recipes):
        place = folder / str(number)
        place.mkdir()
        Conformance(make_backend(name), recipe, call, subject, place).all()


@pytest.mark.slow
@pytest.mark.parametrize("call", subjects.CALLS)
@pytest.mark.parametrize("name", [name for name in BACKENDS if name != "eager"])
def test_kernels(name: str, call: str, made: Callable[[str], Subject], tmp_path: Path) -> None:
    backend_or_skip(name)
    if call not in FEW.get(name, tuple(subjects.CALLS)):
        pytest.skip(f"{name} takes long: {', '.join(FEW[name])} only")
    subject = made(call)
    recipes = list(make_backend(name).recipes(subject))[: SKIPPED_RECIPES.get(name)]
    if not recipes:
        pytest.skip(f"{name} has no recipe for {call}")
    run_all(name, subject, subjects.CALLS[call](), recipes, tmp_path)


@pytest.mark.parametrize("call", ["rms_norm", "linear"])
def test_eager_kernels(call: str, made: Callable[[str], Subject], tmp_path: Path) -> None:
    run_all("eager", made(call), subjects.CALLS[call](), [Recipe("eager", "default")], tmp_path)


def test_unknown_names_are_one_clear_error() -> None:
    with pytest.raises(CompileError, match="eager, inductor"):
        make_backend("llvm")
    found, missing = usable(["llvm", "no.such.module:Thing"])
    assert found == {}
    assert "not known" in missing["llvm"]
    assert "cannot be imported" in missing["no.such.module:Thing"]


def test_no_compiler_no_candidate(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    _, missing = usable(["inductor"])
    assert "C++ compiler" in missing["inductor"]
    monkeypatch.setenv("CXX", "no-such-compiler")
    _, missing = usable(["inductor"])
    assert "no-such-compiler" in missing["inductor"]


@pytest.mark.gpu
@pytest.mark.parametrize("call", ["rms_norm", "linear", "swiglu", "graph"])
def test_kernels_on_a_gpu(call: str, tmp_path: Path) -> None:
    """Triton by inductor."""
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU")
    held = subjects.CALLS[call]()
    held.inputs = tuple(t.cuda() for t in held.inputs)
    held.params = tuple(t.cuda() for t in held.params)
    subject = held.subject()
    assert subject.device == "cuda"
    run_all("inductor", subject, held, list(make_backend("inductor").recipes(subject)), tmp_path)
