"""What is served, on what: from a serving configuration to a cluster, model profiles, options, and engine specs.

Profiles that nobody has written (slots of this machine, a directory of weights) are written into OUT/profiles, so that
the twin, other processes and `profiles calibrate` find the very same ones there.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from execution.engines.models import BUILTIN_MODELS, EngineModelConfig, load_config
from execution.twin import WorldParameters
from hw_profiles import ModelSpec, ProfileError, load_device, load_model
from hw_profiles.loader import list_clusters
from hw_profiles.performance import PerformanceModel
from hw_profiles.schema import WeightType
from loop.compose.serving_config import EngineName, ModelConfig, Option, ServingConfig, ServingConfigError
from loop.compose.world import World, WorldSpec, build_world, check_options
from loop.contracts import DeploymentOption, EngineError, EngineLimits, EngineSpec, ReplicaSpec
from physical.placement import deployment_options

SLOT = "cpu-slot"
VIRTUAL_CLUSTER = "virtual-4"
DEFAULT_SLOTS = 2
COEFFICIENTS_FILE = "coefficients.json.gz"
_GIB = 1 << 30
_KV_BLOCK_TOKENS = 16
_DTYPES: Mapping[str, tuple[WeightType, float]] = {
    "float32": ("fp32", 4.0),
    "bfloat16": ("bf16", 2.0),
    "float16": ("fp16", 2.0),
}
_START_S: Mapping[EngineName, float] = {"torch": 4.0, "vllm": 45.0, "simulated": 1.0}
"""Expected start of an engine whose start nobody has calibrated: process, imports, warm-up; measured on two cores."""
_FITTING = {"simulated": None, "vllm": None, "torch": 1}
"""Most devices of one replica; None: as many as there are."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One model, by the names that its profile, its engine and its clients have for it: the first and the last are
    the same."""

    name: str
    engine: EngineName
    location: str
    """What the engine loads."""
    options: Mapping[str, Option]
    python: str = ""
    """Interpreter of its engines' processes; empty: this one."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Added to that of its engines' processes."""


@dataclass(frozen=True, slots=True)
class ServingWorld:
    """All that is known before anything runs."""

    world: World
    models: tuple[ServedModel, ...]
    on_cpu: bool
    """Devices are cores of this machine: an old and a new engine may share them for the moment of a change."""

    @property
    def simulated(self) -> bool:
        """No engine runs on a device that is really there."""
        return all(model.engine == "simulated" for model in self.models)

    def named(self, name: str) -> ServedModel:
        """A model by its name."""
        return next(m for m in self.models if m.name == name)

    def engine_spec(self, replica: ReplicaSpec, *, max_waiting: int, seed: int) -> EngineSpec:
        """How to start the engine of a replica."""
        model = self.named(replica.model)
        return EngineSpec(
            engine=model.engine,
            model=model.location,
            served_name=model.name,
            limits=EngineLimits(replica.max_num_seqs, replica.max_num_batched_tokens, max_waiting),
            seed=seed,
            options={**self._hardware_options(model, replica), **model.options},
        )

    def fits(self, replica: ReplicaSpec) -> str:
        """Why an engine cannot run a replica; empty: it can."""
        most = _FITTING[self.named(replica.model).engine]
        if most is not None and len(replica.devices) > most:
            return f"a {self.named(replica.model).engine} engine runs on one device, not on {len(replica.devices)}"
        return ""

    def _hardware_options(self, model: ServedModel, replica: ReplicaSpec) -> dict[str, Option]:
        """What an engine has to know of its place."""
        if model.engine == "simulated":
            places = ",".join(replica.devices)
            spec = self.world.spec
            return {"cluster": spec.cluster, "devices": places, "tp": replica.tp, "pp": replica.pp}
        if model.engine == "torch":
            place: dict[str, Option] = (
                {"threads": 1} if self.on_cpu else {"device": f"cuda:{_index(replica.devices[0])}"}
            )
            return {**place, "kv_capacity_tokens": self._kv_capacity_tokens(replica)}
        if self.on_cpu:
            return {"threads": len(replica.devices)}
        visible = ",".join(str(_index(name)) for name in replica.devices)
        return {"devices": visible, "tensor_parallel_size": replica.tp, "pipeline_parallel_size": replica.pp}

    def _kv_capacity_tokens(self, replica: ReplicaSpec) -> int:
        """As the twin has it, in whole blocks."""
        kind = self.world.topology.devices[replica.devices[0]].kind
        found = (
            o.kv_capacity_tokens
            for o in self.world.options
            if (o.model, o.kind, o.tp, o.pp) == (replica.model, kind, replica.tp, replica.pp)
        )
        return next(found) // _KV_BLOCK_TOKENS * _KV_BLOCK_TOKENS


def build_serving_world(config: ServingConfig, out: Path) -> ServingWorld:
    """Find or write every profile, and put the world together.

    Raises:
        ServingConfigError: something named is not there, or does not go together.
        ProfileError, InfeasibleModelError, CoefficientsError: as of `build_world`.
    """
    profiles = out / "profiles"
    models = tuple(_model(config, m, profiles) for m in config.served)
    cluster = _cluster(config, profiles)
    spec = WorldSpec(
        cluster,
        tuple(_profile_of(m, profiles) for m in models),
        seed=config.seed,
        coefficients=_coefficients(config, out),
    )
    bare = build_world(spec)
    estimates = bare.estimates
    options = tuple(o for m in models for o in _options(bare, bare.models[m.name], m, estimates))
    check_options(cluster, bare.models, options)
    start_scale = _start_scale(options, bare.options)
    world = replace(
        bare,
        spec=replace(spec, parameters=WorldParameters(start_scale=start_scale)),
        options=options,
    )
    on_cpu = all(d.profile.class_ == "cpu" for d in bare.topology.devices.values())
    return ServingWorld(world, models, on_cpu)


# ---- Models --------------------------------------------------------------------------------------------------------


def _model(config: ServingConfig, given: ModelConfig, profiles: Path) -> ServedModel:
    engine = config.engine_of(given)
    evolved = config.execution.options(config.out) if engine == "torch" else {}
    options = {**evolved, **config.options, **given.options}
    process = (given.python or config.python, {**config.environment, **given.environment})
    if engine == "simulated":
        known = load_model(given.model)
        name = given.name or known.name
        if name != known.name:
            _write(profiles / "models" / f"{name}.yaml", _renamed(known, name))
            return ServedModel(name, engine, str(profiles / "models" / f"{name}.yaml"), options, *process)
        return ServedModel(name, engine, known.name, options, *process)
    try:
        shape = load_config(given.model)
    except EngineError as error:
        raise ServingConfigError(
            f"{error} (models; `--engine simulated` serves packaged profiles)"
        ) from error
    name = given.name or _plain(Path(given.model).name)
    if name not in BUILTIN_MODELS or name != given.model:
        _write(profiles / "models" / f"{name}.yaml", _profile(shape, name, given.model))
    return ServedModel(name, engine, given.model, options, *process)


def _profile_of(model: ServedModel, profiles: Path) -> str:
    """What `load_model` finds a served model's profile by."""
    written = profiles / "models" / f"{model.name}.yaml"
    is_packaged = model.location == model.name
    return model.name if is_packaged or not written.is_file() else str(written)


