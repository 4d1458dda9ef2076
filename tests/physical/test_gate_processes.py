"""The gate on this very machine: real processes, seen in /proc."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from physical.gate import (
    Gate,
    GateRules,
    PinCpus,
    RefusedError,
    Resource,
    Rule,
    SetLimit,
    SetNice,
    StartProcess,
    StopProcess,
)
from physical.gate.gate import FailedError
from physical.gate.journal import read_records
from physical.gate.local import LocalActuator
from physical.gate.procfs import find

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux's /proc")

SLEEP = (sys.executable, "-S", "-c", "import time; time.sleep(600)")
CPUS = sorted(os.sched_getaffinity(0))


@pytest.fixture
def state(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    actuator = LocalActuator(tmp_path)
    for pid in actuator.running().values():
        os.killpg(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def gate(state: Path, rules: GateRules | None = None) -> Gate:
    return Gate(LocalActuator(state), state / "journal.jsonl", rules)


def pids(state: Path) -> dict[str, int]:
    return LocalActuator(state).running()


def status(pid: int, field: str) -> str:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return line.partition(":")[2].strip()
    raise AssertionError(field)


def soft_limit(pid: int, name: str) -> str:
    line = next(
        text for text in Path(f"/proc/{pid}/limits").read_text().splitlines() if text.startswith(name)
    )
    return line[26:].split()[0]


def nice_of(pid: int) -> int:
    return os.getpriority(os.PRIO_PROCESS, pid)


def test_a_process_starts_pinned_and_limited(state: Path) -> None:
    wanted = StartProcess(
        "web",
        SLEEP,
        cwd="/",
        env={"COLOUR": "blue"},
        cpus=(CPUS[-1],),
        nice=7,
        limits={Resource.OPEN_FILES: 50, Resource.MEMORY_BYTES: 3 << 30},
    )
    gate(state).apply([wanted])
    pid = pids(state)["web"]
    assert status(pid, "Cpus_allowed_list") == str(CPUS[-1])
    assert nice_of(pid) == 7
    assert soft_limit(pid, "Max open files") == "50"
    assert soft_limit(pid, "Max address space") == str(3 << 30)
    assert Path(f"/proc/{pid}/cwd").resolve() == Path("/")
    assert b"COLOUR=blue" in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    assert tuple(Path(f"/proc/{pid}/cmdline").read_text().split("\0")[:-1]) == SLEEP
    assert gate(state).apply([wanted]).changed == ()
    gate(state).apply([StopProcess("web", 5.0)])
    assert find(pid) is None
    assert pids(state) == {}


def test_a_running_process_is_pinned_limited_and_made_nicer(state: Path) -> None:
    threads = (
        "import threading,time; [threading.Thread(target=time.sleep,args=(600,)).start() for _ in range(3)]"
    )
    gate(state).apply([StartProcess("web", (sys.executable, "-S", "-c", threads))])
    pid = pids(state)["web"]
    tasks = Path(f"/proc/{pid}/task")
    _until(lambda: len(list(tasks.iterdir())) == 4)
    gate(state).apply([PinCpus("web", (CPUS[0],)), SetLimit("web", Resource.OPEN_FILES, 77)])
    for task in tasks.iterdir():
        assert os.sched_getaffinity(int(task.name)) == {CPUS[0]}
    assert soft_limit(pid, "Max open files") == "77"
    nicer = SetNice(f"pid:{pid}", 3)
    if os.geteuid() == 0:
        gate(state).apply([nicer])
        assert {nice_of(int(task.name)) for task in tasks.iterdir()} == {3}
    else:  # it could not be taken back
        with pytest.raises(RefusedError) as refused:
            gate(state).apply([nicer])
        assert {r.rule for r in refused.value.refusals} == {Rule.NOT_REVERSIBLE}


def test_a_plan_that_fails_puts_everything_back(state: Path) -> None:
    gate(state).apply([StartProcess("web", SLEEP)])
    pid, before = pids(state)["web"], status(pids(state)["web"], "Cpus_allowed_list")
    plan = [
        PinCpus("web", (CPUS[-1],)),
        StartProcess("more", SLEEP),
        StartProcess("bad", ("/no/such/program",)),
    ]
    with pytest.raises(FailedError, match=r"cannot start bad: .*No such file"):
        gate(state).apply(plan)
    assert pids(state) == {"web": pid}
    assert status(pid, "Cpus_allowed_list") == before


@pytest.mark.slow
def test_what_was_stopped_runs_again_when_a_later_step_fails(state: Path) -> None:
    wanted = StartProcess("web", SLEEP, nice=2)
    gate(state).apply([wanted])
    first = pids(state)["web"]
    with pytest.raises(FailedError):
        gate(state).apply([StopProcess("web", 5.0), StartProcess("bad", ("/no/such/program",))])
    again = pids(state)["web"]
    assert again != first
    assert nice_of(again) == 2
    assert gate(state).apply([wanted]).changed == ()


def test_a_process_of_others_is_left_alone(state: Path) -> None:
    with subprocess.Popen(SLEEP) as other:
        try:
            before = status(other.pid, "Cpus_allowed_list"), nice_of(other.pid)
            plan = [PinCpus(f"pid:{other.pid}", (CPUS[0],)), SetNice(f"pid:{other.pid}", 9)]
            with pytest.raises(RefusedError) as refused:
                gate(state).apply(plan)
            assert {r.rule for r in refused.value.refusals} == {Rule.ALLOW_LIST}
            assert (status(other.pid, "Cpus_allowed_list"), nice_of(other.pid)) == before
            named = GateRules(allowed_pids=(other.pid,))
            gate(state, named).apply([PinCpus(f"pid:{other.pid}", (CPUS[0],))])
            assert status(other.pid, "Cpus_allowed_list") == str(CPUS[0])
        finally:
            other.kill()


def test_limits_that_would_choke_a_process_are_refused(state: Path) -> None:
    gate(state).apply(
        [
            StartProcess(
                "web", (sys.executable, "-S", "-c", "b = bytearray(1 << 28)\nimport time; time.sleep(600)")
            )
        ]
    )
    pid = pids(state)["web"]
    _until(lambda: int(status(pid, "VmSize").split()[0]) > 1 << 18)
    with pytest.raises(RefusedError, match="of address space already"):
        gate(state).apply([SetLimit("web", Resource.MEMORY_BYTES, 128 << 20)])
    assert soft_limit(pid, "Max address space") == "unlimited"


def test_another_command_under_the_same_name_is_refused(state: Path) -> None:
    gate(state).apply([StartProcess("web", SLEEP)])
    with pytest.raises(RefusedError, match="runs as something else"):
        gate(state).apply([StartProcess("web", (*SLEEP, "other"))])


def test_two_gates_do_not_see_each_other(state: Path) -> None:
    gate(state / "one").apply([StartProcess("web", SLEEP)])
    try:
        assert pids(state / "two") == {}
    finally:
        gate(state / "one").apply([StopProcess("web", 5.0)])


def test_a_stubborn_process_is_killed_after_its_grace(state: Path) -> None:
    deaf = (
        "import signal,time; signal.signal(signal.SIGTERM, signal.SIG_IGN); open('deaf','w'); time.sleep(600)"
    )
    gate(state).apply([StartProcess("web", (sys.executable, "-S", "-c", deaf), cwd=str(state))])
    pid = pids(state)["web"]
    _until((state / "deaf").exists)
    gate(state).apply([StopProcess("web", 0.05)])
    assert find(pid) is None


KILLED = """
import os, signal, sys
from itertools import count
from pathlib import Path
from physical.gate import Gate, PinCpus, StartProcess
from physical.gate.journal import GateJournal
from physical.gate.local import LocalActuator
state, dying, cpu = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
real, writes = GateJournal.write, count()
def write(self, event, **values):
    if next(writes) == dying:
        os.kill(os.getpid(), signal.SIGKILL)
    real(self, event, **values)
