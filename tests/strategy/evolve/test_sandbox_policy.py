"""Real worker processes: every fault is typed, and the parent lives."""

from __future__ import annotations

import os
import pickle
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from loop.contracts import (
    BatchedPolicy,
    Memo,
    Plan,
    PolicyCrashed,
    PolicyError,
    PolicyFault,
    PolicySource,
    PolicyTimeout,
    RemotePolicy,
    ReplicaSpec,
    RequestView,
    Role,
)
from strategy.baselines import load_baseline
from strategy.evolve.sandbox import PolicyRaisedError, SandboxedPolicy, SandboxLimits, WorkerSupply
from tests.strategy.builders import observation, replica
from tests.strategy.evolve.hostile import ESCAPES, open_to_all, policy

LIMITS = SandboxLimits(route_s=30.0, should_replan_s=30.0, plan_grace_s=30.0, load_s=30.0)
"""Patient, so that a slow machine does not look like a policy that hangs."""
REQUEST = RequestView(1, "tiny", 2.5, 3.0, 500, 100.0, 0, 0)
ENDLESS = "while True: pass"


@pytest.fixture(scope="module")
def supply() -> Iterator[WorkerSupply]:
    with WorkerSupply(LIMITS) as workers:
        yield workers


def test_is_a_batched_policy_that_decides_as_in_process(supply: WorkerSupply) -> None:
    trusted = load_baseline("least_loaded")
    obs, memo = observation(), Memo()
    with SandboxedPolicy(trusted.as_source(), supply=supply) as boxed:
        assert isinstance(boxed, BatchedPolicy)
        assert boxed.digest == trusted.digest
        assert boxed.should_replan(obs, memo) == trusted.should_replan(obs, Memo())
        assert boxed.plan(obs, 1.0, memo) == trusted.plan(obs, 1.0, Memo())
        views = [replica(i, waiting_tokens=1000 * (5 - i)) for i in range(5)]
        for step in range(10):
            views[step % 5] = replica(step % 5, waiting_tokens=777 * step)
            expected = trusted.route(REQUEST, views, Memo())
            assert boxed.route(REQUEST, views, memo) == expected
            priority = trusted.priority(REQUEST, views[expected], Memo())
            assert boxed.dispatch(REQUEST, views, memo) == (expected, priority)
            assert boxed.priority(REQUEST, views[expected], memo) == priority


def test_sees_replicas_come_go_and_change(supply: WorkerSupply) -> None:
    source = policy(route="return max(range(len(replicas)), key=lambda i: replicas[i].waiting)")
    memo = Memo()
    with SandboxedPolicy(source, supply=supply) as boxed:
        views = [replica(i, waiting=i) for i in range(4)]
        assert boxed.dispatch(REQUEST, views, memo)[0] == 3
        views[1] = replica(1, waiting=9)
        assert boxed.dispatch(REQUEST, views, memo)[0] == 1
        assert boxed.dispatch(REQUEST, views[2:], memo)[0] == 1
        other = REQUEST._replace(model="other")
        assert boxed.dispatch(other, [replica(7, waiting=1), replica(8)], memo)[0] == 0
        assert boxed.dispatch(REQUEST, [*views[2:], replica(9, waiting=50)], memo)[0] == 2
        assert boxed.priority(REQUEST, replica(role=Role.DECODE), memo) == REQUEST.arrival_s


def test_on_this_kernel_every_layer_is_active(supply: WorkerSupply) -> None:
    """Where a layer is missing, the parent logs it; where the kernel has it, it must be on."""
    with SandboxedPolicy(policy(), supply=supply) as boxed:
        assert {"rlimits", "no_new_privs"} <= set(boxed.layers)
        if os.uname().machine in ("x86_64", "aarch64"):
            assert "seccomp" in boxed.layers


MISTAKES = [
    "x = 'a' * (1 << 31)\nreturn 0",
    "def f(n): return f(n + 1)\nreturn f(0)",
    "raise SystemExit(3)",
    "raise KeyboardInterrupt",
    "class E(BaseException):\n    def __str__(self): raise ValueError\nraise E()",
    "memo['x'] = float('nan')\nreturn 0",
    "for i in range(999): memo[str(i)] = 1.0\nreturn 0",
    "replicas[0] = None\nreturn 0",
    "return 1",
    "return -1",
    "return 0.0",
    "return True",
    "return None",
    "return 'x' * 1000",
    "return 1 << 70",
]


