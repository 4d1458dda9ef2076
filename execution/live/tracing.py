"""Modules become subjects of compilation in a helper process: torch's tracer is a minute's worth of imports on a busy
machine, all of it Python, and no business of a process that serves.

tracer = Tracer()
tracing = tracer.trace(module, x, Bucket(1, 8), threads=1)
while not tracing.done(within_s=0.05): ...
subject = tracing.subject()
tracer.close()
"""

from __future__ import annotations

import contextlib
import io
import pickle
import tempfile
import threading
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from execution.compiler.background import Background, Job
from execution.compiler.budget import Budget
from execution.compiler.port import Bucket, CompileError, Subject
from execution.live.quiet import quietly
from execution.live.subjects import engine_subject

_SELF_BYTES = 1 << 16
"""Weights larger than this are drawn anew over there: a trace knows their shapes only."""
_MODULE, _READ, _SUBJECT = "module.pickle", "read", "subject.pickle"
_LIMIT_S = 300.0
_IDLE_S = 20.0
"""The helper goes after this: what comes later is mostly of forms that were seen."""
_MEMORY_BYTES = 4 << 30


class Tracer:
    """A helper process for traces, begun with the first one."""

    def __init__(self, *, priority: Literal["normal", "low", "lowest", "idle"] = "low") -> None:
        budget = Budget(priority=priority, idle_s=_IDLE_S, memory_bytes=_MEMORY_BYTES)
        self._background = Background(budget)
        self._home = tempfile.TemporaryDirectory(prefix="tracing-")
        self._lock = threading.Lock()
        self._asked = 0
        self._closed = False

    def trace(self, module: nn.Module, x: torch.Tensor, bucket: Bucket, threads: int) -> Tracing:
        """Begin; of what cannot be sent to another process, here and at once."""
        self._asked += 1
        folder = Path(self._home.name) / str(self._asked)
        with self._lock:
            if not self._closed:  # else it will be said to be lost
                folder.mkdir()
        try:
            packed = _packed((module, x, bucket, threads), module)
        except (pickle.PicklingError, AttributeError, TypeError):
            return Tracing(None, folder, (module, x, bucket, threads))
        request = {
            "backend": f"{__name__}:TracingBackend",
            "subject": packed,
            "recipe": None,
            "folder": folder,
        }
        job = self._background.submit("compile", request, limit_s=_LIMIT_S)
        return Tracing(job, folder, (module, x, bucket, threads))

    def close(self) -> None:
        """End the helper; from any thread, idempotent."""
        self._background.close()
        with self._lock:
            self._closed = True
            self._home.cleanup()


class Tracing:
    """One that is under way."""

    def __init__(
        self, job: Job | None, folder: Path, asked: tuple[nn.Module, torch.Tensor, Bucket, int]
    ) -> None:
        self._job, self._folder, self._asked = job, folder, asked

    def done(self, within_s: float) -> bool:
        """Whether `subject` answers at once, or will after so long."""
        if self._job is None:
            return True
        with contextlib.suppress(TimeoutError):
            self._job.result(within_s)
        return self._job.done()

    def subject(self) -> Subject:
        """What came of it. Raises GraphError, CompileError."""
        if self._job is not None:
            outcome = self._job.result()
            if outcome.fate == "done":
                found: Subject = pickle.loads((self._folder / _SUBJECT).read_bytes())  # noqa: S301 our helper's
                return found
            if outcome.fate != "failed" or (self._folder / _READ).is_file():
                raise CompileError(f"it was not traced: {outcome.fate}: {outcome.reason}")
        with quietly():  # its class is not to be had over there
            return engine_subject(*self._asked)


class TracingBackend:
    """The helper's side: to the compiler's worker it is one more back end."""

    def compile(self, subject: bytes, recipe: None, folder: Path) -> None:  # noqa: ARG002 as back ends are called
        """Read what was sent, trace it, leave the subject in the folder."""
        asked = _Reader(io.BytesIO(subject)).load()
        (folder / _READ).touch()
        torch.set_num_threads(1)
        (folder / _SUBJECT).write_bytes(pickle.dumps(engine_subject(*asked)))


# ---- Details ----


def _packed(asked: tuple[Any, ...], module: nn.Module) -> bytes:
    """Pickled, without large weights. Raises whatever pickle and the module's attributes raise."""
    held = io.BytesIO()
    _Writer(held, module).dump(asked)
    return held.getvalue()


class _Writer(pickle.Pickler):
    """Of a large weight it tells the form."""

    def __init__(self, file: io.BytesIO, module: nn.Module) -> None:
        super().__init__(file)
        self._large = {
            id(t): t
            for t in (*module.parameters(), *module.buffers())
            if t.is_floating_point() and t.nbytes > _SELF_BYTES
        }

    def persistent_id(self, obj: Any) -> Any:
        """None: by value."""
        found = self._large.get(id(obj)) if isinstance(obj, torch.Tensor) else None
        if found is None:
            return None
        return id(obj), tuple(found.shape), found.dtype, str(found.device), isinstance(found, nn.Parameter)


class _Reader(pickle.Unpickler):
    """Draws large weights: each once, wherever it is used."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self._drawn: dict[int, torch.Tensor] = {}
        self._draw = torch.Generator().manual_seed(0)

    def persistent_load(self, pid: Any) -> torch.Tensor:
        """Small values of both signs."""
        key, shape, dtype, device, parameter = pid
        if key not in self._drawn:
            made = torch.randn(shape, generator=self._draw).mul_(0.02).to(device, dtype)
            self._drawn[key] = nn.Parameter(made, requires_grad=False) if parameter else made
        return self._drawn[key]
