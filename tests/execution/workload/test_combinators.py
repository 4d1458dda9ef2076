from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from execution.workload import (
    WorkloadError,
    burst,
    concat,
    cut,
    diurnal,
    flash_crowd,
    merge,
    mix_shift,
    model_mix_shift,
    rename_model,
    scale,
    shift,
    splice,
    take,
    tiers,
)
from execution.workload.statistics import prefix_sharing
from loop.contracts import Request, Workload
from tests.examples import up_to
from tests.execution.workload.strategies import well_formed, workloads

OTHER = Workload("other", tuple(Request(i, 3.0 * i, "z", 77, 7, (1,)) for i in range(5)), "other-file")

COMBINATORS: dict[str, Callable[[Workload, int], Workload]] = {
    "scale": lambda w, seed: scale(w, 1.7, seed=seed),
    "thin": lambda w, seed: scale(w, 0.4, seed=seed),
    "compress": lambda w, seed: scale(w, 3.0, method="time", seed=seed),
    "burst": lambda w, seed: burst(w, 2.5, 20.0, 300.0, seed=seed),
    "flash_crowd": lambda w, seed: flash_crowd(w, 5.0, 50.0, 100.0, seed=seed),
    "diurnal": lambda w, seed: diurnal(w, 200.0, 0.9, seed=seed),
    "mix_shift": lambda w, seed: mix_shift(w, OTHER, 30.0, 100.0, share=0.8, end_s=900.0, seed=seed),
    "model_mix_shift": lambda w, seed: model_mix_shift(w, {"a": 1}, {"b": 1}, 10.0, 400.0, seed=seed),
    "tiers": lambda w, seed: tiers(w, {0: 0.5, 2: 0.5}, seed=seed),
    "merge": lambda w, seed: merge(w, OTHER),
    "concat": lambda w, seed: concat(w, OTHER, gap_s=1.0),
    "splice": lambda w, seed: splice(w, OTHER, 10.0, 20.0),
    "cut": lambda w, seed: cut(w, 10.0, 500.0),
    "take": lambda w, seed: take(w, 7),
    "shift": lambda w, seed: shift(w, 2.5),
    "rename_model": lambda w, seed: rename_model(w, "c"),
}


@pytest.mark.parametrize("name", COMBINATORS)
@settings(max_examples=8)
@given(workload=workloads(), seed=st.integers(0, 5))
def test_every_combinator_keeps_workloads_well_formed(name: str, workload: Workload, seed: int) -> None:
    before = (tuple(workload.requests), dict(workload.notes))
    result = COMBINATORS[name](workload, seed)
    well_formed(result)
    assert result == COMBINATORS[name](workload, seed)  # deterministic
    assert (tuple(workload.requests), dict(workload.notes)) == before  # pure
    assert list(result.notes)[:-1] == list(workload.notes)
    assert list(result.notes)[-1].startswith(f"{len(workload.notes) + 1:02d}.")


@settings(max_examples=up_to(50))
@given(
    workload=workloads(), first=st.sampled_from(list(COMBINATORS)), second=st.sampled_from(list(COMBINATORS))
)
def test_combinators_compose(workload: Workload, first: str, second: str) -> None:
    result = COMBINATORS[second](COMBINATORS[first](workload, 1), 2)
    well_formed(result)
    assert len(result.notes) == len(workload.notes) + 2


@settings(max_examples=up_to(40))
@given(workloads(), st.integers(1, 4), st.floats(0, 500), st.floats(1, 500))
def test_a_burst_multiplies_inside_and_nothing_outside(
    workload: Workload, factor: int, start_s: float, length_s: float
) -> None:
    end_s = start_s + length_s
    result = burst(workload, float(factor), start_s, end_s)

    def inside(w: Workload) -> list[Request]:
        return [r for r in w.requests if start_s <= r.arrival_s < end_s]

    def outside(w: Workload) -> list[tuple[object, ...]]:
        return [r[1:] for r in w.requests if not start_s <= r.arrival_s < end_s]

    assert len(inside(result)) == factor * len(inside(workload))
    assert outside(result) == outside(workload)
    lengths = Counter((r.model, r.input_tokens, r.output_tokens, r.tier) for r in inside(workload))
    made = Counter((r.model, r.input_tokens, r.output_tokens, r.tier) for r in inside(result))
    assert made == Counter({key: factor * count for key, count in lengths.items()})


