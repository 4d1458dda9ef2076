"""Timelines, bounds, performance models, the exact model, topology, the picture."""

from __future__ import annotations

import math
import random
import xml.etree.ElementTree as ET
from importlib.util import find_spec

import pytest

from hw_profiles import load_cluster
from physical.scheduling import (
    Access,
    Basis,
    Data,
    Dmdas,
    Following,
    Heft,
    InvalidScheduleError,
    Machine,
    MachineError,
    PerformanceModel,
    Planner,
    Problem,
    Run,
    Slowdown,
    Task,
    TaskGraph,
    Trace,
    Unit,
    area,
    check,
    critical_path_s,
    fully_joined,
    host_with_accelerators,
    replay,
    simulate,
    trace_of,
)
from physical.scheduling.disturbance import Disturbance
from physical.scheduling.draw import gantt
from physical.scheduling.exact import solve
from physical.scheduling.families import Setting, cholesky, random_problem
from physical.scheduling.timeline import earliest, fresh, occupy
from physical.scheduling.topology import machine_of

R, W = Access.READ, Access.WRITE
needs_ortools = pytest.mark.skipif(find_spec("ortools") is None, reason="OR-tools is not installed")


def test_timelines_find_what_a_scan_finds() -> None:
    rng = random.Random(5)
    lanes = fresh(2)
    taken: list[list[tuple[float, float]]] = [[], []]
    for _ in range(300):
        ready, takes = float(rng.randrange(60)), float(rng.randrange(1, 6))
        start, lane = earliest(lanes, ready, takes)
        slow = min(
            (at, number)
            for number, busy in enumerate(taken)
            for at in [ready, *(end for _, end in busy)]
            if at >= ready and all(end <= at or at + takes <= begin for begin, end in busy)
        )
        assert start == slow[0]
        assert all(end <= start or start + takes <= begin for begin, end in taken[lane])
        occupy(lanes[lane], start, start + takes, 1.0)
        taken[lane].append((start, start + takes))


def test_the_area_bound_by_hand() -> None:
    machine = host_with_accelerators("m", 2, 1, bytes_per_s=1.0)
    graph = TaskGraph("g", [Task(f"t{i}", "k") for i in range(12)])
    problem = Problem(graph, machine, lambda task, kind: {"cpu": 4.0, "gpu": 1.0}[kind])
    # Two CPUs do a half task a second, the GPU one: 12 / 1.5.
    assert area(problem).bound_s == pytest.approx(8.0)
    assert critical_path_s(problem) == 1.0
    cpu, gpu = area(problem).price
    assert cpu * 4.0 == pytest.approx(gpu)


def test_contention_serialises_what_shares_a_link() -> None:
    tasks = [Task(f"t{i}", "k", accesses=((f"d{i}", R),)) for i in range(2)]
    graph = TaskGraph("g", tasks, [Data(f"d{i}", 4.0) for i in range(2)])

    def makespan(streams: int | None, *, contention: bool = True) -> float:
        machine = host_with_accelerators(
            "m", 1, 2, bytes_per_s=1.0, host_streams=streams, contention=contention
        )
        problem = Problem(graph, machine, lambda task, kind: 6.0 if kind == "gpu" else None)
        plan = Heft().plan(problem)
        assert {problem.machine.units[u].name for u in plan.unit} == {"gpu0", "gpu1"}
        check(replay(plan), exact=True)
        return plan.makespan_s

    assert makespan(1) == 14.0
    assert makespan(2) == makespan(None) == makespan(1, contention=False) == 10.0


def test_prefetch_hides_transfers() -> None:
    tasks = [Task(f"t{i}", "k", accesses=((f"d{i}", R),)) for i in range(3)]
    graph = TaskGraph("g", tasks, [Data(f"d{i}", 2.0) for i in range(3)])
    machine = host_with_accelerators("m", 1, 1, bytes_per_s=1.0)
    problem = Problem(graph, machine, lambda task, kind: 2.0 if kind == "gpu" else None)
    assert simulate(problem, Dmdas()).makespan_s == 8.0
    assert simulate(problem, Dmdas(), prefetch=False).makespan_s == 12.0
    assert Heft().plan(problem).makespan_s == 8.0


