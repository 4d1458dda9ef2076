"""Execution that evolves while it serves: watches an engine, ranks, compiles beside it, proves, swaps, watches on.

    evolution = evolve_engine(engine, core, spec, options)     # what `evolve_execution=true` does
    evolution.report()                                         # what is hot, in force, refused
    evolution.close()

One thread, at the side of the step thread; compilers and first runs have processes of their own. Each step of it
goes to a journal, with figures. The order is: look (sampler), decide what could be won most, recall or compile,
swap in (between two steps, one pointer), try in place (blocks with and without, in turn), keep or take back, watch.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import structlog
import torch

from execution.compiler.cache import ArtifactCache, CacheError, default_root
from execution.compiler.port import Bucket, CompileError
from execution.compiler.verdict import Speed
from execution.engines.torch.core import DECODE, EngineCore
from execution.engines.torch.decode import DecodeStep
from execution.engines.torch.engine import TorchEngine
from execution.engines.torch.options import TorchOptions
from execution.engines.torch.step import Row
from execution.gil import yielding_often
from execution.live.decode.cases import Case
from execution.live.decode.shape import NotDecodableError
from execution.live.decode.unit import DecodeSettings, DecodeUnit, record_case
from execution.live.journal import ExecutionJournal, FileJournal
from execution.live.module_rounds import ModuleRounds, ModuleSettings
from execution.live.place import PlaceTrial
from execution.live.sampler import TEXT_TOKENS, HotPath, StepSampler, group_of, measure_peaks
from execution.live.significance import paired_speed
from execution.live.swap import Guarded, GuardedDecode
from execution.live.variants import Table, Variant
from loop.contracts.engine import EngineError, EngineSpec

log = structlog.get_logger()
T = TypeVar("T")
_POLL_S = 0.05
_ANSWER_S = 60.0


@dataclass(frozen=True, slots=True)
class EvolutionSettings:
    """How eagerly it works."""

    observe_steps: int = 100
    """Steps that are looked at before anything is compiled."""
    place_pairs: int = 24
    """Pairs of blocks that a trial in place wants."""
    place_limit_s: float = 30.0
    """A trial in place that has not seen enough steps by then leaves it to what was measured beside."""
    min_gain_in_place: float = 1.02
    recorded_steps: int = 2
    """Steps copied for proofs."""
    watch_every_s: float = 1.0
    decode: bool = True
    """Whether the decode step as a whole is evolved."""
    modules: ModuleSettings = field(default_factory=ModuleSettings)
    """Of what is tried after it: single modules."""
    cpu_s_per_minute: int = 60
    search: bool = True
    """False: nothing is compiled; what the cache holds is put in force."""


@dataclass(slots=True)
class _Patience:
    """Longer from time to time."""

    wait_s: float = 15.0
    until_s: float = 0.0

    def over(self, now_s: float) -> bool:
        """May it be tried?"""
        return now_s >= self.until_s

    def wait_from(self, now_s: float) -> None:
        """It is tried now."""
        self.wait_s *= 2.0
        self.until_s = now_s + self.wait_s


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
        self._faults: queue.SimpleQueue[tuple[str, Variant, str]] = queue.SimpleQueue()
        self._peaks = measure_peaks(decode.threads)
        self._confirmed: set[tuple[str, int]] = set()
        self._patience: dict[tuple[str, int], _Patience] = defaultdict(_Patience)
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
        self._exchange(Table())
        self._modules_on(on=False)
        self._journal.note("swapped-back", unit="all", reason="asked for")

    def swap_in(self) -> None:
        """What was found to be best, again."""
        self._enabled.set()
        self._modules_on(on=True)
        if self._unit is not None:
            self._exchange(self._unit.table())

    def report(self) -> dict[str, Any]:
        """Plain values: what is hot, in force, refused, and why."""
        unit = self._unit
        modules = {} if self._modules is None else dict(self._modules.unit.guards)
        guards: list[Guarded | GuardedDecode] = [*modules.values()]
        if self.guard is not None:
            guards.append(self.guard)
        return {
            "state": self.state,
            "steps": self.sampler.steps,
            "sampling_overhead": self.sampler.overhead,
            "sampled_every": self.sampler.every,
            "hot": self.hot,
            "in_force": self._in_force(),
            "shadow_checks": sum(len(g.checks) for g in guards),
            "worst_shadow_error": max((c.error for g in guards for c in list(g.checks)), default=0.0),
            "int8": self._decode.int8,
            "quality": None if unit is None else unit.quality,
            "pauses_ms": list(self.pauses_ms),
        }

    # ---- The thread ----

    def _run(self) -> None:
        try:
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

    def _evolve(self) -> None:
        torch.set_num_threads(1)  # of this thread
        unit = None
        try:
            if self._settings.decode:
                with yielding_often():  # imports; it only reads, and nothing of the model is replaced yet
                    unit = self._unit = DecodeUnit(self._core, self._cache, self._journal, self._decode)
        except (NotDecodableError, CompileError) as error:
            self.state = "watching"
            self._journal.note("refused", unit=DECODE, stage="capture", reason=str(error))
        self.between(self._install)
        if unit is not None:
            began_s = time.perf_counter()
            if unit.recall() and self._exchange(unit.table()):
                self._journal.note("recalled", unit=DECODE, ms=1e3 * (time.perf_counter() - began_s))
        self._observe()
        if unit is not None and self._settings.search and unit.missing():
            self.state = "compiling"
            found_s = time.monotonic()
            sizes = self.sampler.sizes()
            cases, texts = self._record(), list(self.sampler.texts)

            def better() -> None:
                if self._exchange(unit.table()):
                    self._journal.note("swapped", unit=DECODE, in_force=self.report()["in_force"],
                                       pause_ms=self.pauses_ms[-1], since_found_s=time.monotonic() - found_s)  # fmt: skip
                self.handle_faults()

            unit.work(sizes, cases, texts, better)
        if unit is not None:
            self._try_in_place(unit)
        self._evolve_modules()
        self.state = "watching"
        while not self._stop.wait(self._settings.watch_every_s):
            self.handle_faults()
            if unit is not None:
                self._watch_speed()
                if self._enabled.is_set() and self.sampler.trial is None:
                    self._try_in_place(unit)
            if self._modules is not None:
                self._modules.look()
            self.profile()

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
            self.wait()
        with yielding_often():  # compilers are imported
            self._modules = self._rounds(settings)
        self._modules.work(settings.most)

    def _rounds(self, settings: ModuleSettings) -> ModuleRounds:
        return ModuleRounds(
            self, settings, self._cache, self._journal, lambda *fault: self._faults.put(fault),
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
        self._show(paths)
        return paths

    def run_trial(self, trial: PlaceTrial) -> None:
        """Until it has enough, its time is over, or something is wrong."""
        before, self.state = self.state, "trying in place"
        self.sampler.trial = trial
        until_s = time.monotonic() + self._settings.place_limit_s
        try:
            while not trial.enough and time.monotonic() < until_s and self._faults.empty():
                self.wait()
        finally:
            self.between(lambda _: trial.end(on=True))
            self.sampler.trial = None
            self.state = before

    def _modules_on(self, *, on: bool) -> None:
        modules = self._modules
        if modules is not None:
            self.between(lambda _: modules.unit.switch(on=on))

    def _in_force(self) -> dict[str, Any]:
        found: dict[str, Any] = {} if self.guard is None else dict(_in_force(self.guard.table))
        for name, table in {} if self._modules is None else self._modules.in_force().items():
            for bucket, variant in _in_force(table).items():
                found[f"{group_of(name)} {bucket}"] = variant  # all layers alike
        return found

    def _install(self, core: EngineCore) -> None:
        """The guard, with nothing in force, and the sampler."""
        original = core.modules()[DECODE]
        if not isinstance(original, DecodeStep):
            raise EngineError("the decode step was replaced by somebody else")
        self.guard = GuardedDecode(original, lambda *fault: self._faults.put(fault))
        core.replace_module(DECODE, self.guard, same_function=True)
        core.observer = self.sampler

    def _observe(self) -> None:
        self.state = "observing"
        while self.sampler.steps < self._settings.observe_steps or not self.sampler.sampled:
            self.wait()
        self.profile()
        for path in self.hot[:5]:
            self._journal.note("hot", **path)

    def _show(self, paths: list[HotPath]) -> None:
        self.hot = [
            {
                "unit": p.unit, "rows": list(p.rows), "threads": p.threads, "calls": p.calls, "spent_s": p.spent_s,
                "floor_s": p.floor_s, "could_win_s": p.could_win_s, "share": p.share,
            }
            for p in paths[:40]
        ]  # fmt: skip

    def _record(self) -> list[Case]:
        """Some steps as they are now, for the proof."""
        cases: list[Case] = []

        def copy(core: EngineCore) -> Case | None:
            running = sorted((s for s in core.scheduler.running if s.to_compute == 1), key=lambda s: s.lane)
            rows = [Row(s.tokens[-1], s.computed, s.lane) for s in running]
            self.sampler.texts.extend(tuple(s.tokens[-TEXT_TOKENS:]) for s in running)
            return record_case(core, rows, len(cases)) if rows else None

        for _ in range(4 * self._settings.recorded_steps):
            if len(cases) >= self._settings.recorded_steps:
                break
            case = self.between(copy)
            if case is not None:
                cases.append(case)
            self.wait()
        return cases

    def _try_in_place(self, unit: DecodeUnit) -> None:
        """Blocks of steps with and without, for batch sizes that were not confirmed yet."""
        guard = self.guard
        if guard is None or not self._enabled.is_set():
            return
        sizes = [s for s in self.sampler.sizes()[:6] if s > 0]
        news = {
            s: v
            for s in sizes
            if (v := guard.table.pick(s)) is not None and (v.name, s) not in self._confirmed
        }
        now_s = time.monotonic()
        recent = [
            s
            for s, v in news.items()
            if len(self.sampler.by_rows[s].recent_s) >= 32 and self._patience[v.name, s].over(now_s)
        ]
        if not recent:
            return
        for size in recent:  # a size that comes too seldom to be judged is not waited for again and again
            self._patience[news[size].name, size].wait_from(now_s)
        trial = PlaceTrial(list(set(news.values())), pairs=self._settings.place_pairs)
        self.run_trial(trial)
        verdicts = trial.verdicts(threads=self._decode.threads, min_gain=self._settings.min_gain_in_place)
        for bucket, speed in verdicts.items():
            variant = news.get(bucket.least)
            if variant is not None:  # else this size's own did not take part
                self._judge(unit, variant, bucket, speed)

    def _judge(self, unit: DecodeUnit, variant: Variant, bucket: Bucket, speed: Speed) -> None:
        figures = {
            "unit": DECODE, "variant": variant.name, "rows": bucket.least, "ratio": speed.ratio, "low": speed.low,
            "high": speed.high, "p": speed.p_value, "pairs": speed.pairs, "before_ms": 1e3 * speed.before_s,
            "after_ms": 1e3 * speed.after_s,
        }  # fmt: skip
        self._confirmed.add((variant.name, bucket.least))
        if speed.ratio < self._settings.min_gain_in_place:
            self._journal.note("taken-back", **figures, reason="no faster in place")
            unit.ban(variant, "no faster in place", bucket.least)
            self._exchange(unit.table())
            return
        self._journal.note("confirmed" if speed.ok else "unconfirmed", **figures)

    def _watch_speed(self) -> None:
        """Shadow checks time both sides: a variant that fell behind is taken back."""
        guard = self.guard
        if guard is None:
            return
        checks = list(guard.checks)
        for variant in guard.table.variants():
            own = [c for c in checks if c.variant is variant][-24:]
            if len(own) < 12:
                continue
            slower = paired_speed(
                [c.variant_s for c in own], [c.original_s for c in own], threads=self._decode.threads
            )
            if slower.ok:
                self._faults.put((DECODE, variant, f"slow-down: the original is {slower.ratio:.2f}x as fast"))

    def handle_faults(self) -> None:
        """Take out for good what was reported."""
        while not self._faults.empty():
            place, variant, what = self._faults.get()
            self._journal.note("swapped-back", unit=place, variant=variant.name, reason=what)
            log.warning("execution: a variant was taken back", place=place, variant=variant.name, reason=what)
            modules = self._modules
            if place != DECODE and modules is not None:
                group = group_of(place)
                self.between(lambda core: modules.unit.take_back(core, variant, group))  # noqa: B023 awaited here
            elif self._unit is not None:
                self._unit.ban(variant, what, None)
                if self._enabled.is_set():
                    self._exchange(self._unit.table())

    # ---- Between two steps ----

    def _exchange(self, table: Table) -> bool:
        """Put a table in force, timed inside the step thread; whether it was another one."""
        guard = self.guard
        if guard is None or table == guard.table:
            return False

        def swap(core: EngineCore) -> float:
            began_s = time.perf_counter()
            guard.exchange(table)
            if self._decode.int8:
                core.scheduler.drop_prefixes()
            return 1e3 * (time.perf_counter() - began_s)

        self.pauses_ms.append(self.between(swap))
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


def _in_force(table: Table) -> dict[str, str]:
    """Batch sizes and who serves them."""
    found: dict[str, str] = {}
    start = 1
    for rows in range(1, len(table.by_rows)):
        variant = table.by_rows[rows]
        if rows + 1 == len(table.by_rows) or table.by_rows[rows + 1] is not variant:
            if variant is not None:
                found[str(Bucket(start, rows))] = variant.name
            start = rows + 1
    return found