def gauntlet(bodies: Sequence[str], top: str = "") -> PolicySource:
    """A policy whose route has one body for each request id: many tests, one process."""
    functions = [
        f"def body_{i}(request, replicas, memo):\n    " + body.replace("\n", "\n    ") + "\n"
        for i, body in enumerate(bodies)
    ]
    table = "BODIES = [" + ", ".join(f"body_{i}" for i in range(len(bodies))) + "]\n"
    return policy(
        "\n".join([top, *functions]) + table, route="return BODIES[request.id](request, replicas, memo)"
    )


@pytest.fixture(scope="module")
def outside() -> Iterator[Path]:
    with open_to_all() as directory:
        yield directory


@pytest.fixture(scope="module")
def escaping(supply: WorkerSupply, outside: Path) -> Iterator[SandboxedPolicy]:
    source = gauntlet([f"{e}\nreturn 0" for e in ESCAPES.values()], f"ESCAPED = {str(outside / 'escaped')!r}")
    with SandboxedPolicy(source, supply=supply) as boxed:
        yield boxed


@pytest.mark.parametrize("escape", ESCAPES)
def test_no_way_out(escaping: SandboxedPolicy, outside: Path, escape: str) -> None:
    asked = REQUEST._replace(id=list(ESCAPES).index(escape))
    with pytest.raises(PolicyRaisedError):
        escaping.dispatch(asked, [replica()], Memo())
    assert escaping.kills == 0
    assert list(outside.iterdir()) == []


@pytest.fixture(scope="module")
def mistaken(supply: WorkerSupply) -> Iterator[SandboxedPolicy]:
    with SandboxedPolicy(gauntlet(MISTAKES), supply=supply) as boxed:
        yield boxed


@pytest.mark.parametrize("number", range(len(MISTAKES)), ids=MISTAKES)
def test_errors_in_route_are_errors(mistaken: SandboxedPolicy, number: int) -> None:
    with pytest.raises(PolicyError):
        mistaken.dispatch(REQUEST._replace(id=number), [replica()], Memo())
    assert mistaken.kills == 0


@pytest.mark.slow
def test_a_memory_bomb_is_bounded(supply: WorkerSupply) -> None:
    limits = replace(LIMITS, route_s=0.5)
    with SandboxedPolicy(policy(route="x = [0]\nwhile True: x += x"), limits, supply=supply) as boxed:
        with pytest.raises((PolicyError, PolicyTimeout)):
            boxed.dispatch(REQUEST, [replica()], Memo())
        assert boxed.should_replan(observation(), Memo()) is True


PRIORITIES = ["float('nan')", "float('-inf')", "None", "'first'", "1j", "10 ** 400", "float('inf')"]


@pytest.fixture(scope="module")
def careless(supply: WorkerSupply) -> Iterator[SandboxedPolicy]:
    source = policy(priority=f"return [{', '.join(PRIORITIES)}][request.id]")
    with SandboxedPolicy(source, supply=supply) as boxed:
        yield boxed


@pytest.mark.parametrize("number", range(len(PRIORITIES) - 1), ids=PRIORITIES[:-1])
def test_nonsense_priorities_are_errors(careless: SandboxedPolicy, number: int) -> None:
    with pytest.raises(PolicyError):
        careless.dispatch(REQUEST._replace(id=number), [replica()], Memo())


def test_reject_passes(careless: SandboxedPolicy) -> None:
    asked = REQUEST._replace(id=len(PRIORITIES) - 1)
    assert careless.dispatch(asked, [replica()], Memo()) == (0, float("inf"))


def test_an_error_names_the_line_of_the_policy(supply: WorkerSupply) -> None:
    source = policy(plan="x = 1\nreturn min([], key=lambda r: r.x)")
    line = next(i for i, text in enumerate(source.source.splitlines(), 1) if "min([]" in text)
    with SandboxedPolicy(source, supply=supply) as boxed:
        with pytest.raises(PolicyRaisedError, match=rf"ValueError: .*\(line {line}\)") as caught:
            boxed.plan(observation(), 1.0, Memo())
        assert (caught.value.line, caught.value.kind) == (line, "ValueError")


