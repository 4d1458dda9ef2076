"""What all tests share: property tests are judged by their answers, not by how busy the machine is."""

import gc
from collections.abc import Generator, Iterator

import pytest
import structlog
from hypothesis import HealthCheck, settings

from tests.examples import QUICK

BUSY = [HealthCheck.too_slow]
"""What a busy machine fails."""
settings.register_profile("project", deadline=None, max_examples=QUICK, suppress_health_check=BUSY)
# What decides over a landing must say the same twice; `make unit` goes on looking for new examples.
settings.register_profile(
    "repeatable", deadline=None, max_examples=100, derandomize=True, suppress_health_check=BUSY
)
settings.load_profile("project")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Modules and test items stay: to look through them for garbage again and again is a fifth of the time."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.fixture(autouse=True)
def _logging_as_imported() -> Iterator[None]:
    """What one test configures, the next does not meet."""
    yield
    structlog.reset_defaults()
