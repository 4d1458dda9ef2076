"""Calibration on what a serving run's journal saw its own engines do, on this very machine."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hw_profiles.errors import ProfileError
from hw_profiles.loader import load_cluster
from hw_profiles.performance.calibrate.adjust import HeldOut
from hw_profiles.performance.calibrate.journal import WatchedReplica, WatchedRequest, WatchedRun, read_run
from hw_profiles.performance.calibrate.rows import DataError
from hw_profiles.performance.calibrate.steps import fit_steps
from hw_profiles.performance.coefficients import Coefficients, DeviceCoefficients, StartFit, StepFit
from hw_profiles.schema import DeviceProfile
from hw_profiles.topology import Topology


@dataclass(frozen=True, slots=True)
class Watched:
    """What was fitted: the engine with one model on one device kind."""

    kind: str
    model: str
    fit: StepFit
    held_out: HeldOut


def calibrate_from_journal(
    path: Path, base: Coefficients, *, date: str, run: int | None = None
) -> tuple[Coefficients, tuple[Watched, ...]]:
    """`base` with the steps of the engines in a run of the journal (None: the last serving run).

    Replicas of several devices are left out: the fit is of one engine on one device.

    Raises:
        DataError: no such run, or too little or too uniform traffic in it for every engine that served.
        ProfileError: its cluster is not known.
    """
    seen = read_run(path, run)
    topology = _topology(seen)
    groups = _groups(seen, topology)
    served: dict[int, list[WatchedRequest]] = defaultdict(list)
    for request in seen.requests:
        served[request.replica].append(request)
    found: list[Watched] = []
    reasons: list[str] = []
    for (kind, model, engine), replicas in groups.items():
        source = f"{seen.name}: {engine} with {model} on {kind}"
        try:
            fit, held_out = fit_steps(replicas, {r.id: served[r.id] for r in replicas}, source=source)
        except DataError as error:
            reasons.append(str(error))
            continue
        found.append(Watched(kind, model, fit, held_out))
    if not found:
        raise DataError("; ".join(reasons) or f"{seen.name}: no replica of a single device served")
    profiles = {device.kind: device.profile for device in topology.devices.values()}
    return _merged(base, found, profiles, date, path), tuple(found)


def _topology(seen: WatchedRun) -> Topology:
    name = seen.config.get("cluster")
    if not isinstance(name, str) or not name:
        raise DataError(f"{seen.name}: does not say on which cluster it ran")
    try:
        return load_cluster(name)
    except ProfileError as error:
        raise ProfileError(f"{seen.name}: its cluster: {error}") from error


def _groups(seen: WatchedRun, topology: Topology) -> Mapping[tuple[str, str, str], list[WatchedReplica]]:
    """Replicas of one device by (device kind, model, engine)."""
    groups: dict[tuple[str, str, str], list[WatchedReplica]] = defaultdict(list)
    for replica in seen.replicas:
        device = topology.devices.get(replica.devices[0]) if len(replica.devices) == 1 else None
        if device is not None:
            groups[(device.kind, replica.model, replica.engine)].append(replica)
    return groups


def _merged(
    base: Coefficients, found: list[Watched], profiles: Mapping[str, DeviceProfile], date: str, path: Path
) -> Coefficients:
    devices = dict(base.devices)
    entries: list[dict[str, Any]] = []
    for watched in found:
        fit = watched.fit
        known: DeviceCoefficients = devices.get(watched.kind) or base.of(
            watched.kind, profiles[watched.kind].class_
        )
        start = StartFit(fit.start_s, 0.0, fit.source) if fit.start_s > 0.0 else known.start
        devices[watched.kind] = replace(known, start=start, measured={**known.measured, watched.model: fit})
        entries.append(
            {
                "journal": path.name,
                "source": fit.source,
                "date": date,
                "requests": fit.rows,
                "held_out_requests": watched.held_out.requests,
                "held_out_e2e_median_error": watched.held_out.e2e,
                "held_out_ttft_median_error": watched.held_out.ttft,
            }
        )
    earlier = list(base.provenance.get("journals", []))
    return replace(base, devices=devices, provenance={**base.provenance, "journals": earlier + entries})
