"""Evolution in a process of its own, at the lowest priority: serving always wins.

A thread beside the event loop would share its interpreter lock, and a thread that nobody schedules may hold it. So the
evolver, its synthesiser and its scoring workers live in another process; here is its near end, which a
BackgroundEvolution takes for its step and its counterfactual, and its far end.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing as mp
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from loop.compose.evolving import Evolution, EvolutionConfig
from loop.compose.scoring import ScoringSetup
from loop.contracts import Observation, PolicySource
from loop.logs import configure_logging
from loop.runner.evolution import EvolutionStep, PastWindow

NICE = 19
_LOOK_S = 0.2
_STOP_S = 2.0
"""A step that is told to stop is waited for so long; then its process is ended."""


class EvolutionProcessError(RuntimeError):
    """The process of evolution is gone, or could not do what it was asked to."""


@dataclass(frozen=True, slots=True)
class EvolverSpec:
    """What the process is started with."""

    setup: ScoringSetup
    first: PolicySource
    config: EvolutionConfig
    baselines: tuple[PolicySource, ...]
    """What else is known by name: they stand among the parents where the load changes."""
    archive: Path | None
    seed: int = 0
    workers: int = 1
    """Scoring processes."""
    keep_windows: int = 64
    """Past windows that are remembered."""


@dataclass(frozen=True, slots=True)
class _Ask:
    """One question, with what it may be about and the far end does not know yet."""

    news: tuple[PastWindow, ...]
    now: Observation | None
    incumbent: PolicySource | None = None
    """Of a step; None: a counterfactual."""
    policies: tuple[PolicySource, ...] = ()
    windows: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class _Failed:
    reason: str


class EvolutionProcess:
    """The near end. `step` and `counterfactual` belong to one thread at a time; `close` to any.

    A process that has died is started again for the next question.
    """

    def __init__(self, spec: EvolverSpec) -> None:
        self._spec = spec
        self._lock = threading.Lock()  # around start and end of the process
        self._process: mp.process.BaseProcess | None = None
        self._connection: Connection | None = None
        self._told = -1
        """Index of the last window that the far end knows."""
        self._closed = False
        self.past: Callable[[], Sequence[PastWindow]] = tuple
        """Set by whoever owns the history: every window that is over."""
        self.now: Callable[[], Observation | None] = lambda: None
        """Set likewise: what was seen at the last monitoring point."""
        self.status = "waits for the first window"
        self.starts = 0

    @property
    def pid(self) -> int | None:
        """Of the process; None: there is none now."""
        return self._process.pid if self._process is not None else None

    def step(
        self, incumbent: PolicySource, past: tuple[PastWindow, ...], stop: threading.Event
    ) -> EvolutionStep:
        """A StepRunner. Raises EvolutionProcessError."""
        latest = past[-1].window.index if past else -1
        self.status = f"evolving on the windows up to {latest}"
        answer = self._ask(_Ask((), self.now(), incumbent=incumbent), stop)
        self.status = "waits for the next window"
        if not isinstance(answer, EvolutionStep):
            raise EvolutionProcessError(f"no step, but {answer!r:.80}")
        return answer

    def counterfactual(
        self, policies: Sequence[PolicySource], windows: Sequence[int]
    ) -> Mapping[str, Sequence[float]]:
        """A Counterfactual. Raises EvolutionProcessError."""
        self.status = "asking the twin about the champion"
        answer = self._ask(_Ask((), None, policies=tuple(policies), windows=tuple(windows)), None)
        if not isinstance(answer, Mapping):
            raise EvolutionProcessError(f"no counterfactual, but {answer!r:.80}")
        return answer

    def close(self) -> None:
        """End the process, whatever it is doing; idempotent."""
        with self._lock:
            self._closed = True
            self._end()

    # -- details -----------------------------------------------------------------------------------------

    def _ask(self, ask: _Ask, stop: threading.Event | None) -> object:
        connection = self._started()
        # the window before the latest is told again: answers that were under way when it ended are known now
        news = tuple(p for p in self.past() if p.window.index >= self._told)
        try:
            connection.send(_Ask(news, ask.now, ask.incumbent, ask.policies, ask.windows))
            if news:
                self._told = news[-1].window.index
            answer = self._answer(connection, stop)
        except (OSError, EOFError) as error:
            raise self._gone() from error
        if isinstance(answer, _Failed):
            raise EvolutionProcessError(answer.reason)
        return answer

    def _answer(self, connection: Connection, stop: threading.Event | None) -> object:
        told_s: float | None = None
        while not connection.poll(_LOOK_S):
            if stop is None or not stop.is_set():
                continue
            if told_s is None:
                told_s = time.monotonic()
                connection.send(None)
            elif time.monotonic() - told_s > _STOP_S:
                with self._lock:
                    self._end()
                return EvolutionStep(None, "the step was stopped")
        return connection.recv()

    def _started(self) -> Connection:
        with self._lock:
            if self._closed:
                raise EvolutionProcessError("the process of evolution was closed")
            if self._process is not None and not self._process.is_alive():
                self._end()
            if self._connection is None:
                self._start()
            assert self._connection is not None  # noqa: S101 - just started
            return self._connection

    def _start(self) -> None:
        context = mp.get_context("spawn")
        near, far = context.Pipe()
        process = context.Process(target=_serve, args=(far, self._spec), name="evolution", daemon=True)
        # Ctrl-C on a terminal reaches the whole group: it must not meet the child before that ignores it.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            far.close()
        self._process, self._connection, self._told = process, near, -1
        self.starts += 1

    def _end(self) -> None:
        process, connection = self._process, self._connection
        self._process = self._connection = None
        if connection is not None:
            connection.close()
        if process is not None:
            process.terminate()
            process.join(_STOP_S)
            if process.is_alive():
                process.kill()
                process.join(_STOP_S)

    def _gone(self) -> EvolutionProcessError:
        with self._lock:
            process = self._process
            if process is not None:
                process.join(_STOP_S)
            code = process.exitcode if process is not None else None
            self._end()
        return EvolutionProcessError(f"the process of evolution ended (exit code {code})")


# ---- The far end ---------------------------------------------------------------------------------------------------


class _DistantEvolution(Evolution):
    """An Evolution whose run is served in another process."""

    def __init__(self, spec: EvolverSpec) -> None:
        super().__init__(
            spec.setup,
            spec.first,
            spec.config,
            baselines=spec.baselines,
            seed=spec.seed,
            workers=spec.workers,
            archive=spec.archive,
        )
        self._keep = spec.keep_windows
        self._windows: tuple[PastWindow, ...] = ()
        self._state: Observation | None = None

    @property
    def past(self) -> tuple[PastWindow, ...]:
        """The windows that came with the questions."""
        return self._windows

    @property
    def now(self) -> Observation | None:
        """The state that came with the latest question."""
        return self._state

    def learn(self, news: tuple[PastWindow, ...], now: Observation | None) -> None:
        """Windows that are past now."""
        fresh = {p.window.index for p in news}
        self._windows = (*(p for p in self._windows if p.window.index not in fresh), *news)[-self._keep :]
        self._state = now

    def answer(self, ask: _Ask, stop: threading.Event) -> object:
        """A step, or a counterfactual."""
        self.learn(ask.news, ask.now)
        if ask.incumbent is None:
            return dict(self.counterfactual(ask.policies, ask.windows))
        return self.step(ask.incumbent, self._windows, stop)


def _serve(connection: Connection, spec: EvolverSpec) -> None:
    """The process: answers one question after the other until the other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    with contextlib.suppress(OSError):
        os.nice(NICE - os.nice(0))
    configure_logging(logging.ERROR)  # what fails is told to the parent
    inbox = _Inbox(connection)
    with _DistantEvolution(spec) as evolution:
        inbox.begin()
        while True:
            ask = inbox.take()
            try:
                answer: Any = evolution.answer(ask, inbox.stop)
            except Exception as error:  # noqa: BLE001 - it is told, and the next question is taken
                answer = _Failed(f"{type(error).__name__}: {error}")
            with contextlib.suppress(OSError):  # the parent is gone, which the inbox sees too
                connection.send(answer)


class _Inbox:
    """Reads in a thread, so that a step hears that it is to stop, and that its parent is gone."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._asks: list[_Ask] = []
        self._there = threading.Condition()
        self.stop = threading.Event()

    def begin(self) -> None:
        """Read from now on."""
        threading.Thread(target=self._read, name="inbox", daemon=True).start()

    def take(self) -> _Ask:
        """The next question."""
        with self._there:
            while not self._asks:
                self._there.wait()
            self.stop.clear()
            return self._asks.pop(0)

    def _read(self) -> None:
        while True:
            try:
                message = self._connection.recv()
            except (EOFError, OSError):
                os._exit(0)  # the scoring workers end with this process
            if message is None:
                self.stop.set()
                continue
            with self._there:
                self._asks.append(message)
                self._there.notify()
