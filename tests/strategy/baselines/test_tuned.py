"""Baselines with other constants are modules of their own."""

from __future__ import annotations

import pytest

from loop.compose.jobs import TRUSTED, trusted
from loop.contracts import Memo, PolicySource
from strategy.baselines import BaselineError, list_baselines, load_baseline, tuned_baseline
from strategy.evolve.synthesise.constants import find_constants
from tests.strategy.builders import observation


@pytest.mark.parametrize("name", list_baselines())
def test_constants_stand_in_the_source_and_act(name: str) -> None:
    tuned = tuned_baseline(name, {"MAX_NUM_SEQS": 33, "MAX_BATCHED_TOKENS": 777.0})
    values = {c.name: c.value for c in find_constants(tuned.source)}
    assert (values["MAX_NUM_SEQS"], values["MAX_BATCHED_TOKENS"]) == (33, 777)
    assert tuned.digest != load_baseline(name).digest
    plan = tuned.plan(observation(), 1.0, Memo())
    assert {(r.max_num_seqs, r.max_num_batched_tokens) for r in plan.replicas} == {(33, 777)}
    untouched = load_baseline(name).plan(observation(), 1.0, Memo())
    assert all(r.max_num_seqs == 256 for r in untouched.replicas)


def test_a_constant_that_is_not_there_is_named() -> None:
    with pytest.raises(BaselineError, match="no constant NO_SUCH"):
        tuned_baseline("least_loaded", {"NO_SUCH": 1.0})
    with pytest.raises(BaselineError, match="unknown baseline"):
        tuned_baseline("best_of_all", {})


def test_only_constants_of_a_trusted_source_are_used() -> None:
    source = tuned_baseline("least_loaded", {"TAIL": 1.5}).source + "\nraise SystemExit('never run')\n"
    policy = trusted(PolicySource("least_loaded", source, "x", operator=TRUSTED))
    assert policy.source == tuned_baseline("least_loaded", {"TAIL": 1.5}).source
    plain = load_baseline("least_loaded")
    assert trusted(PolicySource("least_loaded", plain.source, "x", operator=TRUSTED)) is plain
