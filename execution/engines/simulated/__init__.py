"""The simulated engine: real-time answers from the performance model, a cluster of GPUs on a laptop."""

from execution.engines.simulated.engine import SimulatedEngine

__all__ = ["SimulatedEngine"]
