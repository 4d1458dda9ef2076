"""How much time and memory foreign code gets."""

from __future__ import annotations

from dataclasses import dataclass, replace

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class SandboxLimits:
    """Bounds of one sandbox. Times are wall seconds: whoever waits for the answer waits on that clock."""

    route_s: float = 0.05
    """For `route`, `priority` and both together (`dispatch`)."""
    should_replan_s: float = 1.0
    plan_grace_s: float = 1.0
    """`plan` gets its budget and this."""
    load_s: float = 5.0
    """For executing the module once."""
    start_s: float = 60.0
    """For a template process to start, import and load its data; its workers are forked from it."""
    memory_bytes: int = 512 * MIB
    """Address space of a worker, the interpreter's own some 50 MiB included."""
    cpu_s: int = 24 * 3600
    """CPU time of one worker process over its whole life: the last resort, the deadlines bite long before."""
    max_kills: int = 3
    """After so many kills (deadline missed, or process lost) no worker is started any more."""

    share_cpu: bool = False
    """Bind the worker and the thread that asks it to one CPU: a crossing then costs tens of microseconds
    instead of some 150. For a process whose thread does little else than ask."""

    follow_cpu: bool = True
    """Else: keep the worker on the CPU from which it is asked, and leave the asking thread free. Waking a
    process on another, idle CPU costs ten times as much as switching to it."""
    side_by_side: bool = True
    """With `follow_cpu`: while questions come close together, and as long as another CPU is free, the worker
    and the asking thread run on two CPUs and stay awake between two questions, which halves a crossing."""
    bubblewrap: bool = True
    """Start workers inside of bubblewrap where it is installed and works."""

    def patient(self) -> SandboxLimits:
        """For replays on virtual time, where a slow machine must not change the outcome: deadlines only for
        what never ends."""
        return replace(
            self,
            route_s=5.0,
            should_replan_s=10.0,
            plan_grace_s=10.0,
            load_s=30.0,
            start_s=600.0,
            share_cpu=True,
        )
