"""Streams that never stop asking one engine, and what they see."""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from execution.engines.torch import TorchEngine
from loop.contracts.engine import EngineRequest, SamplingParams

PROMPT_TOKENS = 64


@dataclass(slots=True)
class Answer:
    """One request, as its reader saw it."""

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    stamps_s: list[float] = field(default_factory=list)
    """When each token (or several at once) came."""
    error: str = ""


def prompts_of(seed: int, count: int) -> list[tuple[int, ...]]:
    """Questions, the same for the same seed."""
    rng = random.Random(f"evolution/{seed}")
    return [tuple(rng.randrange(256) for _ in range(PROMPT_TOKENS)) for _ in range(count)]


class Load:
    """Closed loops over an engine: each stream asks again as soon as it has its answer."""

    def __init__(self, engine: TorchEngine, prompts: Sequence[tuple[int, ...]], new_tokens: int) -> None:
        self._engine, self._prompts, self._new = engine, prompts, new_tokens
        self.answers: list[Answer] = []
        self.tokens = 0
        self._tasks: list[asyncio.Task[None]] = []
        self._asked = 0
        self._stop = False

    def start(self, streams: int) -> None:
        """Begin asking."""
        self._stop = False
        self._tasks = [asyncio.create_task(self._stream()) for _ in range(streams)]

    async def stop(self) -> None:
        """Ask no more; wait for what is under way."""
        self._stop = True
        await asyncio.gather(*self._tasks)
        self._tasks = []

    async def block(self, streams: int, requests: int) -> float:
        """So many requests for each stream, from a standstill: tokens a second."""
        began_s, before = time.perf_counter(), self.tokens
        await asyncio.gather(*(self._some(requests) for _ in range(streams)))
        return (self.tokens - before) / (time.perf_counter() - began_s)

    async def know_prompts(self) -> None:
        """Let the engine see each prompt, so that it has the prefixes it would have had."""
        for number, prompt in enumerate(self._prompts):
            sampling = SamplingParams(temperature=0.0, max_tokens=1, ignore_eos=True)
            async for _ in self._engine.generate(
                EngineRequest(f"know-{id(self)}-{number}", prompt, sampling)
            ):
                pass

    async def _stream(self) -> None:
        while not self._stop:
            await self._ask()

    async def _some(self, requests: int) -> None:
        for _ in range(requests):
            await self._ask()

    async def _ask(self) -> None:
        number, self._asked = self._asked, self._asked + 1
        prompt = self._prompts[number % len(self._prompts)]
        answer = Answer(prompt, ())
        tokens: list[int] = []
        request = EngineRequest(
            f"load-{id(self)}-{number}",
            prompt,
            SamplingParams(temperature=0.0, max_tokens=self._new, ignore_eos=True),
        )
        try:
            async for output in self._engine.generate(request):
                answer.stamps_s.append(time.perf_counter())
                tokens += output.token_ids
                self.tokens += len(output.token_ids)
        except Exception as error:  # noqa: BLE001 a lost answer is what is looked for
            answer.error = repr(error)
        answer.tokens = tuple(tokens)
        self.answers.append(answer)


def itl_ms(answers: Sequence[Answer], begin_s: float = 0.0, end_s: float = float("inf")) -> list[float]:
    """Times between tokens that came within a span."""
    found = []
    for answer in answers:
        for before, after in zip(answer.stamps_s, answer.stamps_s[1:], strict=False):
            if begin_s <= after < end_s:
                found.append(1e3 * (after - before))
    return found


def percentile(values: Sequence[float], q: float) -> float:
    """NaN of nothing."""
    if len(values) < 2:
        return float("nan")
    return statistics.quantiles(values, n=1000, method="inclusive")[min(998, int(q * 1000) - 1)]


async def expected(
    engine: TorchEngine, prompts: Sequence[tuple[int, ...]], new_tokens: int
) -> dict[tuple[int, ...], tuple[int, ...]]:
    """Answers of an engine that nobody changes, one prompt at a time."""
    found = {}
    for number, prompt in enumerate(prompts):
        tokens: list[int] = []
        request = EngineRequest(
            f"expected-{number}",
            prompt,
            SamplingParams(temperature=0.0, max_tokens=new_tokens, ignore_eos=True),
        )
        async for output in engine.generate(request):
            tokens += output.token_ids
        found[prompt] = tuple(tokens)
    return found


@dataclass(slots=True)
class Agreement:
    """Answers beside those of an engine that nobody changed."""

    answers: int = 0
    equal: int = 0
    ties: int = 0
    """They part at a token for which the original's choice is within `TIE` of another."""
    different: int = 0
    lost: int = 0
    prefix: float = 1.0
    """Mean share of an answer before it parts."""
    widest_gap: float = 0.0
    """Between the two logits where answers parted."""


TIE = 1e-3


async def agreement(
    engine: TorchEngine,
    wanted: dict[tuple[int, ...], tuple[int, ...]],
    answers: Sequence[Answer],
) -> Agreement:
    """Compare; `engine` (unchanged) is asked how close a choice was."""
    result = Agreement()
    shares = []
    gaps: dict[tuple[tuple[int, ...], int, int], float] = {}
    for answer in answers:
        result.answers += 1
        right = wanted[answer.prompt]
        if answer.error or len(answer.tokens) != len(right):
            result.lost += 1
            continue
        at = next((i for i, (a, b) in enumerate(zip(answer.tokens, right, strict=True)) if a != b), None)
        shares.append(1.0 if at is None else at / len(right))
        if at is None:
            result.equal += 1
            continue
        key = (answer.prompt, at, answer.tokens[at])
        if key not in gaps:
            gaps[key] = await _gap(
                engine, answer.prompt + right[:at], right[at], answer.tokens[at], len(gaps)
            )
        result.widest_gap = max(result.widest_gap, gaps[key])
        if gaps[key] <= TIE:
            result.ties += 1
        else:
            result.different += 1
    result.prefix = statistics.fmean(shares) if shares else float("nan")
    return result


async def _gap(engine: TorchEngine, context: tuple[int, ...], chosen: int, other: int, number: int) -> float:
    """Difference of the two tokens' logprobs."""
    request = EngineRequest(
        f"gap-{id(context)}-{number}",
        context,
        SamplingParams(temperature=0.0, max_tokens=1, ignore_eos=True, logprobs=20),
    )
    async for output in engine.generate(request):
        for told in output.logprobs:
            top = dict(told.top)
            if chosen in top and other in top:
                return abs(top[chosen] - top[other])
    return float("inf")
