"""A world to serve in: a cluster, models and how fast they really are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from execution.twin import Twin, WorldParameters
from hw_profiles import ModelSpec, Topology, anchored, load_cluster, load_model
from hw_profiles.performance import PerformanceModel, Perturbation
from loop.contracts import ClusterEvent, DeploymentOption, EventKind, Observation, RecordSink
from physical.placement import deployment_options


@dataclass(frozen=True, slots=True)
class WorldSpec:
    """What a world is made from; a value that any process can build the same world from. Paths are made absolute:
    processes that score candidates work in another directory."""

    cluster: str
    """Name of a packaged cluster, or the path of a YAML file."""
    models: tuple[str, ...]
    """By name, alias or YAML file; replicas and requests name them as their profiles do."""
    perturbation: Perturbation | None = None
    """Hidden multipliers on the performance model; None: the nominal hardware."""
    parameters: WorldParameters = field(default_factory=WorldParameters)
    seed: int = 0
    coefficients: str = ""
    """A coefficients file of the user's (`profiles calibrate`); empty: the packaged one."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "cluster", anchored(self.cluster))
        object.__setattr__(self, "models", tuple(map(anchored, self.models)))
        if self.coefficients:
            object.__setattr__(self, "coefficients", str(Path(self.coefficients).absolute()))


class InfeasibleModelError(ValueError):
    """A model that fits no group of devices of the cluster."""


@dataclass(frozen=True, slots=True)
class World:
    """A built world. Policies never see its hidden parameters, only nominal estimates."""

    spec: WorldSpec
    topology: Topology
    models: dict[str, ModelSpec]
    performance: PerformanceModel
    """The truth of this world."""
    estimates: PerformanceModel
    """What the platform believes: the nominal hardware. Replica views and `options` show nothing else."""
    options: tuple[DeploymentOption, ...]

    def twin(self, sink: RecordSink, *, block_tokens: int) -> Twin:
        """A data plane in this world, with nothing deployed."""
        return Twin(
            topology=self.topology,
            models=self.models,
            performance=self.performance,
            sink=sink,
            seed=self.spec.seed,
            block_tokens=block_tokens,
            world=self.spec.parameters,
            estimates=self.estimates,
        )


def build_world(spec: WorldSpec, options: tuple[DeploymentOption, ...] | None = None) -> World:
    """Load profiles and build a world.

    Raises:
        ProfileError: unknown cluster or model, or a broken profile.
        InfeasibleModelError: a model fits no group of devices of the cluster.
        CoefficientsError: the coefficients file cannot be used.
    """
    topology = load_cluster(spec.cluster)
    models = {model.name: model for model in map(load_model, spec.models)}
    nominal = PerformanceModel.load(Path(spec.coefficients) if spec.coefficients else None)
    if options is None:
        options = deployment_options(topology, tuple(models.values()), nominal)
    check_options(spec.cluster, models, options)
    performance = nominal if spec.perturbation is None else nominal.perturbed(spec.perturbation)
    return World(spec, topology, models, performance, nominal, options)


def check_options(cluster: str, models: Iterable[str], options: Sequence[DeploymentOption]) -> None:
    """Raise InfeasibleModelError for the first model without an option."""
    for name in models:
        if not any(o.model == name for o in options):
            raise InfeasibleModelError(
                f"model {name} fits no group of devices of cluster {cluster}: choose a larger cluster or a "
                "smaller model (`autopoiesis physical options` shows what fits)"
            )


def state_events(obs: Observation) -> tuple[ClusterEvent, ...]:
    """Events at time 0 that bring fresh devices into the state that `obs` shows."""
    events: list[ClusterEvent] = []
    for d in obs.devices:
        if not d.available:
            events.append(ClusterEvent(0.0, EventKind.DOWN, d.id))
        if d.speed != 1.0:
            events.append(ClusterEvent(0.0, EventKind.SPEED, d.id, factor=d.speed))
        if d.available and d.leaving_in_s is not None:
            events.append(ClusterEvent(0.0, EventKind.PREEMPT, d.id, notice_s=d.leaving_in_s))
    return tuple(events)
