"""The dynamics of the benchmark: each can be built, differs by seed, and something changes in it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import pytest

from benchmarks.all import sections
from benchmarks.tune_baselines import load_totals, load_tuned, neighbours
from hw_profiles import load_cluster
from loop.compose.dynamics import DYNAMICS, Dynamic
from loop.contracts import Window, Workload
from strategy.baselines import list_baselines, load_baseline, tuned_baseline
from strategy.evolve.synthesise.constants import find_constants


@cache
def built(dynamic: Dynamic) -> tuple[Workload, Sequence[Window]]:
    """Without trace files."""
    return dynamic.build(None, 0)


@pytest.mark.parametrize(
    "dynamic",
    [pytest.param(d, marks=[pytest.mark.slow] if d.name != "mix-shift" else []) for d in DYNAMICS],
    ids=lambda d: d.name,
)
def test_without_trace_files_a_generated_equivalent_is_served(dynamic: Dynamic) -> None:
    workload, windows = built(dynamic)
    assert workload.generated
    assert len(windows) == 8
    assert all(w.requests for w in windows)
    asked = {r.model for r in workload.requests}
    assert len(asked) == len(dynamic.models)
    nodes = load_cluster(dynamic.cluster).nodes
    assert all(e.target in nodes for w in windows for e in w.events)
    other, _ = dynamic.build(None, 1)
    assert other.requests != workload.requests


@pytest.mark.slow
def test_every_dynamic_has_something_that_changes() -> None:
    for dynamic in DYNAMICS:
        _, windows = built(dynamic)
        work = [
            (
                len(w.requests),
                sum(r.input_tokens for r in w.requests),
                sum(r.output_tokens for r in w.requests),
            )
            for w in windows
        ]
        ranges = [max(column) / max(1, min(column)) for column in zip(*work, strict=True)]
        assert max(ranges) > 1.5 or any(w.events for w in windows), dynamic.name


def test_the_tuning_on_file_fits_the_baselines_and_the_dynamics() -> None:
    tuned = load_tuned()
    assert set(tuned) == {d.name for d in DYNAMICS}
    for dynamic, by_name in tuned.items():
        assert set(by_name) == set(list_baselines())
        for name, constants in by_name.items():
            tuned_baseline(name, constants)
        assert set(load_totals()[dynamic]) == set(by_name)


def test_neighbours_stay_in_the_stated_range() -> None:
    for constant in find_constants(load_baseline("kv_aware").source):
        values = neighbours(constant)
        assert values
        assert all(constant.low <= v <= constant.high and v != constant.value for v in values)


def test_sections_of_the_page_are_found_by_name() -> None:
    page = "# Benchmarks\n\nintro\n\n## one\nAt commit x\n\n| a |\n\n## two\nrest\n"
    assert sections(page) == {"one": "## one\nAt commit x\n\n| a |", "two": "## two\nrest"}
