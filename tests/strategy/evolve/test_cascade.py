from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from loop.contracts import Death, EvaluationTask, Observation, Parent, PolicySource
from strategy.evolve.archive import Archive
from strategy.evolve.evolver import Budget, Evolver, EvolverConfig, Progress, Stages
from strategy.evolve.sequential import hopeless
from tests.strategy.evolve.worlds import Scripted, SyntheticEvaluator, distance, knobs

ENDLESS = float("inf")
SHORT = Stages(EvaluationTask((0,)), EvaluationTask((0, 1, 2, 3)), short=EvaluationTask((0, 1)))
LONG = Stages(EvaluationTask((31,)), EvaluationTask(tuple(range(32))))


def tasks_of(policy: PolicySource, evaluator: SyntheticEvaluator) -> list[EvaluationTask]:
    return [task for p, task in evaluator.jobs if p.digest == policy.digest]


def test_the_short_stage_lies_between_smoke_and_full() -> None:
    good, bad = knobs(weight=20.0), knobs(weight=31.0)
    evaluator = SyntheticEvaluator(lambda p, w, k: 40.0 if p == bad and w == 1 else 10.0 + distance(p))
    archive = Archive()
    evolver = Evolver(Scripted([good, bad]), evaluator, archive)
    assert evolver.step(knobs(), (), None, SHORT, Budget(60, ENDLESS)).best == good
    assert tasks_of(good, evaluator) == [SHORT.smoke, SHORT.short, SHORT.full]
    assert tasks_of(bad, evaluator) == [SHORT.smoke, SHORT.short]
    assert "short stage" in archive.outcomes(bad.digest)[0].detail


@pytest.mark.slow
def test_a_long_full_stage_is_entered_by_its_last_windows() -> None:
    assert [task.windows[0] for _, task in LONG.rungs(8)] == [31, 24, 16, 0]
    assert [task for _, task in LONG.rungs(0)] == [LONG.smoke, LONG.full]
    assert [stage for stage, _ in SHORT.rungs(8)] == ["smoke", "short", "full"]
    one = EvaluationTask((5,))
    assert Stages(one, one).rungs(8) == (("full", one),)  # nothing is asked twice
    slightly_worse = knobs(weight=31.0)

    def judge(policy: PolicySource, window: int, world: int) -> float:
        noise = random.Random(f"{policy.digest}/{window}").gauss(0.0, 0.02)
        return (10.8 if policy == slightly_worse else 10.0) * (1.0 + noise)

    evaluator, archive = SyntheticEvaluator(judge), Archive()
    Evolver(Scripted([slightly_worse]), evaluator, archive).step(knobs(), (), None, LONG, Budget(60, ENDLESS))
    assert [len(task.windows) for task in tasks_of(slightly_worse, evaluator)] == [1, 8]
    assert "over the first 8 windows" in archive.outcomes(slightly_worse.digest)[0].detail
    patient = SyntheticEvaluator(judge)
    Evolver(Scripted([slightly_worse]), patient, Archive(), EvolverConfig(futility=0.0)).step(
        knobs(), (), None, LONG, Budget(60, ENDLESS)
    )
    assert [len(task.windows) for task in tasks_of(slightly_worse, patient)] == [1, 8, 16, 32]


@pytest.mark.slow
def test_looking_often_stops_a_winner_no_more_often_than_said() -> None:
    rng, stopped, runs = random.Random(1), 0, 2000
    for _ in range(runs):
        # wins by exactly the margin of 5 %, in noise of 20 % a window
        ratios = [0.95 * pow(2.718281828459045, rng.gauss(0.0, 0.2)) for _ in range(32)]
        stopped += any(hopeless(ratios[:n], 0.05, 0.1, 4) for n in (4, 8, 16, 32))
    assert stopped / runs <= 0.1 + 3 * (0.1 * 0.9 / runs) ** 0.5
    assert stopped / runs > 0.03  # the bound is not idle


