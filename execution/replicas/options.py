"""How patient the replica manager and the dispatcher are."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ManagerOptions:
    """Times are seconds."""

    overlap: bool = False
    """Devices are slots that an old and a new replica may share for the moment of a change (CPU); False: a device
    belongs to one process at a time (GPU), so an old replica on it stops before the new one starts."""
    start_limit_s: float = 300.0
    """For one start; beyond, it has failed."""
    start_estimate_s: float = 5.0
    """How long a start takes, as long as none was measured."""
    drain_limit_s: float = 30.0
    """What is still in flight then goes on elsewhere."""
    stop_limit_s: float = 10.0
    """For an engine to stop; beyond, its process is killed."""
    poll_s: float = 0.25
    """Between two readings of an engine's counters."""
    answer_limit_s: float = 20.0
    """An engine of which nothing is heard for so long, neither counters nor tokens, hangs: it is killed. Time in which
    this process itself did not run does not count (patience.py)."""
    backoff_s: float = 0.1
    """Before the first restart; doubled for each death after that."""
    max_backoff_s: float = 10.0
    max_deaths: int = 5
    """In a row, failed starts included: no more restarts under this plan."""
    healthy_s: float = 30.0
    """A replica that served for so long begins a new row."""
    doubt_s: float = 60.0
    """What was given up gets one attempt only when a plan asks for it again within this time."""
    max_waiting: int = 4096
    """Queue of an engine (EngineLimits.max_waiting)."""

    def __post_init__(self) -> None:
        for name in ("start_limit_s", "drain_limit_s", "stop_limit_s", "poll_s", "answer_limit_s"):
            if not getattr(self, name) > 0.0:
                raise ValueError(f"ManagerOptions.{name} must be positive, not {getattr(self, name)}")
        for name in ("backoff_s", "max_backoff_s", "healthy_s", "doubt_s"):
            if not getattr(self, name) >= 0.0:
                raise ValueError(f"ManagerOptions.{name} must not be negative, not {getattr(self, name)}")
        for name in ("max_deaths", "max_waiting"):
            if getattr(self, name) < 1:
                raise ValueError(f"ManagerOptions.{name} must be at least 1, not {getattr(self, name)}")


@dataclass(frozen=True, slots=True)
class DispatcherOptions:
    """Bounds of what is done for one request."""

    max_retries: int = 5
    """Replicas that it may lose."""
    prior_output_tokens: float = 128.0
    """Expected length of an answer, as long as none of its kind has been seen."""
    busy_pause_s: float = 0.05
    """Before a request that lost its replica is offered to full replicas again."""
    rebalance: bool = True
    """When a replica becomes ready or is to go, requests that wait in queues are sent anew."""
