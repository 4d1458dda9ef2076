"""Evolution: policies are written, proven in a sandbox, scored on the past, and handed over (docs/evolution.md)."""

from strategy.evolve.static import Violation, check_policy

__all__ = ["Violation", "check_policy"]
