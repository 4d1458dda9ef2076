"""Execution that evolves while it serves: watches an engine, ranks, compiles beside it, proves, swaps, watches on.

    evolution = evolve_engine(engine, core, spec, options)     # what `evolve_execution=true` does
    evolution.report()                                         # what is hot, in force, refused
    evolution.close()

One thread, at the side of the step thread; compilers and first runs have processes of their own. Each step of it
goes to a journal, with figures. The order is: look (sampler), decide what could be won most, recall or compile,
swap in (between two steps, one pointer), try in place (blocks with and without, in turn), keep or take back, watch.
"""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from pathlib import Path
from typing import Any, TypeVar

import structlog
import torch

from execution.compiler.cache import ArtifactCache, CacheError, default_root
from execution.compiler.port import CompileError
from execution.engines.torch.core import DECODE, EngineCore
from execution.engines.torch.decode import DecodeStep
from execution.engines.torch.engine import TorchEngine
from execution.engines.torch.options import TorchOptions
from execution.gil import yielding_often
from execution.live.decode.shape import NotDecodableError
from execution.live.decode.unit import DecodeSettings, DecodeUnit
from execution.live.decode_rounds import DecodeRounds
from execution.live.journal import ExecutionJournal, FileJournal
from execution.live.module_rounds import ModuleRounds, ModuleSettings
from execution.live.place import PlaceTrial
from execution.live.quiet import quietly, undisturbed
from execution.live.report import hot_lines, report_of
from execution.live.sampler import HotPath, StepSampler, group_of, measure_peaks
from execution.live.settings import EvolutionSettings
from execution.live.swap import Guarded, GuardedDecode
from execution.live.variants import Table
from execution.live.watch import Watch
from loop.contracts.engine import EngineError, EngineSpec

__all__ = ["EvolutionSettings", "ExecutionEvolution", "evolve_engine"]
log = structlog.get_logger()
T = TypeVar("T")
_POLL_S = 0.05
_ANSWER_S = 60.0


class _Closed(Exception):
    """The engine or the evolution ends."""


