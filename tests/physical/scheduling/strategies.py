"""Random graphs and machines for the property tests."""

from __future__ import annotations

import random

from hypothesis import strategies as st

from physical.scheduling import (
    Access,
    Data,
    Hop,
    Link,
    Machine,
    Problem,
    Task,
    TaskGraph,
    Unit,
    fully_joined,
    host_with_accelerators,
)


def machine(rng: random.Random) -> Machine:
    """A host with accelerators, unlike units all joined, or a chain of memories."""
    shape = rng.randrange(4)
    speed = rng.choice((0.5, 1.0, 8.0))
    latency = rng.choice((0.0, 0.25))
    if shape == 0:
        return host_with_accelerators(
            "host",
            rng.randint(1, 3),
            rng.randint(0, 3),
            bytes_per_s=speed,
            latency_s=latency,
            host_streams=rng.choice((None, 1, 2)),
            contention=rng.random() < 0.8,
        )
    if shape == 1:
        units = [Unit(f"u{i}", rng.choice("xyz"), f"m{i}") for i in range(rng.randint(1, 4))]
        return fully_joined("unlike", units, speed, latency, streams=rng.choice((None, 1)))
    if shape == 2:
        return Machine("one memory", [Unit(f"c{i}", "cpu", "ram") for i in range(rng.randint(1, 4))])
    nodes = [f"m{i}" for i in range(rng.randint(2, 4))]
    links = [Link("bus", speed, latency, rng.choice((1, 2, 3)))]
    hops = [Hop(a, b, ("bus",)) for i, a in enumerate(nodes) for j, b in enumerate(nodes) if abs(i - j) == 1]
    return Machine(
        "chain", [Unit(f"u{i}", rng.choice("xy"), node) for i, node in enumerate(nodes)], links, hops
    )


def graph(rng: random.Random, tasks: int) -> TaskGraph:
    """Tasks over a few shared data with all kinds of access, and a few plain dependencies."""
    data = [Data(f"d{i}", rng.choice((0.0, 0.5, 1.0, 4.0))) for i in range(rng.randint(0, 6))]
    made = []
    for number in range(tasks):
        touched = rng.sample(data, rng.randint(0, min(3, len(data))))
        accesses = tuple((datum.name, rng.choice(list(Access))) for datum in touched)
        after = tuple(f"t{i}" for i in range(number) if rng.random() < 0.5 / tasks)
        made.append(Task(f"t{number}", rng.choice(("a", "b", "c")), rng.choice((1.0, 2.0)), accesses, after))
    return TaskGraph("random", made, data)


def problem(seed: int, tasks: int) -> Problem:
    """A random problem; some kernels cannot run everywhere, some take no time."""
    rng = random.Random(seed)
    on = machine(rng)
    table: dict[tuple[str, float, str], float | None] = {}
    for kernel in "abc":
        able = [kind for kind in on.kinds if rng.random() < 0.75] or [rng.choice(on.kinds)]
        for size in (1.0, 2.0):
            for kind in able:
                table[kernel, size, kind] = rng.choice((0.0, 0.5, 1.0, 1.7, 3.0, 10.0)) * size
    return Problem(graph(rng, tasks), on, lambda task, kind: table.get((task.kernel, task.size, kind)))


problems = st.builds(problem, st.integers(0, 10**6), st.integers(1, 18))