@settings(max_examples=up_to(40))
@given(workloads(), st.floats(0.1, 10))
def test_time_compression_keeps_everything_but_the_clock(workload: Workload, factor: float) -> None:
    result = scale(workload, factor, method="time")
    assert [r[2:] for r in result.requests] == [r[2:] for r in workload.requests]
    assert [r.arrival_s * factor for r in result.requests] == pytest.approx(
        [r.arrival_s for r in workload.requests]
    )


@settings(max_examples=up_to(40))
@given(workloads(), workloads(), st.booleans())
def test_merging_conserves_requests(first: Workload, second: Workload, share: bool) -> None:
    result = merge(first, second, share_prefixes=share)
    keys = Counter((r.arrival_s, r.model, r.input_tokens) for w in (first, second) for r in w.requests)
    assert Counter((r.arrival_s, r.model, r.input_tokens) for r in result.requests) == keys
    if share:
        blocks = {b for w in (first, second) for r in w.requests for b in r.block_hashes}
        assert {b for r in result.requests for b in r.block_hashes} == blocks


@settings(max_examples=up_to(40))
@given(workloads(min_size=1), st.floats(0, 1000), st.floats(1, 1000))
def test_cutting_in_two_loses_nothing(workload: Workload, at_s: float, more_s: float) -> None:
    parts = [cut(workload, 0.0, at_s)] if at_s > 0 else []
    parts += [cut(workload, at_s, at_s + more_s), cut(workload, at_s + more_s)]
    assert sum(len(part.requests) for part in parts) == len(workload.requests)


def test_scaling_by_rate_scales_the_count(steady: Workload) -> None:
    assert len(scale(steady, 2.0).requests) == 2000
    assert len(scale(steady, 0.25, seed=1).requests) == pytest.approx(250, abs=50)
    assert len(scale(steady, 2.5, seed=1).requests) == pytest.approx(2500, abs=60)
    assert scale(steady, 2.5, seed=1) != scale(steady, 2.5, seed=2)


def test_copies_come_near_their_originals_with_prefixes_of_their_own(steady: Workload) -> None:
    doubled = scale(steady, 2.0, jitter_s=3.0)
    originals = {r.input_tokens: r.arrival_s for r in steady.requests}
    assert max(abs(r.arrival_s - originals[r.input_tokens]) for r in doubled.requests) <= 3.0
    moved = sum(r.arrival_s != originals[r.input_tokens] for r in doubled.requests)
    assert moved == 1000  # the copies; the originals stay
    assert prefix_sharing(doubled) == pytest.approx(prefix_sharing(steady), abs=1e-9)
    blocks = Counter(r.block_hashes[1] for r in doubled.requests)
    assert max(blocks.values()) == 1  # the second block of each request is shared with none


@pytest.mark.slow
def test_a_flash_crowd_rises_and_decays(steady: Workload) -> None:
    result = flash_crowd(scale(steady, 10.0, seed=1), 6.0, 300.0, 50.0, rise_s=5.0, seed=2)
    counts, _ = np.histogram([r.arrival_s for r in result.requests], bins=[0, 290, 305, 325, 400, 700, 1000])
    rates = counts / np.diff([0, 290, 305, 325, 400, 700, 1000])
    assert rates[0] == pytest.approx(10, rel=0.02)
    assert rates[2] == pytest.approx(10 * (1 + 5 * 0.82), rel=0.12)  # mean of exp(-t/50) over 0..20 s
    assert rates[2] > rates[3] > rates[4]
    assert rates[5] == pytest.approx(10, rel=0.1)


def test_diurnal_swings_around_the_mean(steady: Workload) -> None:
    result = diurnal(scale(steady, 10.0, seed=1), 1000.0, 0.8, seed=2)
    times = np.array([r.arrival_s for r in result.requests])
    assert len(times) == pytest.approx(10_000, rel=0.03)
    high, low = ((times >= 200) & (times < 300)).sum(), ((times >= 700) & (times < 800)).sum()
    assert high / low == pytest.approx(1.787 / 0.213, rel=0.25)  # mean of 1 +- 0.8 sin around the peaks


