"""When a worker sits beside its caller, and when they take turns on one CPU."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import pytest

from loop.contracts import Memo, PolicyCrashed, PolicyTimeout, RequestView
from strategy.evolve.sandbox import SandboxedPolicy, SandboxLimits, seating
from strategy.evolve.sandbox.affinity import IdleWatch
from strategy.evolve.sandbox.seating import LOOK_S, Seating
from strategy.evolve.worker import wire
from tests.strategy.builders import observation, replica
from tests.strategy.evolve.hostile import policy

REQUEST = RequestView(1, "tiny", 2.5, 3.0, 500, 100.0, 0, 0)
PID = 4711
ANSWER_S = 20e-6


class Idle(IdleWatch):
    """A watch that was long enough, and has found what it is told."""

    def __init__(self, shares: dict[int, float]) -> None:
        self.found = shares

    @property
    def elapsed_s(self) -> float:
        return 0.1

    def shares(self) -> dict[int, float]:
        return self.found


@dataclass
class Traffic:
    """Questions on a clock of its own, from CPU 0 of three."""

    idle: dict[int, float] = field(default_factory=lambda: {0: 1.0, 1: 1.0, 2: 0.1})
    may: bool = True
    now_s: float = 100.0
    cpu: int = 0
    placed: list[set[int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.seat = Seating(
            PID,
            side_by_side=self.may,
            clock=lambda: self.now_s,
            cpu=lambda: self.cpu,
            idle=Idle(self.idle),
            place=self.place,
        )

    def place(self, pid: int, cpus: set[int]) -> None:
        assert pid == PID
        self.placed.append(cpus)

    def ask(self, count: int = 1, gap_s: float = 10e-6, answer_s: float = ANSWER_S) -> bool:
        """As `SandboxedPolicy` does it; whether they sat side by side at the end."""
        bits = 0
        for _ in range(count):
            self.now_s += gap_s
            bits = 0
            if self.seat.skip:
                self.seat.skip -= 1
            else:
                bits = self.seat.begin()
            assert bits == (wire.LINGER if self.seat.look_s else 0)
            self.now_s += answer_s
            if self.seat.look_s:
                self.seat.ended = self.now_s
        return bool(bits)


@pytest.fixture(autouse=True)
def three_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seating, "ALL_CPUS", {0, 1, 2})


def test_close_questions_move_the_worker_to_cpus_that_are_idle() -> None:
    traffic = Traffic()
    assert not traffic.ask(20)
    assert traffic.placed == [{0}]
    assert traffic.ask(20)
    assert traffic.placed == [{0}, {1}]
    assert traffic.ask(100)
    assert len(traffic.placed) == 2


@pytest.mark.parametrize(
    "traffic",
    [Traffic(may=False), Traffic(idle={0: 1.0, 1: 0.5, 2: 0.0}), Traffic(idle={0: 1.0}), Traffic(idle={})],
    ids=["not allowed", "busy", "no other CPU", "nothing known"],
)
def test_else_they_take_turns(traffic: Traffic) -> None:
    assert not traffic.ask(500)
    assert traffic.placed == [{0}]


def test_questions_far_apart_never_move_it_and_follow_the_caller_at_once() -> None:
    traffic = Traffic()
    for cpu in (0, 1, 1, 0, 2):
        traffic.cpu = cpu
        assert not traffic.ask(gap_s=1e-3)
        assert traffic.placed[-1] == {cpu}
    assert len(traffic.placed) == 4


def test_in_turns_a_caller_that_moved_is_followed_soon() -> None:
    traffic = Traffic(may=False)
    traffic.ask(200)
    traffic.cpu = 1
    traffic.ask(16)
    assert traffic.placed == [{0}, {1}]


def test_a_pause_brings_it_back_and_the_next_rush_needs_no_watch() -> None:
    traffic = Traffic()
    traffic.ask(40)
    assert not traffic.ask(gap_s=2 * wire.LINGER_S)
    assert traffic.placed[-1] == {0}
    traffic.idle.clear()
    assert traffic.ask(40)
    assert traffic.placed[-1] == {1}
    traffic.ask(gap_s=1.0)
    assert not traffic.ask(100)  # by now somebody else may run there, and no watch says otherwise


def test_a_caller_that_moves_to_the_worker_s_cpu_takes_turns_there() -> None:
    traffic = Traffic()
    traffic.ask(40)
    traffic.cpu = 1
    assert not traffic.ask()
    assert traffic.placed[-1] == {1}


def test_late_answers_end_it_for_longer_each_time() -> None:
    traffic = Traffic()
    waited = []
    for _ in range(4):
        began = traffic.now_s
        while not traffic.ask():
            pass
        waited.append(traffic.now_s - began)
        traffic.ask(2)
        traffic.ask(answer_s=5e-3)
        assert not traffic.ask()
        assert traffic.placed[-1] == {0}
    assert waited == sorted(waited)
    assert waited[-1] > 3 * waited[1] > 0.0
    while not traffic.ask():
        pass
    traffic.ask(50_000, gap_s=190e-6)  # it went well for long: that was another time
    traffic.ask(answer_s=10e-3)
    began = traffic.now_s
    while not traffic.ask():
        pass
    assert traffic.now_s - began < waited[-1]


def test_few_late_answers_among_many_are_borne() -> None:
    traffic = Traffic()
    traffic.ask(40)
    for _ in range(20):
        assert traffic.ask(300)
        assert traffic.ask(answer_s=LOOK_S + 200e-6)


def test_released_it_may_run_anywhere() -> None:
    traffic = Traffic()
    traffic.seat.release()
    assert traffic.placed == []
    traffic.ask(40)
    traffic.seat.release()
    assert traffic.placed[-1] == {0, 1, 2}
    assert not traffic.ask()
    assert traffic.placed[-1] == {0}


@pytest.fixture
def beside(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Workers sit beside their caller, who keeps to one CPU, as soon as questions come close together."""
    cpus = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else {0}
    if len(cpus) < 2:
        pytest.skip("needs two CPUs")
    monkeypatch.setattr(seating, "ALL_CPUS", cpus)
    monkeypatch.setattr(seating, "IdleWatch", lambda _clock: Idle(dict.fromkeys(cpus, 1.0)))
    for name in ("_CLOSE_S", "_AT_FIRST_S", "_AT_MOST_S"):
        monkeypatch.setattr(seating, name, 1e9)  # a slow machine changes nothing
    monkeypatch.setattr(wire, "LINGER_S", 1e9)
    os.sched_setaffinity(0, {min(cpus)})
    yield
    os.sched_setaffinity(0, cpus)


