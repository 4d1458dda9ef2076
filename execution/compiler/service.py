"""The compiler service: the best kernel for a subject, compiled, tried and proven in the background.

service = CompilerService(ArtifactCache.default(), budget=Budget())
async for event in service.best(subject, samples):
    if isinstance(event, Accepted):
        kernel = event.load()
service.close()
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import sys
import threading
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import dataclass

from execution.compiler.backends import usable
from execution.compiler.backends.inductor import keep_cache_in
from execution.compiler.background import Background, Job
from execution.compiler.budget import Budget
from execution.compiler.cache import ArtifactCache
from execution.compiler.events import Accepted, Event
from execution.compiler.port import Recipe, Subject, Tensor
from execution.compiler.search import Search
from execution.compiler.verdict import Verdict

_MALLOC_DEBUG = "libc_malloc_debug.so.0"
_QUIET = {"OPENBLAS_NUM_THREADS": "1"}
"""No thread before the fork."""


@dataclass(frozen=True, slots=True)
class Samples:
    """Recorded calls of a subject."""

    inputs: tuple[tuple[Tensor, ...], ...]
    """One tuple per call, in the order of `subject.inputs`; rows within the bucket. May be empty: then only
    synthetic inputs are used."""
    params: tuple[Tensor, ...] = ()
    """Weights of one of the modules, in the order of `subject.params`."""


@dataclass(frozen=True, slots=True)
class Demand:
    """What is asked of a candidate."""

    min_gain: float = 1.03
    """Times faster than eager, and than what was accepted before."""
    error_rate: float = 0.01
    """Chance to accept one that does not have this gain."""
    priority: float = 0.0
    """Higher goes first among subjects that wait."""
    expected_compile_s: float = float("inf")
    """Recipes that are expected to take longer are left out."""
    search: bool = True
    """False: nothing is compiled, the best of the cache is told."""


class CompilerService:
    """Ties cache, background process, trial and proof together. Thread-safe."""

    def __init__(
        self, cache: ArtifactCache, *, backends: Sequence[str] | None = None, budget: Budget | None = None
    ) -> None:
        """`backends`: names as execution.compiler.backends knows them, or `package.module:Class`; None: all."""
        self.cache = cache
        self.budget = budget or Budget()
        found, missing = usable(backends)
        if not sys.platform.startswith("linux"):
            missing |= dict.fromkeys(found, "the background compiler and its trials need Linux")
            found = {}
        inductor = keep_cache_in(cache.root / "inductor")
        heap = heap_check()
        self._background = Background(
            self.budget,
            env={"compile": inductor, "trial": _QUIET | heap, "measure": _QUIET},
        )
        self._search = Search(cache, self._background, self.budget, found, missing, heap_check=bool(heap))
        self.backends = tuple(found)
        """Usable here, by name."""
        self.missing = dict(missing)
        """Why the others are not."""

    async def best(
        self,
        subject: Subject,
        samples: Samples,
        *,
        recipes: Sequence[Recipe] | None = None,
        demand: Demand | None = None,
    ) -> AsyncGenerator[Event, None]:
        """Work on the subject and tell; what is in the cache first, then the quick recipes, then the slow ones.

        Each Accepted is better than the one before it. Ends with Finished. Closing the iterator cancels.
        """
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[Event | BaseException | None] = asyncio.Queue()
        cancelled = threading.Event()
        running: list[Job] = []

        def put(event: Event | BaseException | None) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens
                loop.call_soon_threadsafe(events.put_nowait, event)

        def work() -> None:
            try:
                for event in self._events(
                    subject, samples, recipes=recipes, demand=demand, cancelled=cancelled, running=running
                ):
                    put(event)
                put(None)
            except Exception as error:  # noqa: BLE001 - raised again where it is awaited
                put(error)

        thread = threading.Thread(target=work, name=f"compile-{subject.op}", daemon=True)
        thread.start()
        try:
            while (event := await events.get()) is not None:
                if isinstance(event, BaseException):
                    raise event
                yield event
        finally:
            cancelled.set()
            for job in running:
                job.cancel()

    def best_sync(
        self,
        subject: Subject,
        samples: Samples,
        *,
        recipes: Sequence[Recipe] | None = None,
        demand: Demand | None = None,
    ) -> Iterator[Event]:
        """The same for plain threads."""
        yield from self._events(
            subject, samples, recipes=recipes, demand=demand, cancelled=threading.Event(), running=[]
        )

    def _events(
        self,
        subject: Subject,
        samples: Samples,
        *,
        recipes: Sequence[Recipe] | None,
        demand: Demand | None,
        cancelled: threading.Event,
        running: list[Job],
    ) -> Iterator[Event]:
        def started(job: Job) -> None:
            running[:] = [job]
            if cancelled.is_set():
                job.cancel()

        return self._search.run(
            subject, samples, recipes=recipes, demand=demand or Demand(), cancelled=cancelled, jobs=started
        )

    def known(self, subject: Subject, demand: Demand | None = None) -> Accepted | None:
        """The best that the cache holds for the subject, proven here; milliseconds."""
        demand = demand or Demand()
        best = self._search.known(subject, self._search.candidates(subject, None, demand), demand)
        if best is None:
            return None
        best.entry.close()
        return best.event

    def verdicts(self, subject: Subject) -> list[tuple[Recipe, Verdict | None]]:
        """What is known here of each recipe, for `explain`."""
        candidates = self._search.candidates(subject, None, Demand())
        return [(c.recipe, self.cache.verdict(c.key)) for c in candidates]

    def pause(self, reason: str = "serving is under pressure") -> None:
        """Halt all background work at once, until the same reason is taken back."""
        self._background.pause(reason)

    def resume(self, reason: str = "serving is under pressure") -> None:
        """Go on, unless there is another reason not to."""
        self._background.resume(reason)

    @property
    def cpu_s(self) -> float:
        """CPU seconds that the background has used."""
        return self._background.cpu_s

    def close(self) -> None:
        """End all helper processes; idempotent."""
        self._background.close()


def heap_check() -> dict[str, str]:
    """Environment in which the C library checks each block of the heap when it is freed; empty: it cannot."""
    if not sys.platform.startswith("linux") or os.environ.get("LD_PRELOAD"):
        return {}
    try:
        ctypes.CDLL(_MALLOC_DEBUG)
    except OSError:
        return {}
    return {"LD_PRELOAD": _MALLOC_DEBUG, "GLIBC_TUNABLES": "glibc.malloc.check=3"}
