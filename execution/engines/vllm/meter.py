"""How fast this engine is, by its own steps: the estimates that a policy sees of its replica."""

from __future__ import annotations

_FADE = 0.95


class StepMeter:
    """Fading means over steps. Times are seconds."""

    def __init__(self, decode_step_s: float = 0.02, prefill_tokens_per_s: float = 10_000.0) -> None:
        self.steps = 0
        self.step_s = 0.0
        """Time in steps, in all."""
        self.decode_step_s = decode_step_s
        """Of steps that only decode."""
        self.prefill_tokens_per_s = prefill_tokens_per_s
        self._prefill = [0.0, 0.0]  # faded tokens, faded seconds

    def learn(self, duration_s: float, prompt_tokens: int, decoding: int) -> None:
        """One step that scheduled `prompt_tokens`, and one token of each of `decoding` sequences."""
        self.steps += 1
        self.step_s += duration_s
        if prompt_tokens > decoding:
            # what is beyond an ordinary decode step is the prompts'
            seconds = max(duration_s - (self.decode_step_s if decoding else 0.0), duration_s * 0.1)
            self._prefill = [
                self._prefill[0] * _FADE + prompt_tokens,
                self._prefill[1] * _FADE + seconds,
            ]
            self.prefill_tokens_per_s = self._prefill[0] / max(self._prefill[1], 1e-9)
        elif decoding and not prompt_tokens:
            known = _FADE if self.steps > 1 else 0.0
            self.decode_step_s = self.decode_step_s * known + duration_s * (1.0 - known)
