"""Rounds of evolving single modules: choose by what could be won, compile, swap in, try in place, keep or take back.

rounds = ModuleRounds(host, ModuleSettings(), cache, threads=1)
rounds.work(6)          # six kinds of modules, most to win first
rounds.look()           # shadow checks that are due
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

from execution.compiler.budget import Budget
from execution.compiler.cache import ArtifactCache
from execution.compiler.service import CompilerService
from execution.engines.torch.core import EngineCore
from execution.live.journal import ExecutionJournal
from execution.live.modules import Candidate, Made, ModuleUnit
from execution.live.place import PlaceTrial
from execution.live.quiet import undisturbed
from execution.live.sampler import HotPath, StepSampler
from execution.live.swap import FaultListener
from execution.live.tracing import Tracer
from execution.live.variants import Variant

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ModuleSettings:
    """Which modules are tried, and what is asked of their kernels."""

    most: int = 12
    """Kinds of modules (at one bucket of rows) that are tried once the decode step is done with; 0: none, ever."""
    later: int = 1
    """The same each time that the load is looked at again."""
    look_again_s: float = 30.0
    samples: int = 16
    """Steps that are looked at closely before the first choice, unless that takes longer than `look_again_s`."""
    backends: tuple[str, ...] | None = None
    """Who compiles them, as execution.compiler.backends names them; None: all that work here."""
    min_gain: float = 1.03
    """Of a kernel over the module alone."""
    min_gain_in_place: float = 1.0
    """Of the engine's steps; what has less is taken back."""
    priority: Literal["normal", "low", "lowest", "idle"] = "idle"
    """Of their compilers, as execution.compiler.budget says: what a module wins is never worth a late token."""
    check_every: int = 500
    """Calls of a compiled module, of which one is checked against the original."""
    least_share: float = 0.02
    """Of the time, at least, that such a kind must take."""
    compile_s: float = 15.0
    """Recipes that are expected to take longer are left out."""
    memory_bytes: int = 1 << 30
    """For weights in orders of the kernels' own."""


class Host(Protocol):
    """What rounds need of the evolution that they are part of."""

    sampler: StepSampler
    state: str
    pauses_ms: list[float]

    @property
    def enabled(self) -> bool:
        """Whether variants may serve."""
        ...

    def between(self, question: Callable[[EngineCore], T]) -> T:
        """Ask the step thread between two steps."""
        ...

    def run_trial(self, trial: PlaceTrial) -> None:
        """Until it has enough, or its time is over."""
        ...

    def look_around(self) -> None:
        """While others work: what is in force is watched. Raises when all is to end."""
        ...

    def profile(self) -> list[HotPath]:
        """What is hot, most to win first."""
        ...


