"""SEARCH/REPLACE blocks: find them in an answer, apply them to a source. Tolerant of blanks, never of doubt.

    <<<<<<< SEARCH
    lines of the source, as they stand
    =======
    what shall stand there
    >>>>>>> REPLACE

A block fits where its lines stand; failing that, where they stand but for blanks at line ends and blank lines
around them; failing that, indented by another depth, blank lines aside, and then its replacement is indented
the same way. It must fit in exactly one place.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

_OPEN = re.compile(r"^\s*<{5,9}\s*(?:SEARCH|ORIGINAL|HEAD|OLD)?\s*:?\s*$", re.IGNORECASE)
_MIDDLE = re.compile(r"^\s*={5,9}\s*$")
_CLOSE = re.compile(r"^\s*>{5,9}\s*(?:REPLACE|UPDATED|NEW|END)?\s*$", re.IGNORECASE)
_FENCE = re.compile(r"^\s*(?:```|~~~)[\w.+-]*\s*$")


class DiffError(ValueError):
    """A block that cannot be applied; the message says which and why, in words for the model."""


@dataclass(frozen=True, slots=True)
class Block:
    """One replacement of lines."""

    search: tuple[str, ...]
    replace: tuple[str, ...]


def find_blocks(text: str) -> tuple[list[Block], bool]:
    """(the blocks of an answer in order, whether the last one breaks off)."""
    blocks: list[Block] = []
    search: list[str] | None = None
    replace: list[str] | None = None
    for line in text.splitlines():
        if search is None:
            if _OPEN.match(line):
                search = []
        elif replace is None:
            if _MIDDLE.match(line):
                replace = []
            elif _OPEN.match(line):  # it began anew
                search = []
            else:
                search.append(line)
        elif _CLOSE.match(line):
            blocks.append(Block(_unfenced(search), _unfenced(replace)))
            search = replace = None
        else:
            replace.append(line)
    return blocks, search is not None


def apply_blocks(source: str, blocks: Sequence[Block]) -> str:
    """The source with each block applied, one after the other.

    Raises:
        DiffError: a block that fits nowhere, or in several places, or has nothing to search for.
    """
    lines = source.splitlines()
    for number, block in enumerate(blocks, 1):
        lines = _apply(lines, block, f"block {number} of {len(blocks)}")
    return "\n".join(lines) + "\n" if lines else ""


def _apply(lines: list[str], block: Block, name: str) -> list[str]:
    if not any(line.strip() for line in block.search):
        raise DiffError(f"{name}: the SEARCH part is empty; quote the lines that it replaces")
    for fit in (_exactly, _but_for_line_ends, _but_for_indentation):
        places = fit(lines, block)
        if len(places) > 1:
            raise DiffError(
                f"{name}: its SEARCH lines stand in {len(places)} places; quote more lines around them"
            )
        if places:
            start, end, replacement = places[0]
            return [*lines[:start], *replacement, *lines[end:]]
    first = next(line.strip() for line in block.search if line.strip())
    raise DiffError(f"{name}: its SEARCH lines are not in the source; the first is {first[:100]!r}")


_Places = list[tuple[int, int, Sequence[str]]]
"""(first line, line after the last, what shall stand there)."""


def _exactly(lines: list[str], block: Block) -> _Places:
    n = len(block.search)
    wanted = list(block.search)
    return [(i, i + n, block.replace) for i in range(len(lines) - n + 1) if lines[i : i + n] == wanted]


def _but_for_line_ends(lines: list[str], block: Block) -> _Places:
    wanted = [line.rstrip() for line in _trimmed(block.search)]
    replacement = _trimmed(block.replace)
    n = len(wanted)
    return [
        (i, i + n, replacement)
        for i in range(len(lines) - n + 1)
        if [line.rstrip() for line in lines[i : i + n]] == wanted
    ]


def _but_for_indentation(lines: list[str], block: Block) -> _Places:
    wanted = [line.expandtabs(4).rstrip() for line in block.search if line.strip()]
    solid = [(number, line.expandtabs(4).rstrip()) for number, line in enumerate(lines) if line.strip()]
    places: _Places = []
    n = len(wanted)
    for i in range(len(solid) - n + 1):
        shift = _shift(wanted, [line for _, line in solid[i : i + n]])
        replacement = None if shift is None else _shifted(_trimmed(block.replace), shift)
        if replacement is not None:
            places.append((solid[i][0], solid[i + n - 1][0] + 1, replacement))
    return places


def _shift(wanted: Sequence[str], found: Sequence[str]) -> int | None:
    """By how many blanks all lines of `found` are indented more than those of `wanted`; None: they differ."""
    shift = _depth(found[0]) - _depth(wanted[0])
    for one, other in zip(wanted, found, strict=True):
        if one.lstrip() != other.lstrip() or _depth(other) - _depth(one) != shift:
            return None
    return shift


def _shifted(lines: Sequence[str], shift: int) -> list[str] | None:
    """Lines indented so much more; None: one of them does not stand deep enough to be moved left."""
    expanded = [line.expandtabs(4).rstrip() for line in lines]
    if any(line and _depth(line) + shift < 0 for line in expanded):
        return None
    return [" " * (_depth(line) + shift) + line.lstrip() if line else "" for line in expanded]


def _depth(line: str) -> int:
    return len(line) - len(line.lstrip())


def _trimmed(lines: Sequence[str]) -> list[str]:
    """Without blank lines at either end."""
    start, end = 0, len(lines)
    while start < end and not lines[start].strip():
        start += 1
    while end > start and not lines[end - 1].strip():
        end -= 1
    return list(lines[start:end])


def _unfenced(lines: Sequence[str]) -> tuple[str, ...]:
    """Without a code fence around the lines of one part."""
    inner = _trimmed(lines)
    if len(inner) >= 2 and _FENCE.match(inner[0]) and _FENCE.match(inner[-1]):
        return tuple(inner[1:-1])
    return tuple(lines)
