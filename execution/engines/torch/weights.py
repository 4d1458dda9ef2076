"""Weights of a model directory, checked against its configuration; every complaint names the file and the tensor."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from execution.engines.models import EngineModelConfig, random_weights
from loop.contracts.engine import EngineError

Tensors = dict[str, torch.Tensor]


def load_weights(directory: Path, config: EngineModelConfig, seed: int) -> Tensors:
    """All tensors of `config.weight_shapes()`, on CPU, as stored.

    From model.safetensors, or the shards that model.safetensors.index.json lists; drawn from `seed` where the
    directory has a configuration only. Raises EngineError.
    """
    shapes = config.weight_shapes()
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        places = _indexed(index)
    elif (directory / "model.safetensors").is_file():
        places = dict.fromkeys(shapes, directory / "model.safetensors")
    elif any(directory.glob("*.bin")) or any(directory.glob("*.pt")) or any(directory.glob("*.safetensors")):
        raise EngineError(
            f"{directory}: no model.safetensors and no model.safetensors.index.json: other weight files are not read"
        )
    else:
        return {name: torch.from_numpy(values) for name, values in random_weights(config, seed).items()}
    found: Tensors = {}
    for path in sorted(set(places.values())):
        wanted = [name for name in shapes if places.get(name) == path]
        found |= _read(path, wanted)
    for name, shape in shapes.items():
        if name not in found:
            raise EngineError(f"{index if index.is_file() else directory}: tensor {name} is missing")
        if tuple(found[name].shape) != shape:
            raise EngineError(
                f"{places[name]}: tensor {name} has shape {tuple(found[name].shape)}, "
                f"but config.json says {shape}"
            )
    return found


def _indexed(index: Path) -> dict[str, Path]:
    """File of each tensor, as the index of a sharded checkpoint says."""
    try:
        entries = json.loads(index.read_text(encoding="utf-8"))["weight_map"].items()
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise EngineError(f"{index}: not an index of shards: {error!r}") from error
    places = {}
    for name, file in entries:
        path = index.parent / str(file)
        if path.parent != index.parent:
            raise EngineError(f"{index}: tensor {name}: {file!r} is not a file of this directory")
        places[str(name)] = path
    return places


def _read(path: Path, names: list[str]) -> Tensors:
    """Tensors of one file; those that it lacks are left out."""
    try:
        from safetensors import SafetensorError, safe_open  # noqa: PLC0415 models made from a seed do not need it
    except ImportError as error:
        raise EngineError(
            f"{path} needs the package safetensors: pip install 'autopoiesis[torch]'"
        ) from error
    found: Tensors = {}
    name = ""
    try:
        with safe_open(path, framework="pt") as file:
            present = set(file.keys())
            for name in names:
                if name in present:
                    found[name] = file.get_tensor(name)
    except (OSError, SafetensorError) as error:
        raise EngineError(f"{path}: cannot be read{f' at tensor {name}' if name else ''}: {error}") from error
    for name, tensor in found.items():
        if not tensor.is_floating_point():
            raise EngineError(f"{path}: tensor {name} has type {tensor.dtype}: only floating point is served")
    return found
