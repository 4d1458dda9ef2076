"""Which model to ask next: the one whose answers have improved policies the most for what they cost."""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from strategy.evolve.synthesise.llm.config import LlmModel

_FADE = 0.97
"""What an outcome still counts after the next one of the same model: early gains are easier than late ones."""
_USD_PER_TOKEN = 1e-8
"""A token that costs nothing still takes the endpoint's time: a cent for a million."""


@dataclass(slots=True)
class _Arm:
    """Beta posterior of the reward, and the mean cost of a question."""

    won: float = 0.0
    lost: float = 0.0
    questions: float = 0.0
    cost: float = 0.0


class ModelBandit:
    """Thompson sampling with costs (Xia, Li, Qin, Yu, Liu, 2015): draw a reward for each model from its
    posterior, divide by its mean cost, ask the highest. Sampling needs no answer before the next choice, so
    it takes several questions in flight (Chapelle, Li, 2011).

    Cost is US dollars when a model has a price, else tokens. Rewards lie between 0 and 1.
    """

    def __init__(self, models: Sequence[LlmModel], expected_tokens: tuple[int, int]) -> None:
        self._models = {model.name: model for model in models}
        self._arms = {model.name: _Arm() for model in models}
        self._priced = any(model.usd(1, 1) > 0 for model in models)
        self._expected_tokens = expected_tokens

    def choose(self, rng: random.Random, among: Collection[str]) -> str:
        """The name of the model to ask, of these.

        Raises:
            ValueError: none given.
        """
        drawn = {
            name: rng.betavariate(1.0 + arm.won, 1.0 + arm.lost) / self._mean_cost(name)
            for name, arm in self._arms.items()
            if name in among
        }
        return max(drawn, key=drawn.__getitem__)

    def charge(self, name: str, prompt_tokens: int, completion_tokens: int) -> None:
        """What a question took, its retries included."""
        arm = self._arms[name]
        arm.questions = _FADE * arm.questions + 1.0
        arm.cost = _FADE * arm.cost + self._cost(name, prompt_tokens, completion_tokens)

    def reward(self, name: str, reward: float) -> None:
        """What a question came to: 0 nothing, 1 a great improvement. A fraction counts as that share of a
        success (Agrawal, Goyal, 2012, take a coin toss for it; its mean is the same and its variance less).
        """
        arm = self._arms[name]
        share = min(1.0, max(0.0, reward))
        arm.won = _FADE * arm.won + share
        arm.lost = _FADE * arm.lost + 1.0 - share

    def _mean_cost(self, name: str) -> float:
        """With one imagined question of the expected length, so that it is never zero."""
        arm = self._arms[name]
        prior = self._cost(name, *self._expected_tokens)
        return (prior + arm.cost) / (1.0 + arm.questions)

    def _cost(self, name: str, prompt_tokens: int, completion_tokens: int) -> float:
        tokens = max(1, prompt_tokens + completion_tokens)
        if not self._priced:
            return float(tokens)
        return self._models[name].usd(prompt_tokens, completion_tokens) + _USD_PER_TOKEN * tokens


def reward_of(ratio: float | None) -> float:
    """Reward of a candidate whose objective is so many times its parent's: half for any gain, 1 from 5 % on;
    None: it has no score."""
    if ratio is None or not ratio < 1.0:
        return 0.0
    return min(1.0, 0.5 + 10.0 * (1.0 - ratio))
