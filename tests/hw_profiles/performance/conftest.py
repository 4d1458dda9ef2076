"""A model of speeds and a topology that all tests of the package share; both are read-only."""

from __future__ import annotations

import pytest

from hw_profiles import load_cluster
from hw_profiles.performance import PerformanceModel
from hw_profiles.topology import Topology


@pytest.fixture(scope="session")
def performance() -> PerformanceModel:
    return PerformanceModel.load()


@pytest.fixture(scope="session")
def cluster() -> Topology:
    return load_cluster("mixed-64")
