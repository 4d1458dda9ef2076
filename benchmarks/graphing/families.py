"""Families of branchy networks, each written as its papers and libraries write it; none is made for reordering.

What they have in common is that several activations are alive at once; how much an order can save differs: a U-Net's
skips are forced on it, a mixture's experts are not.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True, slots=True)
class Family:
    """One kind of network."""

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[torch.Generator], tuple[Tensor, ...]]


class WideBranches(nn.Module):
    """Many parallel branches over one input, summed (ResNeXt in its split form: Xie et al., 2017)."""

    def __init__(self, width: int = 256, hidden: int = 1024, branches: int = 8) -> None:
        super().__init__()
        self.up = nn.ModuleList(nn.Linear(width, hidden) for _ in range(branches))
        self.down = nn.ModuleList(nn.Linear(hidden, width) for _ in range(branches))

    def forward(self, x: Tensor) -> Tensor:
        """(N, width) -> the same."""
        hidden = [functional.gelu(up(x)) for up in self.up]
        outs = [down(h) for down, h in zip(self.down, hidden, strict=True)]
        return x + torch.stack(outs).sum(0)


class MixtureTowers(nn.Module):
    """Multi-gate mixture of experts: all experts, a softmax gate and a tower for each task (Ma et al., 2018)."""

    def __init__(self, width: int = 256, hidden: int = 1024, experts: int = 8, tasks: int = 4) -> None:
        super().__init__()
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, width), nn.ReLU())
            for _ in range(experts)
        )
        self.gates = nn.ModuleList(nn.Linear(width, experts) for _ in range(tasks))
        self.towers = nn.ModuleList(
            nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, 1)) for _ in range(tasks)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """(N, width) -> (N, 1) a task."""
        experts = [expert(x) for expert in self.experts]
        gates = [functional.softmax(gate(x), dim=-1) for gate in self.gates]
        mixed = []
        for gate in gates:
            total = experts[0] * gate[:, 0:1]
            for i, expert in enumerate(experts[1:], 1):
                total = total + expert * gate[:, i : i + 1]
            mixed.append(total)
        return tuple(tower(m) for tower, m in zip(self.towers, mixed, strict=True))


class UNet(nn.Module):
    """Down, across and up again, with skips (Ronneberger et al., 2015)."""

    def __init__(self, channels: int = 16, depth: int = 3) -> None:
        super().__init__()
        sizes = [channels * 2**i for i in range(depth + 1)]
        self.stem = nn.Conv2d(3, channels, 3, padding=1)
        self.downs = nn.ModuleList(_double(a, b) for a, b in itertools.pairwise(sizes))
        self.ups = nn.ModuleList(
            nn.ConvTranspose2d(b, a, 2, stride=2) for a, b in reversed(list(itertools.pairwise(sizes)))
        )
        self.merges = nn.ModuleList(_double(2 * a, a) for a in reversed(sizes[:-1]))
        self.head = nn.Conv2d(channels, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 2, H, W)."""
        x = self.stem(x)
        skips = []
        for down in self.downs:
            skips.append(x)
            x = down(functional.max_pool2d(x, 2))
        for up, merge, skip in zip(self.ups, self.merges, reversed(skips), strict=True):
            x = merge(torch.cat([up(x), skip], dim=1))
        out: Tensor = self.head(x)
        return out


class NasCells(nn.Module):
    """Stacked NASNet-A cells: five blocks of two operations over two earlier cells (Zoph et al., 2018)."""

    def __init__(self, channels: int = 24, cells: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, padding=1)
        inputs = [channels, channels]
        self.cells = nn.ModuleList()
        for _ in range(cells):
            self.cells.append(_NasCell(inputs[-2], inputs[-1], channels))
            inputs.append(6 * channels)
        self.head = nn.Linear(inputs[-1], 10)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 10)."""
        before, x = self.stem(x), self.stem(x)
        for cell in self.cells:
            before, x = x, cell(before, x)
        out: Tensor = self.head(x.mean((2, 3)))
        return out


class _NasCell(nn.Module):
    def __init__(self, before: int, now: int, channels: int) -> None:
        super().__init__()
        self.squeeze_before = nn.Conv2d(before, channels, 1)
        self.squeeze = nn.Conv2d(now, channels, 1)
        self.separable = nn.ModuleList(_separable(channels, kernel) for kernel in (3, 5, 3, 5, 3))

    def forward(self, before: Tensor, x: Tensor) -> Tensor:
        h = self.squeeze(functional.relu(x))
        p = self.squeeze_before(functional.relu(before))
        first = self.separable[0](h) + h
        second = self.separable[1](p) + self.separable[2](h)
        third = functional.avg_pool2d(h, 3, stride=1, padding=1) + p
        fourth = functional.avg_pool2d(p, 3, stride=1, padding=1) + functional.avg_pool2d(
            p, 3, stride=1, padding=1
        )
        fifth = self.separable[3](p) + self.separable[4](p)
        return torch.cat([p, first, second, third, fourth, fifth], dim=1)


class Pyramid(nn.Module):
    """Feature pyramid with a detection head at each level (Lin et al., 2017)."""

    def __init__(self, channels: int = 32, levels: int = 4, out: int = 64) -> None:
        super().__init__()
        sizes = [channels * 2**i for i in range(levels)]
        self.stem = nn.Conv2d(3, channels, 3, padding=1)
        self.stages = nn.ModuleList(
            nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in itertools.pairwise(sizes)
        )
        self.laterals = nn.ModuleList(nn.Conv2d(size, out, 1) for size in sizes)
        self.smooth = nn.ModuleList(nn.Conv2d(out, out, 3, padding=1) for _ in sizes)
        self.classify = nn.Sequential(nn.Conv2d(out, out, 3, padding=1), nn.ReLU(), nn.Conv2d(out, 18, 1))
        self.regress = nn.Sequential(nn.Conv2d(out, out, 3, padding=1), nn.ReLU(), nn.Conv2d(out, 8, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) -> classes and boxes of each level."""
        features = [functional.relu(self.stem(x))]
        for stage in self.stages:
            features.append(functional.relu(stage(features[-1])))
        laterals = [lateral(f) for lateral, f in zip(self.laterals, features, strict=True)]
        for i in range(len(laterals) - 1, 0, -1):
            laterals[i - 1] = laterals[i - 1] + functional.interpolate(laterals[i], scale_factor=2.0)
        outs = [smooth(lateral) for smooth, lateral in zip(self.smooth, laterals, strict=True)]
        classes = [self.classify(out) for out in outs]
        boxes = [self.regress(out) for out in outs]
        return (*classes, *boxes)