def test_slowdowns_are_exact() -> None:
    disturbance = Disturbance(slowdowns=(Slowdown(0, 2.0, 6.0, 4.0), Slowdown(1, 0.0, math.inf, 2.0)))
    assert disturbance.end_s(0, 0.0, 2.0) == 2.0
    assert disturbance.end_s(0, 0.0, 3.0) == 6.0
    assert disturbance.end_s(0, 1.0, 5.0) == 9.0
    assert disturbance.end_s(1, 1.0, 5.0) == 11.0
    draws = [Disturbance(0.2, seed=1).duration_factor(i) for i in range(4000)]
    assert sum(draws) / len(draws) == pytest.approx(1.0, abs=0.02)


def test_stealing_makes_up_for_a_unit_that_slows_down() -> None:
    graph = TaskGraph("g", [Task(f"t{i}", "k") for i in range(200)])
    machine = fully_joined("two", [Unit("a", "a", "ma"), Unit("b", "b", "mb")], 1.0)
    problem = Problem(graph, machine, lambda task, kind: 1.0)
    plan = Heft().plan(problem)
    disturbance = Disturbance(slowdowns=(Slowdown(1, 10.0, math.inf, 4.0),))
    rigid = replay(plan, disturbance).makespan_s
    corrected = check(simulate(problem, Following(plan), disturbance=disturbance))
    assert rigid == 370.0
    assert corrected.makespan_s < 0.6 * rigid
    assert corrected.stolen > 0


@pytest.mark.parametrize("broken", ["overlap", "early", "absent", "missing", "order"])
def test_the_check_finds_what_is_wrong(broken: str) -> None:
    tasks = [Task("a", "k", accesses=(("x", W),)), Task("b", "k", accesses=(("x", R),)), Task("c", "k")]
    machine = host_with_accelerators("m", 1, 1, bytes_per_s=1.0)
    problem = Problem(TaskGraph("g", tasks, [Data("x", 1.0)]), machine, lambda task, kind: 1.0)
    runs = [Run(0, 0, 0.0, 1.0), Run(1, 0, 1.0, 2.0), Run(2, 1, 0.0, 1.0)]
    check(Trace(problem, "good", tuple(runs), ()), exact=True)
    runs[2], message = {
        "overlap": (Run(2, 0, 0.5, 1.5), "at once"),
        "early": (Run(2, 1, -1.0, 0.0), "outside the life"),
        "absent": (Run(1, 1, 1.0, 2.0), "before datum 'x' is there"),
        "missing": (Run(1, 0, 2.0, 3.0), "never completed"),
        "order": (Run(1, 1, 0.5, 1.5), "before task 'a' has ended"),
    }[broken]
    if runs[2].task == 1 and broken != "missing":
        runs[1] = Run(2, 0, 5.0, 6.0)
    with pytest.raises(InvalidScheduleError, match=message):
        check(Trace(problem, "bad", tuple(runs), ()))


def test_models_learn_and_know_their_doubt() -> None:
    model = PerformanceModel()
    rng = random.Random(1)
    assert model.estimate("gemm", "gpu", 8.0).basis is Basis.UNKNOWN
    for size in (8.0, 16.0, 64.0):
        for _ in range(30):
            model.observe("gemm", "gpu", size, 1e-3 * size**1.5 * rng.uniform(0.9, 1.1))
    seen = model.estimate("gemm", "gpu", 16.0)
    assert seen.calibrated
    assert seen.mean_s == pytest.approx(0.064, rel=0.05)
    assert 0.0 < seen.sd_s < 0.1 * seen.mean_s
    between, beyond = (model.estimate("gemm", "gpu", size) for size in (32.0, 4096.0))
    assert between.mean_s == pytest.approx(1e-3 * 32**1.5, rel=0.05)
    assert between.basis is Basis.REGRESSION
    assert beyond.sd_s / beyond.mean_s > between.sd_s / between.mean_s
    with pytest.raises(ValueError, match="no duration"):
        model.observe("gemm", "gpu", 8.0, -1.0)


