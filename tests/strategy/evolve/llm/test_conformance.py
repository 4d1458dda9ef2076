"""What the Synthesiser port promises, held against all who implement it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from loop.contracts import Death, Evaluation, PolicySource, SynthesisCost, Synthesiser
from strategy.evolve.source import make_source
from strategy.evolve.static import check_policy
from strategy.evolve.synthesise import BuiltinSynthesiser
from strategy.evolve.synthesise.mixed import MixedSynthesiser
from tests.examples import some_slow
from tests.strategy.evolve.llm.asking import BASE, OBS, PARENTS, asking, diff_to
from tests.strategy.evolve.llm.server import said
from tests.strategy.evolve.worlds import score_of


@contextmanager
def synthesiser(name: str) -> Iterator[Synthesiser]:
    if name == "builtin":
        yield BuiltinSynthesiser(seed=1)
        return
    with asking(lambda asked: said(diff_to(1.0 + asked.number)), wait_s=5.0, in_flight=2) as it:
        llm = it.synthesiser
        yield MixedSynthesiser(llm, BuiltinSynthesiser(seed=1)) if name == "mixed" else llm


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.mark.parametrize("name", some_slow(["builtin", "llm", "mixed"], "builtin", "llm"))
def test_conformance(name: str) -> None:
    with synthesiser(name) as it:
        assert it.cost == SynthesisCost()
        assert it.ask((), OBS, 3) == []
        found: list[PolicySource] = []
        for _ in range(4):
            batch = it.ask(PARENTS, OBS, 3)
            assert len(batch) <= 3
            found += batch
        assert found
        assert it.ask(PARENTS, None, 1) is not None
        for candidate in found:
            assert check_policy(candidate.source) == []
            assert candidate.digest == make_source(candidate.source).digest
            assert candidate.parents[0] == BASE.digest
            assert candidate.operator not in ("", "seed")
            assert candidate.note
            assert "\n" not in candidate.note
        assert len({c.digest for c in found}) == len(found)
        first, *rest = found
        it.tell(first, Evaluation(first.digest, score_of((9.0,))), 10.0)
        for candidate in rest:
            it.tell(candidate, Evaluation(candidate.digest, None, Death.ERROR, "broke"), None)
        it.tell(make_source("x = 1\n"), Evaluation("0" * 12, None, Death.STATIC, "a stranger"), None)
        assert it.pending >= 0
        assert it.cost.requests >= it.cost.failures >= 0
        it.close()
        it.close()
        assert it.pending == 0
