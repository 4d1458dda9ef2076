"""From a configuration to clusters, profiles, options and engine specs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from execution.engines.models import BUILTIN_MODELS, EngineModelConfig
from hw_profiles import ProfileError, load_cluster, load_model
from loop.compose.serving_config import ServingConfigError, load_serving_config
from loop.compose.serving_world import ServingWorld, build_serving_world
from loop.compose.world import InfeasibleModelError, build_world
from loop.contracts import ReplicaSpec


def built(tmp_path: Path, **flags: object) -> ServingWorld:
    return build_serving_world(load_serving_config(None, flags), tmp_path)


@pytest.mark.parametrize("name", sorted(BUILTIN_MODELS))
def test_packaged_profiles_of_the_built_in_models_say_what_the_engines_load(name: str):
    shape: EngineModelConfig = BUILTIN_MODELS[name]
    profile = load_model(name)
    assert profile.name == name
    assert profile.parameters == shape.parameters
    assert profile.kv_bytes_per_token == 4 * shape.kv_values_per_token
    assert profile.max_context_tokens == shape.max_position_embeddings
    assert profile.vocab_size == shape.vocab_size


def test_the_default_is_two_slots_and_one_device_a_replica(tmp_path: Path):
    world = built(tmp_path, slots=2)
    assert world.world.spec.cluster == "local-2"
    assert world.on_cpu
    assert {(o.tp, o.pp) for o in world.world.options} == {(1, 1)}
    assert not list(tmp_path.iterdir())  # all of it is packaged
    spec = world.engine_spec(
        ReplicaSpec("tiny-llama", ("here-0/cpu1",), max_num_seqs=9), max_waiting=7, seed=3
    )
    assert (spec.engine, spec.model, spec.served_name, spec.seed) == ("torch", "tiny-llama", "tiny-llama", 3)
    assert (spec.limits.max_num_seqs, spec.limits.max_waiting) == (9, 7)
    assert spec.options["threads"] == 1
    assert 0 <= world.world.options[0].kv_capacity_tokens - int(spec.options["kv_capacity_tokens"]) < 16
    assert "one device" in world.fits(ReplicaSpec("tiny-llama", ("here-0/cpu0", "here-0/cpu1"), tp=2))
    assert not world.fits(ReplicaSpec("tiny-llama", ("here-0/cpu0",)))


def test_other_slots_are_written_as_profiles_that_anybody_can_load(tmp_path: Path):
    world = built(tmp_path, slots=3, slot_memory_gib=1.0)
    topology = load_cluster(world.world.spec.cluster)
    assert list(topology.devices) == ["here-0/cpu0", "here-0/cpu1", "here-0/cpu2"]
    assert {d.profile.memory_bytes for d in topology.devices.values()} == {1 << 30}


def test_a_simulated_replica_knows_its_devices_of_the_cluster(tmp_path: Path):
    world = built(
        tmp_path, engine="simulated", models=[{"model": "llama-3.1-8b", "options": {"time_scale": 0.5}}]
    )
    assert not world.on_cpu
    replica = ReplicaSpec("llama-3.1-8b", ("virtual-0/gpu0", "virtual-0/gpu1"), tp=2)
    options = world.engine_spec(replica, max_waiting=8, seed=0).options
    assert options["cluster"] == "virtual-4"
    assert options["devices"] == "virtual-0/gpu0,virtual-0/gpu1"
    assert (options["tp"], options["pp"], options["time_scale"]) == (2, 1, 0.5)
    assert not world.fits(replica)


def test_a_directory_of_weights_becomes_a_profile_under_its_own_name(tmp_path: Path):
    weights = tmp_path / "My Model"
    weights.mkdir()
    shape = {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "torch_dtype": "bfloat16",
    }
    (weights / "config.json").write_text(json.dumps(shape), encoding="utf-8")
    world = built(tmp_path, slots=2, models=[{"model": str(weights)}])
    profile = world.world.models["my-model"]
    assert (profile.hidden_size, profile.head_dim, profile.kv_heads) == (64, 16, 2)
    assert (profile.weight_dtype, profile.bytes_per_weight) == ("bf16", 2.0)
    spec = world.engine_spec(ReplicaSpec("my-model", ("here-0/cpu0",)), max_waiting=8, seed=0)
    assert (spec.model, spec.served_name) == (str(weights), "my-model")
    again = build_world(world.world.spec)  # as evolution's process and the twin do
    assert again.models["my-model"] == profile


def test_a_model_may_be_served_under_another_name(tmp_path: Path):
    world = built(tmp_path, engine="simulated", models=[{"model": "llama-3.1-8b", "name": "chat"}])
    assert [m.name for m in world.models] == ["chat"]
    assert world.world.models["chat"].hidden_size == load_model("llama-3.1-8b").hidden_size


def test_the_twin_s_starts_take_as_long_as_the_engine_s(tmp_path: Path):
    world = built(tmp_path, slots=2)
    estimated = world.world.options[0].start_s
    devices = [world.world.topology.devices["here-0/cpu0"]]
    nominal = world.world.estimates.replica(world.world.models["tiny-llama"], devices, 1, 1).start_s
    assert world.world.spec.parameters.start_scale * nominal == pytest.approx(estimated)


@pytest.mark.parametrize(
    ("flags", "error", "word"),
    [
        ({"models": [{"model": "no-such-model"}]}, ServingConfigError, "no model 'no-such-model'"),
        ({"engine": "simulated", "models": [{"model": "tiny-lama"}]}, ProfileError, "tiny-llama"),
        ({"cluster": "nowhere"}, ProfileError, "nowhere"),
        (
            {"engine": "simulated", "slots": 1, "models": [{"model": "llama-3.1-70b"}]},
            InfeasibleModelError,
            "fits no group",
        ),
        ({"coefficients": "nowhere.json.gz"}, ServingConfigError, "--coefficients"),
    ],
)
def test_what_is_not_there_or_does_not_fit_is_named(
    tmp_path: Path, flags: dict[str, object], error: type[Exception], word: str
):
    with pytest.raises(error, match=word):
        built(tmp_path, **flags)
