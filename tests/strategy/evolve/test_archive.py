from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from loop.contracts import Death, Evaluation, EvaluationTask, PolicySource
from strategy.evolve.archive import Archive, ArchiveError
from strategy.evolve.source import make_source
from tests.strategy.evolve.worlds import score_of

TASK = EvaluationTask((1, 2))


def candidate(text: str, *parents: PolicySource) -> PolicySource:
    return make_source(text, parents=tuple(p.digest for p in parents), operator="edit:x", note="why")


def test_what_goes_in_comes_out(tmp_path: Path) -> None:
    first = candidate("a = 1\n")
    second = candidate("a = 2\n", first)
    with Archive(tmp_path / "archive.db", now=lambda: 5.0) as archive:
        assert archive.add(first, "n1", 1)
        assert archive.add(second, "n2", 2)
        assert not archive.add(second, "n2", 3)
        archive.add_evaluation("full", TASK, Evaluation(first.digest, score_of([1.0, 2.5], faults=1)), 1)
        failed = Evaluation(second.digest, None, Death.TIMEOUT, "late", 1.5)
        archive.add_evaluation("smoke", TASK, failed, 2)
        archive.add_outcome(second.digest, Death.TIMEOUT, "late", 2)
    with Archive(tmp_path / "archive.db") as archive:
        assert list(archive) == [first, second]
        assert archive.count() == 2
        assert first.digest in archive
        assert archive.get(second.digest[:6]) == second
        assert archive.lineage(second.digest) == [second, first]
        assert archive.normalised() == {"n1", "n2"}
        assert archive.generation() == 2
        (row,) = archive.evaluations(first.digest)
        assert (row.stage, row.task, row.evaluation.score) == ("full", TASK, score_of([1.0, 2.5], faults=1))
        assert archive.evaluations(second.digest)[0].evaluation == failed
        assert archive.deaths() == {Death.TIMEOUT: 1}
        assert archive.outcomes(first.digest) == []


def test_best_compares_only_scores_of_the_same_task() -> None:
    archive = Archive()
    policies = [candidate(f"a = {i}\n") for i in range(4)]
    for i, policy in enumerate(policies):
        archive.add(policy, str(i), 1)
        archive.add_evaluation("full", TASK, Evaluation(policy.digest, score_of([10.0 - i])), 1)
    other = EvaluationTask((1, 2), world=1)
    archive.add_evaluation("perturbed", other, Evaluation(policies[0].digest, score_of([0.0])), 1)
    assert [p for p, _ in archive.best(TASK, 2)] == [policies[3], policies[2]]
    assert archive.best(other)[0][1].objective == 0.0
    assert archive.best(EvaluationTask((9,))) == []


def test_a_cycle_of_parents_ends() -> None:
    archive = Archive()
    first = candidate("a = 1\n")
    second = candidate("a = 2\n", first)
    looped = PolicySource("x", "a = 1\n", first.digest, (second.digest, "feedbeef0000"))
    archive.add(looped, "n1", 1)
    archive.add(second, "n2", 1)
    assert [p.digest for p in archive.lineage(second.digest)] == [second.digest, first.digest]


def test_errors_name_the_archive(tmp_path: Path) -> None:
    path = tmp_path / "no.db"
    path.write_text("this is no database, but long enough to look at" * 40, encoding="utf-8")
    with pytest.raises(ArchiveError, match=r"no\.db"):
        Archive(path)
    with pytest.raises(ArchiveError, match="nowhere"):
        Archive(tmp_path / "nowhere" / "x.db")
    with pytest.raises(ArchiveError, match="no candidates match 'abc'"):
        Archive().get("abc")


def test_another_reader_sees_each_row_at_once(tmp_path: Path) -> None:
    archive = Archive(tmp_path / "a.db")
    reader = sqlite3.connect(tmp_path / "a.db")
    for i in range(3):
        archive.add(candidate(f"a = {i}\n"), str(i), 0)
        assert reader.execute("SELECT count(*) FROM candidates").fetchone() == (i + 1,)
    reader.close()
    archive.close()
