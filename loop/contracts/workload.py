"""Requests, workloads and the dynamics of the cluster: what the world does to the system."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple


class Request(NamedTuple):
    """One request of a workload, with its ground truth (a policy never sees `output_tokens`).

    A NamedTuple, not a dataclass: workloads hold millions of them.
    """

    id: int
    arrival_s: float
    model: str
    input_tokens: int
    output_tokens: int
    block_hashes: tuple[int, ...] = ()
    """Prefix identity, one hash per `Workload.block_tokens` prompt tokens; empty: nothing is shared."""
    tier: int = 0
    """Class of the customer: 0 is standard; a higher tier is served first by policies that care."""


class EventKind(StrEnum):
    """What may happen to devices while the system serves."""

    DOWN = "down"  # the device fails at once: its replicas die, their requests are retried elsewhere
    UP = "up"  # the device is available (again), at full speed
    PREEMPT = "preempt"  # spot reclaim: notice now, DOWN after `notice_s`
    SPEED = "speed"  # throttling or straggling: runs at `factor` of nominal speed from now on (1.0 heals)


@dataclass(frozen=True, slots=True)
class ClusterEvent:
    """A change of the hardware at trace time `at_s`. `target` is a device id, or a node id for all of its
    devices."""

    at_s: float
    kind: EventKind
    target: str
    factor: float = 1.0
    notice_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests in order of arrival, and where they came from."""

    name: str
    requests: Sequence[Request]
    source: str
    """File, or `generated:<generator>` for synthetic ones."""
    generated: bool = False
    block_tokens: int = 512
    """Prompt tokens that one entry of `Request.block_hashes` stands for."""
    notes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Window:
    """The share of a workload between two monitoring points, with the events that fall into it."""

    index: int
    start_s: float
    end_s: float
    requests: Sequence[Request]
    events: tuple[ClusterEvent, ...] = ()


class ReplayMode(StrEnum):
    """How a workload is replayed (DESIGN section 6)."""

    BATCH = "batch"  # each window's requests are released together, windows run back to back
    ONLINE = "online"  # real arrival times
