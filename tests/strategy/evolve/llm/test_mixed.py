from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest

from loop.contracts import (
    Evaluation,
    Observation,
    Parent,
    PolicySource,
    SynthesisCost,
    Synthesiser,
)
from strategy.evolve.synthesise import BuiltinSynthesiser
from strategy.evolve.synthesise.llm import LlmConfig, LlmModel, LlmSynthesiser
from strategy.evolve.synthesise.mixed import MixedSynthesiser
from tests.strategy.evolve.llm.asking import OBS, PARENTS, asking, diff_to
from tests.strategy.evolve.llm.server import Says, said
from tests.strategy.evolve.worlds import distance, knobs, score_of


class Slow:
    """A synthesiser that gives what it is handed."""

    def __init__(self) -> None:
        self.ready: list[PolicySource] = []
        self.told: list[str] = []
        self.overheard: list[str] = []
        self.is_open = True

    @property
    def pending(self) -> int:
        return len(self.ready)

    @property
    def cost(self) -> SynthesisCost:
        return SynthesisCost(1, 2, 3, 4, 0.5)

    def ask(self, parents: Sequence[Parent], obs: Observation | None, count: int) -> list[PolicySource]:
        given, self.ready = self.ready[:count], self.ready[count:]
        return given

    def tell(self, candidate: PolicySource, evaluation: Evaluation, parent_objective: float | None) -> None:
        self.told.append(candidate.digest)

    def overhear(
        self, candidate: PolicySource, evaluation: Evaluation, parent_objective: float | None
    ) -> None:
        self.overheard.append(candidate.digest)

    def close(self) -> None:
        self.is_open = False


def tell(synthesiser: Synthesiser, candidates: Sequence[PolicySource]) -> None:
    for candidate in candidates:
        objective = 10.0 + distance(candidate)
        synthesiser.tell(candidate, Evaluation(candidate.digest, score_of((objective,))), 15.0)


@pytest.mark.slow
def test_while_the_slow_one_gives_nothing_the_quick_one_does_what_it_does_alone() -> None:
    alone, mixed = BuiltinSynthesiser(seed=7), MixedSynthesiser(Slow(), BuiltinSynthesiser(seed=7))
    for _ in range(6):
        expected, found = alone.ask(PARENTS, OBS, 4), mixed.ask(PARENTS, OBS, 4)
        assert [c.source for c in found] == [c.source for c in expected]
        assert len(found) == 4
        tell(alone, expected)
        tell(mixed, found)


def test_each_is_told_of_what_it_made_and_listeners_hear_the_rest() -> None:
    slow = Slow()
    quick = BuiltinSynthesiser(seed=1)
    mixed = MixedSynthesiser(slow, quick)
    slow.ready = [knobs(weight=2.0), knobs(weight=4.0), knobs(weight=5.0)]
    mine = list(slow.ready)
    found = mixed.ask(PARENTS, OBS, 4)
    assert found[:3] == mine
    assert len(found) == 4
    tell(mixed, found)
    assert slow.told == [c.digest for c in mine]
    assert slow.overheard == [found[3].digest]
    slow.ready = [knobs(weight=w) for w in (6.0, 7.0, 8.0)]
    assert mixed.pending == 3
    assert mixed.ask(PARENTS, OBS, 2) == [knobs(weight=6.0), knobs(weight=7.0)]
    assert mixed.pending == 1
    assert mixed.cost == slow.cost


def test_both_are_closed_even_when_one_fails() -> None:
    class Broken(Slow):
        def close(self) -> None:
            raise OSError("gone")

    quick = Slow()
    with pytest.raises(OSError, match="gone"):
        MixedSynthesiser(Broken(), quick).close()
    assert not quick.is_open


def test_a_slow_endpoint_holds_nothing_up() -> None:
    gate = threading.Event()
    with asking(lambda asked: Says(said(diff_to(3.0)).body, hold=gate), wait_s=0.0) as it:
        mixed = MixedSynthesiser(it.synthesiser, BuiltinSynthesiser(seed=3))
        for _ in range(5):
            batch = mixed.ask(PARENTS, OBS, 4)
            assert len(batch) == 4
            assert not any(candidate.operator.startswith("llm:") for candidate in batch)
            assert mixed.pending == 1
        gate.set()

        def came() -> bool:  # `until` asks as well, past the mixed one
            mine = mixed.ask(PARENTS, OBS, 4)
            return any(c.operator == "llm:diff" for c in [*mine, *it.given])

        it.until(came)
        mixed.close()
        assert mixed.pending == 0


def test_trouble_is_passed_on() -> None:
    config = LlmConfig("http://127.0.0.1:1/v1", (LlmModel("m"),), deadline_s=0.0)
    mixed = MixedSynthesiser(LlmSynthesiser(config), BuiltinSynthesiser(seed=1))
    assert mixed.trouble == ""
    assert len(mixed.ask(PARENTS, OBS, 2)) == 2
    assert mixed.trouble == "the deadline of 0 s has passed"
    mixed.close()
