"""Scoring jobs in parallel: one thread here, one trusted template, one locked process for each job."""

from __future__ import annotations

import contextlib
import os
import selectors
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import IO

from loop.contracts import PolicyCrashed, PolicyFault, PolicyTimeout
from strategy.evolve.sandbox.frames import missing_of, payload_of
from strategy.evolve.sandbox.limits import MIB, SandboxLimits
from strategy.evolve.sandbox.process import job_pipe
from strategy.evolve.sandbox.template import Template
from strategy.evolve.worker import wire

SCORING_LIMITS = SandboxLimits(memory_bytes=4096 * MIB, start_s=600.0)
"""Room for a simulator, its workload and numpy's address space; and time to import them: evolution has the lowest
priority, and a machine that is busy serving lets it wait."""
_DEATH_S = 2.0

Answer = bytes | PolicyFault


@dataclass(frozen=True, slots=True)
class PoolJob:
    """One call of the entry point."""

    payload: bytes
    deadline_s: float
    """Wall seconds from the moment that its process is ordered."""


@dataclass(slots=True, eq=False)
class _Seat:
    """A process and the job that it was forked for."""

    index: int
    number: int
    read_fd: int
    deadline: float
    data: bytearray = field(default_factory=bytearray)
    answer: Answer | None = None
    """Known before the process is gone."""


