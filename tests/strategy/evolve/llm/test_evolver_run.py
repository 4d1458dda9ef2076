"""End to end: an Evolver whose candidates come from a scripted model over HTTP."""

from __future__ import annotations

import re

import pytest

from loop.contracts import Death, EvaluationTask
from strategy.evolve.archive import Archive
from strategy.evolve.evolver import Budget, Evolver, Stages
from strategy.evolve.synthesise import BuiltinSynthesiser
from strategy.evolve.synthesise.mixed import MixedSynthesiser
from tests.strategy.evolve.llm.asking import OBS, asking, diff_to
from tests.strategy.evolve.llm.server import Asked, Says, error, said
from tests.strategy.evolve.worlds import SyntheticEvaluator, distance, knobs

STAGES = Stages(
    smoke=EvaluationTask((0,)),
    full=EvaluationTask((0, 1, 2)),
    held_out=EvaluationTask((3,)),
    perturbed=(EvaluationTask((0, 1), world=1),),
)
BUDGET = Budget(45, float("inf"))


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def student(asked: Asked) -> Says:
    """A model that brings the weight of the policy that it is shown closer to 3, sometimes fails, and in between talks."""
    if asked.number % 5 == 1:
        return error(503)
    if asked.number % 5 == 2:
        return said("```python\nimport os\n```")
    policy = asked.prompt.split("## The policy to change")[1]
    found = re.search(r"WEIGHT = (\S+)  # 0.01 to 100: best at 3", policy)
    assert found is not None
    weight = float(found[1])
    return said(diff_to(3.0 + abs(weight - 3.0) / 2 + asked.number / 500, base=weight))


@pytest.mark.slow
def test_answers_are_scored_promoted_and_archived_with_their_lineage() -> None:
    archive = Archive()
    with asking(student, wait_s=20.0, in_flight=2) as it:
        evolver = Evolver(it.synthesiser, SyntheticEvaluator(), archive)
        outcome = evolver.step(knobs(), (), OBS, STAGES, BUDGET)
        incumbent = outcome.best
        assert incumbent is not None
        assert incumbent.operator in ("llm:diff", "llm:rewrite")
        assert distance(incumbent) < 0.7 * distance(knobs())
    assert incumbent.digest in archive
    assert incumbent.parents[0] in archive
    assert {"candidate", "server-error", "static"} <= set(it.outcomes)
    assert "What worked" in it.server.asked[-1].prompt
    given = {exchange.digest for exchange in it.exchanges if exchange.outcome == "candidate"}
    llm = {policy.digest for policy in archive if policy.operator.startswith("llm:")}
    assert llm
    assert llm <= given


def test_a_model_that_is_of_no_use_ends_in_the_incumbent_kept() -> None:
    with asking(lambda asked: error(401, "no such key")) as it:
        evolver = Evolver(it.synthesiser, SyntheticEvaluator(), Archive())
        outcome = evolver.step(knobs(), (), OBS, STAGES, BUDGET)
    assert outcome.best is None
    assert outcome.deaths == {}


@pytest.mark.slow
def test_mixed_with_the_builtin_one_both_contribute() -> None:
    archive = Archive()
    with asking(student, wait_s=0.0, in_flight=2) as it:
        mixed = MixedSynthesiser(it.synthesiser, BuiltinSynthesiser(seed=4))
        evolver = Evolver(mixed, SyntheticEvaluator(), archive)
        incumbent = knobs()
        for _ in range(2):
            outcome = evolver.step(incumbent, (), OBS, STAGES, BUDGET)
            incumbent = outcome.best or incumbent
        it.until(lambda: len(it.exchanges) > 4)
    assert distance(incumbent) < distance(knobs())
    operators = {policy.operator for policy in archive}
    assert operators - {"seed"} - {o for o in operators if o.startswith("llm:")}
    assert Death.CRASH not in {o.death for p in archive for o in archive.outcomes(p.digest)}
