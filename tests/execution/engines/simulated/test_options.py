"""What may be asked of the simulated engine, and what it says to nonsense."""

import pytest

from execution.engines.registry import build_engine
from execution.engines.simulated.hardware import hardware_of
from execution.engines.simulated.options import SimulatedOptions
from hw_profiles import load_cluster, load_model
from hw_profiles.performance import PerformanceModel
from loop.contracts.engine import EngineError, EngineLimits, EngineSpec


def options(**values: str | float | bool) -> SimulatedOptions:
    return SimulatedOptions.of(EngineSpec("simulated", "llama-3.1-70b", options=values))


def test_options_may_come_as_text() -> None:
    assert options(tp="4", time_scale="0.5", prefix_cache="false", device="h200") == SimulatedOptions(
        tp=4, time_scale=0.5, prefix_cache=False, device="h200"
    )


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"gpus": 4}, "unknown option 'gpus'"),
        ({"tp": "four"}, "'tp' must be a int"),
        ({"tp": True}, "'tp' must be a int"),
        ({"tp": 0}, "'tp' must be at least 1"),
        ({"prefix_cache": "maybe"}, "'prefix_cache' must be a bool"),
        ({"time_scale": -1.0}, "'time_scale' must be at least 0"),
        ({"time_scale": float("nan")}, "'time_scale' must be at least 0"),
        ({"answer_sigma": float("inf")}, "'answer_sigma'"),
        ({"kv_capacity_tokens": -5}, "'kv_capacity_tokens' must not be negative"),
        ({"start_s": float("inf")}, "'start_s' must be finite"),
    ],
)
def test_nonsense_is_refused(values: dict[str, str | float | bool], says: str) -> None:
    with pytest.raises(EngineError, match=says):
        build_engine(EngineSpec("simulated", "llama-3.1-70b", options=values))


def test_limits_below_one_are_refused() -> None:
    with pytest.raises(ValueError, match="max_waiting"):
        build_engine(EngineSpec("simulated", "llama-3.1-70b", limits=EngineLimits(max_waiting=0)))


def test_hardware_is_that_of_the_profiles() -> None:
    cluster = load_cluster("homogeneous-h100-32")
    devices = [cluster.devices[f"h100-0/gpu{i}"] for i in range(4)]
    costs = PerformanceModel.load().replica(load_model("llama-3.1-70b"), devices, 4, 1, cluster)
    for chosen in (
        options(tp=4, cluster="homogeneous-h100-32"),
        options(tp=4, cluster="h100-32", devices="h100-0/gpu0, h100-0/gpu1,h100-0/gpu2,h100-0/gpu3"),
    ):
        found = hardware_of("llama-3.1-70b", chosen)
        assert found.costs.iteration_s(8, 4000, ((512, 0),)) == costs.iteration_s(8, 4000, ((512, 0),))
        assert found.kv_capacity_tokens == costs.kv_capacity_tokens // 16 * 16
        assert found.max_model_len == 131072


def test_a_context_never_exceeds_the_cache() -> None:
    found = hardware_of("llama-3.1-8b", options(kv_capacity_tokens=1000))
    assert (found.kv_capacity_tokens, found.max_model_len) == (992, 992)


@pytest.mark.parametrize(
    ("model", "values", "says"),
    [
        ("no-such-model", {}, "no-such-model"),
        ("llama-3.1-70b", {"tp": 1}, "does not fit"),
        ("llama-3.1-8b", {"device": "abacus"}, "abacus"),
        ("llama-3.1-8b", {"cluster": "nowhere"}, "nowhere"),
        ("llama-3.1-8b", {"cluster": "laptop-2", "device": "h100-sxm"}, "no node of cluster 'laptop-2'"),
        ("llama-3.1-8b", {"devices": "h100-0/gpu0"}, "give 'cluster' too"),
        ("llama-3.1-8b", {"cluster": "h100-32", "devices": "h100-0/gpu99"}, "has no device 'h100-0/gpu99'"),
        ("llama-3.1-8b", {"cluster": "h100-32", "devices": "h100-0/gpu0", "tp": 2}, "needs 2 devices, not 1"),
        ("llama-3.1-8b", {"kv_capacity_tokens": 10}, "holds not one block"),
    ],
)
def test_hardware_that_cannot_be(model: str, values: dict[str, str | float | bool], says: str) -> None:
    with pytest.raises(EngineError, match=says):
        hardware_of(model, options(**values))