class ExecutionEvolution:
    """See the module. Methods may be called from any thread."""

    def __init__(
        self,
        engine: TorchEngine,
        core: EngineCore,
        decode: DecodeSettings,
        *,
        cache: ArtifactCache,
        journal: ExecutionJournal,
        settings: EvolutionSettings | None = None,
    ) -> None:
        self._engine, self._core = engine, core
        self._decode = decode
        self._cache, self._journal, self._settings = cache, journal, settings or EvolutionSettings()
        self.journal: Any = journal
        self.sampler = StepSampler(core, threads=decode.threads)
        self.state = "starting"
        self.hot: list[dict[str, Any]] = []
        self.pauses_ms: list[float] = []
        """How long each exchange held up the step thread."""
        self._unit: DecodeUnit | None = None
        self._modules: ModuleRounds | None = None
        self.guard: GuardedDecode | None = None
        """In the place of the decode step, once it is installed."""
        self._watch = Watch(threads=decode.threads, every_s=self._settings.watch_every_s)
        self._peaks = measure_peaks(decode.threads)
        self._stop = threading.Event()
        self._enabled = threading.Event()
        self._enabled.set()
        self._thread = threading.Thread(target=self._run, name="execution-evolution", daemon=True)

    @classmethod
    def of(cls, engine: TorchEngine, decode: DecodeSettings, **more: Any) -> ExecutionEvolution:
        """For an engine that has started."""
        return cls(engine, engine.core, decode, **more)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def close(self) -> None:
        """End it and its helpers; the engine keeps what is in force. Idempotent."""
        self._stop.set()
        if self._unit is not None:
            self._unit.workshop.close()
        modules = self._modules
        if modules is not None:
            modules.close()
        if self._thread.is_alive():
            self._thread.join(10.0)

    def swap_back(self) -> None:
        """The original for everything, from the next step on; nothing more is tried until `swap_in`."""
        self._enabled.clear()
        self.exchange(Table())
        self._modules_on(on=False)
        self._journal.note("swapped-back", unit="all", reason="asked for")

    def swap_in(self) -> None:
        """What was found to be best, again."""
        self._enabled.set()
        self._modules_on(on=True)
        if self._unit is not None:
            self.exchange(self._unit.table())

    def report(self) -> dict[str, Any]:
        """Plain values: what is hot, in force, refused, and why."""
        return report_of(self)

    @property
    def int8(self) -> bool:
        """Whether weights are rounded."""
        return self._decode.int8

    @property
    def quality(self) -> dict[str, Any] | None:
        """Of rounded weights, as far as it was measured."""
        return None if self._unit is None else self._unit.quality

    @property
    def module_guards(self) -> dict[str, Guarded]:
        """Single modules that have variants, by name."""
        return {} if self._modules is None else dict(self._modules.unit.guards)

    # ---- The thread ----

    def _run(self) -> None:
        try:
            with yielding_often():  # Python beside the step thread, throughout
                self._evolve()
        except _Closed:
            pass
        except Exception as error:
            self.state = f"ended: {error!r}"
            self._journal.note("evolution-ended", reason=repr(error))
            log.exception("execution evolution ended")
        finally:
            self._core.observer = None
            if self._unit is not None:
                self._unit.close()
            if self._modules is not None:
                self._modules.close()

    def _evolve(self) -> None:
        torch.set_num_threads(1)  # of this thread
        gc.freeze()  # torch and the model stay: looking through them for garbage would stop all threads
        rounds = self._decode_rounds()
        self.between(self._install)
        if rounds is not None:
            rounds.recall()
        self._observe()
        if rounds is not None:
            rounds.work()
            rounds.try_in_place()
        self._evolve_modules()
        self.state = "watching"
        while not self._stop.wait(self._settings.watch_every_s):
            self.look_around()
            if rounds is not None and self._enabled.is_set() and self.sampler.trial is None:
                rounds.try_in_place()
            if self._modules is not None:
                self._modules.look()
            self.profile()

    def _decode_rounds(self) -> DecodeRounds | None:
        """None: the decode step is not to be, or cannot be, replaced."""
        if not self._settings.decode:
            return None
        try:
            with quietly():  # imports; it only reads, and nothing of the model is replaced yet
                self._unit = DecodeUnit(self._core, self._cache, self._journal, self._decode)
        except (NotDecodableError, CompileError) as error:
            self.state = "watching"
            self._journal.note("refused", unit=DECODE, stage="capture", reason=str(error))
            return None
        return DecodeRounds(self, self._unit, self._settings, self._journal, threads=self._decode.threads)

    def _evolve_modules(self) -> None:
        """What the decode step leaves: the kinds of modules in which the most could be won."""
        settings = self._settings.modules
        if not settings.most:
            return
        self.state = "observing"
        self.between(lambda _: self.sampler.forget())
        until_s = time.monotonic() + settings.look_again_s
        while self.sampler.steps < self._settings.observe_steps or (
            self.sampler.sampled < settings.samples and time.monotonic() < until_s
        ):
            self.look_around()
            self.wait()
        with quietly():  # compilers are imported
            self._modules = self._rounds(settings)
        self._modules.work(settings.most)

    def _rounds(self, settings: ModuleSettings) -> ModuleRounds:
        return ModuleRounds(
            self, settings, self._cache, self._journal, self._watch.report,
            threads=self._decode.threads, cpu_s_per_minute=float(self._settings.cpu_s_per_minute),
            pairs=self._settings.place_pairs, search=self._settings.search,
        )  # fmt: skip

    @property
    def enabled(self) -> bool:
        """Whether variants may serve."""
        return self._enabled.is_set()

    def profile(self) -> list[HotPath]:
        """What is hot, most to win first."""
        paths = self.sampler.profile(self._peaks)
        self.hot = hot_lines(paths)
        return paths

    def run_trial(self, trial: PlaceTrial) -> None:
        """Until it has enough, its time is over, or something is wrong."""
        before, self.state = self.state, "trying in place"
        self.sampler.trial = trial
        until_s = time.monotonic() + self._settings.place_limit_s
        try:
            while not trial.enough and time.monotonic() < until_s and self._watch.quiet:
                self._watch.look(self.guard)
                self.wait()
        finally:
            self.between(lambda _: trial.end(on=True))
            self.sampler.trial = None
            self.state = before

    def _modules_on(self, *, on: bool) -> None:
        modules = self._modules
        if modules is not None:
            self.between(lambda _: modules.unit.switch(on=on))

    def _install(self, core: EngineCore) -> None:
        """The guard, with nothing in force, and the sampler."""
        original = core.modules()[DECODE]
        if not isinstance(original, DecodeStep):
            raise EngineError("the decode step was replaced by somebody else")
        self.guard = GuardedDecode(original, self._watch.report)
        core.replace_module(DECODE, self.guard, same_function=True)
        core.observer = self.sampler

    def _observe(self) -> None:
        self.state = "observing"
        while self.sampler.steps < self._settings.observe_steps or not self.sampler.sampled:
            self.look_around()
            self.wait()
        self.profile()
        for path in self.hot[:5]:
            self._journal.note("hot", **path)

    def look_around(self) -> None:
        """What is in force is watched, and taken out when it is bad; as often as one likes. Raises when all is to end."""
        self._watch.look(self.guard)
        self.handle_faults()
        self.wait(0.0)

    def handle_faults(self) -> None:
        """Take out for good what was reported."""
        for place, variant, what in self._watch.taken():
            self._journal.note("swapped-back", unit=place, variant=variant.name, reason=what)
            log.warning("execution: a variant was taken back", place=place, variant=variant.name, reason=what)
            modules = self._modules
            if place != DECODE and modules is not None:
                group = group_of(place)
                self.between(lambda core: modules.unit.take_back(core, variant, group))  # noqa: B023 awaited here
            elif self._unit is not None:
                self._unit.ban(variant, what, None)
                if self._enabled.is_set():
                    self.exchange(self._unit.table())

    # ---- Between two steps ----

    def exchange(self, table: Table) -> bool:
        """Put a table in force for the decode step, timed inside the step thread; whether it was another one, and
        variants are still wanted."""
        guard = self.guard
        if guard is None or table == guard.table:
            return False

        def swap(core: EngineCore) -> float | None:
            if table != Table() and not self.enabled:
                return None  # swapped back since it was asked for
            began_s = time.perf_counter()
            with undisturbed():
                guard.exchange(table)
                if self._decode.int8:
                    core.scheduler.drop_prefixes()
            return 1e3 * (time.perf_counter() - began_s)

        pause_ms = self.between(swap)
        if pause_ms is None:
            return False
        self.pauses_ms.append(pause_ms)
        return True

    def between(self, question: Callable[[EngineCore], T]) -> T:
        """Ask the step thread between two steps; raises when all is to end."""
        try:
            answer: Future[T] = self._engine.between_steps(question)
        except EngineError as error:
            raise _Closed from error
        until_s = time.monotonic() + _ANSWER_S
        while True:
            try:
                return answer.result(_POLL_S)
            except FutureTimeoutError:
                if answer.done():
                    raise
                if self._stop.is_set() or time.monotonic() > until_s:
                    raise _Closed from None

    def wait(self, seconds: float = _POLL_S) -> None:
        """For a moment; raises when all is to end."""
        if self._stop.wait(seconds):
            raise _Closed


def evolve_engine(
    engine: TorchEngine, core: EngineCore, spec: EngineSpec, options: TorchOptions
) -> ExecutionEvolution:
    """Start evolving an engine as its options say."""
    root = Path(options.execution_cache) if options.execution_cache else default_root()
    path = Path(options.execution_journal) if options.execution_journal else root / "journal.jsonl"
    journal = FileJournal(path)
    threads = options.threads or torch.get_num_threads()
    try:
        cache = ArtifactCache(root)
    except CacheError as error:
        raise EngineError(f"torch engine: option execution_cache: {error}") from error
    decode = DecodeSettings(spec.model, spec.seed, threads, int8=options.int8)
    settings = EvolutionSettings(cpu_s_per_minute=options.compile_budget)
    evolution = ExecutionEvolution(engine, core, decode, cache=cache, journal=journal, settings=settings)
    journal.note("started", model=spec.model, threads=threads, int8=options.int8, cache=str(root))
    evolution.start()
    return evolution