def _profile(shape: EngineModelConfig, name: str, place: str) -> dict[str, Any]:
    """A model profile as its config.json says."""
    dtype, weight_bytes = _DTYPES.get(shape.dtype, _DTYPES["bfloat16"])
    return {
        "version": 1,
        "name": name,
        "title": f"{place}, {shape.parameters / 1e6:,.1f} million parameters",
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "layers": shape.num_hidden_layers,
        "heads": shape.num_attention_heads,
        "kv_heads": shape.num_key_value_heads,
        "head_dim": shape.head_dim,
        "vocab_size": shape.vocab_size,
        "max_context_tokens": shape.max_position_embeddings,
        "tie_embeddings": shape.tie_word_embeddings,
        "attention_bias": shape.qkv_bias,
        "weight_dtype": dtype,
        "bytes_per_weight": weight_bytes,
        "kv_bytes_per_element": weight_bytes,
        "sources": {"all": f"config.json of {place}"},
    }


def _renamed(model: ModelSpec, name: str) -> dict[str, Any]:
    fields: dict[str, Any] = model.model_dump(exclude_none=True, exclude_unset=True)
    return fields | {"name": name, "aliases": []}


def _plain(name: str) -> str:
    """A directory's name as profiles may be called."""
    allowed = "abcdefghijklmnopqrstuvwxyz0123456789.-_"
    plain = "".join(c if c in allowed else "-" for c in name.lower()).strip("-")
    return plain or "model"


