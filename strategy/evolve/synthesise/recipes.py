"""Recipes: the moves that pay in general, made on one policy, as programs of their own.

Candidates that lose are not written again. But who lost under yesterday's load may be the best under today's:
recipes are offered as guests whenever the load changes its kind, as the baselines are.
"""

from __future__ import annotations

from dataclasses import dataclass

from loop.contracts import PolicySource
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


def recipes(policy: PolicySource) -> tuple[PolicySource, ...]:
    """Each recipe made on this policy; those that do not fit it are left out.

    Raises:
        ValueError: the policy cannot be taken apart.
    """
    idioms = {(idiom.function, idiom.name): idiom for idiom in catalogue()}
    found = []
    for recipe in RECIPES:
        parts = take_apart(policy.source)
        for key in recipe.idioms:
            parts = graft(parts, idioms[key].parts, key[0])
        words = [f"{f}: {idioms[f, n].what[0].lower()}{idioms[f, n].what[1:]}" for f, n in recipe.idioms]
        why = " ".join(idioms[key].why for key in recipe.idioms)
        values = dict(recipe.constants)
        if values:
            words.append("set " + ", ".join(f"{name} {value:g}" for name, value in values.items()))
        headline = "; ".join(words)
        source = describe(parts, headline[0].upper() + headline[1:], why).render()
        known = {c.name: c.value for c in find_constants(source)}
        source = with_constants(source, known | {k: v for k, v in values.items() if k in known})
        name = "-".join([n.replace("_", "-") for _, n in recipe.idioms] or [policy.name])
        name += f"-{values['MAX_NUM_SEQS']:g}" if values else ""
        if not check_policy(source):
            found.append(
                make_source(source, name=name, parents=(policy.digest,), operator="recipe", note=headline)
            )
    return tuple(found)
