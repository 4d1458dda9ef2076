"""Compilers by name; each is imported when it is asked for.

A back end of your own is named `package.module:Class`, wherever names are taken.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from execution.compiler.port import Backend, CompileError

BACKENDS = {
    "eager": "execution.compiler.backends.eager:EagerBackend",
    "inductor": "execution.compiler.backends.inductor:InductorBackend",
    "onnxruntime": "execution.compiler.backends.onnx:OnnxBackend",
    "tvm": "execution.compiler.backends.tvm:TemplateBackend",
    "metaschedule": "execution.compiler.backends.tvm:MetaSchedule",
}
"""Those that come with it, the quickest to compile first."""


def make_backend(name: str) -> Backend:
    """The back end of a name. Raises CompileError when there is none."""
    place = BACKENDS.get(name, name)
    module, mark, attribute = place.partition(":")
    if not mark:
        raise CompileError(
            f"back end {name!r} is not known; there are {', '.join(BACKENDS)}, or package.module:Class"
        )
    try:
        made: Backend = getattr(importlib.import_module(module), attribute)()
    except (ImportError, AttributeError) as error:
        raise CompileError(f"back end {name!r} cannot be imported: {error}") from error
    return made


def usable(names: Sequence[str] | None = None) -> tuple[dict[str, Backend], dict[str, str]]:
    """Back ends that work here, and why the others do not, by name."""
    found: dict[str, Backend] = {}
    missing: dict[str, str] = {}
    for name in BACKENDS if names is None else names:
        try:
            backend = make_backend(name)
            reason = backend.unavailable()
        except CompileError as error:
            missing[name] = str(error)
            continue
        if reason is None:
            found[name] = backend
        else:
            missing[name] = reason
    return found, missing
