"""Configurations: defaults, files with lines, flags over files."""

from __future__ import annotations

from pathlib import Path

import pytest

from loop.compose.serving_config import (
    DEFAULT_MODEL,
    DEFAULT_SIMULATED_MODEL,
    ServingConfig,
    ServingConfigError,
    load_serving_config,
)
from strategy.live import CanaryKind


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "serve.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_without_anything_the_small_model_is_served_by_torch():
    config = load_serving_config(None, {})
    assert [m.model for m in config.served] == [DEFAULT_MODEL]
    assert config.engines == {"torch"}
    assert config.port is None
    assert config.host == "127.0.0.1"


def test_a_simulated_cluster_gets_a_model_of_its_size_and_slots_the_small_one():
    assert load_serving_config(None, {"engine": "simulated"}).served[0].model == DEFAULT_SIMULATED_MODEL
    slots = load_serving_config(None, {"engine": "simulated", "slots": 2})
    assert slots.served[0].model == DEFAULT_MODEL


def test_flags_come_before_the_file_and_leave_the_rest_of_it(tmp_path: Path):
    path = written(
        tmp_path,
        "cluster: virtual-4\nwindow_s: 5\nengine: simulated\nevolution:\n  evaluations: 3\n  canary: windows\n",
    )
    config = load_serving_config(path, {"window_s": 2.0, "evolution": {"enabled": False}, "slots": None})
    assert (config.cluster, config.window_s) == ("virtual-4", 2.0)
    assert not config.evolution.enabled
    assert config.evolution.evaluations == 3
    assert config.evolution.live().canary is CanaryKind.WINDOWS


def test_slots_as_a_flag_take_the_place_of_the_file_s_cluster(tmp_path: Path):
    config = load_serving_config(written(tmp_path, "cluster: local-2\n"), {"slots": 3})
    assert (config.cluster, config.slots) == (None, 3)


def test_each_model_may_have_an_engine_of_its_own():
    config = ServingConfig.model_validate(
        {"models": [{"model": "tiny-llama"}, {"model": "llama-3.1-8b", "engine": "simulated"}]}
    )
    assert [config.engine_of(m) for m in config.served] == ["torch", "simulated"]


@pytest.mark.parametrize(
    ("text", "line", "word"),
    [
        ("window: 5\n", 1, "did you mean 'window_s'"),
        ("port: 8000\nmodels:\n  - modle: tiny-llama\n", 3, "modle"),
        ("window_s: 0\n", 1, "window_s"),
        ("port: eighty\n", 1, "port"),
        ("cluster: local-2\nslots: 2\n", 1, "twice"),
        ("evolution:\n  canary: bird\n", 2, "canary"),
        ("models:\n  - model: a\n  - model: a\n", 2, "'a' is there twice"),
        ("evolution:\n  canary_min_windows: 9\n  canary_max_windows: 3\n", 1, "canary_min_windows"),
        ("engine: [torch]\n", 1, "engine"),
        ("- a\n", 1, "mapping"),
    ],
)
def test_mistakes_in_a_file_are_told_with_their_line(tmp_path: Path, text: str, line: int, word: str):
    path = written(tmp_path, text)
    with pytest.raises(ServingConfigError, match=word) as caught:
        load_serving_config(path, {})
    assert f"{path}:{line}:" in str(caught.value)


def test_mistakes_in_flags_name_the_setting():
    with pytest.raises(ServingConfigError, match="engine"):
        load_serving_config(None, {"engine": "tensorflow"})
    with pytest.raises(ServingConfigError, match="cannot be read"):
        load_serving_config(Path("nowhere.yaml"), {})
