"""Real memories with a bound: results as ever, and never more in a memory than it may hold."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from physical.runtime.executor import execute
from physical.runtime.units import Units
from physical.scheduling import Dmdas, Following, Heft
from physical.scheduling.machine import Machine
from physical.scheduling.problem import Problem
from physical.scheduling.trace import check
from tests.examples import some_slow
from tests.physical.runtime import test_executor
from tests.physical.runtime.test_executor import KERNELS, Passive, machine, random_graph, serial

LARGEST_BYTES = 6 * 512.0
"""Of a task's values: four that it reads, two that it makes."""


@pytest.fixture(scope="module")
def tight() -> Iterator[Units]:
    """A thread, and two processes whose memories hold one task's values."""
    plain = machine(1, 2)
    bounds = {"process0": LARGEST_BYTES, "process1": 1.5 * LARGEST_BYTES}
    with Units(Machine("tight", plain.units, plain.links, plain.hops, memory_bytes=bounds)) as units:
        yield units


@pytest.mark.parametrize("name", ["passive", "prefetching", "dmdas", "following"])
@pytest.mark.parametrize("seed", some_slow(range(3), 0))
def test_results_are_the_same_in_memories_that_are_full(tight: Units, seed: int, name: str) -> None:
    graph, values = random_graph(seed, tasks=40)
    problem = Problem(graph, tight.machine, lambda task, kind: 1e-3)
    dispatcher = {
        "passive": Passive,
        "prefetching": lambda: Passive(prefetch=True),
        "dmdas": Dmdas,
        "following": lambda: Following(Heft().plan(problem)),
    }[name]()
    wanted = tuple(datum.name for datum in graph.data)
    outcome = execute(problem, dispatcher, tight, KERNELS, values, wanted=wanted)
    for datum, value in serial(graph, values).items():
        np.testing.assert_array_equal(outcome.results[datum], value)
    check(outcome.trace)  # the bounds among the rules


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_process_dies_with_a_full_memory(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(threads: int, processes: int) -> Machine:
        plain = machine(threads, processes)
        bounds = dict.fromkeys(plain.nodes[1:], LARGEST_BYTES)
        return Machine("full", plain.units, plain.links, plain.hops, memory_bytes=bounds)

    monkeypatch.setattr(test_executor, "machine", full)
    test_executor.test_what_went_with_a_killed_process_is_computed_again(seed, tmp_path)
