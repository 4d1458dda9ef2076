"""Workloads: trace readers, fitted generators, combinators, monitoring windows and named scenarios."""

from execution.workload.arrivals import Family
from execution.workload.errors import WorkloadError
from execution.workload.events import node_loss, spot_churn, spot_preemption, stragglers, throttle
from execution.workload.generators import LognormalLengths, gamma, generate, poisson
from execution.workload.mixing import (
    concat,
    cut,
    merge,
    mix_shift,
    model_mix_shift,
    rename_model,
    shift,
    splice,
    take,
    tiers,
)
from execution.workload.modulate import burst, diurnal, flash_crowd, scale
from execution.workload.native import write
from execution.workload.opening import DEFAULT_MODEL, open_workload
from execution.workload.scenarios import SCENARIOS, scenario
from execution.workload.statistics import WorkloadStatistics, describe
from execution.workload.windows import windows

__all__ = [
    "DEFAULT_MODEL",
    "SCENARIOS",
    "Family",
    "LognormalLengths",
    "WorkloadError",
    "WorkloadStatistics",
    "burst",
    "concat",
    "cut",
    "describe",
    "diurnal",
    "flash_crowd",
    "gamma",
    "generate",
    "merge",
    "mix_shift",
    "model_mix_shift",
    "node_loss",
    "open_workload",
    "poisson",
    "rename_model",
    "scale",
    "scenario",
    "shift",
    "splice",
    "spot_churn",
    "spot_preemption",
    "stragglers",
    "take",
    "throttle",
    "tiers",
    "windows",
    "write",
]
