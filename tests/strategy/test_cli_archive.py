"""`strategy archive` on an archive that was filled by hand."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from click.testing import Result
from typer.testing import CliRunner

from loop.contracts import Death, Evaluation, EvaluationTask, Exchange, PolicySource, Score
from strategy.baselines import load_baseline
from strategy.cli import app
from strategy.evolve.archive import Archive
from strategy.evolve.source import make_source
from tests.foreign import foreign_files

FULL = EvaluationTask((0, 1, 2))


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["archive", *arguments], env={"COLUMNS": "160"})


def scored(digest: str, objective: float) -> Evaluation:
    windows = (objective / 2, objective / 4, objective / 4)
    score = Score(
        objective, objective, 3.0, 0.9, 2.0, 5.0, windows, replan_rate=0.5, fingerprint=f"{objective}"
    )
    return Evaluation(digest, score)


@pytest.fixture
def filled(tmp_path: Path) -> tuple[Path, list[PolicySource]]:
    """A baseline, a better child by CMA-ES, and a dead grandchild by a language model."""
    path = tmp_path / "archive.sqlite"
    base = load_baseline("least_loaded").as_source()
    child = make_source(
        base.source.replace("TAIL = 4.0", "TAIL = 5.0"),
        parents=(base.digest,),
        operator="cma",
        note="tuned TAIL 4 -> 5",
    )
    dead = make_source(
        base.source.replace("TAIL = 4.0", "TAIL = 7.5"),
        parents=(child.digest,),
        operator="llm:diff",
        note="longer tail",
    )
    with Archive(path) as book:
        book.begin_step(1, base.digest, (("full", FULL),))
        for number, (policy, objective) in enumerate(((base, 100.0), (child, 80.0), (dead, 120.0))):
            book.add(policy, f"n{number}", 1, island=number - 1 if number else None)
            book.add_evaluation("full", FULL, scored(policy.digest, objective), 1, ratio=objective / 100.0)
        book.add_outcome(child.digest, None, "promoted: 0.800 of the incumbent over all stages", 1)
        book.add_outcome(dead.digest, Death.WORSE, "1.200 of the incumbent in the full stage", 1)
        book.add_exchange(
            Exchange(
                "writer",
                "PLEASE IMPROVE",
                "TAKE A LONGER TAIL",
                "candidate",
                digest=dead.digest,
                prompt_tokens=9,
            )
        )
    return path, [base, child, dead]


def test_ls_sorts_filters_and_limits(filled: tuple[Path, list[PolicySource]]) -> None:
    path, (base, child, dead) = filled

    def listed(*arguments: str) -> list[str]:
        result = run("ls", "--archive", str(path), "--json", *arguments)
        assert result.exit_code == 0, result.output
        return [row["digest"] for row in json.loads(result.stdout)["candidates"]]

    assert listed() == [child.digest, base.digest, dead.digest]
    assert listed("--sort", "new") == [dead.digest, child.digest, base.digest]
    assert listed("--limit", "1") == [child.digest]
    assert listed("--status", "dead") == listed("--status", "worse") == [dead.digest]
    assert listed("--status", "promoted") == [child.digest]
    assert listed("--operator", "llm") == [dead.digest]
    assert listed("--island", "0") == [child.digest]
    assert listed("--operator", "crossover") == []
    table = run("ls", "--archive", str(path)).stdout
    assert "0.800" in table
    assert "tuned TAIL 4 -> 5" in table
    assert "1 worse" in table


def test_show_tells_origin_scores_end_and_answer(filled: tuple[Path, list[PolicySource]]) -> None:
    path, (_, child, dead) = filled
    text = run("show", dead.digest[:5], "--archive", str(path)).stdout
    assert f"from: {child.name} ({child.digest})" in text
    assert "step 1: worse: 1.200 of the incumbent in the full stage" in text
    assert "120.0" in text
    assert "TAKE A LONGER TAIL" in text
    assert "PLEASE IMPROVE" not in text
    assert "PLEASE IMPROVE" in run("show", dead.digest, "--prompts", "--archive", str(path)).stdout
    assert run("show", dead.digest, "--plain", "--archive", str(path)).stdout == dead.source
    told = json.loads(run("show", child.digest, "--json", "--archive", str(path)).stdout)
    assert told["source"] == child.source
    assert told["children"] == [dead.digest]


def test_diff_shows_source_and_scores(filled: tuple[Path, list[PolicySource]]) -> None:
    path, (base, child, _) = filled
    text = run("diff", base.digest, child.digest, "--archive", str(path)).stdout
    assert "-TAIL = 4.0" in text
    assert "+TAIL = 5.0" in text
    assert "0.800" in text
    assert "B is better in 3" in text
    told = json.loads(run("diff", base.digest, child.digest, "--json", "--archive", str(path)).stdout)
    assert told["scores"][0]["b"]["objective"] == 80.0


def test_lineage_writes_a_picture_and_a_page(filled: tuple[Path, list[PolicySource]], tmp_path: Path) -> None:
    path, (base, child, dead) = filled
    result = run(
        "lineage", child.digest[:6], "--archive", str(path), "--out", str(tmp_path / "tree"), "--json"
    )
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert {n["digest"]: n["ratio"] for n in told["nodes"]} == {
        base.digest: 1.0,
        child.digest: pytest.approx(0.8),
        dead.digest: pytest.approx(1.2),
    }
    drawn = ET.parse(tmp_path / "tree.svg")  # noqa: S314 - our own file
    assert {e.get("data-digest") for e in drawn.iter() if e.get("data-digest")} == {
        p.digest for p in filled[1]
    }
    page = (tmp_path / "tree.html").read_text()
    assert "TAIL = 7.5" in page
    assert "src=" not in page  # one file, nothing fetched


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("show", "zz"), "'zz' is no digest"),
        (("show", ""), "'' is no digest"),
        (("show", "abcdef012345"), "abcdef012345: no such candidate"),
        (("diff", "abcdef012345", "0"), "abcdef012345: no such candidate"),
        (("ls", "--status", "gone"), "gone: no such status; there are promoted"),
        (("lineage",), "name a digest, or give --all"),
    ],
)
def test_bad_input_is_one_line(
    filled: tuple[Path, list[PolicySource]], arguments: tuple[str, ...], named: str
) -> None:
    assert named in refused(*arguments, "--archive", str(filled[0]))


def test_an_ambiguous_digest_names_the_candidates(tmp_path: Path) -> None:
    with Archive(tmp_path / "a.sqlite") as book:
        for digest in ("ab1", "ab2"):
            book.add(PolicySource(digest, "", digest), digest, 1)
    assert "ab: 2 candidates begin so (ab1, ab2)" in refused(
        "show", "ab", "--archive", str(tmp_path / "a.sqlite")
    )


def test_files_that_are_no_archive_are_left_alone(tmp_path: Path) -> None:
    for path in foreign_files(tmp_path):
        before = path.read_bytes()
        assert f"{path.name}: not an archive of evolution" in refused("ls", "--archive", str(path))
        assert path.read_bytes() == before
    assert "gone: no such archive" in refused("ls", "--archive", str(tmp_path / "gone"))
    Archive(tmp_path / "new.sqlite").close()
    assert "new.sqlite: the archive is empty" in refused("ls", "--archive", str(tmp_path / "new.sqlite"))


def refused(*arguments: str) -> str:
    """The one line that a command says before it leaves with exit code 2."""
    result = run(*arguments)
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == 2
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    return line
