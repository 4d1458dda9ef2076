"""Whether a plan can be carried out on these devices at all."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from loop.contracts import DeviceView, Plan, PlanError, ReplicaSpec, Role

SpecCheck = Callable[[ReplicaSpec], str]
"""Why the data plane cannot run a replica, in words; empty: it can."""


def check_plan(
    plan: Plan, devices: Mapping[str, DeviceView], models: Collection[str], fits: SpecCheck | None = None
) -> None:
    """Raises PlanError that names the replica and the reason."""
    taken: dict[str, int] = {}
    for number, spec in enumerate(plan.replicas):
        where = f"replica {number} ({spec.model} on {', '.join(spec.devices) or 'no device'})"
        reason = _problem(spec, models)
        if reason:
            raise PlanError(f"{where}: {reason}")
        for name in spec.devices:
            device = devices.get(name)
            if device is None:
                raise PlanError(f"{where}: there is no device {name!r}; there are {', '.join(devices)}")
            if not device.available:
                raise PlanError(f"{where}: device {name} is down")
            if name in taken:
                raise PlanError(f"{where}: device {name} belongs to replica {taken[name]} already")
            taken[name] = number
        reason = fits(spec) if fits is not None else ""
        if reason:
            raise PlanError(f"{where}: {reason}")


def _problem(spec: ReplicaSpec, models: Collection[str]) -> str:
    if spec.model not in models:
        return f"unknown model; known are {', '.join(models)}"
    if spec.tp < 1 or spec.pp < 1 or spec.tp * spec.pp != len(spec.devices):
        return f"tp={spec.tp} x pp={spec.pp} needs {spec.tp * spec.pp} devices, not {len(spec.devices)}"
    if spec.max_num_seqs < 1 or spec.max_num_batched_tokens < 1:
        return "batch limits must be at least 1"
    if spec.role is not Role.MIXED:
        return f"role {spec.role.value}: live replicas both prefill and decode"
    return ""
