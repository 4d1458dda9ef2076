"""Work in the background under a budget that serving always wins: one thread that queues, starts, halts and kills.

    background = Background(Budget())
    job = background.submit("compile", request, limit_s=60.0)
    outcome = job.result()              # or: await job.wait()
    background.pause(); background.resume(); background.close()

One job runs at a time, in a helper process (execution.compiler.process) that is kept for the next. Helpers run at low
priority, are halted while paused and when their CPU seconds are spent, and are killed with all that they started
when they take too long or too much memory. Nothing that happens to them is raised here: it is an Outcome.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import heapq
import itertools
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from execution.compiler.budget import Budget
from execution.compiler.process import Helper, ending

Fate = Literal["done", "failed", "crashed", "hung", "memory", "cancelled", "lost"]
"""`failed`: the compiler said no; `crashed`: the process died; `hung`: killed at its time limit; `memory`: killed at its
memory limit, or it could get no more; `lost`: the helper could not be started, or work was closed down."""
_POLL_S = 0.05
_USAGE_S = 0.2
_REFILLED = 0.1
_PATIENCE = 10.0
"""Times its limit that a job may take which does work, but is starved of CPU."""
_IDLE = 0.5
"""A job beyond its limit that has used no CPU for this share of it hangs."""
_MARGIN = 1.25
"""Resident memory of a tree may exceed what one process may allocate by so much: pages of libraries are shared."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a job ended."""

    fate: Fate
    reason: str
    wall_s: float = 0.0
    """Without the time halted."""
    halted_s: float = 0.0
    cpu_s: float = 0.0
    messages: tuple[Mapping[str, Any], ...] = ()
    """All that it told, in order."""

    def told(self, name: str) -> Any:
        """The last value told under a name; None: never."""
        return next((m[name] for m in reversed(self.messages) if name in m), None)


@dataclass(slots=True)
class Job:
    """Work that waits, runs, or is over."""

    mode: str
    request: Mapping[str, Any]
    limit_s: float
    on_message: Callable[[Mapping[str, Any], float], None] | None
    next_mode: str | None = None
    _future: concurrent.futures.Future[Outcome] = field(default_factory=concurrent.futures.Future)
    _cancelled: threading.Event = field(default_factory=threading.Event)

    def cancel(self) -> None:
        """Stop it, whether it waits or runs; the outcome says `cancelled` if it was not over."""
        self._cancelled.set()

    def on_done(self, tell: Callable[[], None]) -> None:
        """Call it once the outcome is there, in whatever thread."""
        self._future.add_done_callback(lambda _: tell())

    def done(self) -> bool:
        """Whether the outcome is there."""
        return self._future.done()

    def result(self, timeout_s: float | None = None) -> Outcome:
        """Wait for the outcome. Raises TimeoutError."""
        return self._future.result(timeout_s)

    async def wait(self) -> Outcome:
        """The same in an event loop."""
        return await asyncio.shield(asyncio.wrap_future(self._future))


