"""Baselines by name."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
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


def tuned_baseline(name: str, constants: Mapping[str, float]) -> ModulePolicy:
    """A baseline with other constants, in a module of its own; its source says so too.

    Raises:
        BaselineError: unknown name, or a constant that the baseline does not have.
    """
    plain = load_baseline(name)
    spec = importlib.util.find_spec(f"strategy.baselines.{name}")
    if spec is None or spec.loader is None:
        raise BaselineError(f"baseline {name} cannot be loaded a second time")
    module, source = importlib.util.module_from_spec(spec), plain.source
    spec.loader.exec_module(module)  # a module of this package, not one that evolution wrote
    for constant, value in constants.items():
        source, found = re.subn(
            rf"^({re.escape(constant)} = )[^\s#]+", rf"\g<1>{value:g}", source, flags=re.MULTILINE
        )
        if not found or not constant.isupper():
            raise BaselineError(f"baseline {name} has no constant {constant}")
        setattr(module, constant, type(getattr(module, constant))(value))
    return ModulePolicy(name, module, source)
