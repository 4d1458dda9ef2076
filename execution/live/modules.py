"""Single modules of the engine's model, evolved through the compiler service: what the decode step does not cover.

Prompts, models that are not of the covered family, other devices and types: there each kind of module (all layers
alike) is a subject of its own for each bucket of rows, compiled by whatever back ends are present, and guarded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from execution.compiler.events import Accepted, Finished, Refused
from execution.compiler.port import Bucket, CompileError, Kernel
from execution.compiler.service import CompilerService, Demand, Samples
from execution.compiler.source import spec_of
from execution.engines.torch.core import DECODE, EngineCore
from execution.graph.node import GraphError
from execution.graph.subject import structure_of
from execution.live.journal import ExecutionJournal
from execution.live.quiet import quietly
from execution.live.sampler import HotPath, StepSampler, group_of
from execution.live.subjects import engine_weights
from execution.live.swap import FaultListener, Guarded, difference
from execution.live.tracing import Tracer
from execution.live.variants import Table, Variant
from execution.live.waiting import POLL_S, attended

_MOST_ROWS = 1024
_TOLERANCE = 1e-3
"""Of shadow checks; proofs are far stricter."""


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
    packed_bytes: int
    """Of weights that it keeps in an order of its own."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """One layer's part of a swap."""

    name: str
    guard: Guarded
    variant: Variant
    before: Table
    after: Table


