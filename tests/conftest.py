"""What all tests share: property tests are judged by their answers, not by how busy the machine is."""

from collections.abc import Iterator

import pytest
import structlog
from hypothesis import settings

settings.register_profile("project", deadline=None)
settings.load_profile("project")


@pytest.fixture(autouse=True)
def _logging_as_imported() -> Iterator[None]:
    """What one test configures, the next does not meet."""
    yield
    structlog.reset_defaults()
