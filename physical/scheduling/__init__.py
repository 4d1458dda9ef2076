"""Scheduling of task graphs over unlike units: model, plans, simulation, and our own planner (docs/scheduling.md)."""

from physical.scheduling.bounds import area, critical_path_s, lower_bound_s
from physical.scheduling.disturbance import Disturbance, Loss, Slowdown
from physical.scheduling.following import Following
from physical.scheduling.graph import Access, CyclicGraphError, Data, GraphError, Task, TaskGraph
from physical.scheduling.heft import Heft, LookaheadHeft, Peft
from physical.scheduling.machine import (
    Hop,
    Link,
    Machine,
    MachineError,
    Unit,
    fully_joined,
    host_with_accelerators,
)
from physical.scheduling.models import Basis, Estimate, PerformanceModel
from physical.scheduling.online import Online
from physical.scheduling.plan import Move, Plan
from physical.scheduling.planner import Planner
from physical.scheduling.port import Dispatcher, Scheduler, State
from physical.scheduling.problem import Durations, Problem, TaskTooLargeError
from physical.scheduling.queues import Dmda, Dmdas, Eager, Priority
from physical.scheduling.recovery import DataLostError, ExecutionError
from physical.scheduling.replay import replay, tightened
from physical.scheduling.simulation import simulate
from physical.scheduling.trace import InvalidScheduleError, Run, Trace, check, trace_of

__all__ = [
    "Access",
    "Basis",
    "CyclicGraphError",
    "Data",
    "DataLostError",
    "Dispatcher",
    "Disturbance",
    "Dmda",
    "Dmdas",
    "Durations",
    "Eager",
    "Estimate",
    "ExecutionError",
    "Following",
    "GraphError",
    "Heft",
    "Hop",
    "InvalidScheduleError",
    "Link",
    "LookaheadHeft",
    "Loss",
    "Machine",
    "MachineError",
    "Move",
    "Online",
    "Peft",
    "PerformanceModel",
    "Plan",
    "Planner",
    "Priority",
    "Problem",
    "Run",
    "Scheduler",
    "Slowdown",
    "State",
    "Task",
    "TaskGraph",
    "TaskTooLargeError",
    "Trace",
    "Unit",
    "area",
    "check",
    "critical_path_s",
    "fully_joined",
    "host_with_accelerators",
    "lower_bound_s",
    "replay",
    "simulate",
    "tightened",
    "trace_of",
]
