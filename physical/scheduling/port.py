"""The ports between decisions and whoever carries them out: a simulation on virtual time or a real runtime.

Decisions own no clock, no unit and no link. A `Scheduler` makes a whole plan; a `Dispatcher` answers while the
work is going on and sees the world only through `State`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from physical.scheduling.plan import Plan
from physical.scheduling.problem import Problem


class State(Protocol):
    """What a dispatcher may see and ask for. Indices are those of `problem`."""

    @property
    def problem(self) -> Problem:
        """What is being executed, with the durations that are expected."""

    def now_s(self) -> float:
        """Seconds since the start."""

    def alive(self, unit: int) -> bool:
        """Can this unit still work?"""

    def running(self, unit: int) -> int | None:
        """The task that it has taken, None when it is idle."""

    def expected_end_s(self, unit: int) -> float:
        """When it should be done with what it has taken; now when it is idle."""

    def present(self, version: int, node: int) -> bool:
        """Does this memory hold this version?"""

    def expected_arrival_s(self, version: int, node: int) -> float:
        """When an existing version could be there over idle links; now when it is there."""

    def fetch(self, version: int, node: int, urgency: float) -> None:
        """Bring a version to a memory ahead of need, as soon as it exists; lower urgency values go first.
        Repeating it is harmless. An executor without prefetch ignores it: inputs are then fetched once a unit
        has taken the task."""


class Dispatcher(Protocol):
    """Decides which ready task an idle unit takes."""

    name: str

    def begin(self, state: State) -> None:
        """Called once before anything else."""

    def ready(self, tasks: Sequence[int]) -> None:
        """All predecessors of these have ended."""

    def pick(self, unit: int) -> int | None:
        """The unit is idle: the ready task that it takes now, None to leave it idle until something happens."""

    def ended(self, task: int, unit: int, took_s: float) -> None:
        """A unit has finished a task; `took_s` without waiting for inputs."""

    def lost(self, unit: int, withdrawn: Sequence[int]) -> None:
        """A unit is gone for good. `withdrawn`: tasks told ready or taken that are not ready any more, or whose run
        was cut off; those that can run at once are told ready again right after."""


class Foresight(Protocol):
    """A dispatcher that knows what comes next: in memories that are finite, what is needed last gives way first, and
    a prefetch takes the place of what is needed later than itself."""

    foresees: bool
    """Does it tell?"""

    def next_use(self, version: int, node: int) -> float:
        """The place in the order of all tasks of the next one that will read a version in this memory; infinite
        if none is planned there."""


def foresight(dispatcher: Dispatcher) -> Callable[[int, int], float] | None:
    """What a dispatcher tells of the future; None where it tells nothing."""
    return getattr(dispatcher, "next_use", None) if getattr(dispatcher, "foresees", False) else None


class Scheduler(Protocol):
    """Makes a plan for a whole graph."""

    name: str

    def plan(self, problem: Problem, seed: int = 0) -> Plan:
        """A valid plan. The same problem and seed give the same plan, time budgets apart."""
