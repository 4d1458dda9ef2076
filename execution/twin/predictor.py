"""What a router may believe about output lengths: means of what has finished, by model and input length."""

from __future__ import annotations

PRIOR_WEIGHT = 4.0
"""Finished requests that the prior counts for."""


class OutputPredictor:
    """Running mean of output tokens per model and input-length class (powers of two), from a prior on."""

    __slots__ = ("_means", "_prior")

    def __init__(self, prior_tokens: float) -> None:
        if not prior_tokens >= 1.0:
            raise ValueError(f"prior output length must be at least 1 token, not {prior_tokens}")
        self._prior = prior_tokens
        self._means: dict[tuple[str, int], list[float]] = {}

    def predict(self, model: str, input_tokens: int) -> float:
        """Expected output tokens."""
        known = self._means.get((model, input_tokens.bit_length()))
        return known[0] / known[1] if known else self._prior

    def learn(self, model: str, input_tokens: int, output_tokens: int) -> None:
        """A request has finished."""
        key = (model, input_tokens.bit_length())
        known = self._means.get(key)
        if known is None:
            self._means[key] = known = [self._prior * PRIOR_WEIGHT, PRIOR_WEIGHT]
        known[0] += output_tokens
        known[1] += 1.0
