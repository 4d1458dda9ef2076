"""Policies for these tests: all of a policy, with another `priority`."""

from __future__ import annotations

_REST = '''"""A policy of the tests."""

from strategy.policy_api import REJECT, Memo, Observation, Plan, ReplicaView, RequestView, Sequence


def should_replan(obs: Observation, memo: Memo) -> bool:
    return False


def plan(obs: Observation, budget_s: float, memo: Memo) -> Plan:
    return obs.plan


def route(request: RequestView, replicas: Sequence[ReplicaView], memo: Memo) -> int:
    return 0


def priority(request: RequestView, replica: ReplicaView, memo: Memo) -> float:
'''


def policy(priority: str) -> str:
    """A policy whose priority is this body, in one line or more."""
    return _REST + "".join(f"    {line}\n" for line in priority.splitlines())


SHORTEST_FIRST = policy("return float(request.input_tokens)")
LONGEST_FIRST = policy("return -float(request.input_tokens)")
SHORT_ONES_ONLY = policy("return REJECT if request.input_tokens > 64 else 0.0")
RAISES = policy("return 1.0 / 0.0")
NOT_A_NUMBER = policy("return float('nan')")
HANGS = policy("while True:\n    pass")
FAILS_LATER = policy("if replica.waiting:\n    raise ValueError('only in a queue')\nreturn 0.0")
NO_PYTHON = "def priority(: never"