# ---- The cluster ---------------------------------------------------------------------------------------------------


def _cluster(config: ServingConfig, profiles: Path) -> str:
    if config.cluster is not None:
        return config.cluster
    if config.slots is None and config.engines == {"simulated"}:
        return VIRTUAL_CLUSTER
    slots = config.slots or min(DEFAULT_SLOTS, os.cpu_count() or 1)
    packaged = f"local-{slots}"
    if config.slot_memory_gib is None and packaged in list_clusters():
        return packaged
    return _write_slots(slots, config.slot_memory_gib, profiles)


def _write_slots(slots: int, memory_gib: float | None, profiles: Path) -> str:
    """A cluster of this machine's cores; returns its file."""
    source = {"all": "as `loop serve` was told"}
    if memory_gib is not None:
        device = load_device(SLOT).model_dump(by_alias=True, exclude_unset=True)
        device["memory_bytes"] = round(memory_gib * _GIB)
        _write(profiles / "devices" / f"{SLOT}.yaml", device)
    node = f"cpu-slots-{slots}"
    _write(
        profiles / "nodes" / f"{node}.yaml",
        {
            "version": 1,
            "name": node,
            "title": f"This machine, {slots} slots",
            "devices": [{"device": SLOT, "count": slots}],
            "host": {"device_link": "pcie4-x16"},
            "sources": source,
        },
    )
    path = profiles / "clusters" / f"local-{slots}.yaml"
    nodes = [{"name": "here", "node": node}]
    _write(
        path, {"version": 1, "name": path.stem, "title": f"{slots} slots", "nodes": nodes, "sources": source}
    )
    return str(path)


def _write(path: Path, values: Mapping[str, Any]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(dict(values), sort_keys=False), encoding="utf-8")
    except OSError as error:
        raise ServingConfigError(f"{path}: cannot be written: {error.strerror} (--out)") from error


def _coefficients(config: ServingConfig, out: Path) -> str:
    if config.coefficients is not None:
        if not Path(config.coefficients).is_file():
            raise ServingConfigError(f"{config.coefficients}: no such coefficients file (--coefficients)")
        return config.coefficients
    found = out / COEFFICIENTS_FILE
    return str(found) if found.is_file() else ""


# ---- Options -------------------------------------------------------------------------------------------------------


def _options(
    world: World, spec: ModelSpec, model: ServedModel, estimates: PerformanceModel
) -> Sequence[DeploymentOption]:
    """What a replica of the model may be, with the start that its engine is known to take."""
    most = _FITTING[model.engine]
    sizes = (1,) if most == 1 else (1, 2, 4, 8)
    found = deployment_options(
        world.topology, (spec,), estimates, tps=sizes, pps=(1,) if most == 1 else (1, 2)
    )
    if any(kind in estimates.coefficients.devices for kind in {o.kind for o in found} if kind == SLOT):
        return found  # calibrated, its start as well
    start_s = _START_S[model.engine]
    if model.engine == "simulated":
        pretended = model.options.get("start_s", 0.0)
        if isinstance(pretended, int | float) and pretended < 0:
            return tuple(replace(o, start_s=o.start_s + start_s) for o in found)
        start_s += float(pretended) if isinstance(pretended, int | float) else 0.0
    return tuple(replace(o, start_s=start_s) for o in found)


def _start_scale(options: Sequence[DeploymentOption], nominal: Sequence[DeploymentOption]) -> float:
    """By how much the twin's starts have to be stretched to take as long as they are expected to."""
    model_s = {(o.model, o.kind, o.tp, o.pp): o.start_s for o in nominal}
    ratios = [o.start_s / model_s[o.model, o.kind, o.tp, o.pp] for o in options]
    return sum(ratios) / len(ratios) if ratios else 1.0


def _index(device: str) -> int:
    """The number of a GPU in its node: `n0/gpu3` is 3."""
    digits = device.rpartition("/")[2].lstrip("abcdefghijklmnopqrstuvwxyz-_")
    if not digits.isdigit():
        raise ProfileError(
            f"device '{device}': its id does not end in a number, so no GPU can be named by it"
        )
    return int(digits)