class WorkerPool:
    """The entry point `module:function`, see SandboxedWorker, for up to `n` jobs at a time.

    Each job runs in a process of its own, forked from a template that has built the entry point once, and
    locked before it reads the job: what a candidate does to its process, the next one does not meet. A
    process that misses its deadline is killed. None outlives this object, a Ctrl-C, or the parent process.
    """

    def __init__(
        self, n: int, entry: str, init_payload: bytes = b"", limits: SandboxLimits | None = None
    ) -> None:
        if n < 1:
            raise ValueError(f"a pool needs at least one worker, not {n}")
        self.size = n
        """Jobs at a time."""
        self.kills = 0
        """Processes that missed a deadline or died before they had answered."""
        self._entry = entry
        self._init_payload = init_payload
        self._limits = limits or SCORING_LIMITS
        self._seats: dict[int, _Seat] = {}
        self._closed = False
        self._template = self._start()

    @property
    def layers(self) -> tuple[str, ...]:
        """What holds every worker; empty while the template starts."""
        return self._template.layers

    def wait_ready(self) -> None:
        """Wait until the entry point is built; `run` does so by itself.

        Raises:
            PolicyFault: it cannot be.
        """
        if not self._template.alive and not self._closed:
            self._template.kill()
            self._template = self._start()
        try:
            self._template.wait_ready()
        except BaseException:
            self._template.kill()
            raise

    def run(self, jobs: Sequence[PoolJob]) -> Iterator[tuple[int, bytes | PolicyFault]]:
        """Yield (index of the job, the entry's answer or the typed failure) as they are done, one for each.

        Leaving the iterator early abandons what is running: those processes are killed.

        Raises:
            PolicyFault: the entry point itself cannot be started.
        """
        if self._closed:
            raise ValueError("the pool is closed")
        self.wait_ready()
        waiting = deque(range(len(jobs)))
        try:
            with selectors.DefaultSelector() as selector:
                selector.register(self._template, selectors.EVENT_READ)
                while waiting or self._seats:
                    while waiting and len(self._seats) < self.size:
                        seat = self._seat(waiting[0], jobs[waiting[0]])
                        waiting.popleft()
                        selector.register(seat.read_fd, selectors.EVENT_READ, seat)
                    yield from self._wait(selector)
        except PolicyCrashed as fault:  # the template is gone, and all of its workers with it
            lost = [seat.index for seat in self._seats.values()]
            self._abandon()
            self._template.kill()
            self.kills += len(lost)
            for index in lost:
                yield index, fault
            yield from self._rest(jobs, waiting)
        finally:
            self._abandon()

    def close(self) -> None:
        """End all processes; idempotent."""
        self._closed = True
        self._abandon(wait=False)
        self._template.kill()

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self) -> Template:
        return Template(self._limits, self._entry, self._init_payload)

    def _rest(self, jobs: Sequence[PoolJob], waiting: Sequence[int]) -> Iterator[tuple[int, Answer]]:
        """The jobs that had not begun, on a new template."""
        left = list(waiting)
        for at, answer in self.run([jobs[i] for i in left]):
            yield left[at], answer

    def _seat(self, index: int, job: PoolJob) -> _Seat:
        """Order a process for a job, which it reads from a file without a name."""
        read_fd, write_fd = job_pipe()
        try:
            os.set_blocking(read_fd, False)
            with _file_of(job.payload) as file:
                number = self._template.fork(file.fileno(), write_fd, self._limits)
        except BaseException:
            os.close(read_fd)
            raise
        finally:
            os.close(write_fd)
        seat = _Seat(index, number, read_fd, time.monotonic() + job.deadline_s)
        self._seats[number] = seat
        return seat

    def _wait(self, selector: selectors.BaseSelector) -> Iterator[tuple[int, Answer]]:
        """Until something is heard or a deadline has passed; what came of jobs whose processes are gone."""
        until = min(seat.deadline for seat in self._seats.values())
        for key, _ in selector.select(max(0.0, until - time.monotonic())):
            seat = key.data
            if seat is None:
                for number, how in self._template.collect().items():
                    yield from self._over(selector, number, how)
            elif seat.number in self._seats and not self._read(seat):
                selector.unregister(seat.read_fd)
        now = time.monotonic()
        for seat in self._seats.values():
            if seat.deadline <= now:
                seat.deadline = now + _DEATH_S
                if seat.answer is None:
                    seat.answer = PolicyTimeout("no answer within the deadline")
                self._template.end(seat.number)

    def _read(self, seat: _Seat) -> bool:
        """Take what a process has written; False: there is no more to come. Who has answered is ended."""
        try:
            part = os.read(seat.read_fd, 1 << 20)
        except BlockingIOError:
            return True
        if not part:
            return False
        seat.data += part
        try:
            missing = missing_of(seat.data, wire.MAX_CALL_REPLY_BYTES)
            if missing < 0:
                raise PolicyCrashed("the worker broke the protocol: more than one answer to one question")
            if missing == 0 and seat.answer is None:
                seat.answer = payload_of(bytes(seat.data))
        except PolicyFault as fault:
            seat.answer = fault
        if seat.answer is None:
            return True
        self._template.end(seat.number)
        return False

    def _over(self, selector: selectors.BaseSelector, number: int, how: str) -> Iterator[tuple[int, Answer]]:
        """A process is gone: what became of its job."""
        self._template.forget(number)
        seat = self._seats.get(number)
        if seat is None:
            return
        while self._read_on(seat):
            pass
        del self._seats[number]
        with contextlib.suppress(KeyError):
            selector.unregister(seat.read_fd)
        os.close(seat.read_fd)
        answer = seat.answer or PolicyCrashed(f"the worker process {how}")
        self.kills += isinstance(answer, PolicyTimeout | PolicyCrashed)
        yield seat.index, answer

    def _read_on(self, seat: _Seat) -> bool:
        """What a process had written before it ended still counts."""
        held = len(seat.data)
        return seat.answer is None and self._read(seat) and len(seat.data) > held

    def _abandon(self, *, wait: bool = True) -> None:
        """Kill what is running."""
        seats, self._seats = list(self._seats.values()), {}
        for seat in seats:
            os.close(seat.read_fd)
            if self._template.alive:
                self._template.end(seat.number)
        for seat in seats if wait else ():
            with contextlib.suppress(PolicyFault):
                self._template.wait_gone(seat.number, _DEATH_S)
            self._template.forget(seat.number)


def _file_of(payload: bytes) -> IO[bytes]:
    """A file without a name that holds the payload."""
    file: IO[bytes]
    if hasattr(os, "memfd_create"):
        file = os.fdopen(os.memfd_create("job"), "w+b")
    else:
        file = tempfile.TemporaryFile()  # noqa: SIM115  the caller closes it
    file.write(payload)
    file.seek(0)
    return file
