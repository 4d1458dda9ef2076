"""Trusted entry points in locked processes, one and many."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from loop.contracts import PolicyCrashed, PolicyError, PolicyTimeout
from strategy.evolve.sandbox import PolicyRaisedError, PoolJob, SandboxedWorker, WorkerPool
from strategy.evolve.worker.lockdown import NotLockedError
from strategy.evolve.worker.untrusted import load_untrusted
from tests.strategy.evolve.hostile import policy

SCORE = "tests.strategy.evolve.entries:score"
MISBEHAVE = "tests.strategy.evolve.entries:misbehave"


def test_foreign_code_is_refused_outside_a_worker() -> None:
    with pytest.raises(NotLockedError):
        load_untrusted(policy().source)


def test_data_is_loaded_before_the_lockdown_and_candidates_after(tmp_path: Path) -> None:
    data = tmp_path / "data.txt"
    data.write_text("four", encoding="utf-8")
    with SandboxedWorker(SCORE, str(data).encode()) as worker:
        good = policy(priority="return float(len(request))").source.encode()
        assert json.loads(worker.call(good, 60.0)) == {"value": 4.0}
        spy = policy(priority=f"return len(os.listdir({str(tmp_path)!r}))").source.encode()
        with pytest.raises(PolicyRaisedError, match="PermissionError"):
            worker.call(spy, 60.0)
        assert json.loads(worker.call(good, 60.0)) == {"value": 4.0}
        assert {"rlimits", "no_new_privs"} <= set(worker.layers)


@pytest.mark.slow
def test_a_worker_is_killed_and_replaced() -> None:
    with SandboxedWorker(MISBEHAVE, b">") as worker:
        assert worker.call(b"a", 60.0) == b">a"
        with pytest.raises(PolicyTimeout):
            worker.call(b"hang", 0.2)
        with pytest.raises(PolicyCrashed, match="exit code 7"):
            worker.call(b"die", 60.0)
        with pytest.raises(PolicyError, match="ValueError: told to"):
            worker.call(b"raise", 60.0)
        big = bytes(2_000_000)
        assert worker.call(big, 60.0) == b">" + big
        assert worker.kills == 2


@pytest.mark.slow
def test_an_entry_that_cannot_start_says_why() -> None:
    with (
        SandboxedWorker("tests.strategy.evolve.entries:broken", b"nowhere") as worker,
        pytest.raises(PolicyError, match="FileNotFoundError: no data at nowhere"),
    ):
        worker.call(b"", 5.0)
    with (
        WorkerPool(1, "tests.strategy.evolve.entries:broken", b"nowhere") as pool,
        pytest.raises(PolicyError, match="no data at nowhere"),
    ):
        list(pool.run([PoolJob(b"", 5.0)]))


def test_a_pool_answers_every_job_once() -> None:
    payloads = [b"a", b"hang", b"b", b"die", b"raise", b"c", b"d"]
    with WorkerPool(2, MISBEHAVE, b">") as pool:
        done = dict(pool.run([PoolJob(p, 0.4 if p == b"hang" else 60.0) for p in payloads]))
        assert sorted(done) == list(range(len(payloads)))
        kinds = {payloads[i].decode(): type(v) for i, v in done.items()}
        assert kinds["hang"] is PolicyTimeout
        assert kinds["die"] is PolicyCrashed
        assert kinds["raise"] is PolicyRaisedError
        assert [done[i] for i in (0, 2, 5, 6)] == [b">a", b">b", b">c", b">d"]
        assert pool.kills == 2
        assert dict(pool.run([PoolJob(b"again", 60.0)])) == {0: b">again"}
        assert "rlimits" in pool.layers


@pytest.mark.slow
def test_a_pool_works_in_parallel() -> None:
    with WorkerPool(2, MISBEHAVE) as pool:
        answers = [
            json.loads(a) for _, a in pool.run([PoolJob(b"busy3.0", 120.0)] * 2) if isinstance(a, bytes)
        ]
        assert len(answers) == 2
        assert max(began for began, _ in answers) < min(ended for _, ended in answers)
        assert pool.kills == 0


@pytest.mark.slow
def test_leaving_a_run_early_abandons_its_jobs() -> None:
    with WorkerPool(2, MISBEHAVE, b">") as pool:
        for _index, answer in pool.run([PoolJob(b"quick", 60.0), PoolJob(b"hang", 600.0)]):
            assert answer == b">quick"
            break
        assert dict(pool.run([PoolJob(b"next", 60.0)] * 2)) == {0: b">next", 1: b">next"}


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_no_orphans(tmp_path: Path, how: signal.Signals) -> None:
    program = (
        "from strategy.evolve.sandbox import WorkerPool, PoolJob\n"
        f"pool = WorkerPool(1, {MISBEHAVE!r})\n"
        "from strategy.evolve.sandbox.template import Template\n"
        "fork = Template.fork\n"
        "def told(self, *args):\n"
        "    number = fork(self, *args)\n"
        "    print(self.pid, self.pid_of(number), flush=True)\n"
        "    return number\n"
        "Template.fork = told\n"
        "list(pool.run([PoolJob(b'hang', 600.0)]))\n"
    )
    root = Path(__file__).parents[3]
    parent = subprocess.Popen(
        [sys.executable, "-c", program], cwd=root, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert parent.stdout is not None
    processes = [int(pid) for pid in parent.stdout.readline().split()]
    parent.send_signal(how)
    parent.wait(timeout=120)
    parent.stdout.close()
    for _ in range(6000):
        if not any(map(_alive, processes)):
            return
        time.sleep(0.02)
    for pid in filter(_alive, processes):
        os.kill(pid, signal.SIGKILL)
    pytest.fail("a process outlived its parent")


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"
