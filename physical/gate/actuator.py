"""The port through which the gate reads and changes the world."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from physical.gate.mutations import Mutation

State = dict[str, Any]
"""Plain values: what is journaled, and what undo starts from."""


class ActuatorError(RuntimeError):
    """The world would not: no such process, no permission, no such device. The message says what and why."""


@dataclass(frozen=True)
class Look:
    """What is there before a mutation."""

    already: bool
    """The world is as the mutation wants it: nothing to do."""
    state: State
    words: str
    """The state in words, for the dry run."""
    problem: str = ""
    """Why it cannot be done, as far as can be seen; empty: nothing is known against it."""
    no_way_back: str = ""
    """Why it could not be undone; empty: it could."""


class Actuator(Protocol):
    """Carries out mutations. Every method may raise ActuatorError, and none leaves a thread behind."""

    def look(self, mutation: Mutation) -> Look:
        """How things stand, without changing anything."""

    def apply(self, mutation: Mutation, state: State, token: str) -> State:
        """Make it so; returns what the journal should know. `token` marks a started process."""

    def undo(self, mutation: Mutation, state: State, token: str) -> None:
        """Back to `state`, as `look` gave it; does nothing where that is so already (also when the mutation was
        never, or only half, applied)."""

    def running(self) -> dict[str, int]:
        """Name -> process number of what the gate has started and still runs."""
