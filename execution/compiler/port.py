"""The door between what is to be made faster, who can compile it, and who swaps it in.

A `Subject` is a function of tensors: a module without its weights, which are parameters after the inputs. So that one
compiled artifact serves all layers of one shape, is shared between replicas, and outlives the process:

    y = module(x)                    # a serving engine's module, with weights inside
    kernel(x, *prepared)             # the same, compiled; prepared = kernel.prepare(weights)

A `Backend` names the ways in which it could compile a subject (`recipes`), compiles one of them into a folder
(`compile`: slow; in a child process), and loads it from there (`load`: fast; first in a trial process, then in the
serving one). Nothing here decides whether a kernel is right or worth it: execution.compiler.proof does.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

Tensor = Any
"""torch.Tensor, named loosely: this module imports no torch."""
Setting = str | int | float | bool


@dataclass(frozen=True, slots=True, order=True)
class TensorSpec:
    """Shape and type of one contiguous tensor."""

    shape: tuple[int, ...]
    dtype: str
    """As torch names it: `float32`, `bfloat16`, `int8`, `int64`, ..."""


@dataclass(frozen=True, slots=True, order=True)
class Bucket:
    """Sizes of the subject's varying dimension (rows of a batch) that one artifact serves."""

    least: int
    most: int

    def __contains__(self, rows: object) -> bool:
        return isinstance(rows, int) and self.least <= rows <= self.most

    def __str__(self) -> str:
        return f"{self.least}" if self.least == self.most else f"{self.least}-{self.most}"


@dataclass(frozen=True, slots=True)
class Subject:
    """One function to compile, for one bucket of inputs at one thread count."""

    op: str
    """Family by which templates know it: `rms_norm`, `linear`, `int8_linear`, `swiglu`, `elementwise`,
    `decode_attention`, ...; `graph` for anything else."""
    inputs: tuple[TensorSpec, ...]
    """Of a call with `bucket.most` rows; the varying dimension is dimension 0 of the first input."""
    params: tuple[TensorSpec, ...]
    """Weights, in the order in which `source` takes them after the inputs."""
    bucket: Bucket
    threads: int
    attrs: tuple[tuple[str, Setting], ...] = ()
    """What the family needs to know (`eps`, `heads`, ...), sorted by name."""
    source: bytes = field(default=b"", repr=False)
    """`torch.export.save` of the reference, a module without state: forward(*inputs, *params)."""
    device: str = "cpu"
    fast_math: bool = False
    """Whether the kernel may be less exact than the reference where its family states by how much."""

    @property
    def key(self) -> str:
        """sha256 of all of it, hexadecimal; the source counts by the text of its graph, which the caller puts
        into `attrs` as `graph` where the family alone does not say it."""
        told = asdict(self)
        told.pop("source")
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Recipe:
    """One way of compiling a subject."""

    backend: str
    name: str
    """Short and readable: `default`, `max-autotune`, `gemv rows=8 unroll=4`, `metaschedule 32 trials`."""
    settings: tuple[tuple[str, Setting], ...] = ()
    pipeline: str = ""
    """Graph passes before it, as execution.passes writes a pipeline."""
    expected_compile_s: float = 1.0
    """Order of magnitude; the budget decides by it what is tried first."""


class Kernel(Protocol):
    """A loaded artifact. May be called from one thread at a time; never writes to its arguments."""

    def prepare(self, params: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The module's weights in the layout that the kernel wants; called once, at the swap."""
        ...

    def __call__(self, *arguments: Tensor) -> Tensor:
        """Inputs, then what `prepare` returned; gives new tensors."""
        ...


class Backend(Protocol):
    """One compiler."""

    @property
    def name(self) -> str:
        """`eager`, `inductor`, `onnxruntime`, `tvm`, `metaschedule`, ..."""
        ...

    def unavailable(self) -> str | None:
        """Why it cannot be used on this machine; None: it can. Cheap, and imports nothing heavy."""
        ...

    def versions(self) -> Mapping[str, str]:
        """Versions of all that an artifact depends on; part of the cache key."""
        ...

    def recipes(self, subject: Subject) -> Sequence[Recipe]:
        """Ways to compile the subject, the most promising first; none: it cannot. Pure: the same for the same."""
        ...

    def compile(self, subject: Subject, recipe: Recipe, folder: Path) -> None:
        """Write the artifact's files into the folder. Raises CompileError. Runs in a child process."""
        ...

    def load(self, subject: Subject, recipe: Recipe, folder: Path) -> Kernel:
        """The kernel of a folder that `compile` wrote, maybe on another day. Raises CompileError."""
        ...


class CompileError(RuntimeError):
    """A back end cannot do this; the message names the subject, the back end and the reason."""
