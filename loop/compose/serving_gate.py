"""Where a plan becomes real: replicas are deployed through physical's gate, with its rules, journal, undo and dry run.

The gate decides and keeps the journal; the replica manager, behind the gate's Actuator port, does the work. What the
manager does of its own (it restarts a replica that died) is no change of the deployment, and passes no gate.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any, TypeVar

from execution.replicas.feasible import SpecCheck, check_plan
from execution.replicas.manager import ReplicaManager
from execution.replicas.plane import LivePlane
from loop.compose.serving_config import ServingConfigError
from loop.contracts import Plan, PlanError, Reconfiguration
from physical.gate import DeployReplicas, Gate, GateRules, Mutation, RefusedError
from physical.gate.actuator import ActuatorError, Look, State
from physical.gate.gate import DryRun, FailedError
from physical.gate.journal import JournalError
from physical.gate.plan_actions import PlanFileError, deployment_of, read_plan
from physical.gate.replicas import as_plain, changes_in_words, replica_name, replicas_of

T = TypeVar("T")
GATE_FILE = "gate.jsonl"
"""In OUT: what the gate did, line by line."""
Tell = Callable[[str, str], None]
"""Hears (kind, words) of what the gate did: deployed, refused, dry-run."""
_ANSWER_S = 60.0
"""For the event loop to answer; it never takes so long while it is alive."""
_LARGE_BYTES = 1 << 20
"""A journal beyond it is moved aside: the gate reads it whole before each change."""


class ReplicaActuator:
    """The gate's Actuator over a replica manager. Its methods belong to any thread but the event loop's."""

    def __init__(
        self, manager: ReplicaManager, loop: asyncio.AbstractEventLoop, fits: SpecCheck | None = None
    ) -> None:
        self._manager = manager
        self._loop = loop
        self._fits = fits
        self._server = f"{os.getpid()}-{secrets.token_hex(4)}"
        self.last = Reconfiguration(0, 0, 0, 0, 0.0)
        """What the manager said of the latest deployment."""

    def look(self, mutation: Mutation) -> Look:
        """How things stand, and whether the manager could do it."""
        wanted = _deployment(mutation)
        now = self.now()
        problem = ""
        try:
            check_plan(
                wanted.plan, {d.id: d for d in self._manager.devices}, self._manager.models, self._fits
            )
        except PlanError as error:
            problem = str(error)
        return Look(
            already=now.replicas == wanted.replicas,
            state={
                "server": self._server,
                "replicas": [as_plain(spec) for spec in now.replicas],
                "reason": now.reason,
            },
            words=", ".join(map(replica_name, now.replicas)) or "no replicas",
            problem=problem,
        )

    def apply(self, mutation: Mutation, state: State, token: str) -> State:  # noqa: ARG002 - of the port
        """Begin to carry it out; the old ones serve until the new ones are ready."""
        wanted = _deployment(mutation)
        self.last = self._deploy(wanted.plan)
        return {"started": self.last.started, "stopped": self.last.stopped, "kept": self.last.kept}

    def undo(self, mutation: Mutation, state: State, token: str) -> None:  # noqa: ARG002 - of the port
        """Back to the replicas of before; those of another server ended with it."""
        _deployment(mutation)
        if state["server"] == self._server:
            self._deploy(Plan(replicas_of(state["replicas"]), str(state["reason"])))

    def running(self) -> dict[str, int]:
        """Name -> process number; 0: it has none (yet)."""

        def look() -> dict[str, int]:
            found = {replica_name(spec): 0 for spec in self._manager.plan().replicas}
            for replica in self._manager.planned():
                found[replica_name(replica.spec)] = replica.pid or 0
            return found

        return self._at_loop(_now(look))

    def now(self) -> Plan:
        """The plan as it stands."""
        return self._at_loop(_now(self._manager.plan))

    def _deploy(self, plan: Plan) -> Reconfiguration:
        try:
            return self._at_loop(self._manager.apply(plan))
        except (PlanError, RuntimeError) as error:
            raise ActuatorError(str(error)) from error

    def _at_loop(self, work: Coroutine[Any, Any, T]) -> T:
        if self._loop.is_closed():
            work.close()
            raise ActuatorError("the server has ended")
        try:
            return asyncio.run_coroutine_threadsafe(work, self._loop).result(_ANSWER_S)
        except (CancelledError, TimeoutError) as error:
            raise ActuatorError("the server's event loop does not answer") from error


class ReplicaGate:
    """Deploys plans through the gate. `dry_run`: after the first plan, what others would do is told, and not done."""

    def __init__(
        self,
        actuator: ReplicaActuator,
        journal: Path,
        rules: GateRules,
        *,
        dry_run: bool = False,
        tell: Tell = lambda _kind, _words: None,
    ) -> None:
        self._actuator = actuator
        self._journal = journal
        self._gate = Gate(actuator, journal, rules)
        self._dry_run = dry_run
        self._tell = tell
        self._begun = False
        self._told = ("", "")
        """What was told last: a policy that insists is heard once."""

    def deploy(self, plan: Plan) -> Reconfiguration:
        """Carry a plan out, or say what that would be. In any thread but the event loop's.

        Raises:
            PlanError: refused by a rule of the gate, by the manager, or for want of a journal; nothing was changed.
        """
        wanted = DeployReplicas(plan.replicas, plan.reason)
        try:
            before = self._actuator.now()
            if self._dry_run and self._begun:
                return self._only_say(self._gate.dry_run([wanted]), before, plan)
            self._make_room()
            done = self._gate.apply([wanted])
        except RefusedError as error:
            why = "; ".join(map(str, error.refusals))
            self._say("refused", why)
            raise PlanError(f"the gate refuses: {why}") from error
        except (FailedError, JournalError, ActuatorError) as error:
            self._say("refused", str(error))
            raise PlanError(f"gate: {error}") from error
        self._begun = True
        if not done.changed:
            return Reconfiguration(0, 0, len(plan.replicas), 0, 0.0)
        self._say("deployed", changes_in_words(before, plan))
        return self._actuator.last

    def _say(self, kind: str, words: str) -> None:
        if (kind, words) != self._told:
            self._told = (kind, words)
            self._tell(kind, words)

    def _only_say(self, shown: DryRun, before: Plan, plan: Plan) -> Reconfiguration:
        """Tell what a plan would do."""
        against = f"; refused: {'; '.join(map(str, shown.refusals))}" if shown.refusals else ""
        self._say("dry-run", f"would {changes_in_words(before, plan)}{against}")
        return Reconfiguration(0, 0, len(before.replicas), 0, 0.0)

    def _make_room(self) -> None:
        """Keep one older journal, where nothing is left to undo."""
        try:
            if self._journal.stat().st_size < _LARGE_BYTES or self._gate.dry_run([]).unfinished:
                return
            self._journal.replace(self._journal.with_name(f"previous-{self._journal.name}"))
        except OSError:
            return  # there is none yet; or the gate will say what is wrong with it


class GatedPlane(LivePlane):
    """A live plane whose plans pass the gate."""

    def __init__(self, gate: ReplicaGate, *given: Any, **settings: Any) -> None:
        """As a LivePlane."""
        super().__init__(*given, **settings)
        self._gate = gate

    def apply(self, plan: Plan) -> Reconfiguration:
        """Begin to carry out a plan. Raises PlanError, having changed nothing, when it cannot or may not be."""
        if self.stopping:
            raise PlanError("the server is stopping: nothing is started any more")
        return self._gate.deploy(plan)


def plan_of_file(name: str) -> Plan:
    """The plan of a file of `physical plan --out`, or of one with an action `deploy`. Raises ServingConfigError."""
    path = Path(name)
    try:
        return deployment_of(path, read_plan(path)).plan
    except PlanFileError as error:
        raise ServingConfigError(f"plan: {error}") from error


async def _now(look: Callable[[], T]) -> T:
    return look()


def _deployment(mutation: Mutation) -> DeployReplicas:
    if not isinstance(mutation, DeployReplicas):
        raise ActuatorError(f"a server's gate deploys replicas; it cannot {mutation}")
    return mutation
