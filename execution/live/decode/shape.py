"""What a decode step's code depends on, read from a running model: sizes, which biases there are, the weights' type."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields

import torch
from torch import nn

from execution.compiler.port import Setting

PARTS = ("attention.qkv", "attention.output", "mlp.gate_up", "mlp.down")
"""Matrices of a layer, in the order of a step."""


class NotDecodableError(ValueError):
    """A model that the whole-step code does not cover; the message names the part and the reason."""


@dataclass(frozen=True, slots=True, order=True)
class DecodeShape:
    """Sizes of one model of the Llama family, as the torch engine lays it out."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    inner: int
    vocabulary: int
    eps: float
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    head_bias: bool = False
    final_norm_weight: bool = False
    """The last norm has a weight of its own (tied embeddings)."""
    int8: bool = False
    """Weights of all products are int8 with a scale for each output channel."""

    def attrs(self) -> tuple[tuple[str, Setting], ...]:
        """As a subject holds them."""
        return tuple(sorted(asdict(self).items()))

    @classmethod
    def of_attrs(cls, attrs: tuple[tuple[str, Setting], ...]) -> DecodeShape:
        """Back again. Raises NotDecodableError."""
        known = {f.name for f in fields(cls)}
        try:
            return cls(**{k: v for k, v in attrs if k in known})  # type: ignore[arg-type]
        except TypeError as error:
            raise NotDecodableError(f"not the attributes of a decode step: {error}") from error


@dataclass(frozen=True, slots=True)
class Weights:
    """Tensors of a model, by the part that they have in a step; matrices are [inputs, outputs]."""

    embed: torch.Tensor
    layers: tuple[tuple[tuple[torch.Tensor, torch.Tensor | None], ...], ...]
    """Of each layer: qkv, output, gate_up, down."""
    norm: torch.Tensor | None
    head: tuple[torch.Tensor, torch.Tensor | None]

    def matrices(self) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
        """All of them, in the order of a step."""
        for layer in self.layers:
            yield from layer
        yield self.head


def read_model(
    model: nn.Module, heads: int, kv_heads: int, head_dim: int, eps: float
) -> tuple[DecodeShape, Weights]:
    """Shape and weights of an unchanged `execution.engines.torch.model.Decoder`. Raises NotDecodableError."""
    embed = _tensor(model.get_submodule("embed"), "embed")
    layers, number = [], 0
    while _has(model, f"layers.{number}"):
        at = f"layers.{number}."
        layers.append(tuple(_projection(model, at + name) for name in PARTS))
        number += 1
    if not layers:
        raise NotDecodableError("the model has no layers.0: it is not of the Llama family")
    head = _projection(model, "head")
    norm = getattr(model.get_submodule("norm"), "weight", None)
    qkv, output, gate_up, down = layers[0]
    shape = DecodeShape(
        layers=len(layers), hidden=embed.shape[1], heads=heads, kv_heads=kv_heads, head_dim=head_dim,
        inner=down[0].shape[0], vocabulary=head[0].shape[1], eps=eps,
        qkv_bias=qkv[1] is not None, output_bias=output[1] is not None,
        mlp_bias=gate_up[1] is not None, head_bias=head[1] is not None, final_norm_weight=norm is not None,
    )  # fmt: skip
    weights = Weights(embed, tuple(layers), norm, head)
    _check(shape, weights)
    return shape, weights


def _check(shape: DecodeShape, weights: Weights) -> None:
    for tensor, bias in weights.matrices():
        for one in (tensor, bias):
            if one is not None and (one.dtype != torch.float32 or one.device.type != "cpu"):
                raise NotDecodableError(
                    f"weights are {one.dtype} on {one.device}: only float32 on CPU is covered"
                )
    if shape.heads % shape.kv_heads or shape.head_dim % 2:
        raise NotDecodableError(
            f"{shape.heads} heads of {shape.head_dim} on {shape.kv_heads} key heads are not covered"
        )
    qkv = (shape.heads + 2 * shape.kv_heads) * shape.head_dim
    wanted = (
        (shape.hidden, qkv),
        (shape.heads * shape.head_dim, shape.hidden),
        (shape.hidden, 2 * shape.inner),
        (shape.inner, shape.hidden),
    )
    for number, layer in enumerate(weights.layers):
        found = tuple(tuple(matrix.shape) for matrix, _ in layer)
        biases = tuple(bias is not None for _, bias in layer)
        if found != wanted or biases != (shape.qkv_bias, shape.output_bias, shape.mlp_bias, shape.mlp_bias):
            raise NotDecodableError(
                f"layers.{number}: weights {found} with biases {biases} are not like layers.0's"
            )


def _has(model: nn.Module, name: str) -> bool:
    try:
        model.get_submodule(name)
    except AttributeError:
        return False
    return True


def _tensor(module: nn.Module, name: str) -> torch.Tensor:
    weight = getattr(module, "weight", None)
    if not isinstance(weight, torch.Tensor):
        raise NotDecodableError(f"{name}: {type(module).__name__} has no weight")
    return weight


def _projection(model: nn.Module, name: str) -> tuple[torch.Tensor, torch.Tensor | None]:
    try:
        module = model.get_submodule(name)
    except AttributeError as error:
        raise NotDecodableError(f"the model has no {name}: it is not of the Llama family") from error
    return _tensor(module, name), getattr(module, "bias", None)
