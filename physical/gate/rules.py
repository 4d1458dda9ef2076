"""What the gate refuses, and by which rule."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from physical.gate.mutations import (
    Mutation,
    PinCpus,
    Resource,
    SetLimit,
    SetNice,
    SetPower,
    StartProcess,
    StopProcess,
)
from physical.gate.replicas import DeployReplicas


class Rule(StrEnum):
    """A reason to refuse."""

    RATE = "rate"
    BLAST_RADIUS = "blast_radius"
    FLOOR = "floor"
    ALLOW_LIST = "allow_list"
    PROTECTED = "protected"
    CONFLICT = "conflict"
    NOT_POSSIBLE = "not_possible"
    NOT_REVERSIBLE = "not_reversible"


@dataclass(frozen=True)
class Refusal:
    """One mutation (or the plan: -1) that is refused."""

    rule: Rule
    place: int
    """Which mutation of the plan."""
    why: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.why}"


class RefusedError(RuntimeError):
    """The gate does nothing of a plan that breaks a rule; `refusals` says which."""

    def __init__(self, refusals: Sequence[Refusal]) -> None:
        super().__init__("; ".join(map(str, refusals)))
        self.refusals = tuple(refusals)


@dataclass(frozen=True)
class GateRules:
    """Limits of the gate. The defaults let a plan do little harm."""

    changes_per_minute: int = 60
    """Over all plans, by the journal."""
    max_share_stopped: float = 0.5
    """Of the processes that run under the gate, how many one plan may stop without starting them again; at least
    one may always be."""
    min_running: int = 0
    """Processes that must run under the gate when a plan is through."""
    allowed_cpus: tuple[int, ...] | None = None
    """None: those that this process may use."""
    allowed_devices: tuple[str, ...] = ()
    """GPUs whose power may be limited, by index or UUID; empty: none."""
    allowed_pids: tuple[int, ...] = ()
    """Processes that the gate has not started and may touch all the same, named one by one."""
    min_nice: int = 0
    min_watts: float = 100.0
    min_limits: Mapping[Resource, int] | None = None
    """Floors of limits; None: 64 MiB, 16 files, 1 s."""

    def cpus(self) -> set[int]:
        """CPUs that anything may be pinned to."""
        if self.allowed_cpus is not None:
            return set(self.allowed_cpus)
        return set(os.sched_getaffinity(0))

    def floor(self, resource: Resource) -> int:
        """The least that a process may be left of a resource."""
        usual = {Resource.MEMORY_BYTES: 64 << 20, Resource.OPEN_FILES: 16, Resource.CPU_SECONDS: 1}
        return (self.min_limits or usual).get(resource, 1)


def judge(
    rules: GateRules,
    mutations: Sequence[Mutation],
    *,
    running: Mapping[str, int],
    recent_changes: int,
    needed: Sequence[bool],
) -> list[Refusal]:
    """All that speaks against a plan. `needed`: which mutations change anything; what is so already costs nothing."""
    refusals = []
    for place, mutation in enumerate(mutations):
        for rule, why in _alone(rules, mutation, mutations, running):
            refusals.append(Refusal(rule, place, why))
    changes = sum(needed)
    if recent_changes + changes > rules.changes_per_minute:
        why = f"{changes} changes after {recent_changes} in the last minute; {rules.changes_per_minute} are allowed"
        refusals.append(Refusal(Rule.RATE, -1, why))
    refusals += _together(rules, mutations, running)
    return refusals


def _alone(
    rules: GateRules, mutation: Mutation, mutations: Sequence[Mutation], running: Mapping[str, int]
) -> list[tuple[Rule, str]]:
    found: list[tuple[Rule, str]] = []
    if isinstance(mutation, StartProcess | PinCpus) and mutation.cpus:
        outside = sorted(set(mutation.cpus) - rules.cpus())
        if outside:
            found.append((Rule.ALLOW_LIST, f"{mutation.target}: CPUs {outside} are not among the allowed"))
    nice = mutation.nice if isinstance(mutation, StartProcess | SetNice) else None
    if nice is not None and nice < rules.min_nice:
        found.append((Rule.FLOOR, f"{mutation.target}: nice {nice} is below {rules.min_nice}"))
    limits: Mapping[Resource, int] = {}
    if isinstance(mutation, StartProcess):
        limits = mutation.limits
    elif isinstance(mutation, SetLimit):
        limits = {mutation.resource: mutation.value}
    for resource, value in limits.items():
        if value < rules.floor(resource):
            least = rules.floor(resource)
            found.append((Rule.FLOOR, f"{mutation.target}: {resource} {value:,} is below {least:,}"))
    if isinstance(mutation, SetPower):
        if mutation.device not in rules.allowed_devices:
            found.append((Rule.ALLOW_LIST, f"GPU {mutation.device} is not among the allowed devices"))
        if mutation.watts < rules.min_watts:
            found.append(
                (Rule.FLOOR, f"GPU {mutation.device}: {mutation.watts:g} W is below {rules.min_watts:g}")
            )
    elif isinstance(mutation, PinCpus | SetNice | SetLimit):
        found += _target(rules, mutation.target, mutations, running)
    return found


def _target(
    rules: GateRules, target: str, mutations: Sequence[Mutation], running: Mapping[str, int]
) -> list[tuple[Rule, str]]:
    """Only what the gate has started or was named may be touched; never itself, its parent, or the first process."""
    if not target.startswith("pid:"):
        started = {m.name for m in mutations if isinstance(m, StartProcess)}
        if target not in running and target not in started:
            return [(Rule.ALLOW_LIST, f"'{target}' is not running under the gate, nor started by this plan")]
        return []
    pid = int(target[4:])
    if pid in {1, os.getpid(), os.getppid()}:
        return [(Rule.PROTECTED, f"process {pid} is the gate itself, its parent or the first process")]
    if pid not in rules.allowed_pids and pid not in running.values():
        return [(Rule.ALLOW_LIST, f"process {pid} was not started by the gate and is not among the allowed")]
    return []


def _together(rules: GateRules, mutations: Sequence[Mutation], running: Mapping[str, int]) -> list[Refusal]:
    found = []
    seen: dict[tuple[str, str, str], int] = {}
    for place, mutation in enumerate(mutations):
        what = mutation.resource.value if isinstance(mutation, SetLimit) else ""
        key = (mutation.KIND, mutation.target, what)
        if key in seen:
            why = f"{mutation.KIND} {mutation.target} is asked for twice (also as number {seen[key]})"
            found.append(Refusal(Rule.CONFLICT, place, why))
        seen.setdefault(key, place)
    after = set(running)
    for mutation in mutations:
        if isinstance(mutation, StartProcess):
            after.add(mutation.name)
        elif isinstance(mutation, StopProcess):
            after.discard(mutation.name)
        elif isinstance(mutation, DeployReplicas):
            after = set(mutation.names)
    gone = sorted(set(running) - after)
    allowed = max(1, int(rules.max_share_stopped * len(running)))
    if len(gone) > allowed:
        why = f"{len(gone)} of {len(running)} running processes would stop; {allowed} may"
        found.append(Refusal(Rule.BLAST_RADIUS, -1, why))
    if len(after) < rules.min_running and gone:
        why = f"{len(after)} processes would be left running; {rules.min_running} must"
        found.append(Refusal(Rule.FLOOR, -1, why))
    return found
