"""From a spec to an engine, and what is said where that cannot be."""

from __future__ import annotations

import sys

import pytest

from execution.engines import registry
from execution.engines.registry import Adapter, build_engine, tokenizer_of
from execution.engines.simulated import SimulatedEngine
from loop.contracts.engine import EngineError, EngineSpec


def test_an_engine_by_name() -> None:
    engine = build_engine(EngineSpec("simulated", "llama-3.1-8b"))
    assert isinstance(engine, SimulatedEngine)


def test_an_unknown_name_is_told_the_known_ones() -> None:
    with pytest.raises(EngineError, match=r"unknown engine 'steam'; there are simulated, torch, vllm"):
        build_engine(EngineSpec("steam", "tiny-llama"))


def test_a_missing_package_is_told_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("execution.engines.torch")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)  # as where it is not installed
    with pytest.raises(EngineError, match=r"needs the package torch: pip install 'autopoiesis\[torch\]'"):
        build_engine(EngineSpec("torch", "tiny-llama"))


def test_an_adapter_without_its_class(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.ADAPTERS, "odd", Adapter("execution.engines.vocabulary", "NoEngine"))
    with pytest.raises(EngineError, match=r"execution\.engines\.vocabulary has no NoEngine"):
        build_engine(EngineSpec("odd", "tiny-llama"))


def test_tokenizers_need_no_engine() -> None:
    text = "Grüße, 世界"
    for spec in (EngineSpec("simulated", "llama-3.1-70b"), EngineSpec("torch", "tiny-llama")):
        tokenizer = tokenizer_of(spec)
        assert tokenizer.decode(tokenizer.encode(text)) == text
    with pytest.raises(EngineError, match="no-such-model"):
        tokenizer_of(EngineSpec("torch", "no-such-model"))
