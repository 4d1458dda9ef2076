"""What hardware exists and how fast it is: profiles, topology and the measured performance model."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hw_profiles.errors import Problem, ProfileError
    from hw_profiles.loader import (
        anchored,
        list_clusters,
        list_devices,
        list_models,
        load_cluster,
        load_device,
        load_model,
    )
    from hw_profiles.schema import DeviceProfile, ModelSpec, MoeSpec
    from hw_profiles.topology import Device, Topology

_HOME = {
    "Problem": "errors",
    "ProfileError": "errors",
    "anchored": "loader",
    "list_clusters": "loader",
    "list_devices": "loader",
    "list_models": "loader",
    "load_cluster": "loader",
    "load_device": "loader",
    "load_model": "loader",
    "DeviceProfile": "schema",
    "ModelSpec": "schema",
    "MoeSpec": "schema",
    "Device": "topology",
    "Topology": "topology",
}

__all__ = [
    "Device",
    "DeviceProfile",
    "ModelSpec",
    "MoeSpec",
    "Problem",
    "ProfileError",
    "Topology",
    "anchored",
    "list_clusters",
    "list_devices",
    "list_models",
    "load_cluster",
    "load_device",
    "load_model",
]


def __getattr__(name: str) -> Any:
    """Import on first use: pydantic, YAML and networkx take a third of a second together."""
    if name not in _HOME:
        raise AttributeError(f"module 'hw_profiles' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"hw_profiles.{_HOME[name]}"), name)
    globals()[name] = value
    return value
