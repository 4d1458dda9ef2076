"""How fast the hardware serves: operator times, one engine iteration, KV capacity, start-up time."""

from hw_profiles.performance.model import PerformanceModel, Perturbation
from hw_profiles.performance.replica import InfeasibleError, ReplicaPerformance

__all__ = ["InfeasibleError", "PerformanceModel", "Perturbation", "ReplicaPerformance"]