PLANS = [
    "None",
    "[1, 2]",
    "Plan((ReplicaSpec('tiny', ('a',), tp=True),))",
    "Plan((ReplicaSpec('tiny', ('a',), tp=-1),))",
    "Plan((ReplicaSpec('tiny', ('a',), tp=1.0),))",
    "Plan((ReplicaSpec('tiny', ('a',), tp=10 ** 30),))",
    "Plan((ReplicaSpec('tiny', (1, 2)),))",
    "Plan((ReplicaSpec('tiny', 'ab' * 9999),))",
    "Plan((ReplicaSpec('tiny', ('a',), role='boss'),))",
    "Plan((ReplicaSpec('x' * 9999, ('a',)),))",
    "Plan((ReplicaSpec('tiny', ('a',), max_num_seqs=float('inf')),))",
    "Plan((1, 2))",
    "Plan((ReplicaSpec('tiny', ('a',)),) * 5000)",
]


@pytest.fixture(scope="module")
def muddled(supply: WorkerSupply) -> Iterator[SandboxedPolicy]:
    source = policy(plan="\n".join(f"if obs.tick == {i}: return {p}" for i, p in enumerate(PLANS)))
    with SandboxedPolicy(source, supply=supply) as boxed:
        yield boxed


@pytest.mark.parametrize("number", range(len(PLANS)), ids=PLANS)
def test_plans_of_the_wrong_shape(muddled: SandboxedPolicy, number: int) -> None:
    with pytest.raises(PolicyError):
        muddled.plan(replace(observation(), tick=number), 1.0, Memo())


def test_a_huge_answer_is_cut_off(supply: WorkerSupply) -> None:
    source = policy(plan="return Plan((ReplicaSpec('tiny', ('n' * 100000,) * 100),))")
    with SandboxedPolicy(source, supply=supply) as boxed:
        with pytest.raises(PolicyCrashed, match=r"answer of .* bytes"):
            boxed.plan(observation(), 1.0, Memo())
        assert boxed.kills == 1


def test_reasons_are_only_words(supply: WorkerSupply) -> None:
    reasons = "['x' * 100000, float('nan'), '\\ud800'][obs.tick]"
    source = policy(plan=f"return Plan((ReplicaSpec('tiny', ('a',)),), {reasons})")
    with SandboxedPolicy(source, supply=supply) as boxed:
        for tick in range(3):
            assert len(boxed.plan(replace(observation(), tick=tick), 1.0, Memo()).reason) <= 2000


def test_a_hang_is_killed_in_time_and_the_spare_takes_over(supply: WorkerSupply) -> None:
    limits = replace(LIMITS, should_replan_s=0.05)  # who answers afterwards has all the time it needs
    with SandboxedPolicy(policy(should_replan=ENDLESS), limits, supply=supply) as boxed:
        hung = boxed.pid
        with pytest.raises(PolicyTimeout):
            boxed.should_replan(observation(), Memo())
        assert not Path(f"/proc/{hung}").exists()
        assert boxed.dispatch(REQUEST, [replica()], Memo()) == (0, 2.5)
        assert boxed.kills == 1


def test_after_three_kills_it_stays_dead(supply: WorkerSupply) -> None:
    limits = replace(LIMITS, should_replan_s=0.05)
    with SandboxedPolicy(policy(should_replan=ENDLESS), limits, supply=supply) as boxed:
        for _ in range(3):
            with pytest.raises(PolicyTimeout):
                boxed.should_replan(observation(), Memo())
        with pytest.raises(PolicyCrashed, match="given up after 3 kills"):
            boxed.should_replan(observation(), Memo())
        assert boxed.pid == 0


def test_a_killed_worker_is_noticed_and_replaced(supply: WorkerSupply) -> None:
    with SandboxedPolicy(policy(), supply=supply) as boxed:
        os.kill(boxed.pid, signal.SIGKILL)
        with pytest.raises(PolicyCrashed, match=r"SIGKILL|closed|gone"):
            boxed.dispatch(REQUEST, [replica()], Memo())
        assert boxed.dispatch(REQUEST, [replica()], Memo()) == (0, 2.5)


def test_a_worker_known_to_be_dead_is_not_accused_of_speaking(supply: WorkerSupply) -> None:
    with SandboxedPolicy(policy(), supply=supply) as boxed:
        os.kill(boxed.pid, signal.SIGKILL)
        while Path(f"/proc/{boxed.pid}").exists():  # until the template has reaped it
            pass
        with pytest.raises(PolicyCrashed, match="killed by SIGKILL"):
            boxed.dispatch(REQUEST, [replica()], Memo())
        assert boxed.dispatch(REQUEST, [replica()], Memo()) == (0, 2.5)


