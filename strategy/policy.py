"""A trusted policy module as a Policy. (Candidates are not trusted: they run in the sandbox instead.)"""

from __future__ import annotations

import hashlib
import importlib
import inspect
from collections.abc import Callable, Sequence
from types import ModuleType

from loop.contracts import Memo, Observation, Plan, PolicySource, ReplicaView, RequestView

FUNCTIONS = ("should_replan", "plan", "route", "priority")
"""What every policy module defines."""


class PolicyModuleError(ValueError):
    """A policy module that cannot be loaded; the message names the file and the reason."""


def digest_of(source: str) -> str:
    """Identity of a policy: the first 12 hex digits of the sha256 of its source."""
    return hashlib.sha256(source.encode()).hexdigest()[:12]


def summary_of(source: str) -> str:
    """The first line of a policy module's docstring; empty when it has none."""
    text = source.lstrip()
    for quotes in ('"""', "'''", '"', "'"):
        if text.startswith(quotes):
            return text[len(quotes) :].split(quotes, 1)[0].strip().split("\n", 1)[0].strip()
    return ""


class ModulePolicy:
    """A policy that is an imported module: only for code of this package, which is trusted.

    Raises:
        PolicyModuleError: the module lacks one of the four functions.
    """

    def __init__(self, name: str, module: ModuleType, source: str) -> None:
        self.name = name
        self.source = source
        self.digest = digest_of(source)
        missing = [function for function in FUNCTIONS if not callable(getattr(module, function, None))]
        if missing:
            raise PolicyModuleError(f"policy {name} does not define {', '.join(missing)}()")
        self._should_replan: Callable[..., bool] = module.should_replan
        self._plan: Callable[..., Plan] = module.plan
        # bound as attributes: the data plane calls these two for every request
        self.route: Callable[[RequestView, Sequence[ReplicaView], Memo], int] = module.route
        self.priority: Callable[[RequestView, ReplicaView, Memo], float] = module.priority

    @classmethod
    def imported(cls, dotted: str) -> ModulePolicy:
        """Import a module by its dotted name; the policy is named by the last part."""
        module = importlib.import_module(dotted)
        return cls(dotted.rpartition(".")[2], module, inspect.getsource(module))

    def as_source(self) -> PolicySource:
        """The policy as a value, e.g. as a seed of evolution."""
        return PolicySource(self.name, self.source, self.digest, note=summary_of(self.source))

    def should_replan(self, obs: Observation, memo: Memo) -> bool:
        """Ask the module."""
        return bool(self._should_replan(obs, memo))

    def plan(self, obs: Observation, budget_s: float, memo: Memo) -> Plan:
        """Ask the module."""
        return self._plan(obs, budget_s, memo)

    def __repr__(self) -> str:
        return f"ModulePolicy({self.name!r}, {self.digest})"