LATER = "memo['n'] = memo.get('n', 0.0) + 1\nif memo['n'] > 100:\n    {}\nreturn len(replicas) - 1"


@pytest.mark.usefixtures("beside")
def test_side_by_side_it_answers_as_in_turns() -> None:
    views = [replica(i, waiting=i) for i in range(5)]
    source = policy(route="return max(range(len(replicas)), key=lambda i: replicas[i].waiting)")
    memo, sat = Memo(), 0
    with SandboxedPolicy(source, SandboxLimits(route_s=30.0)) as boxed:
        for step in range(300):
            views[step % 5] = replica(step % 5, waiting=step)
            assert boxed.dispatch(REQUEST, views, memo) == (step % 5 if step >= 5 else 4, 2.5)
            sat += bool(boxed._seating and boxed._seating.look_s)
            if step == 200:
                assert boxed.should_replan(observation(), memo) is True
        assert sat > 0
        assert boxed.kills == 0


@pytest.mark.slow
@pytest.mark.usefixtures("beside")
@pytest.mark.parametrize(
    ("turn", "fault"), [("while True: pass", PolicyTimeout), ("os._exit(1)", PolicyCrashed)]
)
def test_side_by_side_a_policy_that_turns_bad_is_replaced(turn: str, fault: type[Exception]) -> None:
    limits = replace(
        SandboxLimits(), route_s=3.0
    )  # a machine that is busy elsewhere for a moment is not a policy that hangs
    with SandboxedPolicy(policy(route=LATER.format(turn)), limits) as boxed:
        memo = Memo()
        for _ in range(100):
            assert boxed.dispatch(REQUEST, [replica()], memo) == (0, 2.5)
        assert boxed._seating is not None
        assert boxed._seating.look_s > 0.0
        with pytest.raises(fault):
            boxed.dispatch(REQUEST, [replica()], memo)
        assert boxed.kills == 1
        assert boxed.dispatch(REQUEST, [replica()], Memo()) == (0, 2.5)
