"""The proof with a known noise: an uneven gain counts, a small or doubtful one does not."""

from __future__ import annotations

import pytest

from loop.contracts import Death, PolicySource
from strategy.evolve.archive import Archive
from strategy.evolve.evolver import EvolverConfig
from tests.strategy.evolve.test_evolver import run
from tests.strategy.evolve.worlds import Scripted, SyntheticEvaluator, knobs

GOOD = knobs(weight=3.0, limit=64)


def promoted(wins: dict[tuple[int, int], float], config: EvolverConfig) -> bool:
    """Whether GOOD is, when it has these objectives in (window, world) and the incumbent 10 everywhere."""

    def judge(policy: PolicySource, at: int, in_world: int) -> float:
        return wins.get((at, in_world), 10.0) if policy.digest == GOOD.digest else 10.0

    return run(Scripted([GOOD]), SyntheticEvaluator(judge), Archive(), config).best is not None


def test_one_large_gain_among_equal_windows_counts_where_the_noise_is_known() -> None:
    wins = {(1, 0): 6.0, (3, 0): 9.99, (0, 1): 9.99, (2, 2): 9.99}
    assert not promoted(wins, EvolverConfig())
    assert promoted(wins, EvolverConfig(noise=0.05))


@pytest.mark.parametrize(("noise", "expected"), [(0.02, True), (0.5, False)])
def test_a_gain_must_stand_out_from_the_noise(noise: float, *, expected: bool) -> None:
    wins = {(w, world): 9.3 for w in range(4) for world in range(3)}
    assert promoted(wins, EvolverConfig(noise=noise)) is expected


def test_slack_forgives_a_stage_that_is_lost_by_little() -> None:
    wins = {(w, 0): 8.0 for w in range(3)} | {(3, 0): 10.05}
    strict, lenient = (EvolverConfig(noise=0.02, slack=slack) for slack in (0.0, 0.01))
    assert not promoted(wins, strict)
    assert promoted(wins, lenient)
    far = wins | {(3, 0): 10.5}
    assert not promoted(far, lenient)


def test_who_does_the_same_everywhere_is_not_promoted() -> None:
    archive = Archive()
    evaluator = SyntheticEvaluator(lambda policy, at, in_world: 10.0)
    outcome = run(Scripted([GOOD]), evaluator, archive, EvolverConfig(noise=0.05, slack=0.01))
    assert outcome.best is None
    assert archive.outcomes(GOOD.digest)[0].death in {Death.WORSE, Death.DUPLICATE}
