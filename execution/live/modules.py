"""Single modules of the engine's model, evolved through the compiler service: what the decode step does not cover.

Prompts, models that are not of the covered family, other devices and types: there each kind of module (all layers
alike) is a subject of its own for each bucket of rows, compiled by whatever back ends are present, and guarded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from execution.compiler.events import Accepted, Finished, NotACandidate, Refused
from execution.compiler.port import Bucket, CompileError, Kernel, Subject
from execution.compiler.service import CompilerService, Demand, Samples
from execution.engines.torch.core import DECODE, EngineCore
from execution.engines.torch.model import Activation, Mlp, Projection, UnitNorm
from execution.graph.node import GraphError
from execution.graph.subject import parameters_of, subject_of
from execution.live.journal import ExecutionJournal
from execution.live.sampler import HotPath, StepSampler, group_of
from execution.live.swap import FaultListener, Guarded
from execution.live.variants import Variant

_MOST_ROWS = 1024


@dataclass(frozen=True, slots=True)
class Candidate:
    """A kind of module at one bucket of rows."""

    group: str
    bucket: Bucket
    path: HotPath


@dataclass(slots=True)
class Made:
    """A kernel that was accepted, bound to the weights of each module of its kind."""

    candidate: Candidate
    variants: dict[str, Variant]
    """By module name."""
    recipe: str


class ModuleUnit:
    """Belongs to the evolution thread."""

    def __init__(
        self,
        core: EngineCore,
        service: CompilerService,
        journal: ExecutionJournal,
        on_fault: FaultListener,
        *,
        threads: int,
    ) -> None:
        self._service, self._journal, self._on_fault, self._threads = service, journal, on_fault, threads
        self.originals = {name: m for name, m in core.modules().items() if name != DECODE}
        self.guards: dict[str, Guarded] = {}
        self.tried: set[tuple[str, Bucket]] = set()

    def candidates(
        self, sampler: StepSampler, paths: Sequence[HotPath], *, least_share: float
    ) -> list[Candidate]:
        """Kinds of modules that take one tensor and that we have inputs of, most to win first."""
        found = []
        for path in paths:
            bucket = Bucket(path.rows[0], path.rows[1])
            if path.share < least_share or bucket.most > _MOST_ROWS or (path.unit, bucket) in self.tried:
                continue
            if (path.unit, path.rows) in sampler.inputs and self._of(path.unit):
                found.append(Candidate(path.unit, bucket, path))
        return found

    def compile(
        self, candidate: Candidate, inputs: Sequence[torch.Tensor], *, limit_s: float
    ) -> Iterator[Made]:
        """Better and better kernels for a kind of module; each is right, and faster than the module alone."""
        self.tried.add((candidate.group, candidate.bucket))
        named = self._of(candidate.group)
        first = next(iter(named.values()))
        where = {"unit": candidate.group, "rows": str(candidate.bucket)}
        try:
            with torch.inference_mode():
                subject = engine_subject(first, inputs[0], candidate.bucket, self._threads)
        except (GraphError, CompileError) as error:
            self._journal.note("refused", **where, stage="capture", reason=str(error))
            return
        samples = Samples(tuple((x,) for x in inputs), engine_weights(first))
        for event in self._service.best_sync(subject, samples, demand=Demand(expected_compile_s=limit_s)):
            if isinstance(event, Refused):
                self._journal.note(
                    "refused", **where, variant=f"{event.recipe.backend} {event.recipe.name}",
                    stage=event.verdict.stage, reason=event.verdict.reason,
                )  # fmt: skip
            elif isinstance(event, NotACandidate):
                continue
            elif isinstance(event, Accepted):
                made = self._bind(candidate, named, event)
                if made is not None:
                    yield made
            elif isinstance(event, Finished):
                self._journal.note("searched", **where, cpu_s=event.compile_s, found=event.best is not None)

    def guard(self, core: EngineCore, name: str) -> Guarded:
        """The guard in a module's place; between two steps."""
        if name not in self.guards:
            self.guards[name] = Guarded(name, self.originals[name], self._on_fault)
            core.replace_module(name, self.guards[name], same_function=True)
        return self.guards[name]

    def check_pending(self) -> None:
        """Shadow checks that are due."""
        for guard in list(self.guards.values()):
            guard.check_pending()

    def _of(self, group: str) -> dict[str, nn.Module]:
        return {name: m for name, m in self.originals.items() if group_of(name) == group}

    def _bind(self, candidate: Candidate, named: dict[str, nn.Module], event: Accepted) -> Made | None:
        recipe = f"{event.recipe.backend} {event.recipe.name}"
        try:
            kernel = event.load()
            variants = {
                name: Variant(
                    recipe, candidate.bucket, _call(kernel, kernel.prepare(engine_weights(module))), 1e-3
                )
                for name, module in named.items()
            }
        except (CompileError, RuntimeError) as error:
            self._journal.note(
                "refused", unit=candidate.group, variant=recipe, stage="load", reason=str(error)
            )
            return None
        speed = event.verdict.speed
        self._journal.note(
            "accepted", unit=candidate.group, rows=str(candidate.bucket), variant=recipe, cached=event.cached,
            ratio=None if speed is None else speed.ratio,
        )  # fmt: skip
        return Made(candidate, variants, recipe)


def engine_subject(module: nn.Module, x: torch.Tensor, bucket: Bucket, threads: int) -> Subject:
    """The subject of a module of the torch engine, under the family that templates know it by; of any other, its
    graph. Raises GraphError, CompileError."""
    from execution.compiler.backends.tvm import families  # noqa: PLC0415 no tvm yet, but slow all the same

    if x.dtype == torch.float32 and x.device.type == "cpu":
        columns = x.shape[-1]
        if isinstance(module, UnitNorm):
            shift = float(module._shift) ** 2 / columns
            return families.rms_norm(
                rows=bucket,
                hidden=columns,
                eps=shift,
                unit=True,
                weight=module.weight is not None,
                threads=threads,
            )
        if isinstance(module, Projection):
            return families.linear(
                rows=bucket,
                inputs=columns,
                outputs=module.weight.shape[1],
                bias=module.bias is not None,
                threads=threads,
            )
        if isinstance(module, Activation):
            return families.swiglu(rows=bucket, inner=columns // 2, threads=threads)
        if isinstance(module, Mlp):
            return subject_of(module, (x,), op="graph", bucket=bucket, threads=threads)
    return subject_of(module, (x,), op="graph", bucket=bucket, threads=threads)


def engine_weights(module: nn.Module) -> tuple[torch.Tensor, ...]:
    """The weights that `engine_subject` of this module takes after its input, in its order."""
    if isinstance(module, UnitNorm):
        return () if module.weight is None else (module.weight,)
    if isinstance(module, Projection):
        return (module.weight,) if module.bias is None else (module.weight, module.bias)
    return () if isinstance(module, Activation) else parameters_of(module)


def _call(kernel: Kernel, prepared: tuple[Any, ...]) -> Callable[[torch.Tensor], torch.Tensor]:
    def call(x: torch.Tensor) -> torch.Tensor:
        return kernel(x, *prepared)  # type: ignore[no-any-return]

    return call
