"""Recipes: the moves that pay in general, made on one policy, as programs of their own.

Candidates that lose are not written again. But who lost under yesterday's load may be the best under today's:
recipes are offered as guests whenever the load changes its kind, as the baselines are.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from loop.contracts import PolicySource
from strategy.baselines import load_baseline
from strategy.evolve.idioms import catalogue
from strategy.evolve.parts import describe, graft, take_apart
from strategy.evolve.source import make_source
from strategy.evolve.static import check_policy
from strategy.evolve.synthesise.constants import find_constants, with_constants


@dataclass(frozen=True, slots=True)
class Recipe:
    """Idioms that are grafted together, by (function, name), and constants that are set."""

    idioms: tuple[tuple[str, str], ...] = ()
    constants: tuple[tuple[str, float], ...] = ()


SMALL_BATCHES = (("MAX_NUM_SEQS", 64.0), ("MAX_BATCHED_TOKENS", 6144.0), ("TAIL", 1.6))
"""Long prompts fill the KV cache: few requests at a time, large chunks."""
LARGE_BATCHES = (("MAX_NUM_SEQS", 768.0), ("MAX_BATCHED_TOKENS", 6144.0))
_SEARCHED = (("should_replan", "makespan_gain"), ("plan", "node_search"))

RECIPES: tuple[Recipe, ...] = (
    Recipe(_SEARCHED),
    Recipe((), SMALL_BATCHES),
    Recipe((("should_replan", "makespan_gain"), ("plan", "knapsack"), ("priority", "heaviest_first"))),
    Recipe((("should_replan", "always"), ("plan", "minimal_move"), ("route", "virtual_usage"))),
    Recipe(_SEARCHED, SMALL_BATCHES),
    Recipe((("should_replan", "makespan_gain"), ("plan", "layout_search"))),
    Recipe((("should_replan", "always"), ("plan", "local_search"), ("priority", "heaviest_first"))),
    Recipe((), LARGE_BATCHES),
)
"""The most promising first."""


DEFAULT = Recipe(
    (*_SEARCHED, ("priority", "heaviest_first"), ("route", "virtual_usage")),
    (("MAX_BATCHED_TOKENS", 6144.0), ("COST_WEIGHT", 0.5)),
)
"""What the platform begins with where nothing is known of the load."""


def default_policy() -> PolicySource:
    """The policy that evolution begins with when nobody names another: `least_loaded` with a planner that searches
    layouts by when their last request ends. Ordinary source, made of idioms."""
    base = load_baseline("least_loaded").as_source()
    return replace(_made(base, DEFAULT, "default"), operator="default")


def recipes(policy: PolicySource) -> tuple[PolicySource, ...]:
    """Each recipe made on this policy; those that do not fit it are left out.

    Raises:
        ValueError: the policy cannot be taken apart.
    """
    made = (_made(policy, recipe) for recipe in RECIPES)
    return tuple(source for source in made if not check_policy(source.source))


def _made(policy: PolicySource, recipe: Recipe, name: str = "") -> PolicySource:
    idioms = {(idiom.function, idiom.name): idiom for idiom in catalogue()}
    parts = take_apart(policy.source)
    for key in recipe.idioms:
        parts = graft(parts, idioms[key].parts, key[0])
    words = [f"{f}: {idioms[f, n].what[0].lower()}{idioms[f, n].what[1:]}" for f, n in recipe.idioms]
    why = " ".join(idioms[key].why for key in recipe.idioms)
    values = dict(recipe.constants)
    if values:
        words.append("set " + ", ".join(f"{constant} {value:g}" for constant, value in values.items()))
    headline = "; ".join(words)
    source = describe(parts, headline[0].upper() + headline[1:], why).render()
    known = {c.name: c.value for c in find_constants(source)}
    source = with_constants(source, known | {k: v for k, v in values.items() if k in known})
    if not name:
        name = "-".join([n.replace("_", "-") for _, n in recipe.idioms] or [policy.name])
        name += f"-{values['MAX_NUM_SEQS']:g}" if values else ""
    return make_source(source, name=name, parents=(policy.digest,), operator="recipe", note=headline)
