"""What the compiler service tells while it works on a subject: values for journals, progress bars and swaps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from execution.compiler.port import Kernel, Recipe, Subject
from execution.compiler.verdict import Numerics, Speed, Trial, Verdict


@dataclass(frozen=True, slots=True)
class Compiling:
    """A recipe is at work in the background, or waits for its turn."""

    subject: Subject
    recipe: Recipe


@dataclass(frozen=True, slots=True)
class Progress:
    """A line from a compiler that takes long."""

    subject: Subject
    recipe: Recipe
    note: str
    seconds: float
    """Since it was started, without pauses."""


@dataclass(frozen=True, slots=True)
class Tried:
    """It ran in a process of its own, and nobody was hurt."""

    subject: Subject
    recipe: Recipe
    trial: Trial


@dataclass(frozen=True, slots=True)
class NumericsShown:
    """Its errors are known, and no more than allowed."""

    subject: Subject
    recipe: Recipe
    numerics: Numerics


@dataclass(frozen=True, slots=True)
class SpeedShown:
    """Its speed is known."""

    subject: Subject
    recipe: Recipe
    speed: Speed


@dataclass(frozen=True, slots=True)
class Accepted:
    """Right, and faster than eager and all that was accepted before it: may be swapped in."""

    subject: Subject
    recipe: Recipe
    verdict: Verdict
    cached: bool
    """It was compiled and proven before, on this hardware with these versions."""
    folder: Path
    load: Callable[[], Kernel] = field(repr=False, compare=False)
    """The kernel, in this process; takes milliseconds. Its artifact stays in the cache as long as the kernel lives."""


@dataclass(frozen=True, slots=True)
class Refused:
    """Not taken."""

    subject: Subject
    recipe: Recipe
    verdict: Verdict
    """`stage` and `reason` say why, with figures where there are any."""
    cached: bool = False


@dataclass(frozen=True, slots=True)
class NotACandidate:
    """A back end that cannot be used here at all."""

    subject: Subject
    backend: str
    reason: str


@dataclass(frozen=True, slots=True)
class Finished:
    """All recipes are through, or the budget for this subject is spent."""

    subject: Subject
    best: Accepted | None
    """None: eager stays."""
    compile_s: float
    """CPU seconds spent on it in the background."""


Event = (
    Compiling | Progress | Tried | NumericsShown | SpeedShown | Accepted | Refused | NotACandidate | Finished
)
