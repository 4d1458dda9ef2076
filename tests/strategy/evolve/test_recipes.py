"""Recipes are policies that a person would accept, whatever they are made on."""

from __future__ import annotations

import ast

import pytest

from loop.contracts import Memo, PolicySource
from strategy.baselines import list_baselines, load_baseline
from strategy.evolve import check_policy
from strategy.evolve.sandbox import SandboxedPolicy, SandboxLimits
from strategy.evolve.synthesise.constants import find_constants
from strategy.evolve.synthesise.recipes import RECIPES, default_policy, recipes
from tests.examples import some_slow
from tests.strategy.builders import observation

PORTABLE = [n for n in list_baselines() if not check_policy(load_baseline(n).source)]


@pytest.mark.parametrize("name", some_slow(PORTABLE, "least_loaded", "round_robin"))
def test_every_recipe_fits_every_portable_baseline(name: str) -> None:
    base = load_baseline(name).as_source()
    made = recipes(base)
    assert len(made) == len(RECIPES)
    assert len({r.digest for r in made} | {base.digest}) == len(RECIPES) + 1
    for recipe in made:
        assert not check_policy(recipe.source)
        assert recipe.parents == (base.digest,)
        assert ast.get_docstring(ast.parse(recipe.source))


def test_constants_of_a_recipe_are_set() -> None:
    made: dict[str, PolicySource] = {r.name: r for r in recipes(load_baseline("least_loaded").as_source())}
    values = {c.name: c.value for c in find_constants(made["least_loaded-64"].source)}
    assert (values["MAX_NUM_SEQS"], values["MAX_BATCHED_TOKENS"], values["TAIL"]) == (64, 6144, 1.6)
    assert values["CONCURRENCY"] == 1.0


def test_the_default_policy_is_ordinary_source_and_plans() -> None:
    policy = default_policy()
    assert not check_policy(policy.source)
    assert policy.name == "default"
    assert default_policy() == policy
    with SandboxedPolicy(policy, SandboxLimits(plan_grace_s=60.0)) as live:
        obs = observation(models=("tiny",))
        plan = live.plan(obs, 1.0, Memo())
    assert plan.replicas
    assert len({d for r in plan.replicas for d in r.devices}) == sum(len(r.devices) for r in plan.replicas)
