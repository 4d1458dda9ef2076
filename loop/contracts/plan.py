"""Plans: which replicas shall exist, on which devices, with which limits."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple


class Role(StrEnum):
    """What a replica does with a request."""

    MIXED = "mixed"  # prefill and decode
    PREFILL = "prefill"  # prefill only: the KV cache then moves to a decode replica of the same model
    DECODE = "decode"


class ReplicaKey(NamedTuple):
    """What makes a replica the same one across two plans: batch limits may change live, these may not."""

    model: str
    devices: tuple[str, ...]
    tp: int
    pp: int
    role: Role


@dataclass(frozen=True, slots=True)
class ReplicaSpec:
    """One replica: `tp * pp` devices of the topology, in pipeline order (stage-major)."""

    model: str
    devices: tuple[str, ...]
    tp: int = 1
    pp: int = 1
    role: Role = Role.MIXED
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192
    """Token budget of one iteration: the chunk size of chunked prefill."""

    @property
    def key(self) -> ReplicaKey:
        """Identity across plans."""
        return ReplicaKey(self.model, self.devices, self.tp, self.pp, self.role)


@dataclass(frozen=True, slots=True)
class Plan:
    """All replicas that shall exist. A replica whose key stands in the old and the new plan keeps serving;
    the others are drained and stopped, or started."""

    replicas: tuple[ReplicaSpec, ...]
    reason: str = ""
    """In words, for the journal."""


EMPTY_PLAN = Plan(())