class ModuleUnit:
    """Belongs to the evolution thread."""

    def __init__(
        self,
        core: EngineCore,
        service: CompilerService,
        tracer: Tracer,
        journal: ExecutionJournal,
        on_fault: FaultListener,
        *,
        threads: int,
        min_gain: float = 1.03,
        check_every: int = 500,
        memory_bytes: int = 1 << 30,
    ) -> None:
        """Between two steps."""
        self._service, self._journal, self._on_fault, self._threads = service, journal, on_fault, threads
        self._min_gain, self._check_every, self._memory_bytes = min_gain, check_every, memory_bytes
        self._tracer = tracer
        self._packed: dict[tuple[str, Bucket, str], int] = {}
        self._originals = {name: m for name, m in core.modules().items() if name != DECODE}
        self._copies: dict[str, nn.Module] = {}
        """As they were, for tracing and for weights; never in service."""
        self.guards: dict[str, Guarded] = {}
        self.tried: set[tuple[str, Bucket]] = set()

    def copy(self, group: str) -> None:
        """Take a kind of module aside (not its weights). Between two steps: nobody may be at it meanwhile."""
        for name, module in self._originals.items():
            if group_of(name) == group and name not in self._copies:
                self._copies[name] = structure_of(module)

    def candidates(
        self, sampler: StepSampler, paths: Sequence[HotPath], *, least_share: float
    ) -> list[Candidate]:
        """Kinds of modules that take one tensor and that we have inputs of: parts before wholes, since what is compiled
        for a part is of the best there is and rules out its whole; most to win first."""
        found = []
        for path in _together(paths):
            bucket = Bucket(path.rows[0], path.rows[1])
            if path.share < least_share or bucket.most > _MOST_ROWS or (path.unit, bucket) in self.tried:
                continue
            if (
                sampler.inputs.get((path.unit, path.rows))
                and self._knows(path.unit)
                and not self._kin(path.unit)
            ):
                found.append(Candidate(path.unit, bucket, path))
        return sorted(found, key=lambda c: self._is_whole(c.group))

    def compile(
        self, candidate: Candidate, inputs: Sequence[torch.Tensor], *, limit_s: float, search: bool = True
    ) -> Iterator[Made | None]:
        """Better and better kernels for a kind of module that was copied; each is right, and faster than the module
        alone. None, several times a second: the compilers are at it, and whoever waits may look around. Without `search`:
        what the cache holds."""
        self.tried.add((candidate.group, candidate.bucket))
        named = self._of(candidate.group)
        first = next(iter(named.values()))
        where = {"unit": candidate.group, "rows": str(candidate.bucket)}
        tracing = self._tracer.trace(first, inputs[0], candidate.bucket, self._threads)
        done = False
        while not done:
            done = tracing.done(POLL_S)
            yield None
        try:
            subject = tracing.subject()
        except (GraphError, CompileError) as error:
            self._journal.note("refused", **where, stage="capture", reason=str(error))
            return
        samples = Samples(tuple((x,) for x in inputs), engine_weights(first, subject))
        demand = Demand(min_gain=self._min_gain, expected_compile_s=limit_s, search=search)
        for event in attended(self._service.best_sync(subject, samples, demand=demand)):
            if isinstance(event, Refused):
                self._journal.note(
                    "refused", **where, variant=f"{event.recipe.backend} {event.recipe.name}",
                    stage=event.verdict.stage, reason=event.verdict.reason,
                )  # fmt: skip
            elif isinstance(event, Accepted):
                with quietly():
                    made = self._bind(candidate, named, inputs[0], event)
                yield made
            elif isinstance(event, Finished):
                self._journal.note("searched", **where, cpu_s=event.compile_s, found=event.best is not None)
            else:
                yield None

    @property
    def packed_bytes(self) -> int:
        """Of weights that kernels in force keep in orders of their own."""
        return sum(self._packed.values())

    def prepare(self, made: Made) -> list[Exchange]:
        """What `swap_in` will put in place, worked out beforehand: the step thread has no time for it."""
        found = []
        for name, variant in made.variants.items():
            guard = self.guards.get(name) or Guarded(
                name, self._originals[name], self._on_fault, check_every=self._check_every
            )
            found.append(Exchange(name, guard, variant, guard.table, _with(guard.table, variant)))
        return found

    def swap_in(
        self, core: EngineCore, made: Made, exchanges: Sequence[Exchange], like: torch.Tensor
    ) -> None:
        """All layers at once, before what serves these rows now; between two steps."""
        self._packed[made.candidate.group, made.candidate.bucket, made.recipe] = made.packed_bytes
        for one in exchanges:
            table = one.after if one.guard.table is one.before else _with(one.guard.table, one.variant)
            one.guard.exchange(table, like)
            if one.name not in self.guards:
                self._install(core, one)

    def _install(self, core: EngineCore, one: Exchange) -> None:
        """A guard in a module's place; its kin are never guarded, so that its name is the engine's."""
        old = core.replace_module(one.name, one.guard, same_function=True)
        if old is not one.guard.original:  # somebody else replaced it meanwhile: theirs stays
            core.replace_module(one.name, old, same_function=True)
            return
        self.guards[one.name] = one.guard

    def take_back(self, core: EngineCore, variant: Variant, group: str) -> None:
        """Out of all layers: one kernel serves them all. What is left empty is removed; between two steps."""
        self._packed.pop((group, variant.bucket, variant.name), None)
        for name in [name for name in self.guards if group_of(name) == group]:
            guard = self.guards[name]
            for other in guard.all_variants():
                if (other.name, other.bucket) == (variant.name, variant.bucket):
                    guard.exchange(guard.table.without(other))
            if not guard.table.variants():
                core.replace_module(name, guard.original, same_function=True)
                del self.guards[name]

    def switch(self, *, on: bool) -> None:
        """All variants, or the original for everything; between two steps."""
        for guard in self.guards.values():
            for variant in guard.all_variants():
                variant.on = on

    def check_pending(self) -> None:
        """Shadow checks that are due."""
        for guard in list(self.guards.values()):
            guard.check_pending()

    def _of(self, group: str) -> dict[str, nn.Module]:
        return {name: m for name, m in self._copies.items() if group_of(name) == group}

    def _knows(self, group: str) -> bool:
        return any(group_of(name) == group for name in self._originals)

    def _is_whole(self, group: str) -> bool:
        """Whether it has parts that could be compiled alone."""
        return any(group_of(name).startswith(f"{group}.") for name in self._originals)

    def _kin(self, group: str) -> bool:
        """Whether something is guarded already of which it is a part, or that is a part of it."""
        others = {group_of(name) for name in self.guards}
        return any(o.startswith(f"{group}.") or group.startswith(f"{o}.") for o in others)

    def _bind(
        self, candidate: Candidate, named: dict[str, nn.Module], x: torch.Tensor, event: Accepted
    ) -> Made | None:
        """To the weights of each layer, and called there once: layers of one name might be of two forms."""
        recipe = f"{event.recipe.backend} {event.recipe.name}"
        variants: dict[str, Variant] = {}
        reason, bytes_ = "", 0
        try:
            kernel = event.load()
            for name, module in named.items():
                weights = engine_weights(module, event.subject)
                if tuple(map(spec_of, weights)) != event.subject.params:
                    reason = f"{name} has weights of another form"
                    continue
                prepared = kernel.prepare(weights)
                packed = _own_bytes(prepared, weights)
                if self.packed_bytes + bytes_ + packed > self._memory_bytes:
                    reason = (
                        f"its weights in another order would take {(self.packed_bytes + bytes_ + packed) >> 20} MiB "
                        f"with those in force; {self._memory_bytes >> 20} are allowed"
                    )
                    variants = {}
                    break
                bytes_ += packed
                call = _call(kernel, prepared)
                variant = Variant(recipe, candidate.bucket, call, _TOLERANCE)
                with torch.inference_mode():
                    off, most = difference(call(x), module(x), variant)
                if off <= most:
                    variants[name] = variant
                else:
                    reason = f"{name}: {off:.3g} off, where {most:.3g} is allowed"
        except (CompileError, RuntimeError, ValueError) as error:
            variants, reason = {}, str(error)
        if reason:
            self._journal.note(
                "refused",
                unit=candidate.group,
                variant=recipe,
                stage="load",
                reason=reason,
                taken=len(variants),
            )
        if not variants:
            return None
        speed = event.verdict.speed
        self._journal.note(
            "accepted", unit=candidate.group, rows=str(candidate.bucket), variant=recipe, cached=event.cached,
            ratio=None if speed is None else speed.ratio,
        )  # fmt: skip
        return Made(candidate, variants, recipe, bytes_)


