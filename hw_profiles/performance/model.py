"""PerformanceModel: from a model and a group of devices to the speed of the replica they make."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from hw_profiles.performance.capacity import (
    MIN_KV_TOKENS,
    InfeasibleError,
    kv_capacity_tokens,
    weight_bytes_per_device,
)
from hw_profiles.performance.coefficients import Coefficients, DeviceCoefficients, EngineFit
from hw_profiles.performance.files import read_coefficients
from hw_profiles.performance.measured import MeasuredReplica
from hw_profiles.performance.operators import ACTIVATION_BYTES, Link, Multipliers, StageOperators, peak_flops
from hw_profiles.performance.replica import ReplicaPerformance

if TYPE_CHECKING:
    from hw_profiles.schema import ModelSpec
    from hw_profiles.topology import Device


class Links(Protocol):
    """The share of a Topology that a replica's speed depends on."""

    def bandwidth_bytes_per_s(self, a: str, b: str) -> float:
        """Between two devices."""

    def latency_s(self, a: str, b: str) -> float:
        """Between two devices."""


OP_CLASSES = ("dense", "attention", "communication", "overhead", "start")
DEFAULT_LINK = Link(bytes_per_s=32e9, latency_s=5e-6)
"""Assumed between devices when no topology says better: PCIe 4.0 x16."""
MIN_START_BYTES_PER_S = 1e8


@dataclass(frozen=True, slots=True)
class Perturbation:
    """A hidden world: factors per device kind and op class, log-uniform in [1 - spread, 1 + spread]."""

    seed: int
    spread: float

    def multipliers(self, kind: str) -> Multipliers:
        """The factors of a device kind; half of each (in log) is a bias that all its op classes share."""
        bias = self._draw(kind, "bias")
        return Multipliers(**{op: math.exp(0.5 * (bias + self._draw(kind, op))) for op in OP_CLASSES})

    def _draw(self, kind: str, what: str) -> float:
        rng = random.Random(f"{self.seed}/{kind}/{what}")
        return rng.uniform(math.log(1.0 - self.spread), math.log(1.0 + self.spread))


@dataclass(frozen=True, slots=True)
class Split:
    """How a model is spread over its devices."""

    tp: int
    pp: int
    dp: int
    tp_link: Link
    pp_link: Link


