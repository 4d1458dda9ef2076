"""Subjects of compilation from modules: the function without its weights, as execution.compiler.port wants it.

subject = subject_of(mlp, (x,), op="graph", bucket=Bucket(1, 8), threads=1)
weights = parameters_of(mlp)                   # in the order in which the subject takes them
kernel(x, *kernel.prepare(weights))            # what a back end makes of it

The weights become arguments; execution.compiler.source exports the rest, as it does for modules without state.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from execution.compiler.port import Bucket, CompileError, Setting, Subject
from execution.compiler.source import export_subject
from execution.graph.node import GraphError


def subject_of(
    module: nn.Module,
    args: Sequence[torch.Tensor],
    *,
    op: str,
    bucket: Bucket,
    threads: int,
    attrs: Mapping[str, Setting] | None = None,
    fast_math: bool = False,
) -> Subject:
    """What a back end compiles for this module, called like this, with the rows of the bucket.

    Dimension 0 of the first argument, and of all others that have as many rows, is stretched to `bucket.most`; where the
    bucket holds more than one size it is symbolic in the source. Two modules of one form have one key, whatever their
    weights. Raises GraphError for a module that is no function of these tensors.
    """
    inputs, varying = _stretched(args, bucket)
    names = tuple(_named(module))
    with torch.inference_mode(False):
        params = tuple(map(_plain, parameters_of(module)))
        try:
            return export_subject(
                _Stateless(structure_of(module), names, len(inputs)),
                op,
                tuple(map(_plain, inputs)),
                params,
                bucket=bucket,
                threads=threads,
                attrs=attrs,
                varying=varying,
                fast_math=fast_math,
            )
        except CompileError as error:
            raise GraphError(f"{type(module).__name__} is no function of its inputs: {error}") from error


def parameters_of(module: nn.Module) -> tuple[torch.Tensor, ...]:
    """Parameters, then buffers, each once: the weights that a subject takes after its inputs."""
    return tuple(tensor.detach() for tensor in _named(module).values())


def structure_of(module: nn.Module) -> nn.Module:
    """A copy with the very same tensors: what a tracer exchanges in it meanwhile, whoever serves with the module never
    sees. Wrappers around `forward` stay behind."""
    kept: dict[int, Any] = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    made = copy.deepcopy(module, kept)
    for part in made.modules():
        part.__dict__.pop("forward", None)
    return made


class _Stateless(nn.Module):
    """forward(*inputs, *weights). Holds the module in a tuple, so that it is no part of this one's state."""

    def __init__(self, module: nn.Module, names: tuple[str, ...], inputs: int) -> None:
        super().__init__()
        self._held = (module,)
        self._names, self._inputs = names, inputs

    def forward(self, *arguments: torch.Tensor) -> Any:
        inputs, weights = arguments[: self._inputs], arguments[self._inputs :]
        return functional_call(self._held[0], dict(zip(self._names, weights, strict=True)), inputs)


def _named(module: nn.Module) -> dict[str, torch.Tensor]:
    """Tensors by the first of their names; what is tied is replaced together with it."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    """As a tracer takes it: contiguous, and made outside of inference mode."""
    found = tensor.detach().contiguous()
    return found.clone() if found.is_inference() else found


def _stretched(
    args: Sequence[torch.Tensor], bucket: Bucket
) -> tuple[tuple[torch.Tensor, ...], list[tuple[int, int]]]:
    """Arguments with `bucket.most` rows, their own repeated; and which of them, and where, vary."""
    if not args or not all(isinstance(arg, torch.Tensor) for arg in args) or args[0].dim() == 0:
        raise GraphError("a subject takes tensors, and the first one has rows")
    rows = args[0].shape[0]
    varying = [place for place, arg in enumerate(args) if arg.dim() and arg.shape[0] == rows]
    picked = torch.arange(bucket.most, device=args[0].device) % max(rows, 1)
    stretched = tuple(
        arg.detach().index_select(0, picked) if place in varying else arg for place, arg in enumerate(args)
    )
    return stretched, [(place, 0) for place in varying]
