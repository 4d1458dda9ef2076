"""What a live run shows of itself: the figures of the latest window, who serves, and what happened last."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from loop.contracts import Observation, ServingStats, WindowResult

_REMEMBERED = 6


@dataclass(frozen=True, slots=True)
class Happening:
    """One thing worth a line."""

    at_s: float
    """Unix time."""
    text: str


@dataclass(frozen=True, slots=True)
class ReplicaLine:
    """One replica, as it is now."""

    id: int
    model: str
    devices: tuple[str, ...]
    stage: str
    pid: int | None
    running: int
    waiting: int
    kv_share: float
    max_num_seqs: int
    max_num_batched_tokens: int


@dataclass(slots=True)
class ServingStatus:
    """Written by the loop's threads, read by the view. Each field is replaced as a whole."""

    phase: str = "starting"
    url: str = ""
    champion: str = ""
    """Name and digest."""
    on_trial: str = ""
    """The challenger and its stage; empty: there is none."""
    evolution: str = ""
    tick: int = -1
    window_s: float = 0.0
    in_flight: int = 0
    accepted: int = 0
    finished: int = 0
    failed: int = 0
    """Rejected, infeasible or lost."""
    cancelled: int = 0
    last: ServingStats | None = None
    """Of the window that ended last."""
    pain: float = 0.0
    pleasure: float = 0.0
    faults: int = 0
    """Answers of policies that the fallback had to give."""
    promotions: int = 0
    machine: str = ""
    """Its devices in a line; empty: not watched."""
    replicas: tuple[ReplicaLine, ...] = ()
    happenings: deque[Happening] = field(default_factory=lambda: deque(maxlen=_REMEMBERED))
    say: Callable[[str], None] = lambda _text: None
    """Called with each line that is worth telling, from whatever thread it happens in."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def happened(self, text: str) -> None:
        """Tell a line."""
        with self._lock:
            self.happenings.append(Happening(time.time(), text))
        self.say(text)

    def window_ended(self, result: WindowResult, obs: Observation | None) -> None:
        """Figures of a window."""
        self.tick, self.last = result.index, result.stats
        self.faults += result.faults.total
        if obs is not None:
            self.pain, self.pleasure = obs.pain, obs.pleasure
