import json
import math
from collections.abc import Iterator
from functools import cache

import numpy as np
import pytest
from typer.testing import CliRunner

from hw_profiles import load_cluster, load_model
from hw_profiles.performance import PerformanceModel
from loop.contracts import DeploymentOption
from physical.cli import app
from physical.placement import deployment_options, device_views, requests_per_s
from physical.placement.options import decode_line

runner = CliRunner()


@cache
def performance() -> PerformanceModel:
    return PerformanceModel.load()


@cache
def options(cluster: str = "mixed-64") -> tuple[DeploymentOption, ...]:
    models = [load_model("llama-3.1-70b"), load_model("llama-3.1-8b")]
    return deployment_options(load_cluster(cluster), models, performance())


def pick(model: str, kind: str, tp: int, pp: int = 1, cluster: str = "mixed-64") -> DeploymentOption | None:
    found = [o for o in options(cluster) if (o.model, o.kind, o.tp, o.pp) == (model, kind, tp, pp)]
    assert len(found) <= 1
    return found[0] if found else None


def test_only_what_fits_memory_and_nodes() -> None:
    assert pick("llama-3.1-8b", "l4", 1)
    assert pick("llama-3.1-70b", "h100-sxm", 1) is None  # 141 GB of weights
    assert pick("llama-3.1-70b", "h100-sxm", 4)
    assert pick("llama-3.1-8b", "l4", 8) is None  # nodes of four
    assert pick("llama-3.1-70b", "l4", 4) is None  # four times 22 GiB
    assert pick("llama-3.1-70b", "l4", 4, 2)  # a stage on each of two nodes
    assert pick("llama-3.1-70b", "h100-sxm", 8, 2)
    assert all(o.kv_capacity_tokens > 0 and o.start_s > 0 for o in options())
    assert [o.model for o in options()] == sorted(
        (o.model for o in options()), key=["llama-3.1-70b", "llama-3.1-8b"].index
    )


def test_option_says_what_the_performance_model_says() -> None:
    mixed = load_cluster("mixed-64")
    devices = [mixed.devices[f"a100-1/gpu{i}"] for i in range(4)]
    replica = performance().replica(load_model("llama-3.1-70b"), devices, 4, 1, mixed)
    option = pick("llama-3.1-70b", "a100-sxm-80", 4)
    assert option is not None
    assert option.kv_capacity_tokens == replica.kv_capacity_tokens
    assert option.prefill_tokens_per_s == replica.prefill_tokens_per_s
    assert option.start_s == replica.start_s
    assert option.watts == replica.busy_watts
    assert option.tp_link_bytes_per_s == 300e9
    assert option.usd_per_hour == pytest.approx(4 * devices[0].usd_per_hour)


def grid(capacity: int) -> Iterator[tuple[int, int]]:
    """Batches between the points of the fit."""
    for n in (1, 3, 12, 48, 100, 200):
        for context in (100, 700, 3000):
            if n * context <= capacity:
                yield n, n * context


def test_decode_line_follows_the_replica() -> None:
    mixed = load_cluster("mixed-64")
    errors = []
    for node, kind, tp, model in (
        ("h100-0", "h100-sxm", 1, "llama-3.1-8b"),
        ("l40s-0", "l40s", 2, "llama-3.1-8b"),
        ("a100-0", "a100-sxm-80", 4, "llama-3.1-70b"),
    ):
        devices = [mixed.devices[f"{node}/gpu{i}"] for i in range(tp)]
        replica = performance().replica(load_model(model), devices, tp, 1, mixed)
        option = pick(model, kind, tp)
        assert option is not None
        for n, kv in grid(replica.kv_capacity_tokens):
            line = option.decode_base_s + n * option.decode_per_seq_s + kv * option.decode_per_kv_token_s
            errors.append(abs(line / replica.decode_step_s(n, kv) - 1.0))
    assert np.median(errors) < 0.05
    assert max(errors) < 0.25