class RandomlyWired(nn.Module):
    """A random acyclic graph of separable convolutions (Xie et al., 2019), Watts-Strogatz wiring, seeded."""

    def __init__(self, nodes: int = 24, neighbours: int = 4, channels: int = 24, seed: int = 0) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, padding=1)
        self.takes = _watts_strogatz(nodes, neighbours, 0.75, seed)
        self.works = nn.ModuleList(_separable(channels, 3) for _ in range(nodes))
        self.head = nn.Linear(channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 10)."""
        stem = self.stem(x)
        values: list[Tensor] = []
        for takes, work in zip(self.takes, self.works, strict=True):
            total = values[takes[0]] if takes else stem
            for i in takes[1:]:
                total = total + values[i]
            values.append(work(total))
        used = {i for takes in self.takes for i in takes}
        ends = [value for i, value in enumerate(values) if i not in used]
        out: Tensor = self.head(torch.stack(ends).mean(0).mean((2, 3)))
        return out


class PairwiseFields(nn.Module):
    """Field embeddings, all pairwise interactions, one small network each (as in field-wise click models)."""

    def __init__(self, fields: int = 8, width: int = 128) -> None:
        super().__init__()
        self.fields = nn.ModuleList(nn.Linear(16, width) for _ in range(fields))
        self.pairs = nn.ModuleList(nn.Linear(width, width) for _ in itertools.combinations(range(fields), 2))
        self.scores = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 16 * fields) -> (N, 1)."""
        fields = [
            functional.relu(field(part))
            for field, part in zip(self.fields, torch.split(x, 16, dim=1), strict=True)
        ]
        products = [a * b for a, b in itertools.combinations(fields, 2)]
        seen = [functional.relu(pair(product)) for pair, product in zip(self.pairs, products, strict=True)]
        total = sum(self.scores(s) for s in seen)
        return torch.sigmoid(total)


def _double(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
        nn.Conv2d(outputs, outputs, 3, padding=1),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


def _separable(channels: int, kernel: int) -> nn.Module:
    return nn.Sequential(
        nn.ReLU(),
        nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels),
        nn.Conv2d(channels, channels, 1),
        nn.BatchNorm2d(channels),
    )


def _watts_strogatz(nodes: int, neighbours: int, rewire: float, seed: int) -> list[list[int]]:
    """For each node the earlier nodes that it takes."""
    chance = random.Random(seed)
    edges = set()
    for i in range(nodes):
        for step in range(1, neighbours // 2 + 1):
            j = (i + step) % nodes
            if chance.random() < rewire:
                j = chance.choice([k for k in range(nodes) if k != i])
            edges.add((min(i, j), max(i, j)))
    return [sorted(a for a, b in edges if b == i) for i in range(nodes)]


def _image(rows: int, pixels: int) -> Callable[[torch.Generator], tuple[Tensor, ...]]:
    return lambda generator: (torch.randn(rows, 3, pixels, pixels, generator=generator),)


def _rows(rows: int, width: int) -> Callable[[torch.Generator], tuple[Tensor, ...]]:
    return lambda generator: (torch.randn(rows, width, generator=generator),)


FAMILIES = (
    Family("wide branches", WideBranches, _rows(512, 256)),
    Family("mixture towers", MixtureTowers, _rows(512, 256)),
    Family("u-net", UNet, _image(1, 96)),
    Family("nas cells", NasCells, _image(1, 64)),
    Family("pyramid", Pyramid, _image(1, 96)),
    Family("random wiring", RandomlyWired, _image(1, 64)),
    Family("pairwise fields", PairwiseFields, _rows(1024, 128)),
)
QUICK_FAMILIES = tuple(family for family in FAMILIES if family.name in {"wide branches", "u-net", "pyramid"})
"""Those of fewest operations: planning takes seconds."""