def test_models_forget_at_their_half_life() -> None:
    steady, fading = PerformanceModel(), PerformanceModel(half_life=10)
    for model in (steady, fading):
        for i in range(200):
            model.observe("k", "cpu", 1.0, 1.0 if i < 100 else 3.0)
    assert steady.estimate("k", "cpu", 1.0).mean_s == pytest.approx(2.0)
    assert fading.estimate("k", "cpu", 1.0).mean_s == pytest.approx(3.0, rel=0.01)


def test_exploration_tries_what_was_never_tried() -> None:
    model = PerformanceModel()
    model.observe("k", "cpu", 1.0, 5.0)
    machine = host_with_accelerators("m", 1, 1, bytes_per_s=1.0)
    graph = TaskGraph("g", [Task("a", "k")])
    able = [("k", "gpu")]
    exploring = Heft().plan(Problem(graph, machine, model.durations(deviations=1.0, able=able)))
    assert machine.units[exploring.unit[0]].kind == "gpu"
    settled = Heft().plan(Problem(graph, machine, model.durations(able=able)))
    assert machine.units[settled.unit[0]].kind == "cpu"


def test_a_cluster_becomes_a_machine() -> None:
    machine = machine_of(load_cluster("local-2"))
    topology = load_cluster("local-2")
    assert len(machine.units) == len(topology.devices)
    a, b = machine.nodes[:2]
    (hop,) = machine.route(a, b)
    assert machine.hop_s(hop, 1e9) == pytest.approx(topology.transfer_s(1e9, a, b))
    with pytest.raises(MachineError, match="has no device 'moon'"):
        machine_of(topology, ["moon"])


def test_the_picture_shows_every_unit_and_kernel() -> None:
    machine = host_with_accelerators("m", 2, 1, bytes_per_s=4.0)
    problem = Problem(cholesky(5, 1.0), machine, lambda task, kind: 2.0 if kind == "cpu" else 0.5)
    plan = Planner(math.inf, tries=4).plan(problem)
    text = gantt(trace_of(plan), bound_s=1.0)
    root = ET.fromstring(text)  # noqa: S314  # our own text
    words = {element.text for element in root.iter() if element.text}
    assert {"cpu0", "cpu1", "gpu0", "potrf", "gemm", "transfer", "lower bound"} <= words
    bars = [e for e in root.iter() if e.tag.endswith("title")]
    assert len(bars) >= problem.tasks // 2
    assert gantt(
        trace_of(
            Planner(1.0).plan(
                Problem(TaskGraph("empty", []), Machine("one", [Unit("u", "c", "m")]), lambda t, k: 1.0)
            )
        )
    )


@pytest.mark.slow
@needs_ortools
def test_the_exact_model_is_no_worse_than_anyone_and_proves_it() -> None:
    for family in ("fft", "fork-join", "gauss"):
        problem = random_problem(family, 7, Setting(), 2)
        plan = Planner(math.inf, tries=60).plan(problem)
        exact = solve(problem, hint=plan, limit_s=30.0, quantum_s=1.0)
        assert exact.proven
        assert exact.plan is not None
        check(trace_of(exact.plan), exact=True)
        assert exact.plan.makespan_s == pytest.approx(exact.bound_s)
        for other in (plan, Heft().plan(problem)):
            assert exact.plan.makespan_s <= other.makespan_s


@pytest.mark.slow
@needs_ortools
def test_the_exact_model_knows_contended_links() -> None:
    tasks = [Task(f"t{i}", "k", accesses=((f"d{i}", R),)) for i in range(3)]
    graph = TaskGraph("g", tasks, [Data(f"d{i}", 2.0) for i in range(3)])
    machine = host_with_accelerators("m", 1, 2, bytes_per_s=1.0, host_streams=1)
    problem = Problem(graph, machine, lambda task, kind: 5.0 if kind == "cpu" else 1.0)
    exact = solve(problem, limit_s=30.0, quantum_s=1.0)
    assert exact.proven
    assert exact.plan is not None
    check(trace_of(exact.plan), exact=True)
    # One task on the CPU, the others after 2 and 4 seconds of the one host link.
    assert exact.plan.makespan_s == 5.0