def test_a_worker_that_exits_is_replaced(supply: WorkerSupply) -> None:
    with SandboxedPolicy(policy(should_replan="os._exit(0)"), supply=supply) as boxed:
        with pytest.raises(PolicyCrashed, match="exit code 0"):
            boxed.should_replan(observation(), Memo())
        assert boxed.route(REQUEST, [replica()], Memo()) == 0


@pytest.mark.slow
def test_writing_to_the_reply_pipe_only_hurts_itself(supply: WorkerSupply) -> None:
    top = "def spam(data):\n    for fd in range(3, 64):\n        try: os.write(fd, data)\n        except OSError: pass\n"
    for data in (r"b'\xff' * 64", "b'x'", r"b'\x01\x00\x00\x00\x00' * 9", r"b'\x03\x00\x00\x00\x01{}'"):
        limits = replace(LIMITS, route_s=0.1)
        with SandboxedPolicy(policy(top, route=f"spam({data})\nreturn 0"), limits, supply=supply) as boxed:
            faults = 0
            for _ in range(3):
                try:
                    answer = boxed.dispatch(REQUEST, [replica()], Memo())
                except PolicyFault:
                    faults += 1
                else:
                    assert answer == (0, 2.5)
            assert faults > 0


@pytest.mark.parametrize(
    "top", [ENDLESS, "1 / 0", "import os", "import subprocess", "def", "from strategy.policy_api import nope"]
)
def test_a_module_that_cannot_be_loaded(supply: WorkerSupply, top: str) -> None:
    limits = replace(LIMITS, load_s=0.3)
    with pytest.raises((PolicyError, PolicyTimeout)):
        SandboxedPolicy(policy(top), limits, supply=supply)


def test_the_memo_is_kept_in_step(supply: WorkerSupply) -> None:
    source = policy(
        should_replan="memo['asked'] = memo.get('asked', 0) + 1\nreturn memo['asked'] > 1",
        route="memo['routed'] = memo.get('routed', 0) + 1\nreturn 0",
    )
    obs, memo = observation(), Memo()
    with SandboxedPolicy(source, supply=supply) as boxed:
        assert boxed.should_replan(obs, memo) is False
        assert memo == {"asked": 1.0}
        boxed.dispatch(REQUEST, [replica()], memo)
        boxed.dispatch(REQUEST, [replica()], memo)
        assert boxed.should_replan(obs, memo) is True
        assert memo == {"asked": 2.0, "routed": 2.0}
        memo["asked"] = 0.0  # the caller's word counts
        assert boxed.should_replan(obs, memo) is False
        os.kill(boxed.pid, signal.SIGKILL)
        with pytest.raises(PolicyCrashed):
            boxed.dispatch(REQUEST, [replica()], memo)
        assert boxed.should_replan(obs, memo) is True  # a fresh worker was given the memo
        assert memo == {"asked": 2.0, "routed": 2.0}
        other = Memo()
        boxed.dispatch(REQUEST, [replica()], other)
        assert boxed.should_replan(obs, other) is False
        assert other == {"asked": 1.0, "routed": 1.0}


def test_sync_brings_back_what_route_wrote(supply: WorkerSupply) -> None:
    source = policy(
        should_replan="return memo.get('routed', 0) > 1",
        route="memo['routed'] = memo.get('routed', 0) + 1\nreturn 0",
    )
    memo = Memo()
    with SandboxedPolicy(source, supply=supply) as boxed:
        assert isinstance(boxed, RemotePolicy)
        boxed.sync(memo)  # the worker has never seen it
        assert memo == {}
        boxed.dispatch(REQUEST, [replica()], memo)
        other = Memo()
        boxed.sync(other)
        assert (memo, other) == ({}, {})
        boxed.sync(memo)
        assert memo == {"routed": 1.0}
        boxed.dispatch(REQUEST, [replica()], memo)
        assert boxed.should_replan(observation(), memo) is True
        boxed.dispatch(REQUEST, [replica()], memo)
        memo["routed"] = 0.0
        boxed.sync(memo)
        assert memo == {"routed": 0.0}  # the caller's word counts, for both
        assert boxed.should_replan(observation(), memo) is False
    boxed.sync(memo)  # no worker any more
    assert memo == {"routed": 0.0}


def test_a_memo_that_is_none_is_refused(supply: WorkerSupply) -> None:
    source = policy(should_replan="dict.__setitem__(memo, 'x', float('inf'))\nreturn True")
    memo = Memo(y=1.0)
    with SandboxedPolicy(source, supply=supply) as boxed, pytest.raises(PolicyError, match="memo"):
        boxed.should_replan(observation(), memo)
    assert memo == {"y": 1.0}


