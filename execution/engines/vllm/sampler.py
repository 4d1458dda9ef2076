"""Seeds that survive a lost replica: `--logits-processors execution.engines.vllm.sampler:SeededSampler`.

vLLM draws a seeded request's tokens from one generator that advances with each token, so an answer cannot be
continued by another replica. Here the token at position i depends on (logits, seed, i) alone (`draw`): for requests
that bring `autopoiesis_seed` in their extra arguments the processor chooses the token itself and leaves only that one
possible. Such requests are sent with temperature 0, so vLLM takes it; logprobs are those of the raw logits, as always.
On GPUs vLLM's own sampler draws by seed and position already.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from execution.engines.vllm.draw import Draw
from execution.engines.vllm.private import LogitsProcessor, MoveDirectionality

PREFIX = "autopoiesis_"
_NEVER = float("-inf")


@dataclass(slots=True)
class _Row:
    """A request of ours in vLLM's batch."""

    draw: Draw
    position: int
    """Of the first token that this engine makes."""
    made: list[int]
    """Its tokens so far: vLLM's own list."""


class SeededSampler(LogitsProcessor):  # type: ignore[misc] # Any, where vLLM is not installed
    """Chooses the token of every request that brings a seed of ours."""

    def __init__(self, vllm_config: Any, device: Any, is_pin_memory: bool) -> None:  # noqa: FBT001
        del vllm_config, device, is_pin_memory
        self._rows: dict[int, _Row] = {}

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """Raise ValueError for what cannot be sampled with."""
        _row(sampling_params, [])

    def is_argmax_invariant(self) -> bool:
        """It decides the argmax."""
        return False

    def update_state(self, batch_update: Any) -> None:
        """Follow requests as they enter, leave and move in vLLM's batch."""
        if batch_update is None:
            return
        rows = self._rows
        for index in batch_update.removed:
            rows.pop(index, None)
        for index, parameters, _, made in batch_update.added:
            rows.pop(index, None)
            row = _row(parameters, made)
            if row is not None:
                rows[index] = row
        for one, other, direction in batch_update.moved:
            first, second = rows.pop(one, None), rows.pop(other, None)
            if first is not None:
                rows[other] = first
            if second is not None and direction == MoveDirectionality.SWAP:
                rows[one] = second

    def apply(self, logits: Any) -> Any:
        """Leave only the chosen token, in the rows of our requests."""
        for index, row in self._rows.items():
            chosen = row.draw.token(logits[index].float().cpu().numpy(), row.position + len(row.made))
            logits[index] = _NEVER
            logits[index, chosen] = 0.0
        return logits


def _row(parameters: Any, made: list[int]) -> _Row | None:
    """None: the request brings no seed of ours. Raises ValueError."""
    extra = parameters.extra_args or {} if parameters is not None else {}
    if extra.get(PREFIX + "seed") is None:
        return None

    def number(name: str, kind: type, otherwise: float) -> Any:
        value = extra.get(PREFIX + name, otherwise)
        if isinstance(value, bool) or not isinstance(value, int if kind is int else int | float):
            raise ValueError(f"{PREFIX}{name}: a number is expected, not {value!r:.40}")  # noqa: TRY004  400
        return kind(value)

    draw = Draw(
        number("seed", int, 0),
        number("temperature", float, 1.0),
        number("top_p", float, 1.0),
        number("top_k", int, 0),
    )
    position = number("position", int, 0)
    if not (draw.temperature > 0 and 0 < draw.top_p <= 1 and draw.top_k >= 0 and position >= 0):
        raise ValueError(
            f"{PREFIX}temperature above 0, top_p in (0, 1], top_k and position from 0 are expected"
        )
    return _Row(draw, position, made)
