"""Where replicas can run, and where layers go: deployment options of a topology, and plans for it."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from physical.placement.options import deployment_options, device_views, requests_per_s
    from physical.placement.planner import ClusterPlan, plan
    from physical.placement.problem import PlacementError, Problem
    from physical.placement.rates import Traffic
    from physical.placement.units import Ask

_HOME = {
    "deployment_options": "options",
    "device_views": "options",
    "requests_per_s": "options",
    "ClusterPlan": "planner",
    "plan": "planner",
    "PlacementError": "problem",
    "Problem": "problem",
    "Traffic": "rates",
    "Ask": "units",
}

__all__ = [
    "Ask",
    "ClusterPlan",
    "PlacementError",
    "Problem",
    "Traffic",
    "deployment_options",
    "device_views",
    "plan",
    "requests_per_s",
]


def __getattr__(name: str) -> Any:
    """Import on first use: numpy and scipy take longer than `--help` should."""
    if name not in _HOME:
        raise AttributeError(f"module 'physical.placement' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"physical.placement.{_HOME[name]}"), name)
    globals()[name] = value
    return value
