"""Modules by name, with an example input: a user's own, the engine's, or the multi-modal example.

    my_package.models:Encoder               a class (made without arguments), a factory, or a module
    tiny-llama:layers.0.mlp                 a part of a built-in model, or of a model directory
    multimodal                              the example of several encoders and heads

Whatever goes wrong is a SourceError: one line that names the thing and the way out.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import torch
    from torch import nn

MULTIMODAL: Final = "multimodal"
_INPUT: Final = re.compile(r"^(?:(?P<name>[A-Za-z_]\w*)=)?(?P<shape>[0-9a-zA-Z_,x ]*?)(?::(?P<dtype>\w+))?$")
_DTYPES: Final = ("float32", "float16", "bfloat16", "float64", "int64", "int32", "int8", "uint8", "bool")


class SourceError(ValueError):
    """A module or an input cannot be had."""


@dataclass(frozen=True, slots=True)
class Source:
    """A module and how to call it."""

    name: str
    module: nn.Module
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    dynamic: Mapping[str, Mapping[int, str]] | None = None


def open_source(name: str, inputs: Sequence[str] = (), *, seed: int = 0) -> Source:
    """The module of a name; `inputs` like `4x256`, `ids=2x16:int64`, `rowsx256` (a size that varies)."""
    if name == MULTIMODAL:
        return _multimodal(inputs, seed)
    head, colon, part = name.partition(":")
    builtin = _builtin(head, part, seed)
    if builtin is not None:
        module, width = builtin
        return _with_inputs(name, module, inputs or ((f"4x{width}",) if width else ()), seed)
    if not colon:
        raise SourceError(
            f"{name}: write package.module:attribute, a built-in model with a part (tiny-llama:layers.0.mlp), "
            f"a model directory with a part, or {MULTIMODAL}"
        )
    return _with_inputs(name, _imported(head, part, seed), inputs, seed)


def _imported(path: str, attribute: str, seed: int) -> nn.Module:
    """A user's module. The working directory is looked at first, as `python -m` does."""
    if not re.fullmatch(r"\w+(\.\w+)*", path) or not re.fullmatch(r"\w+(\.\w+)*", attribute):
        raise SourceError(f"{path}:{attribute}: write package.module:attribute")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(path)
    except Exception as error:  # a user's module may raise anything
        raise SourceError(f"{path} cannot be imported: {type(error).__name__}: {error}") from error
    for step in attribute.split("."):
        if not hasattr(found, step):
            raise SourceError(f"{path} has nothing called {attribute!r}")
        found = getattr(found, step)
    return _made(f"{path}:{attribute}", found, seed)


def _made(name: str, found: Any, seed: int) -> nn.Module:
    import torch  # noqa: PLC0415 a command's help needs no torch
    from torch import nn  # noqa: PLC0415

    if not isinstance(found, nn.Module) and callable(found):
        torch.manual_seed(seed)  # the same weights each time
        try:
            found = found()
        except Exception as error:  # a user's factory may raise anything
            raise SourceError(
                f"{name}() fails: {type(error).__name__}: {error}; give a module, or a factory without arguments"
            ) from error
    if not isinstance(found, nn.Module):
        raise SourceError(f"{name} is a {type(found).__name__}, not a torch.nn.Module")
    return found.eval()


def _builtin(head: str, part: str, seed: int) -> tuple[nn.Module, int] | None:
    """A part of an engine's model and the width of its rows; None when the name is no model's."""
    from execution.engines.models import BUILTIN_MODELS, load_config, model_directory  # noqa: PLC0415
    from loop.contracts.engine import EngineError  # noqa: PLC0415

    if head not in BUILTIN_MODELS and not Path(head, "config.json").is_file():
        return None
    if not part:
        raise SourceError(
            f"{head}: the whole model takes an engine step, not tensors: name a part, say {head}:layers.0.mlp"
        )
    import torch  # noqa: PLC0415

    from execution.engines.torch.model import build_model  # noqa: PLC0415
    from execution.engines.torch.weights import load_weights  # noqa: PLC0415

    try:
        config = load_config(head)
        weights = load_weights(model_directory(head, seed=seed), config, seed)
        model = build_model(config, weights, torch.float32, torch.device("cpu"))
    except EngineError as error:
        raise SourceError(str(error)) from error
    try:
        found = model.get_submodule(part)
    except AttributeError as error:
        known = ", ".join(name for name, _ in model.layers[0].named_children())
        raise SourceError(f"{head} has no part {part!r}: try layers.0.NAME with one of {known}") from error
    widths = {
        "down": config.intermediate_size,
        "activation": 2 * config.intermediate_size,
        "output": config.num_attention_heads * config.head_dim,
    }
    return found, widths.get(part.rpartition(".")[2], config.hidden_size)


