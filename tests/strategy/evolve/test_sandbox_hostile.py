"""The hostile corpus against the real thing: nothing gets out, no decision is lost, nobody after it suffers."""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from loop.contracts import Memo, PolicyFault, PolicyTimeout, RequestView
from loop.guard import GuardedPolicy, plan_problems
from strategy.baselines import load_baseline
from strategy.evolve.sandbox import PoolJob, SandboxedPolicy, SandboxLimits, WorkerPool, WorkerSupply
from tests.strategy.builders import observation, replica
from tests.strategy.evolve.entries import trial
from tests.strategy.evolve.hostile import cheats, open_to_all
from tests.strategy.evolve.hostile.corpus import CORPUS, table
from tests.strategy.evolve.hostile.program import GOOD, HARMLESS, LOAD, TIMEOUT, Program

LIMITS = SandboxLimits(route_s=30.0, should_replan_s=30.0, plan_grace_s=30.0, load_s=30.0, max_kills=1)
"""Patient, so that a slow machine does not look like a hostile program."""
SHORT = replace(LIMITS, route_s=0.2, should_replan_s=0.2, plan_grace_s=0.1)
"""For programs that are meant to be killed while they serve."""
SHORT_LOAD = replace(LIMITS, load_s=0.3)
"""For programs that are meant to be killed while they are loaded."""
REQUEST = RequestView(1, "tiny", 2.5, 3.0, 500, 100.0, 0, 0)
JUDGE = "tests.strategy.evolve.entries:judge"
NAMED = {program.name: program for program in CORPUS}


@dataclass(frozen=True)
class Outside:
    """What a program might harm: a file, a port that nobody may call, the state of this process."""

    canary: Path
    listener: socket.socket

    @property
    def port(self) -> int:
        return int(self.listener.getsockname()[1])

    def state(self) -> tuple[object, ...]:
        return (
            self.canary.read_bytes(),
            self.canary.stat().st_atime_ns,
            sorted(p.name for p in self.canary.parent.iterdir()),
            Path.cwd(),
            dict(os.environ),
            sys.getrecursionlimit(),
            [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)],
            [module for module in sys.modules if "hostile" in module],
            self.called(),
        )

    def called(self) -> bool:
        try:
            self.listener.accept()[0].close()
        except BlockingIOError:
            return False
        return True


@pytest.fixture
def outside() -> Iterator[Outside]:
    with open_to_all() as directory, socket.create_server(("127.0.0.1", 0)) as listener:
        canary = directory / "canary"
        canary.write_text("alive", encoding="utf-8")
        os.chmod(canary, 0o666)  # noqa: S103, PTH101
        listener.setblocking(False)
        yield Outside(canary, listener)


@pytest.fixture(scope="module")
def supply() -> Iterator[WorkerSupply]:
    with WorkerSupply(LIMITS) as workers:
        yield workers


def serve(boxed: SandboxedPolicy) -> str:
    """Ask for every decision behind the guard, twice; each must be answered, and feasibly. Tells how the
    program ended, by its first fault."""
    fallback = load_baseline("least_loaded")
    guarded, memo, obs = GuardedPolicy(boxed, fallback), Memo(), observation()
    views = [replica(i, waiting=i) for i in range(3)]
    for _ in range(2):
        assert isinstance(guarded.should_replan(obs, memo), bool)
        assert plan_problems(guarded.plan(obs, 0.1, memo), obs) == []
        for _ in range(2):
            index, priority = guarded.dispatch(REQUEST, views, memo)
            assert 0 <= index < len(views)
            assert math.isfinite(priority)
        assert 0 <= guarded.route(REQUEST, views, memo) < len(views)
        assert math.isfinite(guarded.priority(REQUEST, views[0], memo))
        guarded.sync(memo)
    json.dumps(memo, allow_nan=False).encode()
    for text in guarded.faults.examples:
        text.encode()  # what a journal stores and a terminal shows
        assert all(c.isprintable() or c == "\n" for c in text)
    if not guarded.faults.total:
        return HARMLESS
    first = guarded.faults.examples[0]
    kinds = {"PolicyTimeout": TIMEOUT, "PolicyCrashed": "crash", "plan: n": "infeasible"}
    if first.startswith("tick"):
        return "infeasible"
    return next((kind for word, kind in kinds.items() if word in first), "error")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMED)
def test_live_it_gains_nothing_and_loses_no_decision(
    name: str, supply: WorkerSupply, outside: Outside
) -> None:
    program = NAMED[name]
    before = outside.state()
    limits = SHORT if TIMEOUT in program.outcomes else SHORT_LOAD if LOAD in program.outcomes else LIMITS
    pid = 0
    try:
        boxed = SandboxedPolicy(program.as_policy(str(outside.canary), outside.port), limits, supply=supply)
    except PolicyFault:
        ended = LOAD
    else:
        with boxed:
            pid = boxed.pid
            ended = serve(boxed)
            assert boxed.kills <= 1
    assert ended in program.outcomes
    assert outside.state() == before
    assert not pid or not Path(f"/proc/{pid}").exists()
    with SandboxedPolicy(GOOD.as_policy(), LIMITS, supply=supply) as good:
        assert serve(good) == HARMLESS


