"""Back ends that fail in every way that matters; named as `tests.execution.live.faulty:Class` in trial jobs."""

import os
import signal
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from execution.compiler.backends.eager import EagerBackend
from execution.compiler.port import CompileError, Recipe, Subject
from execution.live.decode import source
from execution.live.decode.backend import NativeBackend
from execution.live.decode.source import BODY


class Honest(NativeBackend):
    """Two recipes only: what goes wrong with the first must not harm the second."""

    def recipes(self, subject: Subject) -> Sequence[Recipe]:
        return tuple(super().recipes(subject)[:2])


class _First(Honest):
    """The first recipe is bad."""

    def _bad(self, subject: Subject, recipe: Recipe) -> bool:
        return recipe.name == self.recipes(subject)[0].name


class CrashesInCompiler(_First):
    def compile(self, subject: Subject, recipe: Recipe, folder: Path) -> None:
        if self._bad(subject, recipe):
            os.kill(os.getpid(), signal.SIGSEGV)
        super().compile(subject, recipe, folder)


class HangsInCompiler(_First):
    def compile(self, subject: Subject, recipe: Recipe, folder: Path) -> None:
        while self._bad(subject, recipe):
            time.sleep(1.0)
        super().compile(subject, recipe, folder)


class RefusesToCompile(_First):
    def compile(self, subject: Subject, recipe: Recipe, folder: Path) -> None:
        if self._bad(subject, recipe):
            raise CompileError("decode_step: faulty: no registers left")
        super().compile(subject, recipe, folder)


class _OtherSource(_First):
    """Compiles, loads, and is wrong."""

    before, after = "", ""

    def compile(self, subject: Subject, recipe: Recipe, folder: Path) -> None:
        if not self._bad(subject, recipe):
            super().compile(subject, recipe, folder)
            return
        assert self.before in BODY
        source.BODY = BODY.replace(self.before, self.after)
        try:
            super().compile(subject, recipe, folder)
        finally:
            source.BODY = BODY


class CrashesWhenRun(_OtherSource):
    before, after = "  const int rows = s.rows;", "  const int rows = s.rows; *(volatile int *)8 = 1;"


class WrongResult(_OtherSource):
    before, after = "g / (exponential(-g) + 1.0f) * u", "g / (exponential(-g) + 1.001f) * u"


class WritesElsewhere(_OtherSource):
    before, after = "  rotate(k, turn);", "  rotate(k, turn); if (at > 2) keys[1] += 1.0f;"


class HidesNaN(_OtherSource):
    before, after = "number && std::isfinite(logits[best]) ? best : -1", "best"


def recipes_of(backend: Any, subject: Subject) -> tuple[Recipe, ...]:
    return tuple(replace(r) for r in backend.recipes(subject))


class NeverDone(EagerBackend):
    """A compiler of modules that is waited for."""

    name = "never-done"

    def recipes(self, subject: Subject) -> Sequence[Recipe]:
        return (Recipe(self.name, "slow", expected_compile_s=1.0),)

    def compile(self, subject: Subject, recipe: Recipe, folder: Path) -> None:
        while True:
            time.sleep(1.0)