@pytest.mark.parametrize(
    ("ratios", "expected"),
    [
        ([1.2] * 4, True),  # the same loss in every window
        ([1.0, 1.0], True),
        ([0.9] * 4, False),
        ([1.2, 1.21, 1.19, 1.2], True),
        ([0.5, 2.0, 0.6, 1.9], False),
        ([9.0], False),  # one window says nothing
        ([], False),
    ],
)
def test_hopeless(ratios: list[float], *, expected: bool) -> None:
    assert hopeless(ratios, 0.01, 0.05, 2) is expected


def test_who_did_the_same_in_the_smoke_stage_is_a_twin() -> None:
    first, twin, other = knobs(weight=20.0), knobs(weight=20.5), knobs(weight=19.0)
    alias = {twin.digest: first}

    def judge(policy: PolicySource, window: int, world: int) -> float:
        return 10.0 + distance(alias.get(policy.digest, policy))

    evaluator = SyntheticEvaluator(judge, fingerprints=True)
    archive, synthesiser = Archive(), Scripted([first, twin], [other])
    outcome = Evolver(synthesiser, evaluator, archive).step(knobs(), (), None, SHORT, Budget(60, ENDLESS))
    assert outcome.deaths == {Death.DUPLICATE: 1}
    assert tasks_of(twin, evaluator) == [SHORT.smoke]
    assert archive.outcomes(twin.digest)[0].detail == f"did the same as {first.digest} in the smoke stage"
    assert synthesiser.told[0][1].death is Death.DUPLICATE
    lenient = SyntheticEvaluator(judge, fingerprints=True)
    Evolver(Scripted([first, twin]), lenient, Archive(), EvolverConfig(twin_windows=3)).step(
        knobs(), (), None, SHORT, Budget(60, ENDLESS)
    )
    assert tasks_of(twin, lenient) == [SHORT.smoke, SHORT.short, SHORT.full]


def test_doing_the_same_in_another_world_than_that_of_the_full_stage_makes_no_twins() -> None:
    stages = Stages(EvaluationTask((0,)), EvaluationTask((0, 1), world=3))
    first, second = knobs(weight=20.0), knobs(weight=19.0)
    evaluator = SyntheticEvaluator(lambda p, w, world: 10.0 + distance(p) * (world > 0), fingerprints=True)
    outcome = Evolver(Scripted([first, second]), evaluator, Archive()).step(
        knobs(), (), None, stages, Budget(60, ENDLESS)
    )
    assert outcome.deaths == {}
    assert outcome.best == second


def test_twins_are_known_after_a_restart() -> None:
    archive, first, twin = Archive(), knobs(weight=20.0), knobs(weight=20.5)
    for candidate in (first, twin):
        evaluator = SyntheticEvaluator(
            lambda p, w, k: 12.0 if p == knobs() else 11.0 + 0.1 * w, fingerprints=True
        )
        Evolver(Scripted([candidate]), evaluator, archive, world_key="key").step(
            knobs(), (), None, SHORT, Budget(60, ENDLESS)
        )
    assert archive.outcomes(twin.digest)[0].death is Death.DUPLICATE
    assert first.digest in archive.outcomes(twin.digest)[0].detail


def test_the_same_program_again_leaves_the_outcome_of_the_first_alone() -> None:
    good = knobs(weight=4.0)
    archive, synthesiser = Archive(), Scripted([good], [good])
    outcome = Evolver(synthesiser, SyntheticEvaluator(), archive).step(
        knobs(), (), None, SHORT, Budget(60, ENDLESS)
    )
    assert outcome.best == good
    assert outcome.deaths == {Death.DUPLICATE: 1}
    assert [o.death for o in archive.outcomes(good.digest)] == [None]


def test_a_synthesiser_that_repeats_itself_is_given_up() -> None:
    evolver = Evolver(Scripted(*[[knobs()]] * 99), SyntheticEvaluator(), Archive())
    outcome = evolver.step(knobs(), (), None, SHORT, Budget(60, ENDLESS))
    assert "repeats itself" in outcome.reason
    assert outcome.candidates == EvolverConfig().barren


