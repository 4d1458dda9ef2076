"""torch.compile's compiler ahead of time (AOTInductor): C++ on CPUs, Triton on GPUs; a shared object that needs no Python.

Rows are dynamic within the bucket. `max-autotune` freezes what is constant and measures several ways for each matmul.
"""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from execution.compiler.backends.present import compiler_missing, compiler_version, module_missing, version
from execution.compiler.port import CompileError, Kernel, Recipe, Subject, Tensor

_PACKAGE = "kernel.pt2"
_BOUNDED = "AUTOPOIESIS_INDUCTOR_MAX_BYTES"
_MAX_BYTES = 2 << 30
_MATMULS = ("linear", "int8_linear", "decode_attention", "graph")


class InductorBackend:
    """See the module."""

    name = "inductor"

    def unavailable(self) -> str | None:
        """Without torch, or without a C++ compiler."""
        return module_missing("torch", "torch") or compiler_missing()

    def versions(self) -> Mapping[str, str]:
        """Torch's and the C++ compiler's; Triton's where it is."""
        return {"torch": version("torch"), "cxx": compiler_version(), "triton": version("triton")}

    def recipes(self, subject: Subject) -> Sequence[Recipe]:
        """Default; max-autotune where there is a matmul to tune."""
        found = [Recipe(self.name, "default", expected_compile_s=12.0)]
        if subject.op in _MATMULS:
            found.append(
                Recipe(
                    self.name,
                    "max-autotune",
                    settings=(("freezing", True), ("max_autotune", True)),
                    expected_compile_s=40.0,
                )
            )
        return tuple(found)

    def compile(self, subject: Subject, recipe: Recipe, folder: Path) -> None:
        """Export again from the source, lower, compile, package."""
        import torch  # noqa: PLC0415 - heavy
        import torch._inductor as inductor  # noqa: PLC0415 - heavy

        from execution.compiler.source import load_program  # noqa: PLC0415 - imports torch

        _bound()
        options: dict[str, Any] = {
            "compile_threads": 1,
            "aot_inductor.enable_line_tables": False,
            "aot_inductor.compile_wrapper_opt_level": "O0",  # a few calls; half of the compiler's time
            "cpp.enable_floating_point_contract_flag": "fast" if subject.fast_math else "off",
            "cpp.enable_unsafe_math_opt_flag": subject.fast_math,
            **dict(recipe.settings),
        }
        torch.set_num_threads(subject.threads)
        try:
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                inductor.aoti_compile_and_package(
                    load_program(subject),
                    package_path=str(folder / _PACKAGE),
                    inductor_configs=options,
                )
        except Exception as error:
            if isinstance(error, MemoryError):
                raise
            raise CompileError(
                f"inductor {recipe.name}: {subject.op}: {type(error).__name__}: {str(error).strip()[:1000]}"
            ) from error

    def load(self, subject: Subject, recipe: Recipe, folder: Path) -> Kernel:
        """Map the shared object."""
        import torch  # noqa: PLC0415 - heavy

        path = folder / _PACKAGE
        if not path.is_file():
            raise CompileError(f"inductor {recipe.name}: {folder} holds no {_PACKAGE}")
        index = torch.device(subject.device).index if subject.device != "cpu" else -1
        try:
            loader = torch._C._aoti.AOTIModelPackageLoader(
                str(path), "model", True, 1, -1 if index is None else index
            )
        except RuntimeError as error:
            raise CompileError(f"inductor {recipe.name}: {path}: {error}") from error
        return _InductorKernel(loader)


class _InductorKernel:
    """Straight to the runner: a few microseconds a call."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader  # owns the shared object
        self._run = loader.run

    def prepare(self, params: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return tuple(p.detach().contiguous() for p in params)

    def __call__(self, *arguments: Tensor) -> Tensor:
        # the code was made for contiguous tensors, and checks nothing
        given = [a if a.is_contiguous() else a.contiguous() for a in arguments]
        out = self._run(given)
        return out[0] if len(out) == 1 else tuple(out)


def keep_cache_in(folder: Path) -> dict[str, str]:
    """Environment by which inductor keeps its own cache under `folder`, unless the user told it where."""
    if os.environ.get("TORCHINDUCTOR_CACHE_DIR"):
        return {}
    return {"TORCHINDUCTOR_CACHE_DIR": str(folder), _BOUNDED: str(_MAX_BYTES)}


def _bound() -> None:
    """Empty inductor's cache when it has grown too large: it throws nothing out by itself."""
    limit, place = os.environ.get(_BOUNDED), os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    if limit and place:
        size = sum(p.stat().st_size for p in Path(place).rglob("*") if p.is_file())
        if size > int(limit):
            shutil.rmtree(place, ignore_errors=True)
