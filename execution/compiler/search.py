"""One subject's way through the service: cache, compile, trial, numerics, speed, recipe after recipe.

What is known already is told first. Then each recipe, the quickest to compile first, is compiled, tried and compared with
eager; who passes is compared with the best so far. Verdicts are stored beside the artifacts, so that none is
worked out twice on one machine.
"""

from __future__ import annotations

import contextlib
import queue
import shutil
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from execution.compiler.background import Background, Outcome
from execution.compiler.budget import Budget
from execution.compiler.cache import ArtifactCache, CacheError, Entry
from execution.compiler.events import (
    Accepted,
    Compiling,
    Event,
    Finished,
    NotACandidate,
    NumericsShown,
    Progress,
    Refused,
    SpeedShown,
    Tried,
)
from execution.compiler.port import Backend, CompileError, Kernel, Recipe, Subject
from execution.compiler.verdict import Numerics, Speed, Trial, Verdict, part_of

if TYPE_CHECKING:
    from execution.compiler.service import Demand, Samples

_LASTING = ("done", "failed", "crashed")
"""Fates that would be the same next time; what was hung, or out of memory, may do better in another hour."""
_LITTLE_BYTES = 64 << 20
_CLOSE = 0.9
"""A candidate with less than this share of the best one's gain over eager is not compared with it."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A recipe, who compiles it, and where it is kept."""

    backend: str
    recipe: Recipe
    key: str


@dataclass(slots=True)
class _Best:
    candidate: Candidate
    entry: Entry
    event: Accepted


class Search:
    """Everything that one call of `CompilerService.best` needs."""

    def __init__(
        self,
        cache: ArtifactCache,
        background: Background,
        budget: Budget,
        backends: Mapping[str, Backend],
        missing: Mapping[str, str],
        *,
        heap_check: bool,
    ) -> None:
        self.cache, self.background, self.budget = cache, background, budget
        self.backends, self._missing = backends, missing
        self.heap_check = heap_check

    def candidates(
        self, subject: Subject, recipes: Sequence[Recipe] | None, demand: Demand
    ) -> list[Candidate]:
        """In the order in which they are tried."""
        found = []
        for name, backend in self.backends.items():
            offered = (
                backend.recipes(subject)
                if recipes is None
                else [r for r in recipes if r.backend == backend.name]
            )
            for recipe in offered:
                if recipe.expected_compile_s <= demand.expected_compile_s:
                    found.append(Candidate(name, recipe, self.cache.key(subject, recipe, backend.versions())))
        return sorted(
            found, key=lambda c: c.recipe.expected_compile_s
        )  # stable: promise within the same order

    def known(self, subject: Subject, candidates: Sequence[Candidate], demand: Demand) -> _Best | None:
        """The best of what is stored and was accepted."""
        proven = []
        for candidate in candidates:
            verdict = self.cache.verdict(candidate.key)
            if verdict is not None and verdict.ok and _meets(verdict.speed, demand):
                proven.append((verdict.speed.ratio if verdict.speed else 0.0, candidate, verdict))
        for _, candidate, verdict in sorted(proven, key=lambda p: -p[0]):
            entry = self.cache.get(candidate.key)
            if entry is not None:
                return self.taken(subject, candidate, entry, verdict, cached=True)
        return None

    def run(
        self,
        subject: Subject,
        samples: Samples,
        *,
        recipes: Sequence[Recipe] | None,
        demand: Demand,
        cancelled: threading.Event,
        jobs: Callable[[Any], None],
    ) -> Iterator[Event]:
        """All events; `jobs` is told of each background job, so that it can be cancelled."""
        spent_s = 0.0
        for name, reason in self._missing.items():
            yield NotACandidate(subject, name, reason)
        candidates = self.candidates(subject, recipes, demand)
        best = self.known(subject, candidates, demand)
        if best is not None:
            yield best.event
        with contextlib.ExitStack() as stack:
            run = _Run(self, subject, demand=demand, stack=stack, samples=samples, jobs=jobs)
            for candidate in candidates if demand.search else ():
                if cancelled.is_set():
                    break
                if best is not None and candidate.key == best.candidate.key:
                    continue
                found = yield from run.one(candidate, best)
                spent_s = run.cpu_s
                if found is not None:
                    if best is not None:
                        best.entry.close()
                    best = found
        yield Finished(subject, best.event if best is not None else None, spent_s)
        if best is not None:
            best.entry.close()

    def taken(
        self, subject: Subject, candidate: Candidate, entry: Entry, verdict: Verdict, *, cached: bool
    ) -> _Best:
        """An entry, held, with its event."""
        loader = Loader(self.cache, self.backends[candidate.backend], subject, candidate)
        event = Accepted(subject, candidate.recipe, verdict, cached=cached, folder=entry.folder, load=loader)
        return _Best(candidate, entry, event)


