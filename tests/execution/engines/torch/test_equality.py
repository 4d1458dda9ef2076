"""Greedy answers equal those of transformers, whatever the batch, the chunks, the preemptions and the reuse."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs the extra torch: pip install 'autopoiesis[torch]'")

import torch

from execution.engines.models import EngineModelConfig, write_model
from loop.contracts.engine import EngineLimits
from tests.execution.engines.torch.helpers import GREEDY, SMALL, engine_of, prompts_of, serve

ROPES: dict[str, dict[str, Any]] = {
    "llama3": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
}  # fmt: skip
CONFIGS: dict[str, EngineModelConfig] = {
    "gqa": SMALL,
    "mha": replace(SMALL, num_key_value_heads=4),
    "mqa, tied": replace(SMALL, num_key_value_heads=1, tie_word_embeddings=True),
    "biases": replace(SMALL, qkv_bias=True, output_bias=True, mlp_bias=True),
    "qwen2, tied": replace(SMALL, architecture="Qwen2ForCausalLM", qkv_bias=True, tie_word_embeddings=True),
    "mistral, wide heads": replace(SMALL, architecture="MistralForCausalLM", head_dim=32),
    **{name: replace(SMALL, rope_scaling=scaling) for name, scaling in ROPES.items()},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_greedy_is_what_transformers_says(name: str, tmp_path: Path) -> None:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    transformers = pytest.importorskip("transformers", reason="the reference: pip install transformers")
    write_model(CONFIGS[name], tmp_path, seed=1)
    reference = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    prompts = prompts_of(seed=1, count=6)
    expected = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        out = reference.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=16, do_sample=False, eos_token_id=None, pad_token_id=0,
        )  # fmt: skip
        expected.append(out[0, len(prompt) :].tolist())
    together, _ = serve(engine_of(tmp_path), prompts)
    assert together == expected
    chunked, stats = serve(engine_of(tmp_path, EngineLimits(3, 17, 100)), prompts)
    assert chunked == expected
    assert stats.cached_tokens > 0
    preempted, stats = serve(
        engine_of(
            tmp_path, EngineLimits(8, 32, 100), kv_capacity_tokens=152, block_tokens=8, prefix_cache=False
        ),
        prompts,
    )
    assert preempted == expected
    assert stats.preemptions > 0
    assert stats.cached_tokens == 0


@pytest.mark.slow
def test_shards_are_one_model(tmp_path: Path) -> None:
    """The same weights in two files, as transformers writes big models."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    transformers = pytest.importorskip("transformers", reason="the reference: pip install transformers")
    write_model(SMALL, tmp_path / "one")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "one", dtype=torch.float32)
    model.save_pretrained(tmp_path / "two", max_shard_size="200KB")
    assert len(list((tmp_path / "two").glob("*.safetensors"))) > 1
    prompts = prompts_of(seed=2, count=3)
    one, _ = serve(engine_of(tmp_path / "one"), prompts, GREEDY)
    two, _ = serve(engine_of(tmp_path / "two"), prompts, GREEDY)
    assert one == two
