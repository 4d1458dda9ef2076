"""From a spec to an engine. Adapter packages are imported when an engine of theirs is asked for, not before."""

from __future__ import annotations

import importlib
from dataclasses import dataclass

from execution.engines.tokenizer import ByteTokenizer, load_tokenizer
from loop.contracts.engine import Engine, EngineError, EngineSpec, Tokenizer


@dataclass(frozen=True, slots=True)
class Adapter:
    """Where an engine is found."""

    module: str
    name: str
    """Of the class; it takes one EngineSpec."""
    extra: str = ""
    """Extra of this distribution that brings what it needs."""


ADAPTERS: dict[str, Adapter] = {
    "simulated": Adapter("execution.engines.simulated", "SimulatedEngine"),
    "torch": Adapter("execution.engines.torch", "TorchEngine", "torch"),
    "vllm": Adapter("execution.engines.vllm", "VllmEngine", "vllm"),
}


def build_engine(spec: EngineSpec) -> Engine:
    """An engine that has not started.

    Raises EngineError: no such engine, a package that it needs is missing (says which extra to install), or
    options that make no sense.
    """
    adapter = ADAPTERS.get(spec.engine)
    if adapter is None:
        raise EngineError(f"unknown engine {spec.engine!r}; there are {', '.join(ADAPTERS)}")
    try:
        build = getattr(importlib.import_module(adapter.module), adapter.name)
    except ImportError as error:
        missing = (error.name or str(error)).partition(".")[0]
        way_out = f": pip install 'autopoiesis[{adapter.extra}]'" if adapter.extra else ""
        raise EngineError(f"engine {spec.engine!r} needs the package {missing}{way_out}") from error
    except AttributeError as error:
        raise EngineError(f"engine {spec.engine!r}: {adapter.module} has no {adapter.name}") from error
    engine: Engine = build(spec)
    return engine


def tokenizer_of(spec: EngineSpec) -> Tokenizer:
    """The tokenizer of the engine that this spec builds, without the engine. Raises EngineError."""
    if spec.engine == "simulated":
        return ByteTokenizer()
    return load_tokenizer(spec.model)