def test_it_sees_a_new_observation_each_tick(supply: WorkerSupply) -> None:
    with SandboxedPolicy(policy(should_replan="return obs.tick % 2 == 1"), supply=supply) as boxed:
        obs = observation()
        for tick in range(4):
            assert boxed.should_replan(replace(obs, tick=tick), Memo()) is (tick % 2 == 1)


def test_plans_come_back_whole(supply: WorkerSupply) -> None:
    spec = "ReplicaSpec('tiny', ('n00/0', 'n00/1'), 2, 1, 'decode', 64, 512)"
    with SandboxedPolicy(policy(plan=f"return Plan(({spec},), 'why')"), supply=supply) as boxed:
        expected = ReplicaSpec("tiny", ("n00/0", "n00/1"), 2, 1, Role.DECODE, 64, 512)
        assert boxed.plan(observation(), 1.0, Memo()) == Plan((expected,), "why")
        assert boxed.solve_cpu_s > 0.0


@pytest.mark.slow
@pytest.mark.parametrize(("body", "least_s"), [(ENDLESS, 0.4), ("os._exit(0)", 0.0)])
def test_waiting_for_a_plan_that_never_comes_is_charged(
    supply: WorkerSupply, body: str, least_s: float
) -> None:
    limits = replace(LIMITS, plan_grace_s=0.1)
    with SandboxedPolicy(policy(plan=body), limits, supply=supply) as boxed:
        with pytest.raises((PolicyTimeout, PolicyCrashed)):
            boxed.plan(observation(), 0.3, Memo())
        assert least_s <= boxed.solve_cpu_s <= 0.4
        assert boxed.solve_cpu_s > 0.0


def test_a_fault_survives_pickling() -> None:
    fault = PolicyRaisedError("it broke (line 7)", "ValueError", 7)
    copy = pickle.loads(pickle.dumps(fault))  # noqa: S301
    assert (type(copy), str(copy), copy.kind, copy.line) == (type(fault), str(fault), "ValueError", 7)


def test_sharing_a_cpu_is_undone() -> None:
    before = os.sched_getaffinity(0)
    with SandboxedPolicy(policy(), LIMITS.patient()) as boxed:
        assert len(os.sched_getaffinity(0)) == 1
        assert os.sched_getaffinity(boxed.pid) == os.sched_getaffinity(0)
        assert boxed.should_replan(observation(), Memo()) is True
        with SandboxedPolicy(policy(), LIMITS) as other:
            assert os.sched_getaffinity(other.pid) == before
    assert os.sched_getaffinity(0) == before


def test_two_policies_that_share_a_cpu_with_one_thread_set_it_free_together() -> None:
    before = os.sched_getaffinity(0)
    patient = LIMITS.patient()
    with SandboxedPolicy(policy(), patient) as first:
        with SandboxedPolicy(policy(should_replan="os._exit(1)"), patient) as second:
            with pytest.raises(PolicyCrashed):
                second.should_replan(observation(), Memo())
            assert os.sched_getaffinity(second.pid) == os.sched_getaffinity(0)
        assert len(os.sched_getaffinity(0)) == 1
        assert os.sched_getaffinity(first.pid) == os.sched_getaffinity(0)
    assert os.sched_getaffinity(0) == before


def test_a_shared_cpu_is_that_of_the_thread_that_asks() -> None:
    before = os.sched_getaffinity(0)
    found: list[set[int]] = []

    def ask(boxed: SandboxedPolicy) -> None:
        boxed.should_replan(observation(), Memo())
        found.append(os.sched_getaffinity(0))

    with SandboxedPolicy(policy(), LIMITS.patient()) as boxed:
        thread = threading.Thread(target=ask, args=(boxed,))
        thread.start()
        thread.join()
        assert [os.sched_getaffinity(boxed.pid)] == found
        assert len(found[0]) == 1
        assert os.sched_getaffinity(0) == before


def test_a_policy_made_in_a_thread_outlives_it() -> None:
    """The kernel kills a worker with the thread that started it: that must not be one that ends."""
    made: list[SandboxedPolicy] = []
    thread = threading.Thread(target=lambda: made.append(SandboxedPolicy(policy(), LIMITS)))
    thread.start()
    thread.join()
    with made[0] as boxed:
        assert boxed.dispatch(REQUEST, [replica()], Memo()) == (0, 2.5)