def test_a_mix_shift_ramps_and_ends(steady: Workload) -> None:
    result = mix_shift(steady, OTHER, 200.0, 400.0, share=0.8, end_s=900.0, seed=1)
    shifted = np.array([r.input_tokens == 77 for r in result.requests])
    assert [r.arrival_s for r in result.requests] == [r.arrival_s for r in steady.requests]
    assert {r.model for r in result.requests} == {"m"}
    assert shifted[:200].sum() == 0
    assert shifted[200:400].mean() == pytest.approx(0.2, abs=0.08)
    assert shifted[600:900].mean() == pytest.approx(0.8, abs=0.08)
    assert shifted[900:].sum() == 0
    assert result.source == "test + other-file"
    own = {b for r in steady.requests for b in r.block_hashes}
    assert not own & {b for r in result.requests if r.input_tokens == 77 for b in r.block_hashes}


def test_models_change_places(steady: Workload) -> None:
    result = model_mix_shift(steady, {"a": 3, "b": 1}, {"b": 1, "c": 1}, 400.0, 200.0, seed=3)
    early = Counter(r.model for r in result.requests[:400])
    late = Counter(r.model for r in result.requests[600:])
    assert early["a"] / 400 == pytest.approx(0.75, abs=0.07)
    assert early["c"] == late["a"] == 0
    assert late["c"] / 400 == pytest.approx(0.5, abs=0.08)


def test_tiers_have_their_shares(steady: Workload) -> None:
    counts = Counter(r.tier for r in tiers(steady, {0: 3.0, 5: 1.0}, seed=1).requests)
    assert counts[5] == pytest.approx(250, abs=45)
    assert set(counts) == {0, 5}


def test_splicing_replaces_an_interval(steady: Workload) -> None:
    result = splice(steady, OTHER, 100.0, 107.0)
    inside = [r for r in result.requests if 100 <= r.arrival_s < 107]
    assert [(r.arrival_s, r.input_tokens) for r in inside] == [(100.0, 77), (103.0, 77), (106.0, 77)]
    assert len(result.requests) == 1000 - 7 + 3


def test_blocks_of_different_size_cannot_be_put_together(steady: Workload) -> None:
    small = Workload("small", (Request(0, 0.0, "m", 20, 1, (1,)),), "s", block_tokens=16)
    with pytest.raises(WorkloadError, match="blocks of 512 tokens, small of 16"):
        merge(steady, small)
    plain = Workload("plain", (Request(0, 0.0, "m", 20, 1),), "p")
    assert merge(plain, small).block_tokens == 16
    assert merge(small, plain).block_tokens == 16


@pytest.mark.parametrize(
    ("act", "what"),
    [
        (lambda w: scale(w, 0.0), "must be positive"),
        (lambda w: scale(w, math.nan), "must be positive"),
        (lambda w: scale(w, 2.0, method="x"), "'rate' or 'time'"),
        (lambda w: scale(w, 1e9), "the limit is"),
        (lambda w: burst(w, -1.0, 0.0, 9.0), "must be finite and not negative"),
        (lambda w: burst(w, 2.0, 9.0, 9.0), "before its end"),
        (lambda w: burst(w, 2.0, -1.0, 9.0), "at 0 or later"),
        (lambda w: flash_crowd(w, 0.5, 1.0, 1.0), "factor >= 1"),
        (lambda w: diurnal(w, 10.0, 1.5), "amplitude 0 to 1"),
        (lambda w: mix_shift(w, cut(w, 1e6), 0.0, 1.0), "needs requests to draw from"),
        (lambda w: mix_shift(w, w, 0.0, 1.0, share=2.0), "share 0 to 1"),
        (lambda w: model_mix_shift(w, {}, {"a": 1.0}, 0.0, 1.0), "must be positive"),
        (lambda w: model_mix_shift(w, {"a": -1.0}, {"a": 1.0}, 0.0, 1.0), "must be positive"),
        (lambda w: tiers(w, {}), "must be positive"),
        (lambda w: take(w, -1), "must not be negative"),
        (lambda w: shift(w, -1.0), "must not be negative"),
        (lambda w: concat(w, w, gap_s=math.inf), "must not be negative"),
        (lambda w: cut(w, 5.0, 4.0), "before its end"),
    ],
)
def test_senseless_arguments_are_refused(
    act: Callable[[Workload], Workload], what: str, steady: Workload
) -> None:
    with pytest.raises(WorkloadError, match=what):
        act(steady)