class Background:
    """See the module. Thread-safe; its thread and processes begin with the first job."""

    def __init__(self, budget: Budget, *, env: Mapping[str, Mapping[str, str]] | None = None) -> None:
        """`env`: additional environment of the helpers of each mode."""
        self._budget = budget
        self._env = env or {}
        self._lock = threading.Condition()
        self._queue: list[tuple[float, int, Job]] = []
        self._numbers = itertools.count()
        self._thread: threading.Thread | None = None
        self._paused: set[str] = set()
        self._closed = False
        self._helpers: dict[str, Helper] = {}
        self._credit_s = budget.cpu_s_per_minute
        self._credited_at_s = time.monotonic()
        self._cpu_s = 0.0

    @property
    def cpu_s(self) -> float:
        """CPU seconds that jobs have taken so far."""
        return self._cpu_s

    def submit(
        self,
        mode: str,
        request: Mapping[str, Any],
        *,
        limit_s: float,
        priority: float = 0.0,
        on_message: Callable[[Mapping[str, Any], float], None] | None = None,
        next_mode: str | None = None,
    ) -> Job:
        """Queue a job; higher priority first, then first come first served.

        `next_mode`: whose helper will be wanted then, and may start meanwhile.

        `on_message` is called in the background's thread with each message and the seconds since the start.
        """
        job = Job(mode, request, limit_s, on_message, next_mode)
        with self._lock:
            if self._closed:
                job._future.set_result(Outcome("lost", "the background compiler is closed"))
                return job
            heapq.heappush(self._queue, (-priority, next(self._numbers), job))
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="background-compiler", daemon=True)
                self._thread.start()
            self._lock.notify_all()
        return job

    def pause(self, reason: str = "asked") -> None:
        """Halt what runs at once, start nothing; until the same reason is taken back."""
        with self._lock:
            self._paused.add(reason)
            for helper in self._helpers.values():
                helper.halt()

    def resume(self, reason: str = "asked") -> None:
        """Take a reason for pausing back; without any left, work goes on."""
        with self._lock:
            self._paused.discard(reason)
            self._lock.notify_all()

    @property
    def paused(self) -> frozenset[str]:
        """Why it is halted."""
        return frozenset(self._paused)

    def pids(self) -> list[int]:
        """Of all helper processes and what they have started."""
        with self._lock:
            return [pid for helper in self._helpers.values() for pid in helper.tree()]

    def close(self) -> None:
        """Kill what runs, refuse what waits; returns when nothing is left. Idempotent."""
        with self._lock:
            self._closed = True
            self._lock.notify_all()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _work(self) -> None:
        try:
            while (job := self._next()) is not None:
                if job._cancelled.is_set():
                    outcome = Outcome("cancelled", "cancelled before it was started")
                else:
                    try:
                        outcome = self._run(job)
                    except OSError as error:  # no process, no pipe, no memory for one
                        self._drop(job.mode)
                        outcome = Outcome("lost", f"the helper process cannot be used: {error}")
                self._cpu_s += outcome.cpu_s
                job._future.set_result(outcome)
        finally:
            for mode in list(self._helpers):
                self._drop(mode)
            with self._lock:
                for _, _, job in self._queue:
                    job._future.set_result(Outcome("lost", "the background compiler was closed"))
                self._queue.clear()

    def _next(self) -> Job | None:
        """The next job, when it may begin; None: closed. Ends helpers that have nothing to do."""
        with self._lock:
            while not self._closed:
                if self._queue and (not self._paused or self._queue[0][2]._cancelled.is_set()):
                    return heapq.heappop(self._queue)[2]
                self._lock.wait(self._retire())
        return None

    def _retire(self) -> float | None:
        """End helpers that were idle for long; seconds until the next may be."""
        now_s = time.monotonic()
        for mode, helper in list(self._helpers.items()):
            if now_s - helper.idle_since_s >= self._budget.idle_s:
                self._drop(mode)
        left = [h.idle_since_s + self._budget.idle_s - now_s for h in self._helpers.values()]
        return max(0.01, min(left)) if left else None

    def _helper(self, mode: str) -> Helper:
        helper = self._helpers.get(mode)
        if helper is not None and mode == "compile" and helper.jobs >= self._budget.jobs_per_process:
            self._drop(mode)
            helper = None
        if helper is None:
            helper = Helper(mode, self._budget.memory_bytes, self._env.get(mode), self._budget.priority)
            with self._lock:
                self._helpers[mode] = helper
        return helper

    def _drop(self, mode: str) -> None:
        with self._lock:
            helper = self._helpers.pop(mode, None)
        if helper is not None:
            helper.close()

    def _run(self, job: Job) -> Outcome:
        helper = self._helper(job.mode)
        helper.go_on()
        if not helper.send(job.request):  # it died while idle
            self._drop(job.mode)
            helper = self._helper(job.mode)
            helper.send(job.request)
        if job.next_mode is not None:
            self._helper(job.next_mode)
        watch = _Watch(job, helper, self._budget)
        while watch.outcome is None:
            self._govern(helper, watch)
            watch.look()
            if self._closed and watch.outcome is None:
                watch.end("lost", "the background compiler was closed")
        helper.idle_since_s = time.monotonic()
        if watch.dead:
            self._drop(job.mode)
        return watch.outcome

    def _govern(self, helper: Helper, watch: _Watch) -> None:
        """Halt or go on, as pauses and the budget of CPU seconds will have it."""
        now_s = time.monotonic()
        full_s = self._budget.cpu_s_per_minute
        self._credit_s = min(full_s, self._credit_s + (now_s - self._credited_at_s) * full_s / 60.0)
        self._credited_at_s = now_s
        self._credit_s -= watch.take_cpu_s()
        with self._lock:
            broke = self._credit_s < (_REFILLED * full_s if watch.spent else 0.0)
            watch.spent = broke
            if (self._paused or broke) and not watch.job._cancelled.is_set():
                helper.halt()
            else:
                helper.go_on()


class _Watch:
    """One run of a job: what it says, takes, and how it ends."""

    def __init__(self, job: Job, helper: Helper, budget: Budget) -> None:
        self.job, self.helper, self._budget = job, helper, budget
        self.outcome: Outcome | None = None
        self.dead = False
        """The helper is of no more use."""
        self.spent = False
        self._first_cpu_s = self._last_cpu_s = helper.used()[0]
        self._fresh_cpu_s = 0.0
        self._ran_s = self._halted_s = self._busy_at_s = 0.0
        self._began_s = self._asked_s = time.monotonic()
        self._halted_before_s = helper.halted_s()
        self._messages: list[Mapping[str, Any]] = []
        self._stage = ""

    def take_cpu_s(self) -> float:
        """CPU seconds since last asked."""
        fresh, self._fresh_cpu_s = self._fresh_cpu_s, 0.0
        return fresh

    def look(self) -> None:
        """Wait for a moment, and see."""
        messages, lines, ended = self.helper.receive(_POLL_S)
        now_s = time.monotonic()
        self._halted_s = self.helper.halted_s() - self._halted_before_s
        self._ran_s = now_s - self._began_s - self._halted_s
        for line in lines:
            self._tell({"progress": line})
        for message in messages:
            if "end" in message:
                self._over(message)
                return
            self._stage = str(message.get("stage", self._stage))
            self._messages.append(message)
            self._tell(message)
        if ended:
            self.dead = True
            self.end("crashed", f"the process {self.helper.fate()}")
        elif self.job._cancelled.is_set():
            self.end("cancelled", "cancelled")
        elif self._hangs():
            self.end("hung", f"not done after {self.job.limit_s:g} s")
        elif now_s - self._asked_s >= _USAGE_S:
            self._asked_s = now_s
            self._measure()

    def _hangs(self) -> bool:
        """Beyond its time; but who gets no CPU, since serving takes it all, is given more."""
        limit_s = self.job.limit_s
        if self._ran_s <= limit_s:
            return False
        had_s = self._last_cpu_s - self._first_cpu_s
        idle_s = self._ran_s - self._busy_at_s
        return had_s >= limit_s or idle_s >= _IDLE * limit_s or self._ran_s >= _PATIENCE * limit_s

    def end(self, fate: Fate, reason: str, *, kill: bool = True) -> None:
        """It is over, by its own or because it is killed now."""
        if kill and fate in ("cancelled", "hung", "memory", "lost"):
            if self.job.mode == "compile" or fate == "lost":
                self.dead = True
            else:
                self.helper.go_on()
                self.helper.kill_children()
                self._drain()
        self._count()
        said = self.helper.said() if fate == "crashed" else ""
        where = f" during {self._stage}" if self._stage and fate not in ("done", "cancelled") else ""
        tail = f"; it said: {said[-1500:]}" if said else ""
        self.outcome = Outcome(
            fate,
            f"{reason}{where}{tail}",
            wall_s=self._ran_s,
            halted_s=self._halted_s,
            cpu_s=self._last_cpu_s - self._first_cpu_s,
            messages=tuple(self._messages),
        )

    def _drain(self) -> None:
        """Until the template has told the end of its child, so that the next job does not take it for its own."""
        end_s = time.monotonic() + 5.0
        while time.monotonic() < end_s:
            messages, _, ended = self.helper.receive(_POLL_S)
            if ended:
                break
            if any("end" in message for message in messages):
                return
        self.dead = True

    def _over(self, message: Mapping[str, Any]) -> None:
        how = message["end"]
        if how == "exit":
            fault = next((m for m in reversed(self._messages) if "fault" in m), None)
            if fault is not None:
                self.end(
                    "memory" if fault["fault"] == "memory" else "failed",
                    str(fault.get("reason", "")),
                    kill=False,
                )
            elif message.get("code") == 0:
                self.end("done", "")
            else:
                self.end("crashed", f"the process {ending(int(message.get('code', 1)))}")
        elif how in ("done", "failed"):
            self.end("done" if how == "done" else "failed", str(message.get("reason", "")))
        else:
            self.dead = True  # who knows what it still holds
            self.end("memory", str(message.get("reason", "")), kill=False)

    def _count(self) -> int:
        cpu_s, rss_bytes = self.helper.used()
        fresh = max(0.0, cpu_s - self._last_cpu_s)
        self._last_cpu_s += fresh
        if fresh > 0:
            self._busy_at_s = self._ran_s
        self._fresh_cpu_s += fresh
        return rss_bytes

    def _measure(self) -> None:
        rss_bytes = self._count()
        if rss_bytes > self._budget.memory_bytes * _MARGIN:
            self.end("memory", f"{rss_bytes >> 20} MiB taken, {self._budget.memory_bytes >> 20} allowed")

    def _tell(self, message: Mapping[str, Any]) -> None:
        if self.job.on_message is not None:
            with contextlib.suppress(Exception):  # a listener's fault is not the job's
                self.job.on_message(message, self._ran_s)
