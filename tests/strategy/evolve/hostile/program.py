"""What an entry of the corpus is."""

from __future__ import annotations

from dataclasses import dataclass, field

from loop.contracts import PolicySource
from strategy.policy import digest_of

HEAD = """\
import random
import math
from strategy.policy_api import Plan, ReplicaSpec, fill, loads
os = random._os
sys = os.sys
"""
HARMLESS, ERROR, TIMEOUT, CRASH, INFEASIBLE, LOAD = (
    "harmless",
    "error",
    "timeout",
    "crash",
    "infeasible",
    "not loaded",
)
"""How a program ends: it answers and has gained nothing; it raises, or its answer is refused; it is killed at its
deadline; its process ends; its plan is refused; it is refused while it is loaded."""

_PARAMETERS = {
    "should_replan": "obs, memo",
    "plan": "obs, budget_s, memo",
    "route": "request, replicas, memo",
    "priority": "request, replica, memo",
}
_GOOD = {
    "should_replan": "return True",
    "plan": "return Plan(fill(obs, loads(obs), (), 256))",
    "route": "return 0",
    "priority": "return request.arrival_s",
}


@dataclass(frozen=True)
class Program:
    """A hostile policy as data: what it tries, what it must meet, and its code."""

    name: str
    tries: str
    ends: str
    """One of the above, or several with `|` where the kernel or the interpreter decides."""
    route: str = _GOOD["route"]
    priority: str = _GOOD["priority"]
    plan: str = _GOOD["plan"]
    should_replan: str = _GOOD["should_replan"]
    top: str = ""
    group: str = field(default="")

    @property
    def outcomes(self) -> set[str]:
        """How it may end."""
        return set(self.ends.split("|"))

    @property
    def source(self) -> str:
        """The module."""
        return self.aimed_at("/canary", 9)

    def aimed_at(self, canary: str, port: int) -> str:
        """The module, after this file and this port of the loopback."""
        parts = [HEAD, f"CANARY = {canary!r}\nPORT = {port}\n", self.top + "\n"]
        for name, parameters in _PARAMETERS.items():
            body = getattr(self, name).strip().replace("\n", "\n    ")
            parts.append(f"def {name}({parameters}):\n    {body}\n")
        return "\n".join(parts)

    def as_policy(self, canary: str = "/canary", port: int = 9) -> PolicySource:
        """As a candidate."""
        source = self.aimed_at(canary, port)
        return PolicySource(f"hostile: {self.name}", source, digest_of(source))


GOOD = Program("good", "nothing", HARMLESS)
