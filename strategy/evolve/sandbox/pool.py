"""Scoring jobs in parallel: one thread here, one locked process for each of `n` jobs at a time."""

from __future__ import annotations

import os
import selectors
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from loop.contracts import PolicyCrashed, PolicyFault, PolicyTimeout
from strategy.evolve.sandbox.limits import SandboxLimits
from strategy.evolve.sandbox.process import WorkerProcess, missing_of, payload_of
from strategy.evolve.sandbox.worker import SCORING_LIMITS
from strategy.evolve.worker import wire


@dataclass(frozen=True, slots=True)
class PoolJob:
    """One call of the entry point."""

    payload: bytes
    deadline_s: float
    """Wall seconds from the moment that a worker gets it."""


@dataclass(slots=True, eq=False)
class _Seat:
    """A worker and what it is doing; job -1: starting, None: idle."""

    worker: WorkerProcess
    job: int | None
    deadline: float
    data: bytearray = field(default_factory=bytearray)


class WorkerPool:
    """`n` processes that serve the entry point `module:function`, see SandboxedWorker.

    Processes start at once and in the background, are replaced when they miss a deadline or die, and never
    outlive this object, a Ctrl-C, or the parent process.
    """

    def __init__(
        self, n: int, entry: str, init_payload: bytes = b"", limits: SandboxLimits | None = None
    ) -> None:
        if n < 1:
            raise ValueError(f"a pool needs at least one worker, not {n}")
        self._entry = entry
        self._init_payload = init_payload
        self._limits = limits or SCORING_LIMITS
        self._selector = selectors.DefaultSelector()
        self._seats: list[_Seat] = []
        self._closed = False
        self.kills = 0
        try:
            for _ in range(n):
                self._hire()
        except BaseException:
            self.close()
            raise

    @property
    def size(self) -> int:
        """Processes."""
        return len(self._seats)

    @property
    def layers(self) -> tuple[str, ...]:
        """What holds every worker that has started so far."""
        ready = [set(seat.worker.layers) for seat in self._seats if seat.worker.ready]
        return tuple(sorted(set.intersection(*ready))) if ready else ()

    def run(self, jobs: Sequence[PoolJob]) -> Iterator[tuple[int, bytes | PolicyFault]]:
        """Yield (index of the job, the entry's answer or the typed failure) as they are done, one for each.

        Leaving the iterator early abandons what is running: those processes are replaced.

        Raises:
            PolicyFault: the entry point itself cannot be started.
        """
        if self._closed:
            raise ValueError("the pool is closed")
        waiting = deque(range(len(jobs)))
        try:
            left = len(jobs)
            while left:
                for seat in [s for s in self._seats if s.job is None]:
                    if not waiting:
                        break
                    failed = self._assign(seat, index := waiting.popleft(), jobs[index])
                    if failed is not None:
                        left -= 1
                        yield index, failed
                for done in self._wait():
                    left -= 1
                    yield done
        finally:
            for seat in [s for s in self._seats if s.job is not None and s.job >= 0]:
                self._fire(seat)
                if not self._closed:
                    self._hire()

    def close(self) -> None:
        """End all processes; idempotent."""
        self._closed = True
        for seat in list(self._seats):
            self._fire(seat)
        self._selector.close()

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _assign(self, seat: _Seat, index: int, job: PoolJob) -> PolicyFault | None:
        seat.job, seat.deadline = index, time.monotonic() + job.deadline_s
        seat.data.clear()
        try:
            seat.worker.send(wire.CALL, job.payload, seat.deadline)
        except (PolicyTimeout, PolicyCrashed) as fault:
            return self._lost(seat, fault)
        return None

    def _wait(self) -> list[tuple[int, bytes | PolicyFault]]:
        """Until a job is done, a process has started, or a deadline has passed; what came of the jobs."""
        busy = [seat for seat in self._seats if seat.job is not None]
        until = min((seat.deadline for seat in busy), default=time.monotonic())
        events = self._selector.select(max(0.0, until - time.monotonic()))
        done: list[tuple[int, bytes | PolicyFault]] = []
        for key, _ in events:
            self._read(key.data, done)
        now = time.monotonic()
        for seat in [s for s in self._seats if s.job is not None and s.deadline <= now]:
            index = seat.job
            fault = self._lost(seat, PolicyTimeout("no answer within the deadline"))
            if index is not None:
                done.append((index, fault))
        return done

    def _read(self, seat: _Seat, done: list[tuple[int, bytes | PolicyFault]]) -> None:
        """Take what a process has written; a whole answer ends its job."""
        index = seat.job
        try:
            part = os.read(seat.worker.read_fd, 1 << 20)
            if not part or index is None:
                raise PolicyCrashed("the worker process ended, or spoke without being asked")
            seat.data += part
            missing = missing_of(seat.data, wire.MAX_CALL_REPLY_BYTES)
            if missing > 0:
                return
            if missing < 0:
                raise PolicyCrashed("the worker broke the protocol: more than one answer to one question")
        except BlockingIOError:
            return
        except (OSError, PolicyCrashed) as error:
            fault = error if isinstance(error, PolicyCrashed) else PolicyCrashed(str(error))
            self._lost(seat, fault)
            if index is not None:
                done.append((index, fault))
            return
        frame = bytes(seat.data)
        seat.data.clear()
        seat.job = None
        if index == -1:
            seat.worker.started(payload_of(frame))  # an entry that cannot start is an error of the caller
            return
        try:
            answer: bytes | PolicyFault = payload_of(frame)
        except PolicyFault as fault:
            answer = fault
        if index is not None:
            done.append((index, answer))

    def _lost(self, seat: _Seat, fault: PolicyTimeout | PolicyCrashed) -> PolicyTimeout | PolicyCrashed:
        """Replace a process; one that never got as far as to start is the caller's error."""
        starting = seat.job == -1
        self._fire(seat)
        self.kills += 1
        if starting:
            raise type(fault)(f"a worker for {self._entry} did not start: {fault}")
        self._hire()
        return fault

    def _hire(self) -> None:
        worker = WorkerProcess(self._limits, self._entry, self._init_payload)
        seat = _Seat(worker, -1, time.monotonic() + self._limits.start_s)
        self._seats.append(seat)
        self._selector.register(worker.read_fd, selectors.EVENT_READ, seat)

    def _fire(self, seat: _Seat) -> None:
        if seat in self._seats:
            self._seats.remove(seat)
            self._selector.unregister(seat.worker.read_fd)
        seat.worker.kill()
