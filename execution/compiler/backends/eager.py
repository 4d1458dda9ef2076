"""torch, op by op: the reference itself, against which all others stand. Nothing is compiled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from execution.compiler.backends.present import module_missing, version
from execution.compiler.port import CompileError, Kernel, Recipe, Subject, Tensor


class EagerBackend:
    """See the module."""

    name = "eager"

    def unavailable(self) -> str | None:
        """Only without torch."""
        return module_missing("torch", "torch")

    def versions(self) -> Mapping[str, str]:
        """Torch's."""
        return {"torch": version("torch")}

    def recipes(self, subject: Subject) -> Sequence[Recipe]:
        """None: it is what is there already."""
        del subject
        return ()

    def compile(self, subject: Subject, recipe: Recipe, folder: Path) -> None:
        """The source as it is."""
        del recipe
        (folder / "source.pt2").write_bytes(subject.source)

    def load(self, subject: Subject, recipe: Recipe, folder: Path) -> Kernel:
        """Runs the exported graph."""
        del recipe
        from execution.compiler.source import Reference  # noqa: PLC0415 - imports torch

        try:
            source = (folder / "source.pt2").read_bytes()
        except OSError as error:
            raise CompileError(f"eager: {folder}: {error.strerror}") from error
        if source != subject.source and subject.source:
            raise CompileError(f"eager: {folder} holds another subject than {subject.op}")
        return _EagerKernel(Reference.of(subject).eager)


class _EagerKernel:
    def __init__(self, run: Any) -> None:
        self._run = run

    def prepare(self, params: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return tuple(params)

    def __call__(self, *arguments: Tensor) -> Tensor:
        import torch  # noqa: PLC0415 - loaded long since

        with torch.no_grad():
            return self._run(*arguments)
