"""One idiom at work: grafted into the plainest baseline, with constants set as a test needs them."""

from __future__ import annotations

from collections.abc import Sequence

from loop.contracts import Memo, Observation, Plan, ReplicaView, RequestView
from strategy.baselines import load_baseline
from strategy.evolve.idioms import Idiom, catalogue
from strategy.evolve.parts import graft, take_apart
from strategy.evolve.synthesise.constants import with_constants
from strategy.policy import ModulePolicy
from tests.strategy.builders import policy_of


def idiom_of(name: str) -> Idiom:
    return next(i for i in catalogue() if i.name == name)


def policy_with(*names: str, **constants: float) -> ModulePolicy:
    """The plainest baseline with these idioms in it."""
    parts = take_apart(load_baseline("least_loaded").source)
    for name in names:
        idiom = idiom_of(name)
        parts = graft(parts, idiom.parts, idiom.function)
    source = parts.render()
    unknown = set(constants) - set(parts.constants)
    assert not unknown, unknown
    return policy_of("_".join(names), with_constants(source, constants))


def triggers(name: str, windows: Sequence[Observation], **constants: float) -> list[bool]:
    """What a trigger says of one window after the other."""
    policy, memo = policy_with(name, **constants), Memo()
    return [policy.should_replan(obs, memo) for obs in windows]


def planned(name: str, obs: Observation, **constants: float) -> Plan:
    return policy_with(name, **constants).plan(obs, 1.0, Memo())


def routed(name: str, request: RequestView, replicas: Sequence[ReplicaView], **constants: float) -> int:
    return policy_with(name, **constants).route(request, replicas, Memo())


def order(name: str, requests: Sequence[RequestView], replica: ReplicaView, **constants: float) -> list[int]:
    """Indices of the requests in the order in which a queue discipline serves them."""
    policy = policy_with(name, **constants)
    return sorted(range(len(requests)), key=lambda i: policy.priority(requests[i], replica, Memo()))
