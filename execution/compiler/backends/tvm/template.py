"""What a family of kernels must answer: can it, in which ways, how, with which weights and which result.

The answers need no TVM, except `body`, which writes the kernel: a serving process loads and calls artifacts without
it. Each family is a module of this folder with a `TEMPLATE`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from execution.compiler.backends.tvm.cpu import Cpu
from execution.compiler.port import Setting, Subject, Tensor, TensorSpec

if TYPE_CHECKING:
    from execution.compiler.backends.tvm.emit import Emit

Settings = Mapping[str, Setting]
Allocate = Callable[[Tensor], tuple[Tensor, ...]]
"""New outputs (and scratch, after them) for a call with this first input. Part of each call: `new_empty(rows, n)` takes
0.7 us less than with a tuple, and `shape[0]` is quicker than `size(0)`."""


class Template(Protocol):
    """One family."""

    @property
    def ops(self) -> tuple[str, ...]:
        """`Subject.op` of what it can do."""
        ...

    def refuse(self, subject: Subject) -> str | None:
        """Why it cannot; None: it can."""
        ...

    def settings(self, subject: Subject, cpu: Cpu) -> Sequence[Settings]:
        """Ways to write the kernel, the most promising first."""
        ...

    def body(self, subject: Subject, settings: Settings, cpu: Cpu) -> Callable[[Emit], None]:
        """Writes the kernel: its arguments are the inputs, the prepared weights, the outputs, the scratch."""
        ...

    def prepare(self, subject: Subject, settings: Settings, params: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The weights as the kernel wants them."""
        ...

    def allocate(self, subject: Subject, settings: Settings) -> Allocate:
        """Makes room for the results of one call."""
        ...

    def outputs(self, subject: Subject) -> int:
        """How many of the tensors that `allocate` makes are results; the others are scratch."""
        ...


def attrs_of(subject: Subject) -> dict[str, Any]:
    """The subject's attributes by name."""
    return dict(subject.attrs)


def only_float32(specs: Sequence[TensorSpec]) -> str | None:
    """Why not, if any of them is of another type."""
    others = sorted({spec.dtype for spec in specs if spec.dtype != "float32"})
    return f"templates compute in float32, not {', '.join(others)}" if others else None


def parallel_ways(subject: Subject, work_bytes: float) -> list[int]:
    """Threads to try, the more promising first. `work_bytes`: memory that a call reads and writes.

    Waking a second thread takes some microseconds; what a core does in that time at 20 GB/s is not worth it.
    """
    if subject.threads == 1:
        return [1]
    return [subject.threads, 1] if work_bytes > 200_000 else [1, subject.threads]
