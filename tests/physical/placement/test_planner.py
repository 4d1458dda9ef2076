"""Plans for clusters of the profiles: whole, disjoint, joined up, and told in words, YAML and a picture."""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml
from typer.testing import CliRunner

from hw_profiles import load_cluster, load_model
from hw_profiles.performance import PerformanceModel
from physical.placement.cli import app
from physical.placement.plan_file import as_dict, as_yaml
from physical.placement.planner import ClusterPlan, ModelPlan, group_name, plan
from physical.placement.problem import PlacementError
from physical.placement.rates import Traffic, stage_rates
from physical.placement.units import Ask, Kind, atoms_for, collect

runner = CliRunner()


@cache
def performance() -> PerformanceModel:
    return PerformanceModel.load()


def ask(model: str, requests_per_s: float | None = None) -> Ask:
    return Ask(load_model(model), Traffic(requests_per_s=requests_per_s))


@cache
def mixed() -> ClusterPlan:
    return plan(load_cluster("mixed-64"), [ask("llama-3.1-70b")], performance(), budget_s=2.0, max_stages=8)


def check_whole(made: ModelPlan) -> None:
    """Flow is kept at each stage, every hop joins layers end to start, weights add up."""
    assert math.fsum(r.weight for r in made.replicas) == pytest.approx(1.0)
    assert math.fsum(r.tokens_per_s for r in made.replicas) == pytest.approx(made.tokens_per_s)
    for replica in made.replicas:
        for place, stage in enumerate(replica.stages):
            arriving = math.fsum(h.tokens_per_s for h in replica.hops if h.target == place)
            leaving = [h for h in replica.hops if h.source == place]
            assert arriving == pytest.approx(stage.tokens_per_s)
            assert math.fsum(h.tokens_per_s for h in leaving) == pytest.approx(stage.tokens_per_s)
            assert math.fsum(h.share for h in leaving) == pytest.approx(1.0)
            assert stage.tokens_per_s <= stage.rate_tokens_per_s * (1 + 1e-9)
            for hop in leaving:
                if hop.target is None:
                    assert stage.last_layer == made.layers - 1
                else:
                    assert replica.stages[hop.target].first_layer == stage.last_layer + 1
                assert hop.tokens_per_s <= hop.limit_tokens_per_s * (1 + 1e-9)


def devices_of(made: ClusterPlan) -> list[str]:
    return [d for m in made.models for r in m.replicas for s in r.stages for d in s.devices]


@pytest.mark.slow
def test_a_mixed_cluster_carries_a_large_model_on_all_kinds() -> None:
    made = mixed()
    (model,) = made.models
    check_whole(model)
    used = devices_of(made)
    assert len(set(used)) == len(used)
    assert set(used) | set(made.idle) == set(load_cluster("mixed-64").devices)
    assert 0.85 * model.bound_tokens_per_s < model.tokens_per_s <= model.bound_tokens_per_s
    assert model.explanation[0].startswith("What binds the ")
    assert all(len(s.devices) == 1 or len({d.partition("/")[0] for d in s.devices}) == 1
               for r in model.replicas for s in r.stages)  # fmt: skip


@pytest.mark.slow
def test_no_token_passes_more_stages_than_allowed() -> None:
    (model,) = mixed().models
    for replica in model.replicas:
        for stage in replica.stages:
            assert stage.layers >= 10  # 80 layers in at most 8 stages


@pytest.mark.slow
def test_two_models_share_by_what_is_asked_of_them() -> None:
    cluster = load_cluster("elastic-a100")
    asks = [ask("llama-3.1-70b", 2.0), ask("llama-3.1-8b", 20.0)]
    made = plan(cluster, asks, performance(), budget_s=1.0)
    for model in made.models:
        check_whole(model)
        assert model.requests_per_s > (model.wanted_requests_per_s or 0.0)
    used = devices_of(made)
    assert len(set(used)) == len(used)
    more = plan(cluster, [asks[0], ask("llama-3.1-8b", 200.0)], performance(), budget_s=1.0)
    assert more.models[1].requests_per_s > made.models[1].requests_per_s
    assert more.models[0].requests_per_s < made.models[0].requests_per_s


def test_a_device_less_is_planned_without() -> None:
    cluster = load_cluster("local-2")
    both = plan(cluster, [ask("tiny-llama")], performance(), budget_s=1.0)
    gone = next(iter(cluster.devices))
    one = plan(cluster, [ask("tiny-llama")], performance(), budget_s=1.0, unavailable=[gone])
    assert gone not in devices_of(one)
    gain = both.models[0].tokens_per_s - one.models[0].tokens_per_s
    assert gain == pytest.approx(one.models[0].gains["1 x cpu-slot"])
    with pytest.raises(PlacementError, match="no device 'x/cpu9'"):
        plan(cluster, [ask("tiny-llama")], performance(), unavailable=["x/cpu9"])


