"""Placements of known systems, to begin a search from and to compare with."""

from __future__ import annotations

from physical.placement.problem import IDLE, Placement, Problem, Run


def separate(problem: Problem) -> Placement:
    """Each kind of machine makes pipelines of its own, layers split evenly; who is left over stays idle."""
    runs = _resting(problem)
    for rates, machines in problem.kinds:
        stages = -(-problem.layers // max(1, len(rates)))
        for pipeline in range(len(machines) // stages if rates else 0):
            # The longest even split that the machines allow: whoever is left over lengthens the first pipelines.
            spare = len(machines) % stages
            number = stages + (spare if pipeline == 0 else 0)
            first = pipeline * stages + (spare if pipeline else 0)
            for place, machine in enumerate(machines[first : first + number]):
                start = place * problem.layers // number
                runs[machine] = Run(start, (place + 1) * problem.layers // number - start)
    return tuple(runs)


def swarm(problem: Problem) -> Placement:
    """Stages of equal length, as few as the smallest machine allows; each machine joins the stage that is weakest.

    After Ryabinin et al., SWARM parallelism, ICML 2023.
    """
    runs = _resting(problem)
    able = [i for i in range(len(problem.machines)) if problem.most(i)]
    smallest = min((problem.most(i) for i in able), default=1)
    stages = -(-problem.layers // smallest)
    cuts = [stage * problem.layers // stages for stage in range(stages + 1)]
    carried = [0.0] * stages
    for i in sorted(able, key=lambda i: -problem.machines[i].rate(smallest)):
        stage = min(range(stages), key=carried.__getitem__)
        runs[i] = Run(cuts[stage], cuts[stage + 1] - cuts[stage])
        carried[stage] += problem.machines[i].rate(runs[i].count)
    return tuple(runs)


def petals(problem: Problem) -> Placement:
    """Machines join one by one, each holding as many layers as it can where the least is carried so far.

    After Borzunov et al., Petals, 2023.
    """
    runs = _resting(problem)
    carried = [0.0] * problem.layers
    order = sorted(range(len(problem.machines)), key=problem.most, reverse=True)
    for i in order:
        count = problem.most(i)
        if not count:
            continue
        # The weakest layer of the window decides, then the next weakest, and so on.
        start = min(range(problem.layers - count + 1), key=lambda s: sorted(carried[s : s + count]))
        runs[i] = Run(start, count)
        for layer in range(start, start + count):
            carried[layer] += problem.machines[i].rate(count)
    return tuple(runs)


def _resting(problem: Problem) -> list[Run]:
    return [
        Run(0, 1) if problem.must_hold and problem.most(i) else IDLE for i in range(len(problem.machines))
    ]