class Loader:
    """Loads an accepted kernel, and holds its entry in the cache for as long as the process or its own `close`."""

    def __init__(
        self, cache: ArtifactCache, backend: Backend, subject: Subject, candidate: Candidate
    ) -> None:
        self._cache, self._backend, self._subject, self._candidate = cache, backend, subject, candidate
        self._entry: Entry | None = None

    def __call__(self) -> Kernel:
        """Raises CompileError, also when the entry is gone or damaged."""
        entry = self._cache.get(self._candidate.key)
        if entry is None:
            raise CompileError(
                f"{self._candidate.backend} {self._candidate.recipe.name}: "
                "the artifact is no longer in the cache, or was damaged and is removed"
            )
        try:
            kernel = self._backend.load(self._subject, self._candidate.recipe, entry.folder)
        except BaseException:
            entry.close()
            raise
        self.close()
        self._entry = entry
        return kernel

    def close(self) -> None:
        """The kernel is no longer used: the artifact may be thrown out for room."""
        if self._entry is not None:
            self._entry.close()
            self._entry = None


class _Run:
    """The recipes of one subject, one after the other."""

    def __init__(
        self,
        search: Search,
        subject: Subject,
        *,
        demand: Demand,
        stack: contextlib.ExitStack,
        samples: Samples,
        jobs: Callable[[Any], None],
    ) -> None:
        self._search, self._subject, self._demand, self._stack = search, subject, demand, stack
        self._samples, self._jobs = samples, jobs
        self._saved: Path | None = None
        self.cpu_s = 0.0

    def one(self, candidate: Candidate, best: _Best | None) -> Generator[Event, None, _Best | None]:
        """Try one; what is there to load when it is better than the best."""
        cache = self._search.cache
        verdict = cache.verdict(candidate.key)
        if verdict is not None and not verdict.ok:
            yield Refused(self._subject, candidate.recipe, verdict, cached=True)
            return None
        try:
            entry = cache.get(candidate.key) or (yield from self._compile(candidate))
            if entry is None:
                return None
            self._stack.callback(entry.close)
            if verdict is None or not _meets(verdict.speed, self._demand):
                verdict = yield from self._prove(candidate, entry)
            if verdict is None or not (
                best is None or (yield from self._beats(candidate, entry, verdict, best))
            ):
                return None
            held = cache.get(candidate.key)
            if held is None:
                raise CacheError("its artifact was thrown out of the cache meanwhile")
        except CacheError as error:
            yield self._refused(candidate, Verdict(False, "compile", f"cannot be kept: {error}"))
            return None
        found = self._search.taken(self._subject, candidate, held, verdict, cached=False)
        yield found.event
        return found

    def _compile(self, candidate: Candidate) -> Generator[Event, None, Entry | None]:
        cache = self._search.cache
        yield Compiling(self._subject, candidate.recipe)
        try:
            with cache.staging(candidate.key) as folder:
                request = {
                    "backend": candidate.backend,
                    "subject": self._subject,
                    "recipe": candidate.recipe,
                    "folder": folder,
                }
                outcome = yield from self._job("compile", request, candidate)
                if outcome.fate != "done":
                    raise _NotCompiledError(outcome)
                return cache.publish(candidate.key, folder, self._meta(candidate, outcome))
        except _NotCompiledError as error:
            outcome = error.outcome
        reason = f"{outcome.fate}: {outcome.reason}{_room(cache.root)}"
        yield self._refused(candidate, Verdict(False, "compile", reason), outcome)
        return None

    def _prove(self, candidate: Candidate, entry: Entry) -> Generator[Event, None, Verdict | None]:
        """The verdict of one that was accepted, stored; None: it was refused, and that was told and stored."""
        request = self._request(candidate, entry) | {"job": "trial", "heap": self._search.heap_check}
        outcome = yield from self._job("trial", request, candidate)
        verdict = _tried(outcome)
        if verdict.trial is not None:
            yield Tried(self._subject, candidate.recipe, verdict.trial)
        if verdict.numerics is not None:
            yield NumericsShown(self._subject, candidate.recipe, verdict.numerics)
        if not verdict.ok:
            yield self._refused(candidate, verdict, outcome)
            return None
        outcome = yield from self._race(candidate, entry, None)
        speed = part_of(Speed, outcome.told("speed"))
        if speed is not None:
            yield SpeedShown(self._subject, candidate.recipe, speed)
        verdict = _raced(verdict, speed, outcome)
        if not verdict.ok:
            yield self._refused(candidate, verdict, outcome)
            return None
        self._search.cache.store_verdict(candidate.key, verdict)
        return verdict

    def _beats(
        self, candidate: Candidate, entry: Entry, verdict: Verdict, best: _Best
    ) -> Generator[Event, None, bool]:
        """Whether it is faster than the best so far, beyond doubt."""
        gain, best_gain = (_gain(v) for v in (verdict, best.event.verdict))
        name = f"{best.candidate.backend} {best.candidate.recipe.name}"
        outcome = None
        if gain < _CLOSE * best_gain:
            refused = replace(
                verdict, ok=False, stage="speed", reason=f"{gain:.2f}x of eager, {name} has {best_gain:.2f}x"
            )
        else:
            outcome = yield from self._race(candidate, entry, best)
            refused = replace(_raced(verdict, part_of(Speed, outcome.told("speed")), outcome), against=name)
        if refused.ok:
            return True
        yield Refused(self._subject, candidate.recipe, refused)  # not stored: eager is slower still
        return False

    def _race(
        self, candidate: Candidate, entry: Entry, against: _Best | None
    ) -> Generator[Event, None, Outcome]:
        request = self._request(candidate, entry) | {
            "job": "speed",
            "min_gain": self._demand.min_gain,
            "error_rate": self._demand.error_rate,
            "limit_s": self._search.budget.trial_limit_s / 4,
        }
        if against is not None:
            request["against"] = self._request(against.candidate, against.entry)
        return (yield from self._job("measure", request, candidate))

    def _job(
        self, mode: str, request: Mapping[str, Any], candidate: Candidate
    ) -> Generator[Event, None, Outcome]:
        """Run it in the background and tell what it tells."""
        budget, background = self._search.budget, self._search.background
        notes: queue.SimpleQueue[tuple[str, float] | None] = queue.SimpleQueue()

        def note(message: Mapping[str, Any], seconds: float) -> None:
            text = message.get("progress") or message.get("stage")
            if text:
                notes.put((str(text), seconds))

        job = background.submit(
            mode,
            request,
            limit_s=budget.compile_limit_s if mode == "compile" else budget.trial_limit_s,
            priority=self._demand.priority,
            on_message=note,
            next_mode={"compile": "trial", "trial": "measure"}.get(mode),
        )
        job.on_done(lambda: notes.put(None))
        self._jobs(job)
        try:
            while (told := notes.get()) is not None:
                yield Progress(self._subject, candidate.recipe, *told)
            outcome = job.result()
        finally:
            job.cancel()
        self.cpu_s += outcome.cpu_s
        return outcome

    def _request(self, candidate: Candidate, entry: Entry) -> dict[str, Any]:
        if self._saved is None:
            self._saved = self._stack.enter_context(self._search.cache.staging()) / "samples.pt"
            from execution.compiler.trial import save_samples  # noqa: PLC0415 - imports torch

            save_samples(self._saved, self._samples.inputs, self._samples.params)
        return {
            "backend": candidate.backend,
            "subject": self._subject,
            "recipe": candidate.recipe,
            "folder": entry.folder,
            "samples": self._saved,
        }

    def _meta(self, candidate: Candidate, outcome: Outcome | None) -> dict[str, Any]:
        """For people who look into the cache."""
        told = asdict(self._subject)
        told.pop("source")
        return {
            "subject": told,
            "recipe": asdict(candidate.recipe),
            "machine": asdict(self._search.cache.machine(self._subject.device)),
            "versions": dict(self._search.backends[candidate.backend].versions()),
            "compile_s": outcome.wall_s if outcome is not None else 0.0,
            "compile_cpu_s": outcome.cpu_s if outcome is not None else 0.0,
        }

    def _refused(self, candidate: Candidate, verdict: Verdict, outcome: Outcome | None = None) -> Refused:
        """The event; stored when it would be the same next time."""
        if outcome is not None and outcome.fate in _LASTING:
            with contextlib.suppress(CacheError):  # then it is worked out again
                self._search.cache.store_verdict(candidate.key, verdict, self._meta(candidate, None))
        return Refused(self._subject, candidate.recipe, verdict)