def test_a_model_that_fits_nowhere_is_an_error() -> None:
    with pytest.raises(PlacementError, match=r"model 'llama-3.1-70b' \(141.1 GB of weights\) fits no way"):
        plan(load_cluster("local-2"), [ask("llama-3.1-70b")], performance(), budget_s=1.0)


def test_rates_fall_with_layers_and_the_head_costs_something() -> None:
    cluster = load_cluster("virtual-4")
    device = next(iter(cluster.devices.values()))
    spec = load_model("llama-3.1-8b")
    rates = stage_rates(spec, [device], performance(), cluster, Traffic())
    assert rates is not None
    assert len(rates.tokens_per_s) == spec.layers
    for k in range(1, spec.layers):
        assert rates.tokens_per_s[k] < rates.tokens_per_s[k - 1] * 1.02
        assert rates.last_tokens_per_s[k] < rates.tokens_per_s[k]
    few = stage_rates(spec, [device], performance(), cluster, Traffic(), least_layers=9)
    assert few is not None
    assert few.tokens_per_s[:8] == (0.0,) * 8
    assert few.tokens_per_s[8:] == rates.tokens_per_s[8:]


def test_devices_are_dealt_out_together_only_where_there_are_too_many() -> None:
    kinds: list[Kind] = collect(load_cluster("mixed-64"))
    assert atoms_for(kinds[:1], 80, 1.0) == [1]
    atoms = atoms_for(kinds, 80, 0.3)
    assert all(len(node) % atom == 0 for kind, atom in zip(kinds, atoms, strict=True) for node in kind.nodes)


@pytest.mark.parametrize(
    ("ids", "name"),
    [
        (["n/gpu3"], "n/gpu3"),
        (["n/gpu0", "n/gpu1", "n/gpu2"], "n/gpu0..2"),
        (["n/gpu0", "n/gpu2"], "n/gpu0+gpu2"),
        (["n/gpu9", "n/gpu10"], "n/gpu9..10"),
    ],
)
def test_groups_have_short_names(ids: list[str], name: str) -> None:
    assert group_name(ids) == name


def test_the_file_holds_what_the_plan_says() -> None:
    made = plan(load_cluster("laptop-2"), [ask("qwen3-32b")], performance(), budget_s=1.0)
    check_whole(made.models[0])
    assert len(made.models[0].replicas[0].stages) == 2
    read = yaml.safe_load(as_yaml(made))
    assert read == json.loads(json.dumps(as_dict(made)))
    stages = [s for r in read["models"][0]["replicas"] for s in r["stages"]]
    assert sum(len(s["devices"]) for s in stages) == len(devices_of(made))


@pytest.mark.slow
def test_the_command_plans_writes_and_draws(tmp_path: Path) -> None:
    out, svg = tmp_path / "plan.yaml", tmp_path / "plan.svg"
    done = runner.invoke(
        app,
        [
            *("plan", "virtual-4", "llama-3.1-8b", "--budget", "60s", "--demand", "llama-3.1-8b=3"),
            *("--out", str(out), "--svg", str(svg)),
        ],
    )
    assert done.exit_code == 0, done.stderr
    assert "% of the 3 asked for" in done.stdout
    assert "What binds the" in done.stdout
    assert "1 x a100-sxm-80 +" in done.stdout
    assert yaml.safe_load(out.read_text())["cluster"] == "virtual-4"
    root = ElementTree.fromstring(svg.read_text())  # noqa: S314 - our own
    bars = root.findall(".//{http://www.w3.org/2000/svg}g")
    stages = [s for r in yaml.safe_load(out.read_text())["models"][0]["replicas"] for s in r["stages"]]
    assert len(bars) == len(stages)


def test_json_is_one_object() -> None:
    done = runner.invoke(app, ["plan", "local-2", "tiny-llama", "--budget", "1", "--json"])
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["models"][0]["tokens_per_s"] > 0.0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nowhere", "tiny-llama"], "nowhere"),
        (["local-2", "no-such-model"], "no-such-model"),
        (["local-2", "llama-3.1-70b"], "fits no way"),
        (["local-2", "tiny-llama", "--budget", "soon"], "a time is wanted like 10s"),
        (["local-2", "tiny-llama", "--demand", "tiny-llama=0"], "wanted MODEL=REQ_PER_S"),
        (["local-2", "tiny-llama", "--demand", "other=3"], "wanted MODEL=REQ_PER_S"),
        (["local-2", "tiny-llama", "--without", "x/y"], "no device 'x/y'"),
        (["local-2", "tiny-llama", "--out", "/no/such/folder/plan.yaml"], "cannot write"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(arguments: list[str], says: str) -> None:
    done = runner.invoke(app, ["plan", *arguments])
    assert done.exit_code == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr
