"""The background process: budgets, pauses, deaths. Its compilers here import nothing heavy."""

from __future__ import annotations

import asyncio
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from execution.compiler.background import Background, Job, Outcome
from execution.compiler.budget import Budget
from execution.compiler.port import Bucket, Recipe, Subject, TensorSpec

pytestmark = pytest.mark.slow  # real processes, a fraction of a second each
SUBJECT = Subject("elementwise", (TensorSpec((8, 33), "float32"),), (), Bucket(1, 8), 1)
LONG_S = 300.0
"""Nothing waits for it unless something is broken."""


@pytest.fixture
def background() -> Iterator[Background]:
    made = Background(Budget(cpu_s_per_minute=6000, priority="low", memory_bytes=1 << 30))
    yield made
    made.close()
    assert made.pids() == []


class Asked:
    """A job, and what it told while it ran."""

    def __init__(
        self,
        background: Background,
        backend: str,
        folder: Path,
        *,
        limit_s: float = LONG_S,
        priority: float = 0.0,
        **more: Any,
    ) -> None:
        self.told: queue.Queue[str] = queue.Queue()
        request = {
            "backend": f"tests.execution.compiler.faulty:{backend}",
            "subject": SUBJECT,
            "recipe": Recipe(backend, "default", settings=tuple(more.items())),
            "folder": folder,
        }
        self.job: Job = background.submit(
            "compile",
            request,
            limit_s=limit_s,
            priority=priority,
            on_message=lambda m, _: self.told.put(str(m.get("progress", ""))),
        )

    def outcome(self) -> Outcome:
        return self.job.result(LONG_S)


def alive(pid: int) -> bool:
    """Neither gone nor dead and unburied."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def until(true: Any, what: str) -> None:
    """Waits as long as it takes, within reason."""
    end_s = time.monotonic() + LONG_S
    while not true():
        assert time.monotonic() < end_s, f"never: {what}"
        time.sleep(0.01)


def test_it_compiles_in_another_process_and_is_kept_for_the_next(
    background: Background, tmp_path: Path
) -> None:
    first = Asked(background, "Good", tmp_path).outcome()
    assert first.fate == "done"
    assert (tmp_path / "code").read_text() == "good"
    (pid,) = background.pids()
    assert os.getpgid(pid) == pid
    assert os.getsid(pid) == os.getsid(0)  # so that its priority counts
    assert os.getpriority(os.PRIO_PROCESS, pid) == 10
    assert Asked(background, "Good", tmp_path).outcome().fate == "done"
    assert background.pids() == [pid]


def test_idle_is_a_priority_of_its_own(tmp_path: Path) -> None:
    background = Background(Budget(priority="idle"))
    try:
        assert Asked(background, "Good", tmp_path).outcome().fate == "done"
        (pid,) = background.pids()
        assert os.sched_getscheduler(pid) == os.SCHED_IDLE
    finally:
        background.close()


@pytest.mark.parametrize(
    ("backend", "fate", "words"),
    [
        ("CompileFails", "failed", "this cannot be compiled"),
        ("CompileRaises", "failed", "KeyError"),
        ("CompileSegfaults", "crashed", "SIGSEGV"),
        ("CompileExits", "crashed", "exit code 3; it said: no licence found"),
        ("CompileFillsDisk", "failed", "OSError"),
        ("CompileEats", "memory", ""),
        ("NoSuchBackend", "failed", "cannot be imported"),
        ("Babbles", "done", ""),
    ],
)
def test_what_goes_wrong_is_an_outcome(
    background: Background, tmp_path: Path, backend: str, fate: str, words: str
) -> None:
    outcome = Asked(background, backend, tmp_path).outcome()
    assert (outcome.fate, words) == (fate, words if words in outcome.reason else outcome.reason)
    assert Asked(background, "Good", tmp_path).outcome().fate == "done"  # the next has another process


def test_a_hang_is_killed_with_all_that_it_started(background: Background, tmp_path: Path) -> None:
    asked = Asked(background, "CompileHangs", tmp_path, limit_s=1.0)
    outcome = asked.outcome()
    assert outcome.fate == "hung"
    assert "1 s" in outcome.reason
    said = asked.told.get_nowait() if not asked.told.empty() else ""
    if said:  # unless the machine was too slow to get so far in a second
        child = int(said.split()[1])
        until(lambda: not alive(child), "the child of a killed compiler is dead")
    assert Asked(background, "Good", tmp_path).outcome().fate == "done"


def test_running_and_waiting_jobs_can_be_cancelled(background: Background, tmp_path: Path) -> None:
    running = Asked(background, "CompileWaits", tmp_path)
    waiting = Asked(background, "Good", tmp_path / "never")
    assert running.told.get(timeout=LONG_S) == "waiting"
    waiting.job.cancel()
    running.job.cancel()
    assert running.outcome().fate == "cancelled"
    assert waiting.outcome().fate == "cancelled"
    assert Asked(background, "Good", tmp_path).outcome().fate == "done"


def test_priority_goes_first(background: Background, tmp_path: Path) -> None:
    order: list[str] = []
    background.pause("test")
    for name, priority in (("low", 0.0), ("high", 2.0), ("middle", 1.0), ("low again", 0.0)):
        asked = Asked(background, "Good", tmp_path, priority=priority)
        asked.job.on_done(lambda name=name: order.append(name))
    background.resume("test")
    asked.outcome()
    until(lambda: len(order) == 4, "all are done")
    assert order == ["high", "middle", "low", "low again"]


def test_a_pause_halts_and_does_not_count(background: Background, tmp_path: Path) -> None:
    end = tmp_path / "end"
    asked = Asked(background, "CompileSpins", tmp_path, limit_s=LONG_S, until=str(end))
    assert asked.told.get(timeout=LONG_S) == "spinning"
    background.pause("pressure")
    background.pause("asked")
    (pid,) = background.pids()
    until(lambda: state(pid) == "T", "it is stopped")
    background.resume("asked")
    assert background.paused == {"pressure"}
    end.write_text("")
    assert state(pid) == "T"
    assert not asked.job.done()  # it would see at once that it may end
    background.resume("pressure")
    outcome = asked.outcome()
    assert outcome.fate == "done"
    assert outcome.halted_s > 0


def test_a_request_that_nobody_reads_holds_up_nobody(tmp_path: Path) -> None:
    background = Background(Budget(priority="low"))
    try:
        assert Asked(background, "Good", tmp_path).outcome().fate == "done"
        (pid,) = background.pids()
        os.kill(pid, signal.SIGSTOP)  # by somebody else
        asked = Asked(background, "Good", tmp_path, huge="x" * (8 << 20))
        assert not asked.job.done()
    finally:
        background.close()
    assert asked.outcome().fate == "lost"
    assert not alive(pid)


def test_long_requests_arrive_whole(background: Background, tmp_path: Path) -> None:
    assert Asked(background, "Good", tmp_path, huge="x" * (8 << 20)).outcome().fate == "done"


def test_nothing_starts_while_paused(background: Background, tmp_path: Path) -> None:
    background.pause()
    asked = Asked(background, "Good", tmp_path)
    assert background.pids() == []
    assert not asked.job.done()
    asked.job.cancel()
    background.resume()
    assert asked.outcome().fate in ("cancelled", "done")


def test_who_spends_the_budget_of_cpu_is_halted(tmp_path: Path) -> None:
    background = Background(Budget(cpu_s_per_minute=0.5, priority="low"))
    try:
        end = tmp_path / "end"
        asked = Asked(background, "CompileSpins", tmp_path, until=str(end))
        assert asked.told.get(timeout=LONG_S) == "spinning"
        (pid,) = background.pids()
        until(lambda: state(pid) == "T", "it has spent its half second")
        end.write_text("")
        until(lambda: state(pid) != "T" or asked.job.done(), "it has earned some more")
        outcome = asked.outcome()
        assert outcome.fate == "done"
        assert outcome.halted_s > 0
        assert outcome.cpu_s > 0
    finally:
        background.close()


def test_it_can_be_awaited(background: Background, tmp_path: Path) -> None:
    async def ask() -> tuple[Outcome, int]:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0)

        ticking = asyncio.create_task(tick())
        outcome = await Asked(background, "Good", tmp_path).job.wait()
        ticking.cancel()
        return outcome, ticks

    outcome, ticks = asyncio.run(ask())
    assert outcome.fate == "done"
    assert ticks > 2  # the loop went on meanwhile


def test_closing_ends_all_and_refuses_the_rest(tmp_path: Path) -> None:
    background = Background(Budget(priority="low"))
    running = Asked(background, "CompileWaits", tmp_path)
    waiting = Asked(background, "Good", tmp_path)
    assert running.told.get(timeout=LONG_S) == "waiting"
    pids = background.pids()
    background.close()
    background.close()
    assert not any(map(alive, pids))
    assert running.outcome().fate == "lost"
    assert waiting.outcome().fate == "lost"
    assert Asked(background, "Good", tmp_path).outcome().fate == "lost"


def test_idle_helpers_are_ended(tmp_path: Path) -> None:
    background = Background(Budget(priority="low", idle_s=0.2))
    try:
        assert Asked(background, "Good", tmp_path).outcome().fate == "done"
        until(lambda: background.pids() == [], "it is ended")
        assert Asked(background, "Good", tmp_path).outcome().fate == "done"
    finally:
        background.close()


PARENT = """
import sys, time
from pathlib import Path
from tests.execution.compiler.test_background import Asked
from execution.compiler.background import Background
from execution.compiler.budget import Budget
background = Background(Budget(priority="low"))
asked = Asked(background, sys.argv[1], Path(sys.argv[2]), until=sys.argv[2] + "/never")
said = asked.told.get()
if sys.argv[3] == "paused":
    background.pause()
print(said, *background.pids(), flush=True)
time.sleep(3600)
"""


@pytest.mark.parametrize("how", ["running", "paused"])
@pytest.mark.parametrize("backend", ["CompileHangs", "CompileSpins"])
def test_no_orphans_after_a_kill(tmp_path: Path, backend: str, how: str) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, backend, str(tmp_path), how],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[3],
    )
    assert parent.stdout is not None
    pids = [int(word) for word in parent.stdout.readline().split() if word.isdigit()]
    try:
        assert pids
        parent.kill()
        parent.wait()
        compiler = pids[0] if backend == "CompileSpins" else pids[1]
        until(lambda: not alive(compiler), "the compiler has died with its parent")
    finally:
        parent.kill()
        parent.stdout.close()
        for pid in pids:
            if alive(pid):
                os.kill(pid, signal.SIGKILL)


def test_many_threads_may_ask_at_once(background: Background, tmp_path: Path) -> None:
    fates: list[str] = []

    def ask(number: int) -> None:
        folder = tmp_path / str(number)
        folder.mkdir()
        fates.append(Asked(background, "Good" if number % 3 else "CompileFails", folder).outcome().fate)

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(fates) == ["done"] * 6 + ["failed"] * 3


def test_a_budget_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="memory_bytes"):
        Budget(memory_bytes=0)
