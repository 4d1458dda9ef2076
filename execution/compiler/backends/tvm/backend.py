"""The back end `tvm`: kernels from parametric templates, each written for its shapes in a tenth of a second.

backend = TemplateBackend()
backend.recipes(subject)                    # none: no template knows the family; refusal(subject) says why
backend.compile(subject, recipe, folder)    # in a child process: imports tvm
kernel = backend.load(subject, recipe, folder)
kernel(x, *kernel.prepare(weights))
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from execution.compiler.backends.tvm import artifact, attention, int8, matmul, pointwise, rowwise
from execution.compiler.backends.tvm.artifact import Told
from execution.compiler.backends.tvm.cpu import Cpu, detect
from execution.compiler.backends.tvm.template import Allocate, Settings, Template
from execution.compiler.port import CompileError, Recipe, Subject, Tensor

VERSION = 2
"""Of the templates: to be raised when what they write changes."""
TEMPLATES: tuple[Template, ...] = (
    rowwise.TEMPLATE,
    pointwise.TEMPLATE,
    matmul.TEMPLATE,
    int8.TEMPLATE,
    attention.TEMPLATE,
)


class TemplateKernel:
    """A loaded artifact; calls it with no copies in between."""

    __slots__ = ("_allocate", "_function", "_outputs", "_prepare")

    def __init__(
        self,
        function: Callable[..., Any],
        prepare: Callable[[Sequence[Tensor]], tuple[Tensor, ...]],
        allocate: Allocate,
        outputs: int,
    ) -> None:
        self._function, self._prepare, self._allocate, self._outputs = function, prepare, allocate, outputs

    @property
    def function(self) -> Callable[..., Any]:
        """What is called: inputs, prepared weights, results, scratch."""
        return self._function

    def prepare(self, params: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The weights in the kernel's layout."""
        return self._prepare([param.detach() for param in params])

    def __call__(self, *arguments: Tensor) -> Any:
        """Inputs, then prepared weights; gives one new tensor, or a tuple where the reference does."""
        made = self._allocate(arguments[0])
        try:
            self._function(*arguments, *made)
        except ValueError:  # how the kernel says that it was not given what it was made for
            if all(a.is_contiguous() for a in arguments):
                raise
            whole = [a.contiguous() for a in arguments]
            made = self._allocate(whole[0])
            self._function(*whole, *made)
        return made[0] if self._outputs == 1 else made[: self._outputs]


class TemplateBackend:
    """Templates, as a Backend."""

    name = "tvm"

    def __init__(self, cpu: Cpu | None = None) -> None:
        self._cpu = cpu or detect()

    def unavailable(self) -> str | None:
        """Without TVM, or without a linker for what it compiles."""
        return missing()

    def versions(self) -> Mapping[str, str]:
        """Of TVM, of the templates, and what is known of the processor."""
        return {**installed(), "templates": str(VERSION), "processor": self._cpu.fingerprint}

    def refusal(self, subject: Subject) -> str | None:
        """Why there is no recipe for the subject; None: there is one."""
        if subject.device != "cpu":
            return f"templates are for cpu, not {subject.device}"
        template = _template(subject.op)
        if template is None:
            known = sorted(op for t in TEMPLATES for op in t.ops)
            return f"no template for {subject.op!r}; there are {', '.join(known)}"
        return template.refuse(subject)

    def recipes(self, subject: Subject) -> Sequence[Recipe]:
        """One for each way that the family's template has."""
        template = _template(subject.op)
        if template is None or self.refusal(subject) is not None:
            return ()
        ways = template.settings(subject, self._cpu)
        return [Recipe(self.name, _named(s), tuple(sorted(s.items())), "", 0.3) for s in ways]

    def compile(self, subject: Subject, recipe: Recipe, folder: Path) -> None:
        """Write, build and link the kernel."""
        template, settings = self._of(subject, recipe)
        from execution.compiler.backends.tvm.emit import emit  # noqa: PLC0415

        told = Told(
            artifact.FORMAT,
            subject.op,
            recipe.name,
            dict(settings),
            int(settings["threads"]),
            self._cpu.fingerprint,
        )
        function = emit(template.body(subject, settings, self._cpu), self._cpu.lanes)
        artifact.write(function, told, folder)

    def load(self, subject: Subject, recipe: Recipe, folder: Path) -> TemplateKernel:
        """The kernel of the folder."""
        template, settings = self._of(subject, recipe)
        told = artifact.told_of(folder)
        if told.op != subject.op or told.settings != dict(settings):
            raise CompileError(
                f"tvm: {folder} holds {told.op}, {told.recipe}; not {subject.op}, {recipe.name}"
            )
        return TemplateKernel(
            artifact.read(folder, self._cpu)[artifact.ENTRY],
            lambda params: template.prepare(subject, settings, params),
            template.allocate(subject, settings),
            template.outputs(subject),
        )

    def _of(self, subject: Subject, recipe: Recipe) -> tuple[Template, Settings]:
        """Raises CompileError: the subject is not for templates."""
        refused = self.unavailable() or self.refusal(subject)
        template = _template(subject.op)
        if refused is not None or template is None:
            raise CompileError(f"tvm: cannot compile {subject.op}: {refused}")
        if recipe.backend != self.name:
            raise CompileError(f"tvm: recipe {recipe.name!r} is of {recipe.backend}")
        return template, dict(recipe.settings)


def missing() -> str | None:
    """What TVM lacks here; None: nothing. Imports nothing."""
    for module, package in (("tvm", "apache-tvm"), ("tvm_ffi", "apache-tvm-ffi")):
        if importlib.util.find_spec(module) is None:
            return f"{package} is not installed: pip install 'autopoiesis[compile]'"
    if shutil.which("g++") is None and shutil.which("gcc") is None and shutil.which("clang") is None:
        return "no C compiler to link kernels with: install gcc or clang"
    return None


def installed() -> dict[str, str]:
    """Versions of TVM's packages."""
    found = {}
    for package in ("apache-tvm", "apache-tvm-ffi"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "absent"
    return found


def _template(op: str) -> Template | None:
    return next((t for t in TEMPLATES if op in t.ops), None)


def _named(settings: Settings) -> str:
    return " ".join(f"{name}={value}" for name, value in settings.items())
