"""Tests of the engines."""

import pytest

for name in ("rig", "conformance_answers", "conformance_serving", "conformance_life"):
    pytest.register_assert_rewrite(f"tests.execution.engines.{name}")
