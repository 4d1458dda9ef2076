"""Ask a journaled tick's question again, of the same policy, in a process of its own."""

from __future__ import annotations

from loop.contracts import PolicySource
from loop.controller import ControllerConfig
from loop.journal import Decision, replay_decision
from strategy.baselines import list_baselines, load_baseline
from strategy.evolve.sandbox import SandboxedPolicy, SandboxLimits


def decide_again(decision: Decision, source: PolicySource) -> list[str]:
    """Differences between the journaled decision and the one made now, in words; none when they agree.

    A policy of the package runs in process; all others run in the sandbox.
    """
    budget_s = ControllerConfig().budget_s
    if source.name in list_baselines():
        trusted = load_baseline(source.name)
        if trusted.digest == source.digest:
            return replay_decision(decision, trusted, budget_s=budget_s)
    with SandboxedPolicy(source, SandboxLimits().patient()) as policy:
        return replay_decision(decision, policy, budget_s=budget_s)