@pytest.mark.slow
def test_in_scoring_each_good_candidate_among_them_scores_the_same(outside: Outside) -> None:
    jobs: list[tuple[str, str]] = []
    for program in CORPUS:
        jobs += [(program.name, program.aimed_at(str(outside.canary), outside.port)), ("good", GOOD.source)]
    before = outside.state()
    with WorkerPool(2, JUDGE) as pool:
        payloads = [
            PoolJob(s.encode("utf-8", "surrogatepass"), 0.4 if n != "good" else 120.0) for n, s in jobs
        ]
        answers = dict(pool.run(payloads))
        assert sorted(answers) == list(range(len(jobs)))
        fair = {answers[i] for i, (name, _) in enumerate(jobs) if name == "good"}
        assert len(fair) == 1
        (score,) = fair
        assert isinstance(score, bytes)
        assert json.loads(score) == trial_of(GOOD)
        children = Path(f"/proc/{pool._template.pid}/task/{pool._template.pid}/children")
        if children.exists() and "bubblewrap" not in pool.layers:
            assert children.read_text(encoding="ascii").split() == []
    assert outside.state() == before


def trial_of(program: Program) -> dict[str, object]:
    """Scored apart: the twin here, the candidate in a process of its own."""
    with SandboxedPolicy(program.as_policy(), LIMITS) as boxed:
        return trial(boxed)


@pytest.mark.slow
@pytest.mark.parametrize("program", [cheats.FORGES, cheats.PATCHES], ids=lambda p: p.name)
def test_who_writes_its_own_marks_is_found_out_apart(program: Program) -> None:
    with WorkerPool(1, JUDGE) as pool:
        ((_, forged),) = pool.run([PoolJob(program.source.encode(), 120.0)])
        assert isinstance(forged, bytes)
        assert json.loads(forged)["score"] < float(str(trial_of(GOOD)["score"]))
    assert trial_of(program) == trial_of(GOOD)


@pytest.mark.slow
def test_who_is_good_in_the_twin_only_is_found_out_apart() -> None:
    with WorkerPool(1, JUDGE) as pool:
        ((_, answer),) = pool.run([PoolJob(cheats.DETECTS.source.encode(), 120.0)])
        assert isinstance(answer, bytes)
        assert json.loads(answer) != trial_of(cheats.DETECTS)


@pytest.mark.slow
def test_who_is_slow_live_meets_the_deadline_there() -> None:
    with WorkerPool(1, JUDGE) as pool:
        ((_, answer),) = pool.run([PoolJob(cheats.SLOW_LIVE.source.encode(), 120.0)])
        assert isinstance(answer, bytes)
        assert json.loads(answer)["faults"] == 0
    with SandboxedPolicy(cheats.SLOW_LIVE.as_policy(), SHORT) as boxed, pytest.raises(PolicyTimeout):
        boxed.dispatch(REQUEST, [replica(0), replica(1)], Memo())


def test_one_job_leaves_nothing_to_the_next() -> None:
    job = PoolJob(cheats.FIRST_WINS.source.encode(), 120.0)
    poison = PoolJob(cheats.POISONS.source.encode(), 120.0)
    with WorkerPool(1, JUDGE) as pool:
        answers = dict(pool.run([job, poison, job, PoolJob(GOOD.source.encode(), 120.0)]))
    assert answers[0] == answers[2]
    assert answers[3] == json.dumps(trial_of(GOOD)).encode()


@pytest.mark.slow
def test_dice_fall_alike_in_each_job_unless_they_read_the_clock() -> None:
    """Module-level random is seeded alike in every fork; the clock is left to the re-run."""
    source = replace(GOOD, route="return random.randrange(len(replicas))").source.encode()
    with WorkerPool(2, JUDGE) as pool:
        answers = dict(pool.run([PoolJob(source, 120.0)] * 4))
    assert len(set(answers.values())) == 1


def test_the_corpus_is_large_and_of_distinct_kinds() -> None:
    assert len(CORPUS) >= 80
    assert len(NAMED) == len({(p.tries, p.source) for p in CORPUS}) == len(CORPUS)


def test_the_table_in_the_documentation_is_the_corpus() -> None:
    page = Path(__file__).parents[3] / "docs" / "sandbox.md"
    assert table() in page.read_text(encoding="utf-8"), (
        "write what `python -m tests.strategy.evolve.hostile.corpus` prints into docs/sandbox.md"
    )
