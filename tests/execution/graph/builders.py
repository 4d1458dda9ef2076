"""Small graphs and modules that several tests look at."""

from __future__ import annotations

import operator
import random
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F  # noqa: N812 torch's own name for it

from execution.graph.node import Arg, Node, Ref, TensorValue, contiguous_strides


def value(*shape: int | str, dtype: str = "float32") -> TensorValue:
    """A contiguous tensor."""
    return TensorValue(shape, dtype, contiguous_strides(shape))


def call(name: str, op: str, *args: Arg, shape: tuple[int | str, ...], **more: object) -> Node:
    """One operation on references (strings) and numbers."""
    told = tuple(Ref(arg) if isinstance(arg, str) else arg for arg in args)
    return Node(name, "call", op, told, value=value(*shape), **more)  # type: ignore[arg-type]


def source(name: str, *shape: int | str, kind: str = "input") -> Node:
    """An input, or a weight."""
    return Node(name, kind, kind, value=value(*shape), target=name)  # type: ignore[arg-type]


def output(*names: str) -> Node:
    """The results."""
    return Node("output", "output", "output", tuple(Ref(name) for name in names))


def random_graph_module(seed: int, size: int) -> fx.GraphModule:
    """Operations on [4, 6] tensors at random: twins, copies, views, writes, several outputs, weights.

    Operands are mostly recent values, so that copies and what is written meet.
    """
    rng = random.Random(seed)
    aten = torch.ops.aten
    graph = fx.Graph()
    root = nn.Module()
    root.register_buffer("weight", torch.randn(6, 6, generator=torch.Generator().manual_seed(seed)))
    whole: list[fx.Node] = [graph.placeholder("x"), graph.placeholder("y")]
    weight = graph.get_attr("weight")

    def add(target: Any, *args: Any) -> fx.Node:
        return graph.call_function(target, args)

    for _ in range(size):
        a, b = rng.choice(whole[-5:]), rng.choice(whole[-5:])
        match rng.randrange(10):
            case 0:
                whole.append(add(rng.choice([aten.add.Tensor, aten.maximum.default]), a, b))
            case 1 | 2:
                whole.append(add(rng.choice([aten.relu.default, aten.clone.default]), a))
            case 3:
                whole.append(add(aten.mul.Tensor, a, rng.choice([1, 1.0, -0.5])))
            case 4:
                whole.append(add(aten.mm.default, a, weight))
            case 5:
                whole.append(
                    add(
                        aten.t.default,
                        add(rng.choice([aten.neg, aten.clone]).default, add(aten.t.default, a)),
                    )
                )
            case 6:
                parts = add(aten.split.Tensor, a, 3, 1)
                halves = [add(operator.getitem, parts, index) for index in (1, 0)]
                whole.append(add(aten.cat.default, halves, 1))
            case 7:
                whole.append(add(aten.add_.Tensor, a, 1.0))
            case _:
                add(aten.mul_.Tensor, add(aten.slice.Tensor, a, 0, rng.randrange(4), 4), 0.5)
    graph.output(tuple(rng.sample(whole[-6:], 2)))
    return fx.GraphModule(root, graph)


class RmsNorm(nn.Module):
    """Written out, as transformers does."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0.5, 1.5, width))

    def forward(self, x: Tensor) -> Tensor:
        kind = x.dtype
        x = x.to(torch.float32)
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
        return self.weight * x.to(kind)


class GatedMlp(nn.Module):
    """A norm and SwiGLU, with an operation in place."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm = RmsNorm(width)
        self.gate = nn.Linear(width, 2 * width)
        self.up = nn.Linear(width, 2 * width, bias=False)
        self.down = nn.Linear(2 * width, width)
        self.drop = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        return x + self.drop(self.down(F.silu(self.gate(h)).mul_(self.up(h))))


class Branching(nn.Module):
    """Control flow that depends on data, around parts that export."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = GatedMlp()
        self.unused = nn.Linear(8, 8)
        self.layers = nn.ModuleList([nn.Linear(8, 8), nn.LayerNorm(8)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        if x.sum() > 0:
            x = self.layers[0](x)
        return self.layers[1](x)