class ModuleRounds:
    """Belongs to the evolution thread; `report` and `close` may be called from any."""

    def __init__(
        self,
        host: Host,
        settings: ModuleSettings,
        cache: ArtifactCache,
        journal: ExecutionJournal,
        on_fault: FaultListener,
        *,
        threads: int,
        cpu_s_per_minute: float,
        pairs: int,
        search: bool = True,
    ) -> None:
        """Between no two steps: it asks for them itself."""
        self._host, self._settings, self._journal, self._threads = host, settings, journal, threads
        self._pairs, self._search = pairs, search
        budget = Budget(cpu_s_per_minute=cpu_s_per_minute, priority=settings.priority)
        self._service = CompilerService(cache, backends=settings.backends, budget=budget)
        self._tracer = Tracer(priority=settings.priority if settings.priority == "normal" else "low")
        for backend, reason in self._service.missing.items():
            journal.note("refused", unit="modules", variant=backend, stage="choice", reason=reason)
        self.unit = host.between(
            lambda core: ModuleUnit(
                core, self._service, self._tracer, journal, on_fault, threads=threads, min_gain=settings.min_gain,
                check_every=settings.check_every, memory_bytes=settings.memory_bytes,
            )
        )  # fmt: skip
        self._next_s = 0.0

    def work(self, most: int) -> int:
        """Try so many kinds of modules, most to win first; how many there were."""
        tried = 0
        while tried < most:
            found = self.unit.candidates(
                self._host.sampler, self._host.profile(), least_share=self._settings.least_share
            )
            if not found:
                break
            self._try(found[0])
            tried += 1
        self._next_s = time.monotonic() + self._settings.look_again_s
        return tried

    def look(self) -> None:
        """Shadow checks that are due; now and then, whether the load has brought something new."""
        self.unit.check_pending()
        if self._host.enabled and time.monotonic() >= self._next_s:
            self.work(self._settings.later)

    def in_force(self) -> dict[str, Any]:
        """Tables by the modules' names."""
        return {name: guard.table for name, guard in dict(self.unit.guards).items()}

    def close(self) -> None:
        """End compilers."""
        self._service.close()
        self._tracer.close()

    def _try(self, candidate: Candidate) -> None:
        host = self._host
        before, host.state = host.state, f"compiling {candidate.group}"
        self._journal.note("searching", unit=candidate.group, rows=str(candidate.bucket),
                           could_win_s=candidate.path.could_win_s, share=candidate.path.share)  # fmt: skip
        inputs = list(host.sampler.inputs[candidate.group, candidate.path.rows])
        guarded = len(self.unit.guards)
        host.between(lambda _: self.unit.copy(candidate.group))
        try:
            for made in self.unit.compile(
                candidate, inputs, limit_s=self._settings.compile_s, search=self._search
            ):
                if made is not None:
                    self._swap(made)
                host.look_around()
        finally:
            host.state = before
        if len(self.unit.guards) != guarded:
            host.between(lambda _: host.sampler.forget())  # guards stand in other modules' places

    def _swap(self, made: Made) -> None:
        """All layers at once; then in place, blocks of steps with and without."""
        host, unit = self._host, self.unit
        group, bucket = made.candidate.group, made.candidate.bucket
        like = host.sampler.inputs[group, made.candidate.path.rows][0]
        exchanges = unit.prepare(made)

        def swap(core: EngineCore) -> float:
            began_s = time.perf_counter()
            with undisturbed():
                unit.swap_in(core, made, exchanges, like)
            return 1e3 * (time.perf_counter() - began_s)

        host.pauses_ms.append(host.between(swap))
        if not host.enabled:
            host.between(lambda _: unit.switch(on=False))
            return
        self._journal.note("swapped", unit=group, rows=str(bucket), variant=made.recipe,
                           pause_ms=host.pauses_ms[-1])  # fmt: skip
        # what serves more rows than ever decode together is seen in steps with prompts only
        mixed = made.candidate.path.prompts or bucket.least > max(host.sampler.sizes(), default=0)
        trial = PlaceTrial(
            list(made.variants.values()), pairs=self._pairs, block=3 if mixed else 6, mixed=mixed
        )
        host.run_trial(trial)
        self._judge(made, trial, next(iter(made.variants.values())))

    def _judge(self, made: Made, trial: PlaceTrial, variant: Variant) -> None:
        group = made.candidate.group
        verdicts = trial.verdicts(threads=self._threads, min_gain=1.0)
        best = max(verdicts.values(), key=lambda s: s.pairs, default=None)
        where = {"unit": group, "rows": str(made.candidate.bucket), "variant": made.recipe}
        if best is None:
            self._journal.note("unconfirmed", **where, reason="too few steps in place to judge by")
            return
        figures = {"ratio": best.ratio, "p": best.p_value, "pairs": best.pairs}
        if best.ratio < self._settings.min_gain_in_place:
            self._host.between(lambda core: self.unit.take_back(core, variant, group))
            self._journal.note("taken-back", **where, **figures, reason="no faster in place")
        else:
            self._journal.note("confirmed" if best.ok else "unconfirmed", **where, **figures)
