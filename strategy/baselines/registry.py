"""Baselines by name."""

from __future__ import annotations

from functools import cache

from strategy.policy import ModulePolicy

BASELINES: tuple[str, ...] = (
    "round_robin",
    "least_loaded",
    "kv_aware",
    "threshold_autoscaler",
    "static_disaggregated",
    "milp_replan",
    "periodic_rebalance",
)
"""Names, the simplest first; each is the module of that name beside this file."""


class BaselineError(ValueError):
    """No baseline has this name; the message lists those that there are."""


def list_baselines() -> tuple[str, ...]:
    """Names of all baselines."""
    return BASELINES


@cache
def load_baseline(name: str) -> ModulePolicy:
    """The baseline of this name. Policies keep no state (it is all in the memo): one object serves all.

    Raises:
        BaselineError: unknown name.
    """
    if name not in BASELINES:
        raise BaselineError(f"unknown baseline {name!r}; there are: {', '.join(BASELINES)}")
    return ModulePolicy.imported(f"strategy.baselines.{name}")
