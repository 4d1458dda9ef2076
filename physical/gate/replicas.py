"""A deployment as a value: which replicas of which models shall exist, and nothing beside them.

It is one change, not one for each replica: an old replica serves until its successors do, so only whoever manages all
of them can carry it out. `loop.compose` brings the actuator of a running server.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

from loop.contracts import Plan, ReplicaSpec, Role

_FIELDS = {item.name for item in fields(ReplicaSpec)}


@dataclass(frozen=True)
class DeployReplicas:
    """Let exactly these replicas exist; whoever manages them starts, keeps, resizes and ends what it takes."""

    KIND: ClassVar[str] = "deploy"
    replicas: tuple[ReplicaSpec, ...]
    reason: str = ""

    @property
    def target(self) -> str:
        """What it acts on."""
        return "replicas"

    @property
    def names(self) -> tuple[str, ...]:
        """Of all replicas."""
        return tuple(replica_name(spec) for spec in self.replicas)

    @property
    def plan(self) -> Plan:
        """As a replica manager takes it."""
        return Plan(self.replicas, self.reason)

    def __str__(self) -> str:
        return f"deploy {len(self.replicas)} replicas: {', '.join(self.names) or 'none'}"


def replica_name(spec: ReplicaSpec) -> str:
    """`tiny-llama@here-0/cpu1`, or `llama-70b@n0/gpu0+n0/gpu1:tp2,pp1`."""
    shape = f":tp{spec.tp},pp{spec.pp}" if len(spec.devices) > 1 else ""
    role = "" if spec.role is Role.MIXED else f":{spec.role}"
    return f"{spec.model}@{'+'.join(spec.devices)}{shape}{role}"


def changes_in_words(before: Plan, after: Plan) -> str:
    """What it takes to get from one plan to another."""
    old = {spec.key: spec for spec in before.replicas}
    new = {spec.key: spec for spec in after.replicas}
    parts = [f"start {replica_name(spec)}" for key, spec in new.items() if key not in old]
    parts += [
        f"let {replica_name(spec)} run {spec.max_num_seqs} sequences, {spec.max_num_batched_tokens} tokens a step"
        for key, spec in new.items()
        if key in old and old[key] != spec
    ]
    parts += [f"end {replica_name(spec)}" for key, spec in old.items() if key not in new]
    return ", ".join(parts) or "nothing"


def replicas_of(value: Any) -> tuple[ReplicaSpec, ...]:
    """Replicas from plain values. Raises TypeError, ValueError."""
    if not isinstance(value, list):
        raise TypeError
    return tuple(_replica(entry) for entry in value)


def as_plain(spec: ReplicaSpec) -> dict[str, Any]:
    """A replica as plain values."""
    return {**asdict(spec), "devices": list(spec.devices), "role": spec.role.value}


def _replica(value: Any) -> ReplicaSpec:
    if not isinstance(value, Mapping) or not set(value) <= _FIELDS:
        raise TypeError
    given = {**value, "devices": tuple(value["devices"]), "role": Role(value.get("role", "mixed"))}
    words = (given["model"], *given["devices"])
    numbers = [number for key, number in given.items() if key in {"tp", "pp"} or key.startswith("max_num")]
    if not all(isinstance(word, str) for word in words) or not all(type(n) is int for n in numbers):
        raise TypeError
    return ReplicaSpec(**given)
