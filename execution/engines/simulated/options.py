"""Options of the simulated engine, as they stand in `EngineSpec.options`."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Self

from loop.contracts.engine import EngineError, EngineSpec


@dataclass(frozen=True, slots=True)
class SimulatedOptions:
    """What is pretended to be there, and how fast its time runs."""

    cluster: str = ""
    """Cluster profile whose links join the devices; empty: a packaged cluster that has such devices on one node."""
    devices: str = ""
    """Ids of the cluster's devices, separated by commas; empty: the first `tp * pp` of kind `device` on one node."""
    device: str = "h100-sxm"
    """Device profile, where `devices` is empty."""
    tp: int = 1
    pp: int = 1
    time_scale: float = 1.0
    """Real seconds that one second of the performance model takes; 0: every step is done at once."""
    start_s: float = 0.0
    """Real seconds that `start` takes; negative: what the performance model says, times `time_scale`."""
    answer_tokens: float = 256.0
    """Median length of an answer that nothing cuts short (log-normal); 0: answers end at `max_tokens` only."""
    answer_sigma: float = 0.7
    """Spread of that length: standard deviation of its logarithm."""
    max_model_len: int = 0
    """Prompt and answer, tokens; 0: as the model's profile says. Never more than fits into the KV cache."""
    kv_capacity_tokens: int = 0
    """0: what fits beside the weights."""
    prefix_cache: bool = True
    jitter: float = 0.0
    """Sigma of a log-normal factor (mean 1) on step times."""

    @classmethod
    def of(cls, spec: EngineSpec) -> Self:
        """Of a spec. Raises EngineError, naming the option, for an unknown one or a value that makes no sense."""
        known = {field.name: type(field.default) for field in fields(cls)}
        values: dict[str, str | int | float | bool] = {}
        for name, value in spec.options.items():
            kind = known.get(name)
            if kind is None:
                raise EngineError(
                    f"simulated engine: unknown option {name!r}; there are {', '.join(sorted(known))}"
                )
            values[name] = _as(kind, name, value)
        options = cls(**values)  # type: ignore[arg-type]
        options._check()
        return options

    def _check(self) -> None:
        for name in ("time_scale", "answer_tokens", "answer_sigma", "jitter"):
            value = getattr(self, name)
            if not 0.0 <= value < math.inf:
                raise EngineError(f"simulated engine: option {name!r} must be at least 0, not {value}")
        for name in ("max_model_len", "kv_capacity_tokens"):
            if getattr(self, name) < 0:
                raise EngineError(
                    f"simulated engine: option {name!r} must not be negative, not {getattr(self, name)}"
                )
        for name in ("tp", "pp"):
            if getattr(self, name) < 1:
                raise EngineError(
                    f"simulated engine: option {name!r} must be at least 1, not {getattr(self, name)}"
                )
        if not math.isfinite(self.start_s):
            raise EngineError(f"simulated engine: option 'start_s' must be finite, not {self.start_s}")


def _as(kind: type, name: str, value: str | float) -> str | int | float | bool:
    """The value as its option's type; text stands for numbers too, since options cross command lines."""
    text = str(value).strip()
    try:
        if kind is bool:
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        if kind is str:
            return text
        if not isinstance(value, bool):
            return int(text) if kind is int else float(text)
    except (ValueError, KeyError):
        pass
    raise EngineError(f"simulated engine: option {name!r} must be a {kind.__name__}, not {value!r}")
