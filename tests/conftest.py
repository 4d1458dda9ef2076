"""What all tests share: property tests are judged by their answers, not by how busy the machine is."""

from collections.abc import Iterator

import pytest
import structlog
from hypothesis import settings

settings.register_profile("project", deadline=None)
# What decides over a landing must say the same twice; `make unit` goes on looking for new examples.
settings.register_profile("repeatable", settings.get_profile("project"), derandomize=True)
settings.load_profile("project")


@pytest.fixture(autouse=True)
def _logging_as_imported() -> Iterator[None]:
    """What one test configures, the next does not meet."""
    yield
    structlog.reset_defaults()
