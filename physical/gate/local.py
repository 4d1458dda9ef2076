"""The machine at hand: processes through the kernel, GPU power through NVML."""

from __future__ import annotations

import hashlib
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from physical.gate import procfs
from physical.gate.actuator import ActuatorError, Look, State
from physical.gate.mutations import (
    Mutation,
    PinCpus,
    SetLimit,
    SetNice,
    SetPower,
    StartProcess,
    StopProcess,
    from_dict,
    to_dict,
)
from physical.gate.replicas import DeployReplicas
from physical.gate.starting import RLIMITS, Marks, start

_UNDO_GRACE_S = 5.0
_NO_REPLICAS = "replicas belong to a server: `autopoiesis loop serve --plan FILE` deploys them"


class PowerControl(Protocol):
    """Power limits of GPUs, in watts. Methods raise ActuatorError."""

    def limit_watts(self, device: str) -> float:
        """What it is set to."""

    def range_watts(self, device: str) -> tuple[float, float]:
        """(least, most) that it can be set to."""

    def set_limit_watts(self, device: str, watts: float) -> None:
        """Set it."""


class LocalActuator:
    """The Actuator of the machine it runs on. `directory` holds the logs of what it starts, and tells its processes
    from those of other gates."""

    def __init__(self, directory: Path, power: Callable[[], PowerControl] | None = None) -> None:
        self._directory = directory
        self._marks = Marks(hashlib.sha256(str(directory.resolve()).encode()).hexdigest()[:16])
        self._power = power

    def running(self) -> dict[str, int]:
        """Name -> process number."""
        found: dict[str, int] = {}
        for process, begun, _ in self._marks.found():
            found.setdefault(begun.name, process.pid)
        return found

    def look(self, mutation: Mutation) -> Look:
        """How things stand."""
        if isinstance(mutation, StartProcess):
            return self._look_start(mutation)
        if isinstance(mutation, StopProcess):
            return self._look_stop(mutation)
        if isinstance(mutation, SetPower):
            return self._look_power(mutation)
        if isinstance(mutation, DeployReplicas):
            raise ActuatorError(_NO_REPLICAS)
        process = self._target(mutation.target)
        if isinstance(mutation, PinCpus):
            return _look_pin(mutation, process)
        if isinstance(mutation, SetNice):
            return _look_nice(mutation, process)
        return _look_limit(mutation, process)

    def apply(self, mutation: Mutation, state: State, token: str) -> State:
        """Make it so."""
        if isinstance(mutation, StartProcess):
            process = start(mutation, self._marks, token, self._log(mutation.name))
            return {"pid": process.pid, "began": process.began}
        if isinstance(mutation, StopProcess):
            for process, begun, _ in self._marks.found():
                if begun.name == mutation.name:
                    procfs.end(process, mutation.grace_s)
            return {}
        if isinstance(mutation, SetPower):
            self._control().set_limit_watts(mutation.device, mutation.watts)
            return {}
        if isinstance(mutation, DeployReplicas):
            raise ActuatorError(_NO_REPLICAS)
        process = procfs.Process(int(state["pid"]), int(state["began"]))
        if not process.alive():
            raise ActuatorError(f"process {process.pid} has ended")
        if isinstance(mutation, PinCpus):
            _each_thread(process, lambda tid: os.sched_setaffinity(tid, mutation.cpus))
        elif isinstance(mutation, SetNice):
            _each_thread(process, lambda tid: os.setpriority(os.PRIO_PROCESS, tid, mutation.nice))
        else:
            _set_soft(process.pid, mutation, mutation.value)
        return {}

    def undo(self, mutation: Mutation, state: State, token: str) -> None:
        """Back to how it was."""
        if isinstance(mutation, StartProcess):
            for process, _, marked in self._marks.found():
                if marked == token:
                    procfs.end(process, _UNDO_GRACE_S)
            return
        if isinstance(mutation, StopProcess):
            again = from_dict(state["start"])
            if isinstance(again, StartProcess) and again.name not in self.running():
                start(again, self._marks, token, self._log(again.name))
            return
        if isinstance(mutation, SetPower):
            self._control().set_limit_watts(mutation.device, float(state["watts"]))
            return
        if isinstance(mutation, DeployReplicas):
            return  # it was never applied here
        process = procfs.Process(int(state["pid"]), int(state["began"]))
        if not process.alive():
            return  # nothing of it is left to be put right
        if isinstance(mutation, PinCpus):
            were = {int(tid): cpus for tid, cpus in state["threads"].items()}
            usual = were[min(were)]
            _each_thread(process, lambda tid: os.sched_setaffinity(tid, were.get(tid, usual)))
        elif isinstance(mutation, SetNice):
            had = {int(tid): nice for tid, nice in state["threads"].items()}
            main = had[min(had)]
            _each_thread(process, lambda tid: os.setpriority(os.PRIO_PROCESS, tid, had.get(tid, main)))
        else:
            _set_soft(process.pid, mutation, int(state["soft"]))

    def _look_start(self, mutation: StartProcess) -> Look:
        for process, begun, _ in self._marks.found():
            if begun.name == mutation.name:
                if begun == mutation:
                    return Look(already=True, state={}, words=f"runs already as process {process.pid}")
                return Look(
                    already=False,
                    state={},
                    words=f"another command runs under this name as process {process.pid}",
                    problem=f"'{mutation.name}' runs as something else; stop it first, in a plan of its own",
                )
        return Look(already=False, state={}, words="not running")

    def _look_stop(self, mutation: StopProcess) -> Look:
        for process, begun, _ in self._marks.found():
            if begun.name == mutation.name:
                state = {"pid": process.pid, "began": process.began, "start": to_dict(begun)}
                return Look(already=False, state=state, words=f"runs as process {process.pid}")
        return Look(already=True, state={}, words="not running")

    def _look_power(self, mutation: SetPower) -> Look:
        control = self._control()
        now, (least, most) = control.limit_watts(mutation.device), control.range_watts(mutation.device)
        outside = not least <= mutation.watts <= most
        return Look(
            already=abs(now - mutation.watts) < 0.5,
            state={"watts": now},
            words=f"limited to {now:g} W",
            problem=f"the device takes {least:g} to {most:g} W" if outside else "",
        )

    def _target(self, target: str) -> procfs.Process:
        if target.startswith("pid:"):
            return procfs.there(int(target[4:]))
        for process, begun, _ in self._marks.found():
            if begun.name == target:
                return process
        raise ActuatorError(f"'{target}' is not running")

    def _control(self) -> PowerControl:
        if self._power is None:
            raise ActuatorError("this gate has no control of GPU power")
        return self._power()

    def _log(self, name: str) -> Path:
        return self._directory / "logs" / f"{name}.log"


