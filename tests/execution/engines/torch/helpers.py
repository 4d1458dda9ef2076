"""Small models, and engines that serve a list of prompts."""

import asyncio
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from execution.engines.models import BUILTIN_MODELS
from execution.engines.torch import TorchEngine
from loop.contracts.engine import (
    EngineLimits,
    EngineOutput,
    EngineRequest,
    EngineSpec,
    EngineStats,
    SamplingParams,
)

SMALL = replace(
    BUILTIN_MODELS["tiny-llama"],
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    head_dim=16,
    max_position_embeddings=512,
)
GREEDY = SamplingParams(max_tokens=16, temperature=0.0, ignore_eos=True)


def engine_of(
    model: Path | str, limits: EngineLimits | None = None, **options: str | float | bool
) -> TorchEngine:
    given = {"threads": 1, "device": "cpu", "max_lanes": 16, "kv_memory_bytes": 2**24, **options}
    return TorchEngine(EngineSpec("torch", str(model), limits=limits or EngineLimits(), options=given))


def prompts_of(seed: int, count: int, longest: int = 60, shared: int = 40) -> list[list[int]]:
    """Random prompts, every other one with the same beginning."""
    rng = random.Random(seed)
    start = [rng.randrange(256) for _ in range(shared)]
    return [
        (start if i % 2 else []) + [rng.randrange(256) for _ in range(rng.randrange(1, longest))]
        for i in range(count)
    ]


async def answer(engine: TorchEngine, request: EngineRequest) -> list[EngineOutput]:
    return [output async for output in engine.generate(request)]


async def tokens_of(
    engine: TorchEngine, name: str, prompt: Sequence[int], sampling: SamplingParams
) -> list[int]:
    outputs = await answer(engine, EngineRequest(name, tuple(prompt), sampling))
    return [token for output in outputs for token in output.token_ids]


def serve(
    engine: TorchEngine, prompts: Sequence[Sequence[int]], sampling: SamplingParams = GREEDY
) -> tuple[list[list[int]], EngineStats]:
    """All prompts at once, on an engine that is started for them: (answers, statistics at the end)."""

    async def run() -> tuple[list[list[int]], EngineStats]:
        await engine.start()
        try:
            jobs = (tokens_of(engine, str(i), prompt, sampling) for i, prompt in enumerate(prompts))
            return await asyncio.gather(*jobs), await engine.stats()
        finally:
            await engine.stop()

    return asyncio.run(run())
