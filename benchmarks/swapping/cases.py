"""Requests whose answers are known, token by token: an engine that nobody disturbs has given them before."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from execution.replicas.remote import RemoteEngine
from loop.contracts import EngineFinish, EngineRequest, EngineSpec, SamplingParams

WORDS = (
    "the",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "a",
    "lazy",
    "dog",
    "while",
    "wizards",
    "boil",
    "oxen",
)
STOPS = ("ee", "at ", "in")
_AT_A_TIME = 64


@dataclass(frozen=True, slots=True)
class Case:
    """A question and its only right answer."""

    prompt: str
    prompt_token_ids: tuple[int, ...]
    sampling: SamplingParams
    token_ids: tuple[int, ...] = ()
    text: str = ""
    finish: EngineFinish | None = None


def questions(count: int, seed: int, *, greedy: bool, most_tokens: int) -> list[Case]:
    """Prompts with common beginnings; half of them sampled (unless `greedy`), a fifth with stop strings."""
    rng = random.Random(seed)
    openings = [" ".join(rng.choices(WORDS, k=rng.randint(2, 12))) for _ in range(16)]
    found = []
    for number in range(count):
        prompt = f"{rng.choice(openings)}: {number} {' '.join(rng.choices(WORDS, k=rng.randint(1, 6)))}"
        sampling = SamplingParams(
            max_tokens=rng.randint(max(2, most_tokens // 4), most_tokens),
            temperature=0.0 if greedy or number % 2 else 0.8,
            seed=rng.randrange(1 << 31),
            stop=STOPS if number % 5 == 0 else (),
        )
        found.append(Case(prompt, tuple(prompt.encode()), sampling))
    return found


async def answered(spec: EngineSpec, cases: Sequence[Case]) -> list[Case]:
    """The same with their answers, by one undisturbed engine, asked directly."""
    engine = RemoteEngine(spec)
    await engine.start()
    turns = asyncio.Semaphore(_AT_A_TIME)

    async def answer(number: int, case: Case) -> Case:
        token_ids: list[int] = []
        text, finish = "", None
        async with turns:
            async for output in engine.generate(
                EngineRequest(str(number), case.prompt_token_ids, case.sampling)
            ):
                token_ids += output.token_ids
                text += output.text
                finish = output.finish
        return replace(case, token_ids=tuple(token_ids), text=text, finish=finish)

    try:
        return await asyncio.gather(*(answer(number, case) for number, case in enumerate(cases)))
    finally:
        await engine.stop()
