"""What every back end must do (execution.compiler.port): one suite, run against each by test_conformance.py.

A back end of your own passes it, too: `Conformance(backend, call, tmp_path).all()` for each of its recipes.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from execution.compiler.port import Backend, CompileError, Kernel, Recipe, Subject
from execution.compiler.proof_cases import cases_of, resized
from execution.compiler.proof_numerics import check_determinism, check_numerics, same_bits
from execution.compiler.source import Reference, outputs_of
from tests.execution.compiler.subjects import Call


class Conformance:
    """One back end, one recipe, one subject: compiled once, then looked at from all sides."""

    def __init__(self, backend: Backend, recipe: Recipe, call: Call, subject: Subject, folder: Path) -> None:
        self.backend, self.recipe, self.call, self.subject = backend, recipe, call, subject
        self.reference = Reference.of(subject)
        made, self.folder = folder / "made", folder / "moved"
        made.mkdir()
        before = set(folder.rglob("*"))
        backend.compile(subject, recipe, made)
        assert {p for p in folder.rglob("*") if made not in p.parents} == before, "writes elsewhere"
        assert any(made.rglob("*")), "writes nothing"
        shutil.move(made, self.folder)  # the cache moves it
        self.kernel = self.load()
        self.prepared = tuple(self.kernel.prepare(call.params))

    def load(self) -> Kernel:
        return self.backend.load(self.subject, self.recipe, self.folder)

    def run(self, *inputs: torch.Tensor) -> Any:
        with torch.inference_mode():
            return self.kernel(*inputs, *self.prepared)

    def all(self) -> None:
        """Every check."""
        for check in (
            self.right_on_all_cases,
            self.arguments_stay_as_they_are,
            self.outputs_are_new,
            self.same_bits_each_time,
            self.other_weights,
            self.two_at_once,
            self.another_thread,
            self.no_grad,
            self.an_empty_folder,
        ):
            check()

    def right_on_all_cases(self) -> None:
        numerics = check_numerics(
            self.subject,
            self.run,
            self.reference,
            self.call.params,
            cases_of(self.subject, self.reference, [self.call.inputs]),
        )
        assert numerics.ok, numerics.reason

    def arguments_stay_as_they_are(self) -> None:
        arguments = (*self.call.inputs, *self.call.params)
        was = [a.clone() for a in arguments]
        self.run(*self.call.inputs)
        assert same_bits(was, arguments)

    def outputs_are_new(self) -> None:
        first = outputs_of(self.run(*self.call.inputs))
        kept = [t.clone() for t in first]
        changed = tuple(t + 1 if t.is_floating_point() else t for t in self.call.inputs)
        second = outputs_of(self.run(*changed))
        assert same_bits(kept, first), "a later call changed an earlier answer"
        places = {t.untyped_storage().data_ptr() for t in (*first, *self.call.inputs, *self.call.params)}
        assert not any(t.untyped_storage().data_ptr() in places for t in second)

    def same_bits_each_time(self) -> None:
        assert check_determinism(self.run, self.call.inputs)

    def other_weights(self) -> None:
        """One artifact serves all layers of a shape: no weight may be baked in."""
        if not self.call.params:
            return
        params = tuple(p * 0.5 if p.is_floating_point() else p.flip(0) for p in self.call.params)
        prepared = self.kernel.prepare(params)
        with torch.inference_mode():
            got = self.kernel(*self.call.inputs, *prepared)
            again = self.run(*self.call.inputs)
        want = self.reference.eager(*self.call.inputs, *params)
        old = self.reference.eager(*self.call.inputs, *self.call.params)
        for g, w in zip(outputs_of(got), outputs_of(want), strict=True):
            torch.testing.assert_close(g, w, rtol=1e-4, atol=1e-4)
        for g, w in zip(outputs_of(again), outputs_of(old), strict=True):
            torch.testing.assert_close(g, w, rtol=1e-4, atol=1e-4)

    def two_at_once(self) -> None:
        """Two loaded kernels of one artifact do not disturb each other."""
        other = self.load()
        prepared = other.prepare(self.call.params)
        small = resized(self.call.inputs, self.subject.bucket.least, self.reference.varying)
        with torch.inference_mode():
            mine = [t.clone() for t in outputs_of(self.run(*self.call.inputs))]
            other(*small, *prepared)
            assert same_bits(mine, outputs_of(self.run(*self.call.inputs)))
            assert same_bits(mine, outputs_of(other(*self.call.inputs, *prepared)))

    def another_thread(self) -> None:
        """Loaded in one thread, used in another: an engine's."""
        want = outputs_of(self.run(*self.call.inputs))
        got: list[Any] = []
        thread = threading.Thread(target=lambda: got.extend(outputs_of(self.run(*self.call.inputs))))
        thread.start()
        thread.join()
        assert same_bits(want, got)

    def no_grad(self) -> None:
        with torch.no_grad():
            out = outputs_of(self.kernel(*self.call.inputs, *self.prepared))
        assert not any(t.requires_grad for t in out)

    def an_empty_folder(self) -> None:
        empty = self.folder.parent / "empty"
        empty.mkdir()
        with pytest.raises(CompileError):
            self.backend.load(self.subject, self.recipe, empty)


def check_description(make: Callable[[], Backend], name: str, subjects: list[Subject]) -> None:
    """What must hold without compiling anything."""
    one, two = make(), make()
    assert one.name == name
    versions = dict(one.versions())
    assert versions
    assert all(isinstance(v, str) and v for v in versions.values())
    assert dict(two.versions()) == versions
    assert one.unavailable() is None or isinstance(one.unavailable(), str)
    for subject in subjects:
        recipes = list(one.recipes(subject))
        assert recipes == list(two.recipes(subject)), "recipes are pure"
        assert all(r.backend == name for r in recipes)
        assert all(r.expected_compile_s > 0 for r in recipes)
        assert len({r.name for r in recipes}) == len(recipes), "names tell recipes apart"


_ASK = """
import sys
from execution.compiler.backends import make_backend
backend = make_backend(sys.argv[1])
backend.unavailable(), backend.versions()
print(*sorted({"torch", "tvm", "onnxruntime", "onnx"} & set(sys.modules)))
"""


def imports_of(name: str, root: Path) -> str:
    """Heavy modules that asking a back end whether it is there has imported."""
    done = subprocess.run(
        [sys.executable, "-c", _ASK, name], capture_output=True, text=True, check=True, cwd=root
    )
    return done.stdout.strip()
