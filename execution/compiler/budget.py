"""What the background may take: serving always comes first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Budget:
    """Limits of the background compiler."""

    cpu_s_per_minute: float = 60.0
    """CPU seconds that it may use in a minute, all of its processes together; it is halted when they are spent."""
    compile_limit_s: float = 600.0
    """Seconds of one compilation, halts not counted; beyond it is killed. One that serving leaves no CPU may take ten
    times as long, until it has had so many CPU seconds."""
    trial_limit_s: float = 120.0
    """The same of trial, numerics and speed of one kernel."""
    memory_bytes: int = 4 << 30
    """Of all processes of one job; beyond they are killed."""
    idle_s: float = 60.0
    """A helper process without work ends after this."""
    priority: Literal["normal", "low", "lowest", "idle"] = "low"
    """`normal`: as the server; `low`: nice 10, a tenth of a busy CPU, so that it gets done; `lowest`: nice 19, a percent or two; `idle`: runs only
    when nothing else wants the CPU, which on a busy machine may be never."""
    jobs_per_process: int = 50
    """Then the compiler process is replaced: compilers leak."""

    def __post_init__(self) -> None:
        for name in ("cpu_s_per_minute", "compile_limit_s", "trial_limit_s", "memory_bytes", "idle_s"):
            if getattr(self, name) <= 0:
                raise ValueError(f"budget: {name} must be above 0, is {getattr(self, name)}")
