"""All hostile programs, and the table of what each of them meets (docs/sandbox.md)."""

from __future__ import annotations

from dataclasses import replace

from strategy.evolve.static import check_policy
from tests.strategy.evolve.hostile import cheats, greedy, inside, outside
from tests.strategy.evolve.hostile.program import Program

GROUPS = {
    "time and memory": greedy.PROGRAMS,
    "out of the process": outside.PROGRAMS,
    "inside the process": inside.PROGRAMS,
    "cheats": cheats.PROGRAMS,
}
CORPUS: tuple[Program, ...] = tuple(
    replace(program, group=group) for group, programs in GROUPS.items() for program in programs
)


def table() -> str:
    """The corpus as Markdown; the static check is asked about each program without the common first lines,
    which alone would make it refuse all of them."""
    lines = ["| program | tries to | static check | live, past the static check |", "|---|---|---|---|"]
    for program in CORPUS:
        if program.group != (CORPUS[CORPUS.index(program) - 1].group if CORPUS.index(program) else ""):
            lines.append(f"| **{program.group}** | | | |")
        found = caught_by_static(program)
        ends = program.ends.replace("|", " or ")
        lines.append(f"| {program.name} | {program.tries} | {found or 'passes'} | {ends} |")
    return "\n".join(lines)


def caught_by_static(program: Program) -> str:
    """The first thing that the static check finds in what is particular to the program."""
    common = {"os = random._os", "sys = os.sys"}
    source = "\n".join("" if line in common else line for line in program.source.splitlines())
    violations = check_policy(source)
    return violations[0].message.replace("|", "/") if violations else ""


if __name__ == "__main__":
    print(table())  # noqa: T201
