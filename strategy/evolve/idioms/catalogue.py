"""Finds the idioms in this package."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from strategy.evolve.parts import Parts, take_apart

FOLDERS = {"should_replan": "trigger", "plan": "planner", "route": "routing", "priority": "order"}
"""Function of a policy -> folder with the idioms for it."""


@dataclass(frozen=True, slots=True)
class Idiom:
    """One known way to take one of the four decisions."""

    name: str
    function: str
    parts: Parts
    what: str
    why: str


@cache
def catalogue() -> tuple[Idiom, ...]:
    """All idioms, in order of function and name."""
    found = []
    for function, folder in FOLDERS.items():
        for path in sorted((Path(__file__).parent / folder).glob("[!_]*.py")):
            parts = take_apart(path.read_text(encoding="utf-8"))
            if function not in parts.functions:
                raise ValueError(f"idiom {path.name} does not define {function}()")
            what, _, why = parts.docstring.partition("\n")
            found.append(Idiom(path.stem, function, parts, what.strip().rstrip("."), " ".join(why.split())))
    return tuple(found)
