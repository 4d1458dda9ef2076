"""How a policy comes to serve and goes again: stages, records, commands, and the ports of the live layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol, runtime_checkable

from loop.contracts.evolution import PolicySource
from loop.contracts.observation import Observation
from loop.contracts.ports import BatchedPolicy, Policy
from loop.contracts.results import PolicyFaults, RequestRecord, WindowResult


class Stage(StrEnum):
    """Where a policy stands on its way into service."""

    SHADOW = "shadow"  # decides beside the champion, unseen
    CANARY = "canary"  # decides for a share of the traffic, or for whole windows
    PROMOTED = "promoted"  # is the champion, and watched
    KEPT = "kept"  # is or was the champion, and kept its promise while it was watched
    ROLLED_BACK = "rolled-back"  # was the champion, and its predecessor took over again
    REFUSED = "refused"  # never became the champion


class CommandKind(StrEnum):
    """What an operator may ask of a running loop."""

    PROMOTE = "promote"
    ROLLBACK = "rollback"
    PIN = "pin"
    UNPIN = "unpin"
    KILL = "kill"
    REVIVE = "revive"


class CommandStatus(StrEnum):
    """What became of a command."""

    PENDING = "pending"
    DONE = "done"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class LiveCommand:
    """A command of an operator, and the answer of the loop."""

    id: int
    kind: CommandKind
    policy: PolicySource | None = None
    """For `promote`, and for a `pin` that names a policy."""
    given_at_s: float = 0.0
    """Unix time."""
    status: CommandStatus = CommandStatus.PENDING
    tick: int | None = None
    """The monitoring point at which it took effect, or was refused; None: not yet."""
    answer: str = ""
    """What was done, or why not, in words."""


@dataclass(frozen=True, slots=True)
class LiveRecord:
    """One step of a policy on its way, or one act of an operator."""

    tick: int
    kind: str
    """`stage`, `command`, `budget` or `restart`."""
    policy: str
    """Digest of the policy that it is about."""
    champion: str
    """Digest of the policy that is the champion afterwards."""
    before: Stage | None
    """None: it had no stage."""
    after: Stage | None
    reason: str
    evidence: Mapping[str, float] = field(default_factory=dict)
    """Named numbers that the step was decided on."""


@dataclass(frozen=True, slots=True)
class LiveState:
    """All that a restarted loop, or an operator in another process, has to know."""

    tick: int
    champion: PolicySource
    stage: Stage | None
    """Of the champion: promoted (watched) or kept; None: the first policy, and the baseline after a kill."""
    predecessors: tuple[PolicySource, ...] = ()
    """Champions before, oldest first."""
    challenger: PolicySource | None = None
    challenger_stage: Stage | None = None
    pinned: bool = False
    killed: bool = False
    banned: Mapping[str, int | None] = field(default_factory=dict)
    """Digest -> tick from which it may be proposed again; None: never."""
    budget_spent: float = 0.0
    frozen: bool = False
    """The error budget is spent: evolution hands nothing over."""
    evidence: Mapping[str, float] = field(default_factory=dict)
    """Of the challenger, else of the watched champion."""


@dataclass(frozen=True, slots=True)
class LiveQuestion:
    """What the live layer wants to know from simulated worlds: the objective of each policy in each window."""

    policies: tuple[PolicySource, ...]
    """The one in doubt first."""
    windows: tuple[int, ...]
    """Indices of past windows, ascending."""
    stage: Stage


Counterfactual = Callable[[Sequence[PolicySource], Sequence[int]], Mapping[str, Sequence[float]]]
"""(policies, window indices) -> digest -> objective of each of these windows in simulated worlds (lower is
better; summed over worlds), `inf` where the policy fails. Digests that are missing could not be judged."""


@runtime_checkable
class CountedPolicy(Policy, Protocol):
    """A policy that already replaces answers of a part of itself, and says how often."""

    @property
    def faults(self) -> PolicyFaults:
        """Counted so far."""


class GuardedArm(BatchedPolicy, Protocol):
    """A policy whose faults are answered by another one, and counted."""

    @property
    def faults(self) -> PolicyFaults:
        """Counted so far."""


GuardFactory = Callable[[Policy, Policy], GuardedArm]
"""(policy, who answers where it fails) -> both as one."""


class LiveStorePort(Protocol):
    """Where the live layer keeps its state, and where commands of operators arrive."""

    def load(self) -> LiveState | None:
        """The state at the last commit; None: this run begins."""

    def pending(self) -> Sequence[LiveCommand]:
        """Commands without an answer, in order."""

    def commit(
        self, state: LiveState, records: Sequence[LiveRecord], answered: Sequence[LiveCommand]
    ) -> None:
        """Keep all of it, or nothing."""


@runtime_checkable
class KillSwitch(Protocol):
    """A source of policies that an operator can overrule between two monitoring points."""

    def urgent_policy(self, obs: Observation) -> Policy | None:
        """The safe baseline when somebody has pulled the kill switch since the last look; else None."""


class LivePort(Protocol):
    """What brings policies into service: proposals go in, at each monitoring point what shall serve comes out."""

    @property
    def champion(self) -> PolicySource:
        """What serves, a canary aside."""

    @property
    def served(self) -> Sequence[PolicySource]:
        """Every policy that decided for whole windows, in order; the first one began."""

    @property
    def evolving(self) -> bool:
        """False: killed or frozen; evolution shall rest."""

    def propose(self, policy: PolicySource, reason: str, gain: float = 0.0) -> str:
        """Offer a proven policy; it begins its way at the next monitoring point. Returns why it is refused;
        empty: it is not."""

    def next_policy(self, obs: Observation) -> Policy | None:
        """What shall serve from this monitoring point on; None: what serves now."""

    def urgent_policy(self, obs: Observation) -> Policy | None:
        """See KillSwitch."""

    def window_ended(self, result: WindowResult, objective: float) -> None:
        """What came of the window that began at the last monitoring point."""

    def finished(self, record: RequestRecord) -> None:
        """A request is over (what a canary by traffic learns from)."""

    def question(self) -> LiveQuestion | None:
        """What simulated worlds should be asked about the windows that are over; None: nothing."""

    def judged(self, question: LiveQuestion, values: Mapping[str, Sequence[float]]) -> None:
        """The answer to a question; weighed at the next monitoring point."""

    def disappoints(self, question: LiveQuestion, values: Mapping[str, Sequence[float]]) -> bool:
        """Whether this answer will take the champion back: evolving on from it would be in vain."""

    def take_records(self) -> tuple[LiveRecord, ...]:
        """What happened since the last call."""

    def source(self, digest: str) -> PolicySource:
        """A policy that a record names."""

    def close(self) -> None:
        """End what was loaded; idempotent."""
