"""The policies of a live run: how they are loaded to serve, and what evolution is told to make better ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from execution.replicas.desk import warm_up
from execution.replicas.prefixes import BLOCK_TOKENS
from hw_profiles.performance import Perturbation
from loop.compose.evolving import EvolutionConfig
from loop.compose.experiment import EVOLUTION_SPREAD, baseline_source
from loop.compose.jobs import TRUSTED, trusted
from loop.compose.objective import Objective
from loop.compose.rehearsal import changes_for
from loop.compose.replay import ReplayConfig
from loop.compose.scoring import ScoringSetup
from loop.compose.serving_config import ServingConfig
from loop.compose.serving_evolution import EvolverSpec
from loop.compose.serving_world import ServingWorld
from loop.contracts import PolicySource, ReplayMode, ReplicaView, Role, Slo
from loop.controller import ControllerConfig
from loop.runner.serving_policy import DuplexPolicy
from strategy.baselines import list_baselines
from strategy.evolve import check_policy
from strategy.evolve.sandbox import SandboxedPolicy, SandboxLimits

LIMITS = SandboxLimits(route_s=0.1, max_kills=10)
"""Of policies that serve: a busy machine is late now and then."""

_A_REPLICA = ReplicaView(
    id=0,
    model="",
    role=Role.MIXED,
    kind="",
    node="",
    tp=1,
    pp=1,
    ready_in_s=0.0,
    running=0,
    waiting=0,
    waiting_tokens=0,
    kv_tokens=0,
    kv_capacity_tokens=100_000,
    outstanding_tokens=0.0,
    max_num_seqs=64,
    max_num_batched_tokens=2048,
    prefill_tokens_per_s=10_000.0,
    decode_step_s=0.01,
    decode_tokens_per_s=1_000.0,
    speed=1.0,
)
"""What a policy is asked about before it serves."""


def load_policy(source: PolicySource) -> DuplexPolicy:
    """A policy that is to serve: a baseline of this package in process, any other in two sandboxes, the routing one
    asked until it answers quickly, so that no request waits for its first page faults.

    Raises:
        PolicyFault: it cannot be loaded.
    """
    if source.operator == TRUSTED and source.name in list_baselines():
        policy = trusted(source)
        return DuplexPolicy(policy, policy)
    planner = SandboxedPolicy(source, LIMITS)
    try:
        router = SandboxedPolicy(source, LIMITS)
        warm_up(router, (_A_REPLICA,))
        return DuplexPolicy(planner, router)
    except BaseException:
        planner.close()
        raise


def evolver_spec(
    config: ServingConfig, world: ServingWorld, first: PolicySource, slo: Slo, archive: Path
) -> EvolverSpec:
    """What the process of evolution is started with: the nominal world of this run and perturbed ones, online."""
    nominal, section = world.world.spec, config.evolution
    worlds = [nominal] + [
        replace(nominal, perturbation=Perturbation(seed=1_000 + k, spread=EVOLUTION_SPREAD), seed=k)
        for k in range(1, section.worlds + 1)
    ]
    controller = ControllerConfig(mode=ReplayMode.ONLINE, budget_s=config.budget_s)
    setup = ScoringSetup(
        tuple(worlds),
        world.world.options,
        ReplayConfig(controller, slo, config.window_s, BLOCK_TOKENS),
        Objective.GOODPUT,
        changes_for(world.world) if section.rehearse else (),
    )
    known = (baseline_source(name) for name in list_baselines())
    return EvolverSpec(
        setup,
        first,
        EvolutionConfig(
            evaluations=section.evaluations,
            step_deadline_s=section.step_deadline_s,
            worlds=section.worlds,
            rehearse=section.rehearse,
        ),
        tuple(source for source in known if not check_policy(source.source)),
        archive,
        config.seed,
        section.workers,
        section.keep_windows,
    )
