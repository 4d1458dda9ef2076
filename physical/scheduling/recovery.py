"""What must be computed again when a memory is gone, and what must wait for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from physical.scheduling.problem import Problem


class ExecutionError(RuntimeError):
    """An execution that cannot go on; the message says why."""


class DataLostError(ExecutionError):
    """Data went with a unit, and cannot be computed again."""


def overwritten(problem: Problem, version: int) -> DataLostError:
    """The error for a version that is needed again and is nowhere."""
    name = problem.graph.data[problem.version_data[version]].name
    return DataLostError(
        f"datum '{name}' is needed again since a unit went with what was computed from it, and is overwritten: "
        "keep a copy in host memory, or start again"
    )


def to_redo(
    problem: Problem,
    done: Sequence[bool],
    running: set[int],
    newest: Mapping[int, int],
    nowhere: Callable[[int], bool],
) -> set[int]:
    """Tasks that are done and must be done again: their results are in no memory, and are results of the
    whole, or read by what is not done or must be done again.

    `newest`: datum -> its newest version that is in a memory or being written.

    Raises:
        DataLostError: one of them reads what is overwritten by now.
    """
    undone: set[int] = set()
    last = {datum: version for version, datum in enumerate(problem.version_data)}
    for version in last.values():
        producer = problem.producer[version]
        if producer >= 0 and done[producer] and nowhere(version):
            undone.add(producer)
    heap = [task for task in range(problem.tasks) if not done[task] and task not in running]
    heap += sorted(undone)
    while heap:
        for version in problem.inputs[heap.pop()]:
            producer = problem.producer[version]
            made_later = producer >= 0 and (not done[producer] or producer in undone)
            if made_later or not nowhere(version):
                continue
            if producer < 0:
                raise overwritten(problem, version)
            undone.add(producer)
            heap.append(producer)
    for task in sorted(undone):
        for version in problem.inputs[task]:
            if newest.get(problem.version_data[version], -1) > version:
                raise overwritten(problem, version)
    return undone


def held_back(problem: Problem, done: Sequence[bool]) -> Iterator[tuple[int, int]]:
    """(task, task that must wait for it too): those that follow an undone task only by way of done ones, since
    what it reads must not be overwritten before."""
    for task in range(problem.tasks):
        if done[task]:
            continue
        stack = [f for f in problem.successors[task] if done[f]]
        seen = set(stack)
        while stack:
            for follower in problem.successors[stack.pop()]:
                if follower not in seen:
                    seen.add(follower)
                    if done[follower]:
                        stack.append(follower)
                    else:
                        yield task, follower
