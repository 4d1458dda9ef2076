"""How much of a test that is run over many examples `make unit` runs; `make test` runs all of it."""

from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import settings

QUICK = 25


def up_to(count: int) -> int:
    """So many examples of a property, but no more than `QUICK` under the profile of the fast tests."""
    return min(count, QUICK) if settings().max_examples <= QUICK else count


def some_slow(values: Iterable[Any], *quick: Any) -> list[Any]:
    """Parameters of a test: all of `values`, those that are not `quick` marked slow."""
    return [pytest.param(v, marks=[] if v in quick else [pytest.mark.slow]) for v in values]
