"""A trusted policy module as a Policy. (Candidates are not trusted: they run in the sandbox instead.)"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

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
    """A policy whose module is executed in this process: only for code that is trusted.

    Raises:
        PolicyModuleError: the source does not compile, fails on import, or lacks one of the four functions.
    """

    def __init__(self, name: str, source: str, where: str | None = None) -> None:
        self.name = name
        self.source = source
        self.digest = digest_of(source)
        namespace = _execute(source, where or f"<policy {name}>")
        functions = {function: namespace.get(function) for function in FUNCTIONS}
        missing = [function for function, value in functions.items() if not callable(value)]
        if missing:
            raise PolicyModuleError(f"policy {where or name} does not define {', '.join(missing)}()")
        self._should_replan: Callable[..., bool] = namespace["should_replan"]
        self._plan: Callable[..., Plan] = namespace["plan"]
        # bound as attributes: the data plane calls these two for every request
        self.route: Callable[[RequestView, Sequence[ReplicaView], Memo], int] = namespace["route"]
        self.priority: Callable[[RequestView, ReplicaView, Memo], float] = namespace["priority"]

    @classmethod
    def from_file(cls, path: str | Path, name: str | None = None) -> ModulePolicy:
        """Load a policy from a Python file; its name is the file's unless given."""
        path = Path(path)
        try:
            source = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise PolicyModuleError(f"cannot read policy {path}: {error}") from error
        return cls(name or path.stem, source, str(path))

    @classmethod
    def from_source(cls, policy: PolicySource) -> ModulePolicy:
        """Load a policy value."""
        return cls(policy.name, policy.source)

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


def _execute(source: str, where: str) -> dict[str, Any]:
    """The namespace of a policy module after its import."""
    namespace: dict[str, Any] = {"__name__": "policy", "__file__": where}
    try:
        exec(compile(source, where, "exec"), namespace)  # noqa: S102  trusted by contract of ModulePolicy
    except SyntaxError as error:
        raise PolicyModuleError(f"policy {where} line {error.lineno}: {error.msg}") from error
    except Exception as error:
        raise PolicyModuleError(f"policy {where} fails on import: {type(error).__name__}: {error}") from error
    return namespace
