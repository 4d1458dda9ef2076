"""What may be set for a torch engine, read from EngineSpec.options; 0 or `auto` lets the engine choose."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Final

from loop.contracts.engine import EngineError, EngineLimits

DTYPES: Final = ("auto", "float32", "bfloat16")


@dataclass(frozen=True, slots=True)
class TorchOptions:
    """Options of one torch engine."""

    device: str = "auto"
    """`cpu`, `cuda`, `cuda:1`; auto: a GPU where there is one."""
    dtype: str = "auto"
    """`float32` or `bfloat16`; auto: float32 on CPU, else as the weights are stored."""
    threads: int = 0
    """Of arithmetic on CPU; 0: as torch chooses."""
    block_tokens: int = 16
    """KV is accounted for, and shared between prompts, in blocks of so many tokens."""
    max_model_len: int = 0
    """Prompt and answer; 0: what the model was trained for, as far as memory allows (on a GPU: with room for
    `max_num_seqs` at once, but 2,048 at least)."""
    kv_capacity_tokens: int = 0
    """KV of all running requests; beyond it some are preempted. 0: what memory allows."""
    prefix_cache: bool = True
    """Keep the KV of prompts for those that begin alike."""
    prefix_cache_tokens: int = 0
    """KV kept for reuse; 0: as much as `kv_capacity_tokens`, at most 65,536 tokens."""
    max_lanes: int = 0
    """Requests that can ever run at once, so the most that `max_num_seqs` may become; 0: 256, or more if the first
    limits ask for more; on a GPU as many as memory has room for."""
    evolve_execution: bool = False
    """Find what is hot, compile something faster in the background, and swap it in while serving (execution.live)."""
    int8: bool = False
    """With `evolve_execution`: decode with int8 weights. Changes answers a little; prompts are read in full precision."""
    compile_budget: int = 60
    """CPU seconds a minute that compilers may take in the background."""
    execution_cache: str = ""
    """Folder of compiled artifacts, shared by all who use it; empty: the user's cache directory."""
    execution_journal: str = ""
    """File to which each step of the evolution is appended; empty: `journal.jsonl` beside the artifacts."""
    kv_memory_bytes: int = 0
    """What the automatic choices may use; 0: a quarter of free memory on CPU (8 GiB at most), 85 % on a GPU."""


def parse_options(given: Mapping[str, str | int | float | bool]) -> TorchOptions:
    """Options from a mapping. Raises EngineError, naming the option."""
    known = {f.name: f for f in fields(TorchOptions)}
    values: dict[str, Any] = {}
    for name, value in given.items():
        if name not in known:
            raise EngineError(f"torch engine: unknown option {name!r}: known are {', '.join(known)}")
        values[name] = _coerce(name, value, type(known[name].default))
    options = TorchOptions(**values)
    if options.dtype not in DTYPES:
        raise EngineError(f"torch engine: option dtype: one of {', '.join(DTYPES)}, not {options.dtype!r}")
    if options.int8 and not options.evolve_execution:
        raise EngineError("torch engine: option int8: it needs evolve_execution")
    if options.block_tokens < 1:
        raise EngineError(f"torch engine: option block_tokens: at least 1, not {options.block_tokens}")
    return options


def check_limits(limits: EngineLimits, lanes: int | None = None) -> None:
    """Raises ValueError for limits that the engine cannot hold."""
    for name in ("max_num_seqs", "max_num_batched_tokens", "max_waiting"):
        value = getattr(limits, name)
        if (
            isinstance(value, bool)
            or not isinstance(value, int)
            or value < (0 if name == "max_waiting" else 1)
        ):
            raise ValueError(f"{name}: a positive integer is expected, not {value!r}")
    if lanes is not None and limits.max_num_seqs > lanes:
        raise ValueError(
            f"max_num_seqs: {limits.max_num_seqs} is more than the {lanes} that this engine has memory for: "
            "start it with the option max_lanes"
        )


def _coerce(name: str, value: str | float, kind: type) -> str | int | bool:
    """The value as its option's type; text stands for numbers too, since options cross command lines."""
    text = str(value).strip()
    if kind is bool:
        if text.lower() in {"true", "1", "yes", "on"}:
            return True
        if text.lower() in {"false", "0", "no", "off"}:
            return False
        raise EngineError(f"torch engine: option {name}: true or false is expected, not {value!r}")
    if kind is str:
        return text
    try:
        number = int(text)
    except ValueError as error:
        raise EngineError(f"torch engine: option {name}: an integer is expected, not {value!r}") from error
    if number < 0:
        raise EngineError(f"torch engine: option {name}: 0 or more is expected, not {number}")
    return number
