"""Back ends that go wrong, each in its own way; the kernels of all but the good one double their input badly.

The subject is `doubled`: rows of float32, multiplied by 2 and added to themselves.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from execution.compiler.port import CompileError, Recipe, Subject


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


class Good:
    name = "good"

    def unavailable(self) -> str | None:
        return None

    def versions(self) -> Mapping[str, str]:
        return {self.name: os.environ.get("FAULTY_VERSION", "1")}

    def recipes(self, subject: Subject) -> Sequence[Recipe]:
        return (Recipe(self.name, "default"),)

    def compile(self, subject: Subject, recipe: Recipe, folder: Path) -> None:
        (folder / "code").write_text(self.name)

    def load(self, subject: Subject, recipe: Recipe, folder: Path) -> Any:
        if (folder / "code").read_text() != self.name:
            raise CompileError(f"{folder} is not mine")
        return _Kernel(self.call)

    def call(self, x: Any) -> Any:
        return x * 2


class Fast(Good):
    """The reference takes a detour of many operations; this does not."""

    name = "fast"


class Missing(Good):
    name = "missing"

    def unavailable(self) -> str | None:
        return "it is not installed"


class _Kernel:
    def __init__(self, call: Any) -> None:
        self._call = call

    def prepare(self, params: Sequence[Any]) -> tuple[Any, ...]:
        return tuple(params)

    def __call__(self, *arguments: Any) -> Any:
        return self._call(*arguments)


class Segfault(Good):
    name = "segfault"

    def call(self, x: Any) -> Any:
        return ctypes.string_at(0)


class LoadSegfault(Good):
    name = "load segfault"

    def load(self, subject: Subject, recipe: Recipe, folder: Path) -> Any:
        ctypes.string_at(0)


class Hang(Good):
    name = "hang"

    def call(self, x: Any) -> Any:
        ctypes.PyDLL(None).pause()  # in C, and with the interpreter's lock


class GivesNan(Good):
    name = "nan"

    def call(self, x: Any) -> Any:
        return x * float("nan")


class HidesNan(Good):
    name = "hides nan"

    def call(self, x: Any) -> Any:
        return (x * 2).nan_to_num(0.0)


class SlightlyWrong(Good):
    name = "slightly wrong"

    def call(self, x: Any) -> Any:
        return x * (2 + 2e-5)


class LessExact(Good):
    """Within what one element may err, but all of them together are far from what eager does."""

    name = "less exact"

    def call(self, x: Any) -> Any:
        return x * (2 + 1.5e-6)


class LastRowWrong(Good):
    name = "last row wrong"

    def call(self, x: Any) -> Any:
        out = x * 2
        if out.shape[0] > 5:
            out[-1, -1] += 1
        return out


class WritesInput(Good):
    name = "writes input"

    def call(self, x: Any) -> Any:
        out = x * 2
        x.view(-1)[0] += 1
        return out


class WritesBeyondInput(Good):
    name = "writes beyond input"

    def call(self, x: Any) -> Any:
        out = x * 2
        ctypes.memset(x.data_ptr() + x.numel() * 4, 0, mmap.PAGESIZE)
        return out


class ReadsBeyondInput(Good):
    name = "reads beyond input"

    def call(self, x: Any) -> Any:
        ctypes.string_at(x.data_ptr() + x.numel() * 4, mmap.PAGESIZE)
        return x * 2


class WritesBeyondOutput(Good):
    name = "writes beyond output"

    def call(self, x: Any) -> Any:
        out = x * 2
        ctypes.memset(out.data_ptr() + out.numel() * 4, 7, 8)
        return out


class GivesInput(Good):
    name = "gives input"

    def call(self, x: Any) -> Any:
        return x


class GivesSameOutput(Good):
    name = "gives the same output"

    def load(self, subject: Subject, recipe: Recipe, folder: Path) -> Any:
        held: dict[Any, Any] = {}

        def call(x: Any) -> Any:
            out = held.setdefault(x.shape, x.new_empty(x.shape))
            return out.copy_(x * 2)

        return _Kernel(call)


class Random(Good):
    """Right each time, but not the same."""

    name = "random"

    def call(self, x: Any) -> Any:
        return x * 2 * (1 + 1e-7 * (x.new_empty(x.shape).uniform_() * 3).floor())


class WrongShape(Good):
    name = "wrong shape"

    def call(self, x: Any) -> Any:
        return (x * 2)[:, :-1]


class Raises(Good):
    name = "raises"

    def call(self, x: Any) -> Any:
        raise ZeroDivisionError("by zero")


class Glutton(Good):
    name = "glutton"

    def call(self, x: Any) -> Any:
        return x.new_ones(1 << 33)


class Slow(Good):
    name = "slow"

    def call(self, x: Any) -> Any:
        for _ in range(400):
            out = x * 2
        return out


class CompileFails(Good):
    name = "compile fails"

    def compile(self, subject: Subject, recipe: Recipe, folder: Path) -> None:
        raise CompileError("this cannot be compiled")


class CompileRaises(Good):
    name = "compile raises"

    def compile(self, subject: Subject, recipe: Recipe, folder: Path) -> None:
        raise KeyError("an error of its own")


class CompileSegfaults(Good):
    name = "compile segfaults"

    def compile(self, subject: Subject, recipe: Recipe, folder: Path) -> None:
        ctypes.string_at(0)


class CompileExits(Good):
    name = "compile exits"

    def compile(self, subject: Subject, recipe: Recipe, folder: Path) -> None:
        _say("no licence found")
        os._exit(3)


class CompileHangs(Good):
    """With a child that hangs, too, in a session of its own."""

    name = "compile hangs"

    def compile(self, subject: Subject, recipe: Recipe, folder: Path) -> None:
        child = subprocess.Popen(
            [sys.executable, "-c", "import time; time.sleep(3600)"], start_new_session=True
        )
        resume = folder / "resume"
        resume.mkdir(exist_ok=True)
        (resume / "tried").write_text(
            (resume / "tried").read_text() + "." if (resume / "tried").exists() else "."
        )
        _say(f"progress: child {child.pid}")
        ctypes.PyDLL(None).pause()


class CompileSpins(Good):
    """Until a file appears beside the artifact."""

    name = "compile spins"

    def compile(self, subject: Subject, recipe: Recipe, folder: Path) -> None:
        _say("progress: spinning")
        end = dict(recipe.settings)["until"]
        while not Path(str(end)).exists():
            sum(range(10000))
        super().compile(subject, recipe, folder)


class CompileEats(Good):
    name = "compile eats"

    def compile(self, subject: Subject, recipe: Recipe, folder: Path) -> None:
        held = []
        while True:
            held.append(bytearray(16 << 20))


class CompileFillsDisk(Good):
    name = "compile fills the disk"

    def compile(self, subject: Subject, recipe: Recipe, folder: Path) -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
        (folder / "code").write_bytes(b"x" * (1 << 20))


class CompileWaits(Good):
    name = "compile waits"

    def compile(self, subject: Subject, recipe: Recipe, folder: Path) -> None:
        _say("progress: waiting")
        while True:
            time.sleep(60)


class Babbles(Good):
    """Writes rubbish where its answers belong."""

    name = "babbles"

    def compile(self, subject: Subject, recipe: Recipe, folder: Path) -> None:
        for handle in range(3, 64):
            try:
                os.write(handle, b"\x00\xff{]\n[1, 2]\n")
            except OSError:
                continue
        super().compile(subject, recipe, folder)
