"""A LoRA adapter for the small model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from execution.engines.models import load_config


def write_adapter(folder: Path) -> None:
    """One that is strong enough for the answers to differ."""
    save_file = pytest.importorskip("safetensors.numpy").save_file
    config, rank = load_config("tiny-llama"), 4
    rng = np.random.default_rng(0)
    rows = config.num_attention_heads * config.head_dim
    weights = {}
    for layer in range(config.num_hidden_layers):
        name = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
        weights[f"{name}.lora_A.weight"] = rng.normal(size=(rank, config.hidden_size)).astype(np.float32)
        weights[f"{name}.lora_B.weight"] = rng.normal(size=(rows, rank)).astype(np.float32)
    folder.mkdir()
    save_file(weights, folder / "adapter_model.safetensors")
    about = {"peft_type": "LORA", "r": rank, "lora_alpha": 8, "target_modules": ["q_proj"], "bias": "none",
             "task_type": "CAUSAL_LM", "base_model_name_or_path": "tiny-llama"}  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(about))