def _together(paths: Sequence[HotPath]) -> list[HotPath]:
    """Steps with prompts and without as one, told to be of those that take more; most to win first."""
    found: dict[tuple[str, tuple[int, int]], list[HotPath]] = {}
    for path in paths:
        found.setdefault((path.unit, path.rows), []).append(path)
    merged = [
        replace(
            max(parts, key=lambda p: p.share),
            calls=sum(p.calls for p in parts),
            spent_s=sum(p.spent_s for p in parts),
            floor_s=sum(p.floor_s for p in parts),
            share=sum(p.share for p in parts),
        )
        for parts in found.values()
    ]
    return sorted(merged, key=lambda p: -p.could_win_s)


def _call(kernel: Kernel, prepared: tuple[Any, ...]) -> Callable[[torch.Tensor], torch.Tensor]:
    def call(x: torch.Tensor) -> torch.Tensor:
        return kernel(x, *prepared)  # type: ignore[no-any-return]

    return call


def _with(table: Table, variant: Variant) -> Table:
    """The same, with a variant before what serves its rows."""
    known = {rows: v for rows, v in enumerate(table.by_rows) if v is not None}
    for rows in range(variant.bucket.least, variant.bucket.most + 1):
        variant.instead = known.get(rows)
        known[rows] = variant
    return Table.of(known)


def _own_bytes(prepared: Sequence[Any], weights: Sequence[torch.Tensor]) -> int:
    """Bytes of what is not simply the weights themselves."""
    known = {w.untyped_storage().data_ptr() for w in weights}
    tensors = (t for t in prepared if isinstance(t, torch.Tensor))
    return sum(t.nbytes for t in tensors if t.untyped_storage().data_ptr() not in known)