class _NotCompiledError(Exception):
    """Leaves the staging folder as an exception, so that what can be resumed is kept."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome.reason)
        self.outcome = outcome


def _tried(outcome: Outcome) -> Verdict:
    """What a trial has shown; ok: as far as it goes."""
    trial, numerics = part_of(Trial, outcome.told("trial")), part_of(Numerics, outcome.told("numerics"))
    same = outcome.told("deterministic")
    so_far = Verdict(False, "trial", f"{outcome.fate}: {outcome.reason}", trial, numerics, same)
    if trial is None:
        return so_far
    if numerics is None:
        return replace(so_far, stage="numerics")
    if not numerics.ok:
        return replace(so_far, stage="numerics", reason=numerics.reason)
    if same is None:
        return replace(so_far, stage="determinism")
    if not same:
        return replace(so_far, stage="determinism", reason="the same call gave other bits")
    return replace(so_far, ok=True, stage="accepted", reason="")


def _raced(verdict: Verdict, speed: Speed | None, outcome: Outcome) -> Verdict:
    if speed is None:
        return replace(verdict, ok=False, stage="speed", reason=f"{outcome.fate}: {outcome.reason}")
    if not speed.ok:
        return replace(verdict, ok=False, stage="speed", reason=speed.reason, speed=speed)
    return replace(verdict, reason=speed.reason, speed=speed)


def _gain(verdict: Verdict) -> float:
    return verdict.speed.ratio if verdict.speed is not None else 1.0


def _meets(speed: Speed | None, demand: Demand) -> bool:
    """Whether what was shown then is what is asked now."""
    return speed is not None and speed.ok and max(speed.min_gain, speed.low) >= demand.min_gain


def _room(root: Path) -> str:
    """Words for a disk that is nearly full: compilers report it in odd ways."""
    with contextlib.suppress(OSError):
        free = shutil.disk_usage(root).free
        if free < _LITTLE_BYTES:
            return f" ({free >> 20} MiB are left on the disk of {root})"
    return ""
