"""How the simulated world differs from the nominal one, beside the performance model itself."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class WorldParameters:
    """Hidden parameters of a world. A policy never sees them, only what they do."""

    start_scale: float = 1.0
    """Replica start time, against the performance model's."""
    link_scale: float = 1.0
    """Bandwidth of KV transfers, against the topology's."""
    jitter: float = 0.0
    """Sigma of a lognormal factor (mean 1) on iteration times, drawn anew whenever a batch changes."""
    notice_scale: float = 1.0
    """Spot notice that is really given, against the announced one."""

    def __post_init__(self) -> None:
        for name in ("start_scale", "link_scale", "notice_scale"):
            if not getattr(self, name) > 0.0:
                raise ValueError(f"WorldParameters.{name} must be positive, not {getattr(self, name)}")
        if self.jitter < 0.0:
            raise ValueError(f"WorldParameters.jitter must not be negative, not {self.jitter}")


NOMINAL = WorldParameters()
"""The performance model and the topology as they are."""