def _look_pin(mutation: PinCpus, process: procfs.Process) -> Look:
    threads = {str(tid): sorted(os.sched_getaffinity(tid)) for tid in process.threads() if _lives(tid)}
    if not threads:
        raise ActuatorError(f"process {process.pid} has ended")
    cpus = sorted(mutation.cpus)
    now = sorted({cpu for entry in threads.values() for cpu in entry})
    offline = sorted(set(cpus) - set(range(os.cpu_count() or 1)))
    return Look(
        already=all(entry == cpus for entry in threads.values()),
        state={"pid": process.pid, "began": process.began, "threads": threads},
        words=f"{len(threads)} threads on CPUs {','.join(map(str, now))}",
        problem=f"this machine has no CPUs {offline}" if offline else "",
    )


def _look_nice(mutation: SetNice, process: procfs.Process) -> Look:
    threads = {str(tid): os.getpriority(os.PRIO_PROCESS, tid) for tid in process.threads() if _lives(tid)}
    if not threads:
        raise ActuatorError(f"process {process.pid} has ended")
    lowest = min(threads.values())
    stuck = mutation.nice > lowest and not _may_lower_to(lowest)
    return Look(
        already=set(threads.values()) == {mutation.nice},
        state={"pid": process.pid, "began": process.began, "threads": threads},
        words=f"nice {lowest}",
        no_way_back=f"only the administrator may go back to nice {lowest}" if stuck else "",
    )


def _look_limit(mutation: SetLimit, process: procfs.Process) -> Look:
    number = RLIMITS[mutation.resource]
    try:
        soft, hard = resource.prlimit(process.pid, number)
    except (OSError, ValueError) as error:
        raise ActuatorError(f"cannot read the limits of process {process.pid}: {error}") from error
    problem = ""
    if hard != resource.RLIM_INFINITY and mutation.value > hard:
        problem = f"the hard limit of {mutation.resource} is {hard:,}"
    elif number == resource.RLIMIT_AS and (used := procfs.virtual_bytes(process.pid)) > mutation.value:
        problem = f"process {process.pid} uses {used:,} bytes of address space already"
    return Look(
        already=soft == mutation.value,
        state={"pid": process.pid, "began": process.began, "soft": soft},
        words=f"{mutation.resource} {'unlimited' if soft == resource.RLIM_INFINITY else f'<= {soft:,}'}",
        problem=problem,
    )


def _each_thread(process: procfs.Process, act: Callable[[int], None]) -> None:
    """On all threads, and once more on those that came meanwhile."""
    done: set[int] = set()
    while new := [tid for tid in process.threads() if tid not in done]:
        for tid in new:
            done.add(tid)
            try:
                act(tid)
            except ProcessLookupError:
                continue  # a thread that has ended
            except (OSError, ValueError) as error:
                raise ActuatorError(f"process {process.pid}, thread {tid}: {error}") from error


def _set_soft(pid: int, mutation: SetLimit, value: int) -> None:
    number = RLIMITS[mutation.resource]
    try:
        _, hard = resource.prlimit(pid, number)
        resource.prlimit(pid, number, (value, hard))
    except (OSError, ValueError) as error:
        raise ActuatorError(f"process {pid}: cannot set {mutation.resource}: {error}") from error


def _may_lower_to(nice: int) -> bool:
    soft, _ = resource.getrlimit(resource.RLIMIT_NICE)
    return os.geteuid() == 0 or soft == resource.RLIM_INFINITY or nice >= 20 - soft


def _lives(tid: int) -> bool:
    return procfs.find(tid) is not None