def test_decode_line_of_a_line_is_that_line() -> None:
    class Straight:
        kv_capacity_tokens = 400_000

        def decode_step_s(self, n: int, kv: int) -> float:
            return 0.01 + 2e-5 * n + 3e-8 * kv

    base, per_seq, per_kv = decode_line(Straight(), 8192, 256)  # type: ignore[arg-type]
    assert (base, per_seq, per_kv) == pytest.approx((0.01, 2e-5, 3e-8), rel=1e-6)


def test_spot_and_reserved_prices_are_averaged() -> None:
    elastic = load_cluster("elastic-a100")
    mean = sum(d.usd_per_hour for d in elastic.devices.values()) / 32
    option = pick("llama-3.1-8b", "a100-sxm-80", 2, cluster="elastic-a100")
    assert option is not None
    assert option.usd_per_hour == pytest.approx(2 * mean)


def test_fpgas_are_no_option_and_figures_stay_finite() -> None:
    bench = deployment_options(load_cluster("fabric-bench"), [load_model("tiny-llama-4m")], performance())
    assert {o.kind for o in bench} == {"cpu-socket"}
    for option in (*options(), *bench):
        assert math.isfinite(option.tp_link_bytes_per_s)
        json.dumps(option.decode_base_s, allow_nan=False)


def test_throughput_estimate() -> None:
    option = pick("llama-3.1-8b", "h100-sxm", 1)
    assert option is not None
    rate = requests_per_s(option, 1000, 200)
    assert 1.0 < rate < 1.0 / (1000 / option.prefill_tokens_per_s)  # never faster than prefill alone
    assert requests_per_s(option, 2000, 200) < rate
    assert requests_per_s(option, 1000, 400) < rate
    assert requests_per_s(option, 1000, 200, max_num_seqs=8) < rate
    assert requests_per_s(option, option.kv_capacity_tokens, 1) == 0.0


def test_device_views() -> None:
    elastic = load_cluster("elastic-a100")
    views = device_views(
        elastic,
        unavailable={"spot-1/gpu0"},
        speeds={"reserved-0/gpu2": 0.5},
        leaving_in_s={"spot-2/gpu1": 30.0},
    )
    assert [v.id for v in views] == list(elastic.devices)
    by_id = {v.id: v for v in views}
    assert not by_id["spot-1/gpu0"].available
    assert by_id["reserved-0/gpu2"].speed == 0.5
    assert by_id["spot-2/gpu1"].leaving_in_s == 30.0
    nominal = by_id["reserved-0/gpu0"]
    assert (nominal.available, nominal.speed, nominal.leaving_in_s, nominal.spot) == (True, 1.0, None, False)
    assert by_id["spot-0/gpu0"].spot
    with pytest.raises(ValueError, match="no device 'spot-9/gpu0'"):
        device_views(elastic, unavailable={"spot-9/gpu0"})


@pytest.mark.slow
def test_cli_table_and_json_agree() -> None:
    args = ["options", "mixed-64", "llama-3.1-8b", "--input", "512", "--output", "128"]
    table = runner.invoke(app, args)
    assert table.exit_code == 0
    assert "1 x h100-sxm" in table.stdout
    answer = json.loads(runner.invoke(app, [*args, "--json"]).stdout)
    assert answer["request"] == {"input_tokens": 512, "output_tokens": 128}
    rates = [o["requests_per_usd"] for o in answer["options"]]
    assert rates == sorted(rates, reverse=True)
    assert {o["tp"] for o in answer["options"]} == {1, 2, 4, 8}
    narrow = json.loads(runner.invoke(app, [*args, "--json", "--tp", "2", "--pp", "1"]).stdout)
    assert {(o["tp"], o["pp"]) for o in narrow["options"]} == {(2, 1)}


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["mixed-65", "llama-3.1-8b"], "unknown cluster 'mixed-65' (did you mean 'mixed-64'?)"),
        (["mixed-64", "llama-4"], "unknown model 'llama-4'"),
        (["laptop-2", "bloom-176b"], "model 'bloom-176b' fits no group of devices of cluster 'laptop-2'"),
    ],
)
def test_cli_refuses_in_one_line(args: list[str], message: str) -> None:
    result = runner.invoke(app, ["options", *args])
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
