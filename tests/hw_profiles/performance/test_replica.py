"""What a replica's speed must be whatever the coefficients: consistent, monotone, feasible."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hw_profiles import load_device, load_model
from hw_profiles.performance import InfeasibleError, PerformanceModel, Perturbation, ReplicaPerformance
from hw_profiles.performance.calibrate.node import node_of
from hw_profiles.performance.coefficients import EngineFit
from hw_profiles.topology import Device, Topology
from tests.examples import up_to

EAGER = EngineFit(base_s=2e-3, per_sequence_s=1e-5, floor_s=0.02, kernel_scale=1.1)


def replica(
    performance: PerformanceModel,
    kind: str,
    model: str = "llama-3.1-8b",
    *,
    tp: int = 1,
    pp: int = 1,
    dp: int = 1,
) -> ReplicaPerformance:
    node = node_of(load_device(kind), tp * pp * dp)
    return performance.replica(load_model(model), list(node.devices.values()), tp, pp, node, dp=dp)


@pytest.fixture(scope="module")
def variants(performance: PerformanceModel) -> dict[str, ReplicaPerformance]:
    perturbed = performance.perturbed(Perturbation(seed=7, spread=0.2))
    return {
        "table": replica(performance, "h100-sxm"),
        "no table": replica(performance, "l40s"),
        "tensor parallel": replica(performance, "h100-sxm", "llama-3.1-70b", tp=4),
        "pipeline": replica(performance, "a100-sxm-80", "llama-3.1-70b", tp=2, pp=2),
        "lock step": replica(performance, "rtx-pro-6000", "qwen3-30b-a3b", dp=2),
        "perturbed": replica(perturbed, "a100-sxm-80"),
        "eager engine": replica(performance.with_engine(EAGER), "h100-sxm"),
        "cpu": replica(performance, "cpu-socket", "tiny-llama-4m"),
    }


NAMES = (
    "table",
    "no table",
    "tensor parallel",
    "pipeline",
    "lock step",
    "perturbed",
    "eager engine",
    "cpu",
)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=up_to(40), deadline=None)
@given(n=st.integers(1, 300), context=st.integers(1, 20_000), share=st.floats(0, 1))
def test_a_segment_is_the_iteration_time_all_along_it(
    variants: dict[str, ReplicaPerformance], name: str, n: int, context: int, share: float
) -> None:
    perf, kv = variants[name], n * context
    base_s, slope_s, end = perf.decode_segment(n, kv)
    assert kv < end
    inside = kv if math.isinf(end) else int(kv + share * (math.ceil(end) - 1 - kv))
    assert base_s + slope_s * inside == pytest.approx(perf.iteration_s(n, inside, ()), rel=1e-12)
    assert perf.decode_step_s(n, kv) == base_s + slope_s * kv


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 300), context=st.integers(1, 20_000))
def test_segments_join_without_a_jump(
    variants: dict[str, ReplicaPerformance], name: str, n: int, context: int
) -> None:
    perf = variants[name]
    base_s, slope_s, end = perf.decode_segment(n, n * context)
    if math.isinf(end):
        return
    beyond_s = perf.iteration_s(n, math.ceil(end), ())
    assert base_s + slope_s * math.ceil(end) == pytest.approx(beyond_s, rel=0.02)


@pytest.mark.parametrize("name", NAMES)
def test_more_work_never_takes_much_less_time(variants: dict[str, ReplicaPerformance], name: str) -> None:
    """Measured kernels are not monotone to the microsecond; a tenth is where a fit would be wrong."""
    perf = variants[name]
    for n, kv in ((1, 500), (16, 8_000), (64, 64_000)):
        step_s = perf.iteration_s(n, kv, ())
        assert step_s > 0
        assert perf.iteration_s(n, 2 * kv, ()) >= 0.99 * step_s
        assert perf.iteration_s(2 * n, 2 * kv, ()) >= 0.9 * step_s
        assert perf.iteration_s(n, kv, ((512, 0),)) > step_s
        alone_s, after_s = perf.iteration_s(0, 0, ((512, 0),)), perf.iteration_s(0, 0, ((512, 8192),))
        assert after_s > alone_s or name == "eager engine"  # hidden behind its CPU
        assert perf.iteration_s(0, 0, ((1024, 0),)) > 0.99 * alone_s


def test_an_empty_batch_takes_no_time(performance: PerformanceModel) -> None:
    assert replica(performance, "h100-sxm").iteration_s(0, 0, ()) == 0.0


def test_an_eager_engine_never_beats_its_floor(performance: PerformanceModel) -> None:
    perf = replica(performance.with_engine(EAGER), "h100-sxm")
    assert perf.iteration_s(1, 100, ()) == pytest.approx(EAGER.floor_s + EAGER.base_s + EAGER.per_sequence_s)
    bare = replica(performance.with_engine(EngineFit(0.0, 0.0, kernel_scale=1.1)), "h100-sxm")
    long_s = bare.iteration_s(256, 2_000_000, ())
    assert long_s > EAGER.floor_s
    assert perf.iteration_s(256, 2_000_000, ()) == pytest.approx(long_s + EAGER.base_s + 256 * 1e-5)


def test_tensor_parallelism_pays_on_nvlink(performance: PerformanceModel) -> None:
    two = replica(performance, "h100-sxm", "llama-3.1-70b", tp=2)
    four = replica(performance, "h100-sxm", "llama-3.1-70b", tp=4)
    assert four.iteration_s(32, 32_000, ()) < 0.8 * two.iteration_s(32, 32_000, ())
    assert four.kv_capacity_tokens > 2 * two.kv_capacity_tokens
    assert four.start_s < two.start_s


def test_a_pipeline_has_throughput_but_no_latency(performance: PerformanceModel) -> None:
    one = replica(performance, "h100-sxm")
    two = replica(performance, "h100-sxm", pp=2)
    assert two.iteration_s(1, 1000, ()) > 0.9 * one.iteration_s(1, 1000, ())
    assert two.prefill_tokens_per_s > 1.3 * one.prefill_tokens_per_s


def test_lock_step_waits_for_the_rank_with_the_prompt(performance: PerformanceModel) -> None:
    perf = replica(performance, "rtx-pro-6000", "qwen3-30b-a3b", dp=2)
    one_s, two_s = (perf.iteration_s(32, 32_000, ((1024, 0),) * k) for k in (1, 2))
    assert two_s < 1.6 * one_s  # the second prompt goes to the other rank, only the experts see both


@pytest.mark.parametrize(
    ("model", "kind", "tp", "message"),
    [
        ("llama-3.1-70b", "l4", 1, "does not fit 1 x l4"),
        ("llama-3.1-8b", "h100-sxm", 3, "32 attention heads cannot be split 3 ways"),
        ("tiny-llama-4m", "ecp5-45k", 1, "cannot run tiny-llama-4m"),
    ],
)
def test_what_cannot_be_is_refused_by_name(
    performance: PerformanceModel, model: str, kind: str, tp: int, message: str
) -> None:
    with pytest.raises(InfeasibleError, match=message):
        replica(performance, kind, model, tp=tp)


def test_a_wrong_number_of_devices_is_refused(performance: PerformanceModel) -> None:
    node = node_of(load_device("h100-sxm"), 2)
    with pytest.raises(InfeasibleError, match="needs 1 devices, not 2"):
        performance.replica(load_model("llama-3.1-8b"), list(node.devices.values()), 1, 1, node)


def test_the_slowest_kind_of_a_group_binds(performance: PerformanceModel, cluster: Topology) -> None:
    model = load_model("llama-3.1-8b")
    by_kind: dict[str, Device] = {}
    for device in cluster.devices.values():
        by_kind.setdefault(device.kind, device)
    fast, slow = by_kind["h100-sxm"], by_kind["l40s"]
    mixed = performance.replica(model, [fast, slow], 1, 2, cluster)
    alone = replica(performance, "l40s", pp=2)
    assert mixed.kv_capacity_tokens == alone.kv_capacity_tokens
    assert mixed.iteration_s(32, 64_000, ()) >= 0.99 * alone.iteration_s(32, 64_000, ())


def test_replicas_are_cached(performance: PerformanceModel) -> None:
    assert replica(performance, "h100-sxm", tp=2) is replica(performance, "h100-sxm", tp=2)
    assert replica(performance, "h100-sxm", tp=2) is not replica(performance, "h100-sxm")


def test_a_perturbed_world_is_another_one_the_same_for_its_seed(performance: PerformanceModel) -> None:
    def step_s(seed: int, kind: str) -> float:
        return replica(performance.perturbed(Perturbation(seed, 0.3)), kind).iteration_s(32, 32_000, ())

    nominal_s = replica(performance, "h100-sxm").iteration_s(32, 32_000, ())
    ratios = [step_s(seed, "h100-sxm") / nominal_s for seed in range(20)]
    assert step_s(3, "h100-sxm") == step_s(3, "h100-sxm")
    assert len(set(ratios)) == 20
    assert all(0.7 <= ratio <= 1.3 for ratio in ratios)
    assert min(ratios) < 0.95
    assert max(ratios) > 1.05
    other = replica(performance, "a100-sxm-80").iteration_s(32, 32_000, ())
    assert ratios[3] != pytest.approx(step_s(3, "a100-sxm-80") / other)


def test_a_spread_of_one_or_more_is_refused(performance: PerformanceModel) -> None:
    with pytest.raises(ValueError, match="spread must be in"):
        performance.perturbed(Perturbation(1, 1.0))
