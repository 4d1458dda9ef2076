"""Plans of mutations, carried out whole or not at all.

Order of events, each on disk before the next: begin, (before, after) for each mutation that changes anything, end.
What the journal shows as begun and never ended was cut off by a crash: it is undone, from the states noted before
each step, before anything else is done. To apply the same plan again then gives the same world.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from physical.gate.actuator import Actuator, ActuatorError, Look
from physical.gate.journal import GateJournal, Record, read_records
from physical.gate.mutations import Mutation, StartProcess, StopProcess, from_dict, to_dict
from physical.gate.rules import GateRules, Refusal, RefusedError, Rule, judge

_MINUTE_S = 60.0


class FailedError(RuntimeError):
    """A step failed and the plan was undone; `left` says what could not be."""

    def __init__(self, why: str, left: Sequence[str] = ()) -> None:
        tail = f"; NOT undone: {'; '.join(left)}" if left else "; everything before it was undone"
        super().__init__(why + tail)
        self.left = tuple(left)


@dataclass(frozen=True)
class PlannedStep:
    """One mutation, as a dry run shows it."""

    mutation: Mutation
    needed: bool
    """False: the world is so already."""
    now: str
    undo: str

    def __str__(self) -> str:
        if not self.needed:
            return f"{self.mutation} - nothing to do: {self.now}"
        return f"{self.mutation} (now: {self.now}; undone by: {self.undo})"


@dataclass(frozen=True)
class DryRun:
    """What would be done, in order, and what speaks against it."""

    steps: tuple[PlannedStep, ...]
    refusals: tuple[Refusal, ...]
    unfinished: tuple[str, ...]
    """What a crash left behind, undone first."""


@dataclass(frozen=True)
class Done:
    """A plan that went through."""

    plan: str
    changed: tuple[Mutation, ...]
    unchanged: tuple[Mutation, ...]
    recovered: tuple[str, ...]
    """What a crash had left behind, and was undone first."""


class Gate:
    """The way by which anything physical is changed."""

    def __init__(
        self,
        actuator: Actuator,
        journal: Path,
        rules: GateRules | None = None,
        *,
        clock: Callable[[], float] = time.time,
        token: Callable[[], str] = lambda: secrets.token_hex(8),
    ) -> None:
        self._actuator = actuator
        self._path = journal
        self._rules = rules or GateRules()
        self._clock = clock
        self._token = token

    def dry_run(self, mutations: Sequence[Mutation]) -> DryRun:
        """What `apply` would do, without doing or writing anything."""
        records = list(read_records(self._path))
        looks, refusals = self._judge(mutations, records)
        steps = tuple(
            PlannedStep(mutation, not look.already, look.words, _undo_words(mutation, look))
            for mutation, look in zip(mutations, looks, strict=True)
        )
        left = tuple(str(mutation) for _, entries in _unfinished(records) for mutation, *_ in entries)
        return DryRun(steps, tuple(refusals), left)

    def apply(self, mutations: Sequence[Mutation]) -> Done:
        """Do it all, or nothing.

        Raises:
            RefusedError: a rule is broken; nothing was done.
            FailedError: a step failed; what came before was undone.
            JournalError: no journal, no change.
        """
        with GateJournal(self._path) as journal:
            recovered = self._recover(journal)
            looks, refusals = self._judge(mutations, journal.records())
            plan = self._token()
            if refusals:
                told = [{"rule": r.rule.value, "place": r.place, "why": r.why} for r in refusals]
                wanted = [to_dict(m) for m in mutations]
                journal.write("refused", plan=plan, at_s=self._clock(), mutations=wanted, refusals=told)
                raise RefusedError(refusals)
            if all(look.already for look in looks):
                return Done(plan, (), tuple(mutations), recovered)
            journal.write("begin", plan=plan, at_s=self._clock(), mutations=[to_dict(m) for m in mutations])
            changed = self._carry_out(journal, plan, mutations)
            journal.write("end", plan=plan, at_s=self._clock(), outcome="applied")
            unchanged = tuple(m for m in mutations if m not in changed)
            return Done(plan, tuple(changed), unchanged, recovered)

    def recover(self) -> tuple[str, ...]:
        """Undo what a crash has left half done; says what."""
        with GateJournal(self._path) as journal:
            return self._recover(journal)

    def _carry_out(self, journal: GateJournal, plan: str, mutations: Sequence[Mutation]) -> list[Mutation]:
        changed: list[Mutation] = []
        begun: list[tuple[int, Mutation, dict[str, Any], str]] = []
        for place, mutation in enumerate(mutations):
            try:
                look = self._actuator.look(mutation)
                if look.already:
                    continue
                if look.problem:
                    raise ActuatorError(look.problem)
                token = f"{plan}-{place}"
                journal.write(
                    "before", plan=plan, place=place, at_s=self._clock(), state=look.state, token=token
                )
                begun.append((place, mutation, look.state, token))
                known = self._actuator.apply(mutation, look.state, token)
                journal.write(
                    "after", plan=plan, place=place, at_s=self._clock(), outcome="done", known=known
                )
                changed.append(mutation)
            except ActuatorError as error:
                why = f"{mutation}: {error}"
                journal.write(
                    "after", plan=plan, place=place, at_s=self._clock(), outcome="failed", why=str(error)
                )
                left = self._undo(journal, plan, begun)
                self._end(journal, plan, left, "undone: a step failed")
                raise FailedError(why, left) from error
            except BaseException:
                left = self._undo(journal, plan, begun)
                self._end(journal, plan, left, "undone: interrupted")
                raise
        return changed

    def _undo(
        self, journal: GateJournal, plan: str, begun: Sequence[tuple[int, Mutation, dict[str, Any], str]]
    ) -> list[str]:
        """Backwards; returns what could not be undone."""
        left = []
        for place, mutation, state, token in reversed(begun):
            journal.write("undo", plan=plan, place=place, at_s=self._clock())
            try:
                self._actuator.undo(mutation, state, token)
            except ActuatorError as error:
                journal.write("undo_failed", plan=plan, place=place, at_s=self._clock(), why=str(error))
                left.append(f"{mutation}: {error}")
            else:
                journal.write("undone", plan=plan, place=place, at_s=self._clock())
        return left

    def _end(self, journal: GateJournal, plan: str, left: Sequence[str], outcome: str) -> None:
        """A plan with something left over stays open: the next one tries to undo it again."""
        if not left:
            journal.write("end", plan=plan, at_s=self._clock(), outcome=outcome)

    def _recover(self, journal: GateJournal) -> tuple[str, ...]:
        told = []
        for plan, entries in _unfinished(journal.records()):
            left = self._undo(journal, plan, [(p, m, s, t) for m, p, s, t in entries])
            if left:
                raise FailedError(f"plan {plan} was cut off and cannot be undone", left)
            journal.write("end", plan=plan, at_s=self._clock(), outcome="undone: cut off")
            told += [str(mutation) for mutation, *_ in entries]
        return tuple(told)

    def _judge(
        self, mutations: Sequence[Mutation], records: Sequence[Record]
    ) -> tuple[list[Look], list[Refusal]]:
        looks: list[Look] = []
        refusals: list[Refusal] = []
        starting: set[str] = set()
        stopping: set[str] = set()
        for place, mutation in enumerate(mutations):
            try:
                if mutation.target in starting:
                    look = Look(already=False, state={}, words="started by this plan")
                elif mutation.target in stopping:
                    look = Look(already=False, state={}, words="stopped by this plan")
                else:
                    look = self._actuator.look(mutation)
            except ActuatorError as error:
                look = Look(already=False, state={}, words="not known", problem=str(error))
            if isinstance(mutation, StartProcess) and not look.already:
                starting.add(mutation.name)
            elif isinstance(mutation, StopProcess) and not look.already:
                stopping.add(mutation.name)
            if look.problem:
                refusals.append(Refusal(Rule.NOT_POSSIBLE, place, f"{mutation}: {look.problem}"))
            if look.no_way_back and not look.already:
                refusals.append(Refusal(Rule.NOT_REVERSIBLE, place, f"{mutation}: {look.no_way_back}"))
            looks.append(look)
        since_s = self._clock() - _MINUTE_S
        recent = sum(
            1
            for record in records
            if record["event"] == "after" and record["outcome"] == "done" and record["at_s"] > since_s
        )
        needed = [not look.already for look in looks]
        judged = judge(
            self._rules, mutations, running=self._actuator.running(), recent_changes=recent, needed=needed
        )
        return looks, [*judged, *refusals]


Begun = list[tuple[Mutation, int, dict[str, Any], str]]


def _unfinished(records: Sequence[Record]) -> list[tuple[str, Begun]]:
    """Plans that began and never ended, with the steps that may have been taken and were not undone; latest first."""
    plans: dict[str, list[Mutation]] = {}
    steps: dict[str, dict[int, tuple[dict[str, Any], str]]] = {}
    for record in records:
        plan = record.get("plan", "")
        if record["event"] == "begin":
            plans[plan] = [from_dict(values) for values in record["mutations"]]
            steps[plan] = {}
        elif record["event"] == "before":
            steps[plan][record["place"]] = (record["state"], record["token"])
        elif record["event"] == "undone":
            steps[plan].pop(record["place"], None)
        elif record["event"] == "end":
            plans.pop(plan, None)
    return [
        (plan, [(mutations[place], place, *step) for place, step in sorted(steps[plan].items())])
        for plan, mutations in reversed(plans.items())
    ]


def _undo_words(mutation: Mutation, look: Look) -> str:
    if look.no_way_back:
        return f"nothing, {look.no_way_back}"
    if isinstance(mutation, StartProcess):
        return f"ending {mutation.name}"
    if mutation.KIND == "stop":
        return f"starting {mutation.target} again"
    return "setting it back" if look.words != "not known" else "nothing is known of it"
