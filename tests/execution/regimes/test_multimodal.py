"""The example: independent of what is absent, pruned without changing a bit, merged within tolerance."""

import pytest
import torch
from torch import Tensor

from benchmarks.graphing.stream import Branching, make_stream, reader
from execution.graph.capture import capture
from execution.graph.form import Graph
from execution.graph.rebuild import rebuild
from execution.passes.pipeline import Pipeline
from execution.regimes.builder import Tolerance
from execution.regimes.multimodal import MultiModalAnalysis, MultiModalConfig, sample_batch
from execution.regimes.planner import CostModel, build_order, predicted_s
from execution.regimes.recipe import STANDARD_RECIPES, Recipe

SMALL = MultiModalConfig(
    width=32, heads=2, layers=1, image_pixels=8, audio_frames=16, sensor_channels=4, features=5, tower_width=8
)


@pytest.fixture(scope="module")
def model() -> MultiModalAnalysis:
    return MultiModalAnalysis(SMALL)


@pytest.fixture(scope="module")
def graph(model: MultiModalAnalysis) -> Graph:
    return capture(model, _batch("11111", "11111")).graph


def _batch(*mixes: str, seed: int = 0) -> tuple[Tensor, ...]:
    return sample_batch(SMALL, mixes, 8, torch.Generator().manual_seed(seed))


def test_weights_come_from_the_seed() -> None:
    one, two = MultiModalAnalysis(SMALL, seed=1), MultiModalAnalysis(SMALL, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


@torch.no_grad()
def test_what_is_absent_has_no_say(model: MultiModalAnalysis) -> None:
    batch = _batch("10100", "10100")
    noisy = [value.clone() for value in batch]
    noisy[1], noisy[3], noisy[4] = (
        torch.randn_like(batch[1]),
        torch.randn_like(batch[3]),
        torch.ones_like(batch[4]),
    )
    for mine, theirs in zip(model(*noisy), model(*batch), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "mix", [pytest.param(mix, marks=pytest.mark.slow) for mix in ("00100", "11000", "00011", "11111")]
)
@torch.no_grad()
def test_pruned_graphs_answer_alike(model: MultiModalAnalysis, graph: Graph, mix: str) -> None:
    batch = _batch(mix, mix, seed=3)
    pruned = Pipeline.parse(f"known_columns(columns='{mix}')")(graph)
    merged = Pipeline.parse("horizontal,memory_order")(pruned)
    for made in (pruned, merged):
        assert Tolerance().worst(rebuild(made)(*batch), model(*batch)) <= 1
    if mix != "11111":
        assert len(pruned.calls) < 0.6 * len(graph.calls)


@pytest.mark.slow
@torch.no_grad()
def test_the_branching_peer_answers_alike(model: MultiModalAnalysis) -> None:
    for mix in ("00100", "11000", "01011"):
        batch = _batch(mix, "11111" if mix == "01011" else mix)
        assert Tolerance().worst(Branching(model)(*batch), model(*batch)) <= 1


@pytest.mark.slow
def test_the_cost_model_ranks_pruned_before_whole(graph: Graph) -> None:
    recipe = Recipe("r")
    pruned = Pipeline.parse("known_columns(columns='00100')")(graph)
    assert predicted_s(pruned, recipe, CostModel()) < 0.5 * predicted_s(graph, recipe, CostModel())
    assert predicted_s(graph, Recipe("c", back_end="inductor"), CostModel()) < predicted_s(
        graph, recipe, CostModel()
    )


def test_what_is_quick_to_build_comes_first() -> None:
    assert [recipe.back_end for recipe in build_order(STANDARD_RECIPES)] == ["eager"] * 2 + ["inductor"] * 2


def test_streams_come_from_the_seed_and_hold_known_regimes(model: MultiModalAnalysis) -> None:
    one, two = make_stream(model, 3, seed=1), make_stream(model, 3, seed=1)
    assert all(torch.equal(a, b) for x, y in zip(one, two, strict=True) for a, b in zip(x, y, strict=True))
    assert all(reader().read(batch) is not None for batch in one)