def test_a_failed_program_has_no_score_whatever_it_says() -> None:
    """An evaluation that carries both a death and a score is a death."""
    hacked = knobs(weight=4.0)

    class Generous(SyntheticEvaluator):
        def _evaluation(self, policy, task):
            found = super()._evaluation(policy, task)
            if policy != hacked:
                return found
            return type(found)(policy.digest, found.score, Death.TIMEOUT, "late, but what a score")

    archive = Archive()
    outcome = Evolver(Scripted([hacked]), Generous(), archive).step(
        knobs(), (), None, SHORT, Budget(60, ENDLESS)
    )
    assert outcome.best is None
    assert archive.best(SHORT.smoke)[0][0] == knobs()
    assert all(row.digest != hacked.digest or row.ratio is None for row in archive.candidates())


class Slow(Scripted):
    """Answers after some polls, as a language model does; time passes while it is asked."""

    def __init__(self, answer: PolicySource, polls: int, clock: list[float]) -> None:
        super().__init__()
        self.answer, self.polls, self.clock = answer, polls, clock
        self.pending = 1

    def ask(self, parents: Sequence[Parent], obs: Observation | None, count: int) -> list[PolicySource]:
        self.parents.append(parents)
        self.polls -= 1
        if self.polls or not self.pending:
            return []
        self.pending = 0
        return [self.answer]


def slow_step(polls: int, deadline_s: float, stop_at: float = ENDLESS):
    clock, pauses = [0.0], []

    def pause(seconds: float) -> None:
        clock[0] += seconds
        pauses.append(seconds)

    synthesiser = Slow(knobs(weight=4.0), polls, clock)
    evolver = Evolver(synthesiser, SyntheticEvaluator(), Archive(), clock=lambda: clock[0], pause=pause)
    outcome = evolver.step(knobs(), (), None, SHORT, Budget(60, deadline_s), stop=lambda: clock[0] >= stop_at)
    return outcome, synthesiser, evolver, clock, pauses


def test_an_answer_that_is_still_being_written_is_waited_for() -> None:
    outcome, synthesiser, _, _, pauses = slow_step(polls=10, deadline_s=100.0)
    assert outcome.best == synthesiser.answer
    assert len(pauses) == 9  # never a busy loop


def test_waiting_ends_at_the_deadline_and_the_answer_is_used_in_the_next_step() -> None:
    outcome, synthesiser, evolver, clock, _ = slow_step(polls=100, deadline_s=2.0)
    assert outcome.best is None
    assert "deadline" in outcome.reason
    assert clock[0] <= 2.1
    late = evolver.step(knobs(), (), None, SHORT, Budget(60, 50.0))
    assert late.best == synthesiser.answer


def test_waiting_ends_when_told_to_stop() -> None:
    outcome, _, _, clock, _ = slow_step(polls=100, deadline_s=ENDLESS, stop_at=1.0)
    assert "stopped" in outcome.reason
    assert clock[0] <= 1.1


def test_what_the_deadline_cuts_off_is_finished_in_the_next_step() -> None:
    now, slow = [0.0], [1.0]

    def tick() -> None:
        now[0] += slow[0]

    batch = [knobs(weight=20.0 + i, name=f"c{i}") for i in range(4)]
    archive, evaluator = Archive(), SyntheticEvaluator(on_evaluate=tick)
    evolver = Evolver(Scripted(batch), evaluator, archive, EvolverConfig(safety=0.0), clock=lambda: now[0])
    outcome = evolver.step(knobs(), (), None, SHORT, Budget(60, 8.5))
    assert now[0] <= 9.0
    assert outcome.best is None
    left = archive.unfinished()
    assert left
    assert archive.steps()[0].evaluations == archive.spent(1) == outcome.evaluations
    slow[0] = 0.0
    again = evolver.step(knobs(), (), None, SHORT, Budget(60, 20.0))
    assert again.resumed == len(left)
    assert archive.unfinished() == []
    assert again.best == batch[0]


def test_whoever_watches_sees_the_best_so_far() -> None:
    seen: list[Progress] = []
    evolver = Evolver(
        Scripted([knobs(weight=4.0, name="x")]), SyntheticEvaluator(), Archive(), watch=seen.append
    )
    evolver.step(knobs(), (), None, SHORT, Budget(60, ENDLESS))
    assert [p.evaluations for p in seen] == sorted(p.evaluations for p in seen)
    assert seen[-1].candidates == 1
    assert seen[-1].budget == 60
