"""Stretches run in slices: less memory, measured as predicted, and every bit the same."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from execution.graph.capture import capture
from execution.graph.form import Graph
from execution.graph.rebuild import rebuild
from execution.passes.kernels import batch_norm_
from execution.passes.memory_reuse import Reuse
from execution.passes.memory_slices import MemorySlices
from execution.passes.pipeline import Pipeline
from execution.passes.slice_makers import ByteMaker, TensorMaker
from execution.passes.slice_region import Region
from execution.passes.slice_rules import Reach, tracked
from execution.regimes.memory import measured_peak
from tests.examples import some_slow


class Wide(nn.Module):
    """Rows that know nothing of each other, with a join and a split on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ModuleList(nn.Linear(8, 64) for _ in range(3))
        self.down = nn.ModuleList(nn.Linear(64, 8) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        left, right = torch.split(x, 8, dim=1)
        hidden = [functional.gelu(up(left)) for up in self.up]
        outs = [down(h) for down, h in zip(self.down, hidden, strict=True)]
        return right + torch.stack(outs).sum(0)


class Images(nn.Module):
    """Halos, strides, both kinds of pools, and the way back up."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.apart = nn.Conv2d(8, 8, 5, padding=2, groups=8)
        self.halve = nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.back = nn.ConvTranspose2d(8, 8, 2, stride=2)
        self.last = nn.Conv2d(16, 2, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a = functional.relu(self.norm(self.first(x)))
        b = self.apart(a) + functional.avg_pool2d(a, 3, stride=1, padding=1)
        c = self.halve(b) + functional.max_pool2d(b, 3, stride=2, padding=1)
        d = self.back(c) + functional.interpolate(c, scale_factor=2.0)
        return self.last(torch.cat([a, d], dim=1)), c.mean((2, 3))


class Mixing(nn.Module):
    """Rows that do know of each other, between some that do not."""

    def forward(self, x: Tensor) -> Tensor:
        a = (x * 2).exp()
        b = torch.softmax(a, dim=0)
        return (b @ b.t()).relu() + 1


def _case(module: nn.Module, shape: tuple[int, ...]) -> tuple[Graph, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for parameter in module.parameters():
            nn.init.normal_(parameter, std=0.3)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    return capture(module.eval(), (x,)).graph, x


def _leaves(answer: object) -> tuple[Tensor, ...]:
    return answer if isinstance(answer, tuple) else (answer,)


CASES = {"rows": (Wide(), (64, 16)), "images": (Images(), (1, 3, 32, 16))}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_slices_need_less_and_give_the_same_bits(name: str) -> None:
    graph, x = _case(*CASES[name])
    made, plan = MemorySlices(beam=4, states=100, slices=8).plan(graph)
    program, reused, sliced = (
        measured_peak(rebuild(g), (x,)) for g in (graph, Reuse(beam=4, states=100)(graph), made)
    )
    assert plan.cuts
    assert plan.work <= 1.5
    assert (program.bytes, sliced.bytes) == (plan.program_peak_bytes, plan.peak_bytes)
    assert sliced.bytes < reused.bytes
    assert sliced.bytes < program.bytes / 1.8
    for mine, theirs in zip(_leaves(sliced.answer), _leaves(program.answer), strict=True):
        assert torch.equal(mine, theirs)
    assert rebuild(made)(x)[0].shape == rebuild(graph)(x)[0].shape


@pytest.mark.parametrize("slices", some_slow([2, 3, 5], 3))
def test_each_slice_is_the_whole_s_rows_at_any_count(slices: int) -> None:
    """Whatever the cut, up to rounding: small ones may get another kernel."""
    graph, _ = _case(*CASES["images"])
    track = tracked(graph, 2)
    names = [node.name for node in graph.calls if node.name in track.rules]
    region = Region.of(graph, track, names)
    assert region is not None
    maker = _Nearly(region, torch.Generator().manual_seed(0))
    region.run(maker, slices)
    assert maker.worst < 1e-5
    assert maker.compared == slices * len(names)


class _Nearly(TensorMaker):
    """Compares values instead of bits: another kernel is no wrong row."""

    worst, compared = 0.0, 0

    def piece(
        self, name: str, axis: int, value: Tensor, held: tuple[int, int], needed: tuple[int, int]
    ) -> Tensor:
        mine = value.narrow(axis, needed[0] - held[0], needed[1] - needed[0])
        theirs = self._env[name].narrow(axis, needed[0], needed[1] - needed[0])
        self.worst = max(self.worst, (mine - theirs).detach().abs().max().item())
        self.compared += 1
        return value


def test_what_mixes_rows_is_not_cut() -> None:
    graph, x = _case(Mixing(), (16, 16))
    track = tracked(graph, 0)
    assert "matmul" not in " ".join(track.rules)
    made = MemorySlices(beam=4, states=100)(graph)
    assert torch.equal(rebuild(made)(x), rebuild(graph)(x))
    softmax = next(node.name for node in graph.calls if "softmax" in node.op)
    if softmax in track.rules:  # its shapes carry the rows; its values do not, and the trial tells
        region = Region.of(graph, track, [softmax])
        assert region is not None
        maker = TensorMaker(region, torch.Generator().manual_seed(0))
        region.run(maker, 2)
        assert maker.different == {softmax}


def test_halos() -> None:
    reach = Reach(kernel=3, stride=1, padding=1, place=4)
    assert reach.needs((0, 4), 16) == (0, 5)
    assert reach.needs((4, 8), 16) == (3, 9)
    assert reach.needs((12, 16), 16) == (11, 16)
    assert reach.gives((3, 9), 16) == ((4, 8), True)
    assert reach.gives((0, 5), 16) == ((0, 5), False)  # the last row lacks a neighbour, and is not used
    strided = Reach(kernel=3, stride=2, padding=1, place=4)
    assert strided.needs((2, 4), 16) == (3, 8)
    assert strided.gives((3, 8), 16) == ((2, 4), True)


@pytest.mark.slow
def test_the_estimate_of_a_region_is_not_below_what_it_needs() -> None:
    graph, x = _case(*CASES["rows"])
    track = tracked(graph, 0)
    region = Region.of(graph, track, [node.name for node in graph.calls])
    assert region is not None
    maker = ByteMaker(region)
    region.run(maker, 4)
    plan = MemorySlices(beam=4, states=100, slices=4).plan(graph)[1]
    assert plan.peak_bytes <= maker.peak_bytes
    assert measured_peak(rebuild(graph), (x,)).bytes > 2 * plan.peak_bytes


def test_batch_norm_over_its_input_has_the_same_bits() -> None:
    norm = nn.BatchNorm2d(3).eval()
    generator = torch.Generator().manual_seed(0)
    norm.running_mean, norm.running_var = (
        torch.randn(3, generator=generator),
        torch.rand(3, generator=generator),
    )
    x = torch.randn(2, 3, 5, 7, generator=generator)
    with torch.no_grad():
        expected = norm(x)
        made = batch_norm_(
            x, norm.weight, norm.bias, norm.running_mean, norm.running_var, False, 0.1, 1e-5, True
        )
    assert made is x
    assert torch.equal(x, expected)
    with pytest.raises(ValueError, match="serves"):
        batch_norm_(x, None, None, None, None, True, 0.1, 1e-5, True)


@pytest.mark.slow
def test_in_pipelines() -> None:
    graph, x = _case(*CASES["rows"])
    made = Pipeline.parse("cse,memory_slices(beam=4, states=100, slices=4),dce")(graph)
    assert torch.equal(rebuild(made)(x), rebuild(graph)(x))
    assert len(made.calls) > len(graph.calls)
