"""bubblewrap around the template, templates that die, and the hot question's layout."""

from __future__ import annotations

import os
import signal
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from loop.contracts import Memo, PolicyCrashed, RequestView, Role
from strategy.evolve.sandbox import PoolJob, SandboxedPolicy, SandboxLimits, WorkerPool, bubblewrap
from strategy.evolve.sandbox.template import Template
from strategy.evolve.worker import quick, wire
from tests.strategy.builders import observation, replica
from tests.strategy.evolve.hostile import policy

REQUEST = RequestView(1, "tiny", 2.5, 3.0, 500, 100.0, 0, 0)
MISBEHAVE = "tests.strategy.evolve.entries:misbehave"
LIMITS = SandboxLimits(route_s=60.0, should_replan_s=60.0, plan_grace_s=60.0, load_s=60.0)
"""Patient: a machine that is busy elsewhere for a moment does not look like a policy that hangs."""


@pytest.fixture
def on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory that alone is on PATH, and a probe that has not been made."""
    monkeypatch.setenv("PATH", str(tmp_path))
    bubblewrap.works.cache_clear()
    yield tmp_path
    bubblewrap.works.cache_clear()


def bwrap(directory: Path, script: str) -> None:
    program = directory / "bwrap"
    program.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)


def test_without_bubblewrap_it_goes_on(on_path: Path) -> None:
    assert not bubblewrap.works()


@pytest.mark.parametrize(
    "script",
    [
        "echo 'bwrap: No permissions to create new namespace' >&2; exit 1",
        'while [ "$1" != -- ]; do shift; done; shift; exec "$@"',
    ],
    ids=["refused", "starts it in no namespace of its own"],
)
def test_bubblewrap_that_does_not_work_is_not_used(on_path: Path, script: str) -> None:
    bwrap(on_path, script)
    assert not bubblewrap.works()
    with SandboxedPolicy(policy(), LIMITS) as boxed:
        assert "bubblewrap" not in boxed.layers
        assert boxed.dispatch(REQUEST, [replica()], Memo()) == (0, 2.5)


def test_the_command_gives_no_network_and_nothing_to_write(on_path: Path) -> None:
    bwrap(on_path, "exit 0")
    command = bubblewrap.wrap(["python", "-c", "pass"], ["/usr/lib", str(on_path), str(on_path / "inner")])
    options, inside = command[: command.index("--")], command[command.index("--") + 1 :]
    assert inside == ["python", "-c", "pass"]
    assert {"--unshare-net", "--unshare-pid", "--unshare-ipc", "--die-with-parent", "--as-pid-1"} <= set(
        options
    )
    assert options[options.index("--proc") :][:2] == ["--proc", "/proc"]
    assert not {"--bind", "--dev-bind", "--share-net"} & set(options)
    bound = [options[i + 1] for i, o in enumerate(options) if o.startswith("--ro-bind")]
    assert str(on_path) in bound
    assert "/usr" in bound
    assert "/usr/lib" not in bound  # it lies in what is bound already
    assert "/" not in bound
    everything = bubblewrap.wrap(["python"], None)
    assert everything[everything.index("--ro-bind") :][1:3] == ["/", "/"]


@pytest.mark.slow
@pytest.mark.skipif(not bubblewrap.works(), reason="bubblewrap is not installed, or may not make namespaces")
def test_in_bubblewrap_everything_works_as_without() -> None:
    with SandboxedPolicy(policy(), LIMITS) as boxed:
        assert boxed.layers[0] == "bubblewrap"
        assert boxed.dispatch(REQUEST, [replica()], Memo()) == (0, 2.5)
        outer, inner = (Path(f"/proc/{pid}/ns/net").readlink() for pid in (os.getpid(), boxed.pid))
        assert outer != inner
        os.kill(boxed.pid, signal.SIGKILL)
        with pytest.raises(PolicyCrashed):
            boxed.dispatch(REQUEST, [replica()], Memo())
        assert boxed.dispatch(REQUEST, [replica()], Memo()) == (0, 2.5)
    with WorkerPool(1, MISBEHAVE, b">") as pool:
        assert dict(pool.run([PoolJob(b"a", 60.0)])) == {0: b">a"}
        assert pool.layers[0] == "bubblewrap"


@pytest.mark.slow
def test_a_template_that_dies_is_started_again() -> None:
    with SandboxedPolicy(policy(), LIMITS) as boxed:
        template = boxed._worker._template if boxed._worker else None
        assert isinstance(template, Template)
        os.kill(template.pid, signal.SIGKILL)
        while _alive(boxed.pid):  # until the kernel has ended the worker as well
            pass
        with pytest.raises(PolicyCrashed):
            boxed.dispatch(REQUEST, [replica()], Memo())
        assert boxed.dispatch(REQUEST, [replica()], Memo()) == (0, 2.5)
        assert boxed.should_replan(observation(), Memo()) is True


@pytest.mark.slow
def test_a_pool_whose_template_dies_loses_what_was_running_only() -> None:
    with WorkerPool(1, MISBEHAVE, b">") as pool:
        done = {}
        for index, answer in pool.run([PoolJob(b"a", 60.0), PoolJob(b"b", 60.0), PoolJob(b"c", 60.0)]):
            done[index] = answer
            if index == 0:
                os.kill(pool._template.pid, signal.SIGKILL)
        assert sorted(done) == [0, 1, 2]
        assert done[0] == b">a"
        assert done[2] == b">c"
        assert done[1] == b">b" or isinstance(done[1], PolicyCrashed)


def test_each_job_has_a_process_of_its_own() -> None:
    with WorkerPool(1, "tests.strategy.evolve.entries:whoami") as pool:
        answers = [answer for _, answer in pool.run([PoolJob(b"", 60.0)] * 3)]
        assert len(set(answers)) == 3
        for pid in answers:
            assert isinstance(pid, bytes)
            assert "bubblewrap" in pool.layers or not Path(f"/proc/{pid.decode()}").exists()


def test_the_quick_question_says_what_changed() -> None:
    views = [replica(i, waiting=i) for i in range(5)]
    slot, slots = quick.Slot(3, "tiny", views), {3: ("tiny", tuple(views))}
    asked = REQUEST._replace(cached_tokens=(1, 2, 3, 4, 5), retries=2)
    for step in range(6):
        views[step % 5] = replica(step % 5, waiting=7 * step, speed=0.5, decode_step_s=0.25)
        views[4] = replica(4, kv_tokens=step)
        frame = quick.question(wire.QUICK_ROUTE, step, slot, asked, views)
        assert frame is not None
        assert quick.answer_to(frame, slots) == (step, asked, tuple(views))
    whole = quick.question(wire.QUICK_ROUTE, 9, slot, REQUEST, tuple(views))
    assert whole is not None
    assert quick.answer_to(whole, slots) == (9, REQUEST, tuple(views))


@pytest.mark.parametrize(
    "change",
    [
        {"id": 9},
        {"model": "other"},
        {"role": Role.DECODE},
        {"kind": "small"},
        {"tp": 2},
    ],
    ids=str,
)
def test_what_the_quick_question_cannot_say_is_asked_in_full(change: dict[str, object]) -> None:
    views = [replica(0), replica(1)]
    slot = quick.Slot(0, "tiny", views)
    changed = [views[0], views[1]._replace(**change)]  # type: ignore[arg-type]
    assert quick.question(wire.QUICK_ROUTE, 1, slot, REQUEST, changed) is None
    assert quick.question(wire.QUICK_ROUTE, 1, slot, REQUEST, views[:1]) is None
    assert quick.question(wire.QUICK_ROUTE, 1, slot, REQUEST, views) is not None
    with SandboxedPolicy(
        policy(route="return max(range(len(replicas)), key=lambda i: replicas[i].kv_tokens)"),
        LIMITS,
    ) as boxed:
        memo = Memo()
        assert boxed.dispatch(REQUEST, views, memo) == (0, 2.5)
        assert boxed.dispatch(REQUEST, changed, memo) == (0, 2.5)
        assert boxed.dispatch(REQUEST, views, memo) == (0, 2.5)


def test_numbers_of_any_size_are_carried() -> None:
    views = [replica(0), replica(1)]
    changed = [views[0], views[1]._replace(kv_tokens=1 << 70)]
    longest = policy(route="return max(range(len(replicas)), key=lambda i: replicas[i].kv_tokens)")
    asked = REQUEST._replace(tier=1 << 70)
    slot, slots = quick.Slot(0, "tiny", views), {0: ("tiny", tuple(views))}
    frame = quick.question(wire.QUICK_ROUTE, 1, slot, asked, changed)
    assert frame is not None
    assert quick.answer_to(frame, slots) == (1, asked, tuple(changed))
    with SandboxedPolicy(longest, LIMITS) as boxed:
        memo = Memo()
        assert boxed.dispatch(asked, views, memo) == (0, 2.5)
        assert boxed.dispatch(asked, changed, memo) == (1, 2.5)


def test_a_question_larger_than_the_pipe_is_asked_all_the_same() -> None:
    views = [replica(i, node="n" * 900) for i in range(2000)]
    with SandboxedPolicy(policy(route="return len(replicas) - 1"), LIMITS) as boxed:
        assert boxed.dispatch(REQUEST, views, Memo()) == (1999, 2.5)


def _alive(pid: int) -> bool:
    """Neither gone nor dead and unburied: whoever inherits it may never collect it."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"