GateJournal.write = write
sleep = (sys.executable, "-S", "-c", "import time; time.sleep(600)")
plan = [PinCpus("web", (cpu,)), StartProcess("more", sleep)]
Gate(LocalActuator(state), state / "journal.jsonl").apply(plan)
"""


@pytest.mark.slow
@pytest.mark.parametrize("dying", [1, 2, 3, 4, 5])
def test_kill_9_at_any_write_is_undone_and_the_plan_can_be_applied_again(state: Path, dying: int) -> None:
    """Writes: begin, before and after the pinning, before and after the start, end."""
    gate(state).apply([StartProcess("web", SLEEP)])
    pid, before = pids(state)["web"], status(pids(state)["web"], "Cpus_allowed_list")
    cpu = CPUS[-1]
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(state), str(dying), str(cpu)],
        cwd=Path(__file__).parents[2],
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    assert ("more" in pids(state)) == (dying >= 4)  # before `after start`, the process is there all the same
    gate(state).recover()
    assert pids(state) == {"web": pid}
    assert status(pid, "Cpus_allowed_list") == before
    gate(state).apply([PinCpus("web", (cpu,)), StartProcess("more", SLEEP)])
    assert status(pid, "Cpus_allowed_list") == str(cpu)
    assert sorted(pids(state)) == ["more", "web"]
    ends = [r["outcome"] for r in read_records(state / "journal.jsonl") if r["event"] == "end"]
    assert ends == ["applied", "undone: cut off", "applied"]


def test_a_process_that_is_gone_needs_no_undoing(state: Path) -> None:
    actuator = LocalActuator(state)
    wanted = StartProcess("web", SLEEP)
    actuator.apply(wanted, {}, "token")
    pin = PinCpus("web", (CPUS[0],))
    seen = actuator.look(pin)
    actuator.undo(wanted, {}, "token")
    assert actuator.running() == {}
    actuator.undo(pin, seen.state, "x")
    actuator.undo(wanted, {}, "token")


def _until(true: Callable[[], object]) -> None:
    deadline_s = time.monotonic() + 60.0
    while not true():
        assert time.monotonic() < deadline_s, "waited in vain"
        time.sleep(0.005)
