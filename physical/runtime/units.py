"""The units and memories of this machine, as a machine's description names them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

from physical.runtime.host import HostMemory, ThreadUnit
from physical.runtime.port import Event, Lost, Memory, MemoryLostError, Report, RunningUnit
from physical.runtime.process import ProcessUnit
from physical.scheduling.machine import Machine, MachineError
from physical.scheduling.problem import Problem

HOST = "host"
THREAD, PROCESS, CUDA = "cpu", "process", "cuda"
"""Kinds of unit: a thread of this process, a process with a memory of its own, a GPU."""


class Units:
    """Running units by their index in the machine. A context: units end with it."""

    def __init__(
        self,
        machine: Machine,
        *,
        cores: Mapping[str, int] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Start all. `cores`: of units by name; `environment`: of processes.

        Raises MachineError for a kind that is unknown, or a memory that does not go with its kind.
        """
        self.machine = machine
        self._report: Report | None = None
        self._units: list[RunningUnit] = []
        self._memories: dict[int, Memory] = (
            {machine.nodes.index(HOST): HostMemory()} if HOST in machine.nodes else {}
        )
        self._lost: dict[int, Lost] = {}
        try:
            for number, unit in enumerate(machine.units):
                core = (cores or {}).get(unit.name)
                self._units.append(
                    self._start(number, unit.kind, machine.nodes.index(unit.node), core, environment)
                )
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __getitem__(self, unit: int) -> RunningUnit:
        return self._units[unit]

    def memory(self, node: int) -> Memory:
        """The memory of a node."""
        return self._memories[node]

    def connect(self, report: Report) -> None:
        """Who is told what happens from now on; at once of units that are lost already."""
        self._report = report
        for event in self._lost.values():
            report(event)

    def settle(self, busy: Sequence[int]) -> None:
        """Nobody listens any more; units that still compute are ended, and count as lost."""
        self._report = None
        for unit in busy:
            self._units[unit].close()
            self._lost[unit] = Lost(unit, "it was ended while it computed")

    def carry(self, version: int, source: int, target: int) -> None:
        """Copy a value from one memory to another. Raises MemoryLostError."""
        here, there = self._memories.get(source), self._memories.get(target)
        if here is None or there is None:
            raise MemoryLostError(f"memory {source if here is None else target} is gone")
        there.put(version, here.get(version))

    def fastest_first(self, problem: Problem) -> list[int]:
        """Unit indices by what they need for the task that they are best at: who is asked first."""
        best = [min((row[g] for row in problem.durations), default=0.0) for g in range(len(problem.groups))]
        return sorted(range(problem.units), key=lambda unit: (best[problem.group_of[unit]], unit))

    def close(self) -> None:
        """End all units."""
        self._report = None
        for unit in self._units:
            unit.close()

    def _start(
        self, number: int, kind: str, node: int, core: int | None, environment: Mapping[str, str] | None
    ) -> RunningUnit:
        unit = self.machine.units[number]
        if kind == THREAD:
            memory = self._memories.get(node)
            if not isinstance(memory, HostMemory):
                raise MachineError(f"unit '{unit.name}': a thread computes on '{HOST}', not on '{unit.node}'")
            return ThreadUnit(number, memory, self._happened, core)
        if node in self._memories:
            raise MachineError(
                f"unit '{unit.name}': a {kind} has a memory of its own, '{unit.node}' is taken"
            )
        if kind == PROCESS:
            process = ProcessUnit(number, self._happened, core, environment)
            self._memories[node] = process
            return process
        if kind == CUDA:
            from physical.runtime.cuda import CudaUnit  # noqa: PLC0415  # only where there is one

            cuda = CudaUnit(number, unit.node, self._happened)
            self._memories[node] = cuda
            return cuda
        raise MachineError(
            f"unit '{unit.name}': unknown kind '{kind}' (there are {THREAD}, {PROCESS}, {CUDA})"
        )

    def _happened(self, event: Event) -> None:
        if isinstance(event, Lost):
            self._lost[event.unit] = event
        report = self._report
        if report is not None:
            report(event)