class PerformanceModel:
    """Speeds of replicas, from fitted coefficients. Replicas are cached: ask as often as you like."""

    def __init__(self, coefficients: Coefficients, perturbation: Perturbation | None = None) -> None:
        if perturbation is not None and not 0.0 <= perturbation.spread < 1.0:
            raise ValueError(f"spread must be in [0, 1), not {perturbation.spread}")
        self._coefficients = coefficients
        self._perturbation = perturbation
        self._cache: dict[tuple[object, ...], ReplicaPerformance] = {}

    @classmethod
    def load(cls, path: Path | None = None) -> PerformanceModel:
        """The packaged coefficients, or those of a file. Raises CoefficientsError."""
        return cls(read_coefficients(path))

    @property
    def coefficients(self) -> Coefficients:
        """What the model computes from."""
        return self._coefficients

    def perturbed(self, perturbation: Perturbation) -> PerformanceModel:
        """The same model in a world where every device kind is somewhat faster or slower than fitted."""
        return PerformanceModel(self._coefficients, perturbation)

    def with_engine(self, engine: EngineFit) -> PerformanceModel:
        """The same hardware under another serving engine, or another version of it."""
        coefficients = Coefficients(
            classes={k: replace(v, engine=engine) for k, v in self._coefficients.classes.items()},
            devices={k: replace(v, engine=engine) for k, v in self._coefficients.devices.items()},
            provenance=self._coefficients.provenance,
        )
        return PerformanceModel(coefficients, self._perturbation)

    def replica(
        self,
        model: ModelSpec,
        devices: Sequence[Device],
        tp: int,
        pp: int,
        topology: Links | None = None,
        *,
        dp: int = 1,
    ) -> ReplicaPerformance:
        """Speed of `model` on `tp * pp` devices, `devices[s * tp:(s + 1) * tp]` being stage s.

        Mixed device kinds: the slowest binds. `dp` > 1 (mixture of experts only, `tp * pp * dp` devices):
        that many ranks in lock step with the experts spread over them, seen as one replica; give it the
        batch limits of all ranks together. Raises InfeasibleError when the model does not fit, or cannot
        be split so.
        """
        _check_split(model, devices, tp, pp, dp)
        # Ranks in lock step exchange tokens in every layer: they are one group to the links, too.
        tp_link = _link(devices, tp * dp if pp == 1 else tp, topology)
        pp_link = _stage_link(devices, tp, pp, topology)
        kinds = tuple(sorted({device.kind for device in devices}))
        key = (model, kinds, tp, pp, dp, tp_link, pp_link)
        found = self._cache.get(key)
        if found is None:
            split = Split(tp, pp, dp, tp_link, pp_link)
            found = self._cache[key] = self._build(model, devices, split)
        return found

    def _multipliers(self, kind: str) -> Multipliers:
        return self._perturbation.multipliers(kind) if self._perturbation else Multipliers()

    def _build(
        self,
        model: ModelSpec,
        devices: Sequence[Device],
        split: Split,
    ) -> ReplicaPerformance:
        tp, pp, ep = split.tp, split.pp, split.dp
        profiles = {device.kind: device.profile for device in devices}
        known = {kind: self._coefficients.of(kind, profile.class_) for kind, profile in profiles.items()}
        if len(devices) == 1:
            watched = self._watched(model, devices[0], known[devices[0].kind])
            if watched is not None:
                return watched
        capacity = min(
            kv_capacity_tokens(model, p.memory_bytes, tp=tp, pp=pp, ep=ep, class_=p.class_)
            for p in profiles.values()
        )
        if capacity < min(MIN_KV_TOKENS, model.max_context_tokens):
            raise InfeasibleError(
                f"{model.name} does not fit {tp * pp} x {'/'.join(sorted(profiles))} (tp={tp}, pp={pp}): "
                f"weights take {weight_bytes_per_device(model, tp, pp, ep) / 1e9:.1f} GB a device, leaving "
                f"room for {capacity} KV tokens; use more devices or larger ones"
            )
        stages = [
            StageOperators(
                known[kind],
                profile,
                model,
                layers=-(-model.layers // pp),
                tp=tp,
                ep=ep,
                link=split.tp_link,
                multipliers=self._multipliers(kind),
            )
            for kind, profile in profiles.items()
        ]
        slowest = max(known, key=lambda kind: known[kind].engine.base_s * self._multipliers(kind).overhead)
        communication = max(self._multipliers(kind).communication for kind in profiles)

        def transfer_s(tokens: int) -> float:
            if pp == 1:
                return 0.0
            moved = ACTIVATION_BYTES * tokens * model.hidden_size / tp
            return communication * (split.pp_link.latency_s + moved / split.pp_link.bytes_per_s)

        return ReplicaPerformance(
            stages,
            pp=pp,
            dp=split.dp,
            engine=known[slowest].engine,
            overhead_factor=self._multipliers(slowest).overhead,
            transfer_s=transfer_s,
            kv_capacity_tokens=capacity * split.dp,
            kv_bytes_per_token=int(model.kv_bytes_per_token),
            start_s=max(
                self._start_s(model, device, known[device.kind], tp=tp, pp=pp, ep=ep)
                for device in {d.kind: d for d in devices}.values()
            ),
            busy_watts=sum(d.profile.tdp_watts * known[d.kind].busy_power for d in devices),
            idle_watts=sum(d.profile.idle_watts for d in devices),
        )

    def _watched(self, model: ModelSpec, device: Device, known: DeviceCoefficients) -> MeasuredReplica | None:
        """The replica as it was measured at work; None: it was not."""
        steps = known.measured.get(model.name)
        if steps is None:
            return None
        return MeasuredReplica(
            steps,
            self._multipliers(device.kind),
            kv_bytes_per_token=int(model.kv_bytes_per_token),
            busy_watts=device.profile.tdp_watts * known.busy_power,
            idle_watts=device.profile.idle_watts,
        )

    def _start_s(
        self, model: ModelSpec, device: Device, known: DeviceCoefficients, *, tp: int, pp: int, ep: int
    ) -> float:
        rate = max(MIN_START_BYTES_PER_S, float(device.profile.host_load_bytes_per_s))
        load_s = weight_bytes_per_device(model, tp, pp, ep) / rate
        fixed_s = known.start.process_s + known.start.warm_up_s
        return (fixed_s + load_s) * self._multipliers(device.kind).start


def _check_split(model: ModelSpec, devices: Sequence[Device], tp: int, pp: int, dp: int) -> None:
    if tp < 1 or pp < 1 or dp < 1:
        raise InfeasibleError(f"{model.name}: tp, pp and dp must be at least 1, not {tp}, {pp}, {dp}")
    if len(devices) != tp * pp * dp:
        needs = f"tp={tp} x pp={pp}" + (f" x dp={dp}" if dp > 1 else "")
        raise InfeasibleError(f"{model.name}: {needs} needs {tp * pp * dp} devices, not {len(devices)}")
    if model.heads % tp:
        raise InfeasibleError(f"{model.name}: {model.heads} attention heads cannot be split {tp} ways")
    if pp > model.layers:
        raise InfeasibleError(f"{model.name}: {model.layers} layers cannot fill {pp} pipeline stages")
    if dp > 1 and (model.moe is None or model.moe.experts % dp):
        raise InfeasibleError(f"{model.name}: has no experts to spread over {dp} ranks; use more replicas")
    for device in devices:
        if peak_flops(device.profile, model.weight_dtype) <= 0 or device.profile.memory_bytes_per_s <= 0:
            raise InfeasibleError(f"{device.kind} ({device.profile.class_}) cannot run {model.name}")


def _link(devices: Sequence[Device], tp: int, topology: Links | None) -> Link:
    """The slowest link inside any stage."""
    pairs = [
        (a.id, b.id)
        for start in range(0, len(devices), tp)
        for i, a in enumerate(devices[start : start + tp])
        for b in devices[start + i + 1 : start + tp]
    ]
    return _slowest(pairs, topology)


def _stage_link(devices: Sequence[Device], tp: int, pp: int, topology: Links | None) -> Link:
    """The slowest link from a device to its peer in the next stage."""
    pairs = [(devices[i].id, devices[i + tp].id) for i in range((pp - 1) * tp)]
    return _slowest(pairs, topology)


def _slowest(pairs: Sequence[tuple[str, str]], topology: Links | None) -> Link:
    if topology is None or not pairs:
        return DEFAULT_LINK
    return Link(
        bytes_per_s=min(topology.bandwidth_bytes_per_s(a, b) for a, b in pairs),
        latency_s=max(topology.latency_s(a, b) for a, b in pairs),
    )
