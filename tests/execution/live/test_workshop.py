"""The trial process: whatever a compiler or a kernel does to it, the parent hears of it and goes on with the rest."""

from pathlib import Path

import pytest

from execution.live.decode.backend import decode_subject
from execution.live.decode.bench import backend_of
from execution.live.decode.trial import TrialJob
from execution.live.decode.workshop import Workshop
from tests.execution.live.conftest import needs_compiler
from tests.execution.live.helpers import PLAIN, bench_of

pytestmark = [pytest.mark.slow, needs_compiler]


def verdicts(name: str, folder: Path, limit_s: float = 600.0) -> list[tuple[int, bool, str, str]]:
    """(recipe, ok, stage, reason) of the last verdict on each recipe."""
    backend = f"tests.execution.live.faulty:{name}"
    recipes = tuple(backend_of(backend).recipes(decode_subject(bench_of(PLAIN).shape, 4, 1)))
    job = TrialJob(
        "micro-llama", 0, 1, 4, False, (2,), recipes, str(folder), ("", ""), min_gain=0.01, backend=backend
    )
    workshop = Workshop(folder, step_limit_s=limit_s)
    found: dict[int, tuple[int, bool, str, str]] = {}
    try:
        for line in workshop.run(job):
            if line["what"] == "verdict":
                told = line["verdict"]
                found[line["recipe"]] = (line["recipe"], told["ok"], told["stage"], told["reason"])
    finally:
        workshop.close()
    return [found[number] for number in sorted(found)]


@pytest.mark.parametrize(
    ("name", "stage", "reason"),
    [
        ("CrashesInCompiler", "compile", "SIGSEGV while it was compiled"),
        ("RefusesToCompile", "compile", "no registers left"),
        ("CrashesWhenRun", "trial", "SIGSEGV while it was tried"),
        ("WrongResult", "numerics", "wrong result"),
    ],
)
def test_the_bad_one_is_refused_and_the_next_is_taken(
    name: str, stage: str, reason: str, tmp_path: Path
) -> None:
    bad, good = verdicts(name, tmp_path)
    assert bad[:3] == (0, False, stage)
    assert reason in bad[3]
    assert good[:3] == (1, True, "accepted")


def test_a_compiler_that_hangs_is_killed(tmp_path: Path) -> None:
    found = verdicts("HangsInCompiler", tmp_path, limit_s=30.0)
    assert found[0][:3] == (0, False, "compile")
    assert "hung" in found[0][3]
