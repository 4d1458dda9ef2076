"""Generators of task graphs: tiled Cholesky, and the families that scheduling papers compare on.

All are seeded. Families for comparisons give each task a kernel of its own with durations per unit drawn around a mean
(heterogeneity), and each edge a datum of its own, scaled to a ratio of communication to computation (CCR), as in
Topcuoglu et al. 2002.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from physical.scheduling.graph import Access, Data, Task, TaskGraph
from physical.scheduling.machine import Machine, Unit, fully_joined
from physical.scheduling.problem import Problem

Edges = list[tuple[int, int]]


def cholesky(tiles: int, tile_bytes: float) -> TaskGraph:
    """Tiled Cholesky of `tiles` x `tiles` tiles: potrf, trsm, syrk, gemm; sizes are the bytes a task touches."""
    tasks: list[Task] = []
    read, update = Access.READ, Access.READ_WRITE

    def tile(i: int, j: int) -> str:
        return f"A{i},{j}"

    for k in range(tiles):
        tasks.append(Task(f"potrf{k}", "potrf", tile_bytes, ((tile(k, k), update),)))
        for i in range(k + 1, tiles):
            touched = ((tile(k, k), read), (tile(i, k), update))
            tasks.append(Task(f"trsm{i},{k}", "trsm", 2 * tile_bytes, touched))
        for i in range(k + 1, tiles):
            touched = ((tile(i, k), read), (tile(i, i), update))
            tasks.append(Task(f"syrk{i},{k}", "syrk", 2 * tile_bytes, touched))
            for j in range(k + 1, i):
                three = ((tile(i, k), read), (tile(j, k), read), (tile(i, j), update))
                tasks.append(Task(f"gemm{i},{j},{k}", "gemm", 3 * tile_bytes, three))
    data = [Data(tile(i, j), tile_bytes) for i in range(tiles) for j in range(i + 1)]
    return TaskGraph(f"cholesky-{tiles}", tasks, data)


def layered(count: int, rng: random.Random) -> Edges:
    """Layers of random width; each task needs one to three of the layer before (Tobita, Kasahara 2002)."""
    edges: Edges = []
    before: list[int] = []
    made = 0
    while made < count:
        width = min(count - made, max(1, round(rng.gauss(math.sqrt(count), math.sqrt(count) / 3))))
        layer = list(range(made, made + width))
        for task in layer:
            edges += [(p, task) for p in rng.sample(before, min(len(before), rng.randint(1, 3)))]
        before, made = layer, made + width
    return edges


def erdos_renyi(count: int, rng: random.Random) -> Edges:
    """Each pair in order is joined with a probability that gives three edges a task on average."""
    share = min(1.0, 6.0 / max(1, count - 1))
    edges: Edges = []
    for later in range(1, count):
        # As many as a binomial draw gives, without trying every pair.
        hits = (
            sum(rng.random() < share for _ in range(later)) if count <= 200 else _poisson(share * later, rng)
        )
        edges += [(earlier, later) for earlier in sorted(rng.sample(range(later), min(later, hits)))]
    return edges


def fork_join(count: int, rng: random.Random) -> Edges:
    """Stages of parallel tasks between a fork and a join."""
    edges: Edges = []
    fork, made = 0, 1
    while made < count:
        width = min(count - made - 1, rng.randint(2, max(2, round(math.sqrt(count)))))
        if width < 1:
            edges.append((fork, made))
            made += 1
            continue
        join = made + width
        for task in range(made, join):
            edges += [(fork, task), (task, join)]
        fork, made = join, join + 1
    return edges


def gaussian_elimination(count: int, rng: random.Random) -> Edges:  # noqa: ARG001  # its shape is fixed
    """Column-wise elimination (Topcuoglu 2002) of the largest matrix that makes at most `count` tasks."""
    size = 2
    while ((size + 1) ** 2 + (size + 1) - 2) // 2 <= count:
        size += 1
    edges: Edges = []
    number: dict[tuple[int, int], int] = {}
    for k in range(1, size):
        for j in range(k, size + 1):
            number[k, j] = len(number)
            if j == k and k > 1:
                edges.append((number[k - 1, k], number[k, k]))
            elif j > k:
                edges.append((number[k, k], number[k, j]))
                if k > 1:
                    edges.append((number[k - 1, j], number[k, j]))
    return edges


def fft(count: int, rng: random.Random) -> Edges:  # noqa: ARG001
    """Recursive calls, then butterflies (Topcuoglu 2002), of the largest power of two within `count` tasks."""
    points = 2
    while 2 * (2 * points) - 1 + 2 * points * int(math.log2(2 * points)) <= count:
        points *= 2
    edges: Edges = []
    for parent in range(points - 1):
        edges += [(parent, 2 * parent + 1), (parent, 2 * parent + 2)]
    row = list(range(points - 1, 2 * points - 1))
    made = 2 * points - 1
    for stage in range(int(math.log2(points))):
        following = list(range(made, made + points))
        for i in range(points):
            edges += [(row[i], following[i]), (row[i ^ (1 << stage)], following[i])]
        row, made = following, made + points
    return edges


def in_tree(count: int, rng: random.Random) -> Edges:
    """A reduction: every task but the last has one successor."""
    edges = []
    for task in range(count - 1):
        reach = min(count - 1, task + max(1, (count - task) // 2))
        edges.append((task, rng.randint(task + 1, reach)))
    return edges


def montage(count: int, rng: random.Random) -> Edges:
    """Shape of the Montage workflow: project, fit overlaps, one model, correct each, add up (Bharathi 2008)."""
    images = max(2, (count - 6) // 4)
    overlaps = max(1, count - 6 - 2 * images)
    project = list(range(images))
    fit = list(range(images, images + overlaps))
    concat = images + overlaps
    model = concat + 1
    correct = list(range(model + 1, model + 1 + images))
    tail = list(range(correct[-1] + 1, correct[-1] + 5))
    edges: Edges = []
    for i, task in enumerate(fit):
        a = i % images
        b = rng.choice([image for image in range(max(0, a - 3), min(images, a + 4)) if image != a])
        edges += [(project[a], task), (project[b], task), (task, concat)]
    edges.append((concat, model))
    for image, task in zip(project, correct, strict=True):
        edges += [(model, task), (image, task), (task, tail[0])]
    edges += [(a, b) for a, b in itertools.pairwise(tail)]
    return edges


def epigenomics(count: int, rng: random.Random) -> Edges:
    """Shape of the Epigenomics workflow: lanes that split into chains of four and merge (Bharathi 2008)."""
    edges: Edges = []
    made = 0
    ends: list[int] = []
    budget = max(6, count - 3)
    while made + 6 <= budget or not ends:
        chains = min(max(1, (budget - made - 2) // 4), rng.randint(2, 8))
        split, made = made, made + 1
        last = []
        for _ in range(chains):
            edges.append((split, made))
            edges += [(made + i, made + i + 1) for i in range(3)]
            last.append(made + 3)
            made += 4
        merge, made = made, made + 1
        edges += [(task, merge) for task in last]
        ends.append(merge)
    edges += [(task, made) for task in ends]
    return [*edges, (made, made + 1), (made + 1, made + 2)]


def cybershake(count: int, rng: random.Random) -> Edges:
    """Shape of the CyberShake workflow: extracts, syntheses each with a peak value, two archives (Bharathi 2008)."""
    edges: Edges = []
    syntheses = max(2, (count - 4) // 2)
    extracts = max(1, syntheses // 20)
    zip_seismograms, zip_peaks = extracts + 2 * syntheses, extracts + 2 * syntheses + 1
    for i in range(syntheses):
        synthesis, peak = extracts + 2 * i, extracts + 2 * i + 1
        edges += [(rng.randrange(extracts), synthesis), (synthesis, peak)]
        edges += [(synthesis, zip_seismograms), (peak, zip_peaks)]
    return edges


FAMILIES: Mapping[str, Callable[[int, random.Random], Edges]] = {
    "layered": layered,
    "erdos-renyi": erdos_renyi,
    "fork-join": fork_join,
    "gauss": gaussian_elimination,
    "fft": fft,
    "in-tree": in_tree,
    "montage": montage,
    "epigenomics": epigenomics,
    "cybershake": cybershake,
}


@dataclass(frozen=True, slots=True)
class Setting:
    """What a random problem is like beside its shape."""

    units: int = 3
    heterogeneity: float = 0.5
    """A duration is drawn uniformly from mean * (1 -+ this)."""
    ccr: float = 1.0
    """Mean transfer over mean duration."""
    mean: int = 20
    """Mean duration in whole seconds; all times are whole numbers, so that an optimum can be proven."""


def random_problem(family: str, count: int, setting: Setting, seed: int) -> Problem:
    """A problem of a family: about `count` tasks on unlike units without contention (the classical model).

    Raises:
        KeyError: no such family.
    """
    rng = random.Random(f"{family}/{count}/{setting}/{seed}")
    edges = FAMILIES[family](count, rng)
    tasks = 1 + max((max(edge) for edge in edges), default=count - 1)
    low, high = 1.0 - setting.heterogeneity, 1.0 + setting.heterogeneity
    table: dict[tuple[str, str], float] = {}
    units = [Unit(f"u{i}", f"u{i}", f"u{i}") for i in range(setting.units)]
    for task in range(tasks):
        mean = rng.uniform(0.25, 1.75) * setting.mean
        for unit in units:
            table[f"k{task}", unit.kind] = float(max(1, round(mean * rng.uniform(low, high))))
    data, accesses = [], [list[tuple[str, Access]]() for _ in range(tasks)]
    for a, b in dict.fromkeys(edges):
        name = f"d{a}-{b}"
        data.append(
            Data(name, float(max(1, round(setting.ccr * setting.mean * rng.uniform(0.25, 1.75)))), "u0")
        )
        accesses[a].append((name, Access.WRITE))
        accesses[b].append((name, Access.READ))
    graph = TaskGraph(
        f"{family}-{tasks}-{seed}",
        [Task(f"t{i}", f"k{i}", 1.0, tuple(accesses[i])) for i in range(tasks)],
        data,
    )
    machine: Machine = fully_joined("unlike", units, bytes_per_s=1.0)
    return Problem(graph, machine, lambda task, kind: table.get((task.kernel, kind)))


def _poisson(mean: float, rng: random.Random) -> int:
    limit, product, drawn = math.exp(-mean), rng.random(), 0
    while product > limit:
        product *= rng.random()
        drawn += 1
    return drawn
