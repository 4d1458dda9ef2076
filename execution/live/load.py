"""A load of our own for an engine: streams that ask again and again, for profiling and tuning without users."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass

from execution.engines.torch import TorchEngine
from loop.contracts.engine import EngineRequest, SamplingParams


@dataclass(slots=True)
class OwnLoad:
    """Closed loops of drawn prompts."""

    engine: TorchEngine
    streams: int = 4
    prompt_tokens: int = 64
    new_tokens: int = 64
    seed: int = 0
    tokens: int = 0
    """Received so far."""
    stopped: bool = False

    async def run(self, seconds: float = float("inf"), streams: Sequence[int] | None = None) -> None:
        """Until the time is over or `stopped` is set; `streams`: several counts, in turn by request."""
        loop = asyncio.get_running_loop()
        until_s = loop.time() + seconds
        most = max(streams or [self.streams])
        await asyncio.gather(*(self._stream(number, until_s) for number in range(most)))

    async def _stream(self, number: int, until_s: float) -> None:
        rng, asked = random.Random(f"{self.seed}/{number}"), 0
        loop = asyncio.get_running_loop()
        while not self.stopped and loop.time() < until_s:
            asked += 1
            prompt = tuple(rng.randrange(256) for _ in range(self.prompt_tokens))
            request = EngineRequest(
                f"own-{id(self)}-{number}-{asked}",
                prompt,
                SamplingParams(temperature=0.0, max_tokens=self.new_tokens, ignore_eos=True),
            )
            async for output in self.engine.generate(request):
                self.tokens += len(output.token_ids)
