"""What is wrong with a profile, and where: one line per problem."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong in one place of one file."""

    file: str
    line: int
    """1-based; 0 when the problem belongs to no line."""
    message: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}: " if self.line else f"{self.file}: " if self.file else ""
        return place + "\\n".join(self.message.splitlines())  # a name in it may hold a line break


class ProfileError(ValueError):
    """A profile that is unknown, unreadable or wrong. `str()` is one line; `problems` has them all."""

    def __init__(self, problems: Sequence[Problem] | str) -> None:
        self.problems: tuple[Problem, ...] = (
            (Problem("", 0, problems),) if isinstance(problems, str) else tuple(problems)
        )
        rest = len(self.problems) - 1
        more = f" (and {rest} more problem{'s' if rest > 1 else ''}: `profiles validate` lists them)"
        super().__init__(str(self.problems[0]) + (more if rest else ""))

    def __reduce__(self) -> tuple[type[ProfileError], tuple[tuple[Problem, ...]]]:
        return (ProfileError, (self.problems,))
