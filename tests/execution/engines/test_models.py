"""Configurations, and the built-in models that are written on demand."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from execution.engines.models import BUILTIN_MODELS, hf_config, load_config, model_directory, random_weights
from loop.contracts.engine import EngineError

LLAMA: dict[str, Any] = hf_config(BUILTIN_MODELS["micro-llama"])


def config_in(directory: Path, fields: Mapping[str, Any]) -> Path:
    (directory / "config.json").write_text(json.dumps(fields))
    return directory


@pytest.mark.parametrize("name", BUILTIN_MODELS)
def test_a_written_configuration_reads_back(name: str, tmp_path: Path) -> None:
    assert load_config(config_in(tmp_path, hf_config(BUILTIN_MODELS[name]))) == BUILTIN_MODELS[name]


def test_the_default_model_has_four_million_parameters() -> None:
    assert 3.8e6 < BUILTIN_MODELS["tiny-llama"].parameters < 4.3e6


def test_weights_depend_on_seed_and_name_alone() -> None:
    config = BUILTIN_MODELS["micro-llama"]
    once, again, other = random_weights(config, 0), random_weights(config, 0), random_weights(config, 1)
    assert {name: value.shape for name, value in once.items()} == config.weight_shapes()
    for name, value in once.items():
        assert np.array_equal(value, again[name])
        assert not np.array_equal(value, other[name])


def test_a_model_is_written_once(tmp_path: Path) -> None:
    pytest.importorskip("safetensors", reason="needs the extra torch: pip install 'autopoiesis[torch]'")
    first = model_directory("micro-llama", cache=tmp_path)
    stamp = (first / "model.safetensors").stat().st_mtime_ns
    assert model_directory("micro-llama", cache=tmp_path) == first
    assert (first / "model.safetensors").stat().st_mtime_ns == stamp
    assert model_directory("micro-llama", seed=1, cache=tmp_path) != first
    assert [path.name for path in first.parent.iterdir() if path.name.startswith(".")] == []


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EngineError, match="AUTOPOIESIS_CACHE"):
        model_directory("micro-llama", cache=tmp_path / "file")


def test_transformers_5_writes_rope_elsewhere(tmp_path: Path) -> None:
    fields = {name: value for name, value in LLAMA.items() if not name.startswith("rope")}
    fields["rope_parameters"] = {"rope_theta": LLAMA["rope_theta"], **LLAMA["rope_scaling"]}
    assert load_config(config_in(tmp_path, fields)) == BUILTIN_MODELS["micro-llama"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"architectures": ["MambaForCausalLM"]}, "MambaForCausalLM"),
        ({"hidden_size": None}, "hidden_size"),
        ({"num_hidden_layers": "two"}, "num_hidden_layers"),
        ({"num_key_value_heads": 3}, "3 key-value heads"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"rope_scaling": {"rope_type": "longrope"}}, "longrope"),
        ({"rope_scaling": "linear"}, "rope_scaling"),
        ({"sliding_window": 128, "architectures": ["MistralForCausalLM"]}, "sliding_window"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
    ],
)
def test_what_is_not_served_is_named(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=said) as caught:
        load_config(config_in(tmp_path, {**LLAMA, **change}))
    assert "config.json" in str(caught.value)


def test_a_directory_without_a_configuration_is_named(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"config\.json: no such file"):
        load_config(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(EngineError, match=r"config\.json: an object is expected"):
        load_config(tmp_path)
