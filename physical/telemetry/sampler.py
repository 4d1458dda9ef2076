"""The sampler: looks at every device ten times a second, and what it saw can be read at any time.

    with Telemetry() as telemetry:
        telemetry.samples()             # the newest of each GPU
        telemetry.host()                # ... of the machine
        telemetry.events(since=0)       # what happened
        telemetry.window(began, ended)  # quantiles, for the journal

GPUs and the machine itself are polled by a thread each; the second watches the first, so that a call that hangs in a
driver costs one device and not the others. Sampling may take a share of one core: beyond it the period is stretched.
Without a GPU, a driver or the binding there are no GPU samples, one event that says so, and everything else works.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, Self

from loop.contracts.telemetry import EventKind, GpuIdentity, GpuSample, HostSample, TelemetryWindow
from physical.telemetry.calls import Superseded
from physical.telemetry.gpus import DRIVER_LISTING, GpuSource
from physical.telemetry.host import HostSource
from physical.telemetry.store import EventLog, Logged, Ring
from physical.telemetry.windows import summarise

PERIOD_S = 0.1
LONGEST_PERIOD_S = 2.0
BUDGET = 0.01
STALL_S = 2.0
_JUDGED_TICKS = 50


class Source(Protocol):
    """What a thread polls."""

    name: str

    def poll(self, now_s: float) -> None:
        """Look at everything once."""

    def release(self) -> None:
        """The calling thread polls no more."""

    def close(self) -> None:
        """Let everything go."""


class Telemetry:
    """All devices of this machine, sampled in the background.

    `period_s` between two looks at the GPUs; `keep_s` of samples are kept; `budget` is the share of one core that
    sampling may take; a call that takes `stall_s` is given up. `clock` must be monotonic.
    """

    def __init__(
        self,
        *,
        node: str = "local-0",
        period_s: float = PERIOD_S,
        keep_s: float = 300.0,
        budget: float = BUDGET,
        stall_s: float = STALL_S,
        gpus: bool = True,
        clock: Callable[[], float] = time.monotonic,
        listing: Path = DRIVER_LISTING,
        proc: Path = Path("/proc"),
        sys: Path = Path("/sys"),
    ) -> None:
        if period_s <= 0:
            raise ValueError(f"period_s must be above 0, not {period_s}")
        self.clock = clock
        self.log = EventLog()
        self._stall_s = stall_s
        self._period_s = period_s
        self._stop = threading.Event()
        self._threads: list[_Ticker] = []
        self._host = HostSource(
            self.log, node=node, keep=int(keep_s / 0.45) + 1, clock=clock, proc=proc, sys=sys
        )
        self._gpus = GpuSource(
            self.log,
            node=node,
            keep=int(keep_s / period_s) + 1,
            period_s=period_s,
            clock=clock,
            listing=listing,
        )
        self._with_gpus = gpus
        self._budget = budget
        self._watched = (-1, clock())
        self._watch_lock = threading.Lock()

    # --- running ---------------------------------------------------------------------------------------------

    def start(self) -> Self:
        """Begin to sample; returns at once."""
        if self._threads:
            raise RuntimeError("telemetry is running already")
        self._stop.clear()
        if self._with_gpus:
            self._threads.append(self._ticker(self._gpus))
        self._threads.append(self._ticker(self._host))
        for thread in self._threads:
            thread.start()
        return self

    def close(self) -> None:
        """Stop sampling. What was sampled can still be read. A thread that hangs in a driver is left behind."""
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=self._stall_s)
        left = [thread.source for thread in self._threads if thread.is_alive()]
        self._threads = []
        for source in (self._gpus, self._host):
            if source not in left:  # what a thread still uses is not taken away from it
                source.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def poll(self) -> None:
        """Look once, in this thread: for who drives the clock itself, and has not called `start`."""
        now = self.clock()
        if self._with_gpus:
            self._gpus.poll(now)
        self._host.poll(now)

    # --- reading ---------------------------------------------------------------------------------------------

    @property
    def identities(self) -> tuple[GpuIdentity, ...]:
        """Every GPU ever seen."""
        return self._gpus.identities

    @property
    def period_s(self) -> float:
        """Between two looks at the GPUs, as it is now: longer than asked for when sampling costs too much."""
        for thread in self._threads:
            if thread.source is self._gpus:
                return thread.period_s
        return self._period_s

    @property
    def cpu_share(self) -> float:
        """What sampling takes of one core, over its last ticks."""
        return sum(thread.cpu_share for thread in self._threads)

    def samples(self) -> tuple[GpuSample, ...]:
        """The newest sample of every GPU that answers."""
        return self._gpus.samples()

    def host(self) -> HostSample | None:
        """The newest sample of the machine itself."""
        return self._host.sample()

    def here(self, device: str) -> bool:
        """Does this device answer?"""
        return device == self._host.device or self._gpus.here(device)

    def ring(self, device: str) -> Ring:
        """The kept samples of one device. Raises KeyError for one that was never seen."""
        return self._host.ring if device == self._host.device else self._gpus.ring(device)

    def events(self, since: int = 0) -> list[Logged]:
        """What happened after the event of this number."""
        return self.log.since(since)

    def window(self, began_s: float, ended_s: float) -> TelemetryWindow:
        """Quantiles of what was seen in (began_s, ended_s], and its events: for the journal."""
        rings = [(identity.id, self._gpus.ring(identity.id)) for identity in self.identities]
        return summarise(
            [*rings, (self._host.device, self._host.ring)],
            self.log.between(began_s, ended_s),
            began_s,
            ended_s,
            self.period_s,
        )

    # --- a call that hangs -----------------------------------------------------------------------------------

    def _ticker(self, source: Source) -> _Ticker:
        return _Ticker(self, source, self._period_s, self._budget, self._stop)

    def watch(self) -> None:
        """See that the GPUs' thread moves; give up on a call that does not come back."""
        with self._watch_lock:
            now = self.clock()
            source = self._gpus
            progress, since = self._watched
            if source.doing is None or source.progress != progress:
                self._watched = (source.progress, now)
                return
            if now - since < self._stall_s or not source.abandon(now, now - since):
                return
            self._watched = (source.progress, now)
            for index, thread in enumerate(self._threads):
                if thread.source is source:
                    self._threads[index] = self._ticker(source)
                    self._threads[index].start()


class _Ticker(threading.Thread):
    """Polls one source, evenly, and watches what that costs."""

    def __init__(
        self, telemetry: Telemetry, source: Source, period_s: float, budget: float, stop: threading.Event
    ) -> None:
        super().__init__(name=f"telemetry-{source.name}", daemon=True)
        self.source = source
        self.period_s = period_s
        self.cpu_share = 0.0
        self._telemetry = telemetry
        self._asked_s = period_s
        self._budget = budget
        self._halt = stop
        self._spent: deque[float] = deque(maxlen=_JUDGED_TICKS)

    def run(self) -> None:
        """Until told to stop."""
        clock = self._telemetry.clock
        is_watcher = not isinstance(self.source, GpuSource)
        due = clock()
        try:
            while not self._halt.is_set():
                began = time.thread_time()
                self.source.poll(clock())
                if is_watcher:
                    self._telemetry.watch()
                now = clock()
                due = max(due + self.period_s, now)  # ticks that were missed are left out
                self._account(time.thread_time() - began)
                self._halt.wait(max(0.0, due - now))
        except Superseded:
            return
        finally:
            self.source.release()

    def _account(self, spent_s: float) -> None:
        """Stretch the period when sampling takes more than its share of a core, and shorten it again."""
        self._spent.append(spent_s)
        if len(self._spent) < _JUDGED_TICKS:
            return
        mean_s = sum(self._spent) / len(self._spent)
        self.cpu_share = mean_s / self.period_s
        if isinstance(self.source, GpuSource):
            if self.cpu_share > self._budget and self.period_s < LONGEST_PERIOD_S:
                self.period_s = min(LONGEST_PERIOD_S, max(1.25 * self.period_s, mean_s / self._budget))
                text = (
                    f"sampling takes {self.cpu_share:.1%} of a core: every {self.period_s:.2f} s from now on"
                )
                self._telemetry.log.add(
                    EventKind.OVER_BUDGET, "", self._telemetry.clock(), text, self.cpu_share
                )
                self._spent.clear()
            elif self.period_s > self._asked_s and mean_s / self.period_s < 0.5 * self._budget:
                self.period_s = max(self._asked_s, 0.75 * self.period_s)
                self._spent.clear()


def figures(windows: Sequence[TelemetryWindow], device: str, name: str) -> list[float]:
    """The means of one figure of one device, window after window; those that do not tell it are left out."""
    return [
        spread.mean
        for window in windows
        for entry in window.devices
        if entry.device == device
        for figure, spread in entry.figures
        if figure == name
    ]
