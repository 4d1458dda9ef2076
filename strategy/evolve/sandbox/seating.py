"""Where a worker runs, seen from the thread that asks it.

*In turns*: on the CPU from which it is asked. Waking a process on another, idle CPU costs some ten times as much
as switching to it (see `affinity`).

*Side by side*: on other CPUs. Both stay awake for a while between two questions, so that nobody has to be woken and
each finds its caches as it left them: half the time of a crossing in turns, for twice the CPUs. It pays while
questions come close together and another CPU has nothing else to do.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from strategy.evolve.sandbox.affinity import ALL_CPUS, IdleWatch, bind, current_cpu
from strategy.evolve.worker import wire

LOOK_S = 150e-6
"""How long the asking thread stays awake for an answer: more than one takes side by side."""
_CLOSE_S = 150e-6
"""Questions are close together when one is asked so soon after the last one, its answer included."""
_STREAK, _EVERY = 32, 16
"""After so many close ones in turns it is looked after every 16th question only."""
_WATCHED_S, _IDLE = 0.1, 0.7
"""Another CPU must have been idle for so much of such a time."""
_FREE_FOR_S = 0.5
"""A CPU that was left only since no question came is taken for free for so long after the last answer."""
_SETTLING = 2
"""Answers after a move that may be late: the CPU may have been asleep."""
_EARNED_S, _AT_FIRST_S, _AT_MOST_S = 1e-6, 1e-3, 5e-3
"""The account of a stay side by side: each answer in time earns so much, each late one costs its delay."""
_PAUSE_S = (0.05, 5.0)
"""Once the account is overdrawn the worker stays in turns for so long; for twice as long when that was soon."""
_SOON = 10
"""Soon: before so many times the pause have gone by."""
_NOWHERE = -1


class Seating:
    """Moves one worker, and says how the next question is to be asked: `begin`, ask, write `ended`."""

    def __init__(
        self,
        pid: int,
        *,
        side_by_side: bool = True,
        clock: Callable[[], float] = time.perf_counter,
        cpu: Callable[[], int] = current_cpu,
        idle: IdleWatch | None = None,
        place: Callable[[int, set[int]], None] = bind,
    ) -> None:
        self.look_s = 0.0
        """How long to look for the answer before sleeping; 0 in turns."""
        self.skip = 0
        """So many questions may be asked in turns without `begin`; whoever asks counts them down."""
        self.ended = 0.0
        """When the last answer came side by side, on the same clock; whoever asks writes it."""
        self._pid = pid
        self._clock, self._current, self._place = clock, cpu, place
        self._idle = idle
        self._free: set[int] = set()
        self._free_until = 0.0
        self._cpu = _NOWHERE
        self._asked = self._moved = 0.0
        self._not_before = 0.0 if side_by_side else float("inf")
        self._streak = self._settling = 0
        self._step = 1
        self._pause_s, self._account_s = _PAUSE_S[0], 0.0

    def begin(self) -> int:
        """A question is about to be asked; the bits that its kind must bear."""
        asked, self._asked = self._asked, self._clock()
        cpu = self._current()
        if self.look_s:
            awake = self._asked - self.ended < wire.LINGER_S
            if awake and cpu == self._cpu and self._pays(self.ended - asked):
                return wire.LINGER
            self._free_until = self.ended + _FREE_FOR_S if self._account_s >= 0.0 else 0.0
            self._take_turns(cpu)
            return 0
        if cpu != self._cpu:
            self._take_turns(cpu)
        far = self._asked - asked > _CLOSE_S * self._step
        self._streak = 0 if far else self._streak + 1
        if self._streak < _STREAK:
            self._step = 1
            return 0
        self._step, self.skip = _EVERY, _EVERY - 1
        return 0 if self._asked < self._not_before else self._try_beside(cpu)

    def release(self) -> None:
        """Let the worker run anywhere: until the next question it may have long work to do."""
        if self._cpu != _NOWHERE:
            self._leave()
            self._place(self._pid, set(ALL_CPUS))

    def _leave(self) -> None:
        self.look_s, self.skip, self._streak, self._step, self._cpu = 0.0, 0, 0, 1, _NOWHERE

    def _take_turns(self, cpu: int) -> None:
        self._leave()
        self._cpu = cpu
        self._place(self._pid, {cpu})

    def _try_beside(self, cpu: int) -> int:
        """Move the worker to other CPUs that have nothing to do, if there are any."""
        free = self._free - {cpu} if self._asked < self._free_until else self._found_idle() - {cpu}
        if not free:
            return 0
        self._place(self._pid, free)
        self.look_s, self.skip, self._settling, self._moved = LOOK_S, 0, _SETTLING, self._asked
        self._account_s, self._free = _AT_FIRST_S, free
        return wire.LINGER

    def _found_idle(self) -> set[int]:
        """By a watch of about _WATCHED_S; nothing as long as it lasts."""
        if self._idle is None:
            self._idle = IdleWatch(self._clock)
        watched_s = self._idle.elapsed_s
        if watched_s < _WATCHED_S:
            return set()
        shares = self._idle.shares()
        if watched_s > 2 * _WATCHED_S:  # that was long ago: look again
            return set()
        return {cpu for cpu in ALL_CPUS if shares.get(cpu, 0.0) > _IDLE}

    def _pays(self, answered_in_s: float) -> bool:
        """Keep the account; whether to stay side by side."""
        if self._settling:
            self._settling -= 1
            return True
        late_s = answered_in_s - LOOK_S
        self._account_s += _EARNED_S if late_s <= 0.0 else -late_s
        if self._account_s >= 0.0:
            self._account_s = min(self._account_s, _AT_MOST_S)
            return True
        soon = self._asked - self._moved < _SOON * self._pause_s
        self._pause_s = min(2 * self._pause_s, _PAUSE_S[1]) if soon else _PAUSE_S[0]
        self._not_before = self._asked + self._pause_s
        return False
