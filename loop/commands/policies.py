"""Policies as the user names them: a baseline, a file, or the first digits of a digest in an archive."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from loop.commands.failing import InputError, one_line_errors, refuse_other_files
from loop.commands.inputs import exists, read_policy
from loop.compose.experiment import baseline_source
from loop.compose.offline import is_trusted
from loop.contracts import PolicyFault, PolicySource
from strategy.baselines import list_baselines
from strategy.evolve import check_policy
from strategy.evolve.archive import Archive, ArchiveError
from strategy.evolve.sandbox import SandboxedPolicy
from strategy.evolve.static import normalised_digest
from strategy.policy import summary_of

ArchiveFile = Annotated[
    Path | None,
    typer.Option(
        "--archive", metavar="FILE", help="Archive of `strategy evolve`, to name policies by digest."
    ),
]


@contextmanager
def one_line() -> Iterator[None]:
    """`one_line_errors`, for archives and processes that die too."""
    with one_line_errors():
        try:
            yield
        except ArchiveError as error:
            raise InputError(str(error)) from error
        except BrokenProcessPool as error:
            raise InputError(
                "a replay process died, perhaps for want of memory: fewer --workers, or a shorter workload"
            ) from error


def find_policy(name: str, archive: Archive | None = None) -> PolicySource:
    """The policy that the user means.

    Raises:
        InputError: there is none, or it cannot be loaded; the message names it and the way out.
    """
    if name in list_baselines():
        return baseline_source(name)
    if name.endswith(".py") or "/" in name or exists(name):
        return read_policy(Path(name))
    if archive is not None:
        return _loadable(find_candidate(archive, name))
    raise InputError(
        f"{name[:200]}: neither a file nor a baseline ({', '.join(list_baselines())}); a digest needs --archive"
    )


def find_candidate(archive: Archive, digest: str) -> PolicySource:
    """The candidate whose digest begins so. Raises InputError: none or several do."""
    digits = digest.lower()
    if not digits or any(c not in "0123456789abcdef" for c in digits):
        raise InputError(f"{digest[:200]!r} is no digest: give some of its hex digits")
    matches = [p for p in archive if p.digest.startswith(digits)]
    if not matches:
        raise InputError(f"{digest}: no such candidate in the archive; `strategy archive ls` shows them")
    if len(matches) > 1:
        some = ", ".join(p.digest for p in matches[:4]) + (", ..." if len(matches) > 4 else "")
        raise InputError(f"{digest}: {len(matches)} candidates begin so ({some}): give more digits")
    return matches[0]


def find_policies(names: Sequence[str], archive: Archive | None = None) -> tuple[PolicySource, ...]:
    """All of them, each under a name that no other one has; who is named twice comes once. Policies that are the
    same to the letter have one digest and several names."""
    found: list[PolicySource] = []
    for given in dict.fromkeys(names):
        policy = find_policy(given, archive)
        twins = [p for p in found if p.digest == policy.digest]
        if any(p.name == policy.name for p in twins):
            policy = replace(policy, name=given)  # the same text in two files of one name
        if not any(p.name == policy.name for p in twins):
            found.append(policy)
    return distinct(found)


def distinct(policies: Sequence[PolicySource]) -> tuple[PolicySource, ...]:
    """The same, each under a name that no other one has."""
    taken = [p.name for p in policies]
    return tuple(
        replace(p, name=f"{p.name}-{p.digest[:6]}") if taken.count(p.name) > 1 and not is_trusted(p) else p
        for p in policies
    )


def open_archive(path: Path) -> Archive:
    """An archive that is there and holds something; other files are left alone.

    Raises:
        InputError: no such file, no archive, or an empty one.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such archive (--archive); `autopoiesis strategy evolve` writes one")
    refuse_others(path)
    archive = Archive(path)
    if archive.count() == 0:
        archive.close()
        raise InputError(f"{path}: the archive is empty (--archive)")
    return archive


def refuse_others(path: Path) -> None:
    """Raise InputError unless the file is an archive."""
    tables = frozenset({"candidates", "evaluations", "outcomes"})
    refuse_other_files(path, "an archive of evolution", tables, "candidates", "--archive")


def tidy(policy: PolicySource) -> str:
    """The source as it is handed to people: with a docstring that says what changed, and no stray blanks.

    What the policy does stays the same; one that is tidy already stays so to the letter.
    """
    lines = [line.rstrip() for line in policy.source.rstrip().split("\n")]
    source = "\n".join(lines) + "\n"
    if summary_of(source):
        return source if _same(source, policy.source) else policy.source
    told = (policy.note or f"Made by {policy.operator}").strip().replace('"""', "'''").replace("\\", "/")
    source = f'"""{told[0].upper()}{told[1:]}{"" if told.endswith(".") else "."}"""\n\n{source}'
    return source if _same(source, policy.source) else policy.source


def _same(source: str, other: str) -> bool:
    return normalised_digest(source) == normalised_digest(other)


def _loadable(policy: PolicySource) -> PolicySource:
    problems = check_policy(policy.source)
    if problems:
        raise InputError(f"{policy.digest}: this candidate cannot serve: {problems[0]}")
    try:
        SandboxedPolicy(policy).close()
    except PolicyFault as error:
        raise InputError(f"{policy.digest}: this candidate cannot be loaded: {error}") from error
    return policy
