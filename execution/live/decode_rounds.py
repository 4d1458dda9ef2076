"""Rounds of evolving the decode step: recall or compile, swap in, try in place, keep or take back.

rounds = DecodeRounds(host, unit, settings, journal, threads=1)
rounds.recall()         # what the cache holds
rounds.work()           # compile, prove and swap in what is missing
rounds.try_in_place()   # batch sizes that were not confirmed yet, as often as one likes
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from execution.compiler.port import Bucket
from execution.compiler.verdict import Speed
from execution.engines.torch.core import DECODE, EngineCore
from execution.engines.torch.step import Row
from execution.live.decode.cases import Case
from execution.live.decode.unit import DecodeUnit, record_case
from execution.live.journal import ExecutionJournal
from execution.live.place import PlaceTrial
from execution.live.sampler import TEXT_TOKENS, StepSampler
from execution.live.settings import EvolutionSettings
from execution.live.swap import GuardedDecode
from execution.live.variants import Table, Variant

T = TypeVar("T")


class Host(Protocol):
    """What rounds need of the evolution that they are part of."""

    sampler: StepSampler
    state: str
    pauses_ms: list[float]
    guard: GuardedDecode | None

    @property
    def enabled(self) -> bool:
        """Whether variants may serve."""
        ...

    def between(self, question: Callable[[EngineCore], T]) -> T:
        """Ask the step thread between two steps."""
        ...

    def exchange(self, table: Table) -> bool:
        """Put a table in force; whether it was another one."""
        ...

    def run_trial(self, trial: PlaceTrial) -> None:
        """Until it has enough, or its time is over."""
        ...

    def handle_faults(self) -> None:
        """Of whatever is in force."""
        ...

    def look_around(self) -> None:
        """While others work: what is in force is watched. Raises when all is to end."""
        ...

    def wait(self) -> None:
        """For a moment; raises when all is to end."""
        ...

    def report(self) -> dict[str, Any]:
        """What is in force."""
        ...


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


class DecodeRounds:
    """Belongs to the evolution thread."""

    def __init__(
        self,
        host: Host,
        unit: DecodeUnit,
        settings: EvolutionSettings,
        journal: ExecutionJournal,
        *,
        threads: int,
    ) -> None:
        self._host, self._unit, self._settings, self._journal = host, unit, settings, journal
        self._threads = threads
        self._confirmed: set[tuple[str, int]] = set()
        self._patience: dict[tuple[str, int], _Patience] = defaultdict(_Patience)

    def recall(self) -> None:
        """Put in force what the cache holds."""
        began_s = time.perf_counter()
        if self._unit.recall() and self._host.exchange(self._unit.table()):
            self._journal.note("recalled", unit=DECODE, ms=1e3 * (time.perf_counter() - began_s))

    def work(self) -> None:
        """Compile, prove and swap in what is missing."""
        host, unit = self._host, self._unit
        if not self._settings.search or not unit.missing():
            return
        host.state = "compiling"
        found_s = time.monotonic()
        sizes = host.sampler.sizes()
        cases, texts = self._record(), list(host.sampler.texts)

        def better() -> None:
            if host.exchange(unit.table()):
                self._journal.note("swapped", unit=DECODE, in_force=host.report()["in_force"],
                                   pause_ms=host.pauses_ms[-1], since_found_s=time.monotonic() - found_s)  # fmt: skip
            host.handle_faults()

        unit.work(sizes, cases, texts, better, host.look_around)

    def try_in_place(self) -> None:
        """Blocks of steps with and without, for batch sizes that were not confirmed yet."""
        host, guard = self._host, self._host.guard
        if guard is None or not host.enabled:
            return
        sizes = [s for s in host.sampler.sizes()[:6] if s > 0]
        news = {
            s: v
            for s in sizes
            if (v := guard.table.pick(s)) is not None and (v.name, s) not in self._confirmed
        }
        now_s = time.monotonic()
        recent = [
            s
            for s, v in news.items()
            if len(host.sampler.by_rows[s].recent_s) >= 32 and self._patience[v.name, s].over(now_s)
        ]
        if not recent:
            return
        for size in recent:  # a size that comes too seldom to be judged is not waited for again and again
            self._patience[news[size].name, size].wait_from(now_s)
        trial = PlaceTrial(list(set(news.values())), pairs=self._settings.place_pairs)
        host.run_trial(trial)
        verdicts = trial.verdicts(threads=self._threads, min_gain=self._settings.min_gain_in_place)
        for bucket, speed in verdicts.items():
            variant = news.get(bucket.least)
            if variant is not None:  # else this size's own did not take part
                self._judge(variant, bucket, speed)

    def _record(self) -> list[Case]:
        """Some steps as they are now, for the proof."""
        host = self._host
        cases: list[Case] = []

        def copy(core: EngineCore) -> Case | None:
            running = sorted((s for s in core.scheduler.running if s.to_compute == 1), key=lambda s: s.lane)
            rows = [Row(s.tokens[-1], s.computed, s.lane) for s in running]
            host.sampler.texts.extend(tuple(s.tokens[-TEXT_TOKENS:]) for s in running)
            return record_case(core, rows, len(cases)) if rows else None

        for _ in range(4 * self._settings.recorded_steps):
            if len(cases) >= self._settings.recorded_steps:
                break
            case = host.between(copy)
            if case is not None:
                cases.append(case)
            host.wait()
        return cases

    def _judge(self, variant: Variant, bucket: Bucket, speed: Speed) -> None:
        figures = {
            "unit": DECODE, "variant": variant.name, "rows": bucket.least, "ratio": speed.ratio, "low": speed.low,
            "high": speed.high, "p": speed.p_value, "pairs": speed.pairs, "before_ms": 1e3 * speed.before_s,
            "after_ms": 1e3 * speed.after_s,
        }  # fmt: skip
        self._confirmed.add((variant.name, bucket.least))
        if speed.ratio < self._settings.min_gain_in_place:
            self._journal.note("taken-back", **figures, reason="no faster in place")
            self._unit.ban(variant, "no faster in place", bucket.least)
            self._host.exchange(self._unit.table())
            return
        self._journal.note("confirmed" if speed.ok else "unconfirmed", **figures)
