"""What can be said of the compiled decode step without compiling it."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from execution.compiler.port import Recipe
from execution.engines.torch.step import Row
from execution.live.decode.cases import load_cases, save_cases, synthetic_cases
from execution.live.decode.pack import pack, quantised, rounded
from execution.live.decode.quality import measure_quality
from execution.live.decode.reference import reference_step
from execution.live.decode.shape import DecodeShape, NotDecodableError, read_model
from execution.live.decode.source import Tile, source_of
from execution.live.decode.trial import TrialJob
from tests.execution.live.helpers import ODD, PLAIN, bench_of


@pytest.mark.parametrize("config", [PLAIN, ODD])
def test_the_reference_is_what_the_model_computes(config: object) -> None:
    bench = bench_of(config)  # type: ignore[arg-type]
    for case in synthetic_cases(bench.shape, 40, 9, 4, seed=1):
        if not case.speaks:
            continue
        rows = []
        for memory, past in zip(bench.kv, case.past, strict=True):
            for row, (lane, position) in enumerate(zip(case.lanes, case.positions, strict=True)):
                memory[lane, :, :position] = past[row, :, :position]
        rows = [Row(*told) for told in zip(case.tokens, case.positions, case.lanes, strict=True)]
        with torch.inference_mode():
            got, _ = bench.eager(rows)
        want, written = reference_step(
            bench.shape,
            bench.weights,
            bench.rotations,
            list(case.tokens),
            list(case.positions),
            list(case.past),
        )
        assert torch.allclose(got.double(), want, rtol=0, atol=2e-5 * float(want.abs().max())), case.name
        for memory, new in zip(bench.kv, written, strict=True):
            for row, (lane, position) in enumerate(zip(case.lanes, case.positions, strict=True)):
                assert torch.allclose(memory[lane, :, position].double(), new[row], atol=1e-4)


def test_a_source_is_the_same_for_the_same_and_names_its_sizes() -> None:
    shape = bench_of(PLAIN).shape
    assert source_of(shape, Tile()) == source_of(shape, Tile())
    assert "#define HIDDEN 64" in source_of(shape, Tile())
    assert "#define INT8 1" in source_of(replace(shape, int8=True), Tile())
    with pytest.raises(ValueError, match="rows 1-8"):
        Tile(rows=9)


def test_a_shape_survives_a_subject_and_anything_else_is_refused() -> None:
    shape = bench_of(ODD).shape
    assert DecodeShape.of_attrs(shape.attrs()) == shape
    with pytest.raises(NotDecodableError, match="attributes"):
        DecodeShape.of_attrs((("hidden", 3),))


def test_models_that_are_not_covered_are_refused_by_name() -> None:
    bench = bench_of(PLAIN)
    model = bench.eager.model
    model.get_submodule("layers.1.mlp").down = torch.nn.Identity()
    with pytest.raises(NotDecodableError, match=r"layers\.1\.mlp\.down: Identity has no weight"):
        read_model(model, 4, 2, 16, 1e-5)
    with pytest.raises(NotDecodableError, match="not of the Llama family"):
        read_model(torch.nn.ModuleDict({"embed": torch.nn.Embedding(3, 4)}), 4, 2, 16, 1e-5)
    half = bench_of(PLAIN).eager.model.to(torch.bfloat16)
    with pytest.raises(NotDecodableError, match="bfloat16"):
        read_model(half, 4, 2, 16, 1e-5)


def test_packing_keeps_every_weight_and_pads_with_nothing() -> None:
    matrix = torch.arange(6 * 10, dtype=torch.float32).view(6, 10)
    packed = pack((matrix, torch.arange(10.0)), 4)
    assert packed.panels.shape == (3, 6, 4)
    back = packed.panels.transpose(0, 1).reshape(6, 12)
    assert torch.equal(back[:, :10], matrix)
    assert not back[:, 10:].any()
    halves = pack((matrix, None), 4, halves=True).panels
    assert torch.equal(halves[0], matrix[:, :4])
    assert torch.equal(halves[1], matrix[:, 5:9])


def test_int8_rounds_each_output_channel_by_its_own_scale() -> None:
    draw = torch.Generator().manual_seed(4)
    matrix = torch.randn(32, 8, generator=draw) * torch.logspace(-3, 3, 8)
    matrix[:, 3] = 0
    values, scales = quantised(matrix)
    assert values.dtype == torch.int8
    error = (values.float() * scales - matrix).abs()
    assert bool((error <= 0.5001 * scales).all())
    assert not values[:, 3].any()


def test_quality_of_the_same_weights_is_perfect_and_of_rounded_ones_is_told() -> None:
    bench = bench_of(PLAIN)
    prompts = [[(i * 7 + j) % 256 for i in range(20)] for j in range(3)]
    same = measure_quality(bench.shape, bench.weights, bench.weights, bench.rotations, prompts)
    assert (same.greedy_agreement, same.logit_error_max, same.tokens) == (1.0, 0.0, 57)
    assert same.perplexity == same.perplexity_changed
    changed = measure_quality(bench.shape, bench.weights, rounded(bench.weights), bench.rotations, prompts)
    assert 0.0 < changed.logit_error_rms < 0.1
    assert "perplexity" in str(changed)


def test_cases_and_jobs_survive_files(tmp_path: Path) -> None:
    shape = bench_of(PLAIN).shape
    cases = list(synthetic_cases(shape, 16, 6, 3, seed=9))
    save_cases(cases, tmp_path / "cases.pt")
    again = load_cases(tmp_path / "cases.pt")
    assert [c.name for c in again] == [c.name for c in cases]
    assert all(
        torch.equal(a.nan_to_num(), b.nan_to_num())
        for one, two in zip(cases, again, strict=True)
        for a, b in zip(one.past, two.past, strict=True)
    )
    recipe = Recipe("native", "x", (("rows", 6),))
    job = TrialJob("tiny-llama", 0, 1, 4, False, (1, 2), (recipe,), "f", ("",), prompts=((1, 2), (3,)))
    job.save(tmp_path / "job.json")
    assert TrialJob.load(tmp_path / "job.json") == job


def test_hurtful_cases_stay_inside_the_memory() -> None:
    shape = bench_of(PLAIN).shape
    for most_rows in (1, 2, 7):
        for case in synthetic_cases(shape, 16, most_rows, most_rows, seed=0):
            assert max(case.positions) < 16
            assert sorted(set(case.lanes)) == list(case.lanes)
            assert max(case.lanes) < most_rows
