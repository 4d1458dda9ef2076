"""From a plan file to mutations: its own `actions`, and `launch` for the stages that it places on this node."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from loop.contracts import ReplicaSpec
from physical.gate.mutations import (
    Mutation,
    MutationError,
    StartProcess,
    StopProcess,
    from_dict,
)
from physical.gate.replicas import DeployReplicas

_FIELDS = {"model", "replica", "stage", "first_layer", "last_layer", "devices", "name"}
_KNOWN = {"version", "cluster", "took_s", "models", "idle_devices", "moved_together", "actions", "launch"}


class PlanFileError(ValueError):
    """A plan file that cannot be read or makes no sense; the message names the file and the place."""


def read_plan(path: Path) -> Mapping[str, Any]:
    """The file's top level, checked. Raises PlanFileError."""
    import yaml  # noqa: PLC0415

    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PlanFileError(f"cannot read {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise PlanFileError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(value, dict):
        raise PlanFileError(f"{path}: a plan is a mapping with `actions`, or `models` and `launch`")
    if unknown := sorted(set(map(str, value)) - _KNOWN):
        raise PlanFileError(f"{path}: unknown key {unknown[0]!r}; there are {', '.join(sorted(_KNOWN))}")
    if value.get("version", 1) != 1:
        raise PlanFileError(f"{path}: version {value['version']!r}; this program reads version 1")
    return value


def mutations_of(
    path: Path, plan: Mapping[str, Any], *, node: str | None, running: Sequence[str], stop_others: bool
) -> list[Mutation]:
    """What the plan wants of this machine. Raises PlanFileError.

    With `stop_others`, what runs under the gate and is not started by the plan stops, after the rest is up.
    """
    found: list[Mutation] = []
    actions = plan.get("actions") or []
    if not isinstance(actions, list):
        raise PlanFileError(f"{path}: actions is a list")
    for number, entry in enumerate(actions):
        if not isinstance(entry, dict):
            raise PlanFileError(f"{path}, action {number}: a mapping with `kind` is wanted")
        try:
            found.append(from_dict(entry))
        except MutationError as error:
            raise PlanFileError(f"{path}, action {number}: {error}") from error
    launch = plan.get("launch")
    if launch is not None:
        found += list(_launched(path, plan, launch, node))
    elif not actions:
        raise PlanFileError(
            f"{path} says what goes where, not how to start it: add `launch: {{command: [...]}}` or `actions`; "
            "`autopoiesis loop serve --plan` starts it as replicas"
        )
    started = {m.name for m in found if isinstance(m, StartProcess)}
    stopped = {m.name for m in found if isinstance(m, StopProcess)}
    if stop_others:
        found += [StopProcess(name) for name in sorted(set(running) - started - stopped)]
    return found


def deployment_of(path: Path, plan: Mapping[str, Any]) -> DeployReplicas:
    """What the plan wants of a server: its action of kind `deploy`, or its models' replicas. Raises PlanFileError."""
    if plan.get("actions"):
        found = mutations_of(path, plan, node=None, running=(), stop_others=False)
        deployments = [mutation for mutation in found if isinstance(mutation, DeployReplicas)]
        if len(deployments) != 1 or len(found) != 1:
            raise PlanFileError(f"{path}: one action of kind `deploy` is wanted, and no other")
        return deployments[0]
    try:
        specs = tuple(
            _spec(path, model["model"], number, replica["stages"])
            for model in plan.get("models") or []
            for number, replica in enumerate(model["replicas"])
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise PlanFileError(f"{path}: models are not as `physical plan` writes them ({error})") from error
    if not specs:
        raise PlanFileError(f"{path}: no replicas in it: `models` of `physical plan`, or an action `deploy`")
    return DeployReplicas(specs, f"as {path.name} says")


def _spec(path: Path, model: str, number: int, stages: Sequence[Mapping[str, Any]]) -> ReplicaSpec:
    """One replica; an engine splits its layers evenly over its stages."""
    where = f"{path}: replica {number} of {model}"
    widths = {len(stage["devices"]) for stage in stages}
    layers = [stage["layers"] for stage in stages]
    if len(widths) != 1:
        raise PlanFileError(f"{where}: stages of {sorted(widths)} devices; an engine wants them alike (--tp)")
    if max(layers) - min(layers) > 1:
        raise PlanFileError(
            f"{where}: stages of {layers} layers; an engine splits them evenly (`physical plan --max-stages 1`)"
        )
    devices = tuple(str(device) for stage in stages for device in stage["devices"])
    return ReplicaSpec(model, devices, tp=widths.pop(), pp=len(stages))


def _launched(path: Path, plan: Mapping[str, Any], launch: Any, node: str | None) -> Iterator[Mutation]:
    """One process for each stage on the node."""
    if not isinstance(launch, dict):
        raise PlanFileError(f"{path}: launch is a mapping with `command`")
    try:
        template = from_dict({"cwd": None, **launch, "kind": "start", "name": "template"})
    except MutationError as error:
        raise PlanFileError(f"{path}, launch: {error}") from error
    assert isinstance(template, StartProcess)  # noqa: S101 - of kind start
    try:
        stages = [
            (model["model"], r, s, stage)
            for model in plan.get("models") or []
            for r, replica in enumerate(model["replicas"])
            for s, stage in enumerate(replica["stages"])
        ]
        nodes = sorted({device.rpartition("/")[0] for *_, stage in stages for device in stage["devices"]})
    except (KeyError, TypeError, AttributeError) as error:
        raise PlanFileError(f"{path}: models are not as `physical plan` writes them ({error})") from error
    if not stages:
        raise PlanFileError(f"{path}: launch, but no models with replicas")
    here = node or (nodes[0] if len(nodes) == 1 else None)
    if here is None or here not in nodes:
        raise PlanFileError(f"{path}: which node is this machine? --node with one of {', '.join(nodes)}")
    for model, r, s, stage in stages:
        if all(device.rpartition("/")[0] == here for device in stage["devices"]):
            yield _stage(path, template, (model, r, s), stage)


def _stage(
    path: Path,
    template: StartProcess,
    at: tuple[str, int, int],
    stage: Mapping[str, Any],
) -> StartProcess:
    """`at`: model, replica, place in it. CPU slots become the CPUs that it is pinned to, GPUs what CUDA shows it."""
    model, replica, place = at
    name = re.sub(r"[^A-Za-z0-9_.-]", "-", f"{model}-r{replica}-s{place}")[:64]
    local = [device.rpartition("/")[2] for device in stage["devices"]]
    numbers = [int(re.sub(r"\D", "", device) or 0) for device in local]
    values = {
        "model": model,
        "replica": replica,
        "stage": place,
        "first_layer": stage["first_layer"],
        "last_layer": stage["first_layer"] + stage["layers"] - 1,
        "devices": ",".join(stage["devices"]),
        "name": name,
    }

    def filled(text: str) -> str:
        # Not str.format: that would reach into attributes, and trip over a command's own braces.
        return re.sub(r"\{(" + "|".join(sorted(_FIELDS)) + r")\}", lambda match: str(values[match[1]]), text)

    env = {key: filled(value) for key, value in template.env.items()}
    cpus = template.cpus
    if all(device.startswith("cpu") for device in local):
        cpus = cpus or tuple(numbers)
    elif all(device.startswith("gpu") for device in local):
        env.setdefault("CUDA_VISIBLE_DEVICES", ",".join(map(str, numbers)))
    command = tuple(filled(word) for word in template.command)
    try:
        return replace(template, name=name, command=command, env=env, cpus=cpus)
    except MutationError as error:
        raise PlanFileError(f"{path}, stage {name}: {error}") from error