def _multimodal(inputs: Sequence[str], seed: int) -> Source:
    import torch  # noqa: PLC0415

    from execution.regimes.multimodal import MultiModalAnalysis, MultiModalConfig, sample_batch  # noqa: PLC0415

    if inputs:
        raise SourceError(f"{MULTIMODAL} comes with its own input: leave --input out")
    config = MultiModalConfig()
    batch = sample_batch(config, ("11111", "10100"), 32, torch.Generator().manual_seed(seed))
    return Source(MULTIMODAL, MultiModalAnalysis(config, seed=seed).eval(), tuple(batch))


def _with_inputs(name: str, module: nn.Module, inputs: Sequence[str], seed: int) -> Source:
    import inspect  # noqa: PLC0415

    import torch  # noqa: PLC0415

    if not inputs:
        raise SourceError(f"{name}: say what it takes: --input 4x256, or --input ids=2x16:int64")
    generator = torch.Generator().manual_seed(seed)
    names = [each for each in inspect.signature(module.forward).parameters if each not in ("args", "kwargs")]
    args: list[torch.Tensor] = []
    kwargs: dict[str, torch.Tensor] = {}
    dynamic: dict[str, dict[int, str]] = {}
    for place, text in enumerate(inputs):
        label, tensor, varying = _tensor(text, generator)
        if label is None and kwargs:
            raise SourceError(f"--input {text}: inputs without a name come before those with one")
        if label is not None and label not in names:
            raise SourceError(f"--input {text}: forward takes {', '.join(names) or 'nothing'}, not {label!r}")
        if label is None and place >= len(names):
            raise SourceError(f"--input {text}: forward takes {len(names)} inputs: {', '.join(names)}")
        if label is None:
            args.append(tensor)
        else:
            kwargs[label] = tensor
        if varying:
            dynamic[label or names[place]] = varying
    return Source(name, module, tuple(args), kwargs, dynamic or None)


def _tensor(text: str, generator: torch.Generator) -> tuple[str | None, torch.Tensor, dict[int, str]]:
    """Name, random tensor and varying dimensions of `NAME=SHAPE:DTYPE`."""
    import torch  # noqa: PLC0415

    found = _INPUT.match(text.strip())
    if found is None or (found["dtype"] or "float32") not in _DTYPES:
        raise SourceError(f"--input {text}: write SHAPE, NAME=SHAPE or NAME=SHAPE:DTYPE, say ids=2x16:int64")
    dims, varying = [], {}
    for place, dim in enumerate(_dims(found["shape"])):
        if dim.isdigit():
            dims.append(int(dim))
        elif dim.isidentifier():
            dims.append(4)
            varying[place] = dim
        else:
            raise SourceError(f"--input {text}: {dim!r} is neither a size nor a name of one")
    dtype = getattr(torch, found["dtype"] or "float32")
    if dtype.is_floating_point:
        return found["name"], torch.randn(dims, generator=generator).to(dtype), varying
    high = 2 if dtype == torch.bool else 8
    return found["name"], torch.randint(0, high, dims, generator=generator).to(dtype), varying


def _dims(shape: str) -> list[str]:
    """Sizes of `4x256`, `4,256` or `rowsx256`: an x between a name and a number separates them."""
    shape = shape.replace(" ", "")
    if "," in shape:
        return [dim for dim in shape.split(",") if dim]
    return [dim for dim in re.split(r"x(?=\d)|(?<=\d)x", shape) if dim]
