from __future__ import annotations

import sqlite3
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from loop.contracts import Death, Evaluation, EvaluationTask, Exchange, PolicySource
from strategy.evolve.archive import Archive, ArchiveError, Placement
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


FIRST_VERSION = """
CREATE TABLE candidates (
    digest TEXT PRIMARY KEY, name TEXT NOT NULL, source TEXT NOT NULL, normalised TEXT NOT NULL,
    parents TEXT NOT NULL, operator TEXT NOT NULL, note TEXT NOT NULL,
    generation INTEGER NOT NULL, at_s REAL NOT NULL);
CREATE TABLE evaluations (
    id INTEGER PRIMARY KEY, digest TEXT NOT NULL REFERENCES candidates, stage TEXT NOT NULL,
    windows TEXT NOT NULL, world INTEGER NOT NULL, generation INTEGER NOT NULL,
    objective REAL, score TEXT, death TEXT, detail TEXT NOT NULL, wall_s REAL NOT NULL, at_s REAL NOT NULL);
CREATE TABLE outcomes (
    id INTEGER PRIMARY KEY, digest TEXT NOT NULL REFERENCES candidates, generation INTEGER NOT NULL,
    death TEXT, detail TEXT NOT NULL, at_s REAL NOT NULL);
CREATE INDEX evaluations_by_digest ON evaluations (digest);
CREATE INDEX outcomes_by_digest ON outcomes (digest);
INSERT INTO candidates VALUES ('aaa', 'old', 'a = 1', 'n1', '["zzz"]', 'cma', 'tuned', 3, 1.0);
INSERT INTO evaluations VALUES (1, 'aaa', 'full', '[1, 2]', 0, 3, 5.0,
    '{"objective": 5.0, "total_execution_time_s": 5.0, "ttft_p99_s": 1.0, "goodput": 1.0, "device_hours": 1.0,
      "joules": 2.0, "per_window": [2.0, 3.0], "faults": 0}', NULL, '', 0.1, 1.0);
INSERT INTO outcomes VALUES (1, 'aaa', 3, 'worse', 'beaten', 1.0);
"""


def test_an_archive_of_the_first_version_opens_and_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    with sqlite3.connect(path) as db:
        db.executescript(FIRST_VERSION)
    db.close()
    for _ in range(2):  # the second time it is up to date
        with Archive(path) as archive:
            assert archive.get("aaa").note == "tuned"
            (row,) = archive.evaluations("aaa")
            assert row.evaluation.score is not None
            assert row.evaluation.score.per_window == (2.0, 3.0)
            assert row.evaluation.score.fingerprint == ""
            assert (row.world_key, row.ratio, row.stale) == ("", None, False)
            assert [c.status for c in archive.candidates()] == ["dead"]
            assert archive.unfinished() == []
            assert archive.edges() == [("zzz", "aaa")]
    with Archive(path) as archive:
        assert archive.add(candidate("a = 2\n"), "n2", 4, island=1)
        assert archive.islands() == {candidate("a = 2\n").digest: 1}


def test_an_archive_of_a_later_version_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "new.db"
    Archive(path).close()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version=99")
    db.close()
    with pytest.raises(ArchiveError, match=r"new\.db has version 99"):
        Archive(path)


def test_exchanges_with_language_models_are_kept() -> None:
    archive = Archive()
    good = Exchange("m", "prompt", "answer", "candidate", "", "abc", 10, 20, 0.5, 1.5)
    bad = Exchange("m", "prompt", "", "timeout", "after 60 s")
    threads = [threading.Thread(target=archive.add_exchange, args=(e,)) for e in (good, bad)]
    for thread in threads:
        thread.start()
        thread.join()
    assert archive.exchanges() == [good, bad]
    assert archive.exchanges("abc") == [good]


def test_steps_and_what_they_make_stale() -> None:
    archive, policy, later = Archive(now=lambda: 7.0), candidate("a = 1\n"), EvaluationTask((3,))
    archive.begin_step(1, policy.digest, (("full", TASK),), world_key="k", regime="day", budget=24)
    archive.add(policy, "n", 1)
    archive.add_evaluation("full", TASK, Evaluation(policy.digest, score_of([1.0])), 1, world_key="k")
    assert [e.stale for e in archive.evaluations(policy.digest)] == [False]
    (open_step,) = archive.steps()
    assert (open_step.wall_s, open_step.began_s, open_step.regime) == (None, 7.0, "day")
    archive.end_step(1, evaluations=1, candidates=0, best=None, ratio=1.0, reason="none better", wall_s=2.0)
    assert archive.steps()[0] == replace(
        open_step, evaluations=1, candidates=0, ratio=1.0, reason="none better", wall_s=2.0
    )
    archive.begin_step(2, policy.digest, (("full", later),), world_key="k")
    assert [e.stale for e in archive.evaluations(policy.digest)] == [True]
    assert archive.find(policy.digest, TASK, "k") is not None
    assert archive.find(policy.digest, TASK, "other") is None
    archive.forget("k")
    assert archive.find(policy.digest, TASK, "k") is None
    assert archive.best(TASK) == []
    archive.add_evaluation("full", TASK, Evaluation(policy.digest, score_of([2.0])), 2, world_key="k")
    assert archive.best(TASK)[0][1].objective == 2.0
    assert archive.generation() == 2
    assert (archive.spent(), archive.spent(1)) == (2, 1)


def test_the_front_holds_what_no_other_beats() -> None:
    archive = Archive()
    base = score_of([10.0])
    scores = {
        "fast": replace(base, objective=1.0, device_hours=9.0),
        "good": replace(base, objective=5.0, goodput=2.0),
        "cheap": replace(base, objective=6.0, device_hours=0.5),
        "beaten": replace(base, objective=7.0, device_hours=0.5),
        "frugal": replace(base, objective=9.0, joules=0.1),
    }
    for name, score in scores.items():
        policy = make_source(f"# {name}\n", name=name)
        archive.add(policy, name, 1)
        archive.add_evaluation("full", TASK, Evaluation(policy.digest, score), 1)
    dead = make_source("# dead\n")
    archive.add(dead, "dead", 1)
    archive.add_evaluation("full", TASK, Evaluation(dead.digest, base, Death.TIMEOUT, "late"), 1)
    assert [p.policy.name for p in archive.front(TASK)] == ["fast", "good", "cheap", "frugal"]
    assert archive.front(EvaluationTask((1,))) == []


def test_the_listing_says_what_became_of_each() -> None:
    archive, names = Archive(), ("seed", "won", "lost", "cut off", "broken", "alive")
    policies = {name: make_source(f"# {name}\n", name=name, note=f"why {name}") for name in names}
    for name, policy in policies.items():
        archive.add(policy, name, 1, island=None if name == "seed" else 1)
    archive.begin_step(1, policies["seed"].digest, (("full", TASK),))
    for name, ratio in (("seed", 1.0), ("won", 0.8), ("lost", 1.3), ("alive", 0.9)):
        evaluation = Evaluation(policies[name].digest, score_of([10.0 * ratio]))
        archive.add_evaluation("full", TASK, evaluation, 1, ratio=ratio)
    archive.add_outcome(policies["won"].digest, None, "promoted", 1)
    archive.add_outcome(policies["lost"].digest, Death.WORSE, "beaten", 1)
    archive.add_outcome(policies["broken"].digest, Death.STATIC, "no parse", 1)
    archive.add_placements([Placement(policies["alive"].digest, 1, 1, 0.9, 0.0, 0.0, "born")])
    archive.end_step(1, evaluations=4, candidates=5, best=None, ratio=1.0, reason="", wall_s=1.0)
    rows = archive.candidates()
    assert [(c.name, c.status) for c in rows[:4]] == [
        ("won", "promoted"),
        ("alive", "alive"),
        ("seed", "alive"),
        ("lost", "dead"),
    ]
    assert {c.name: c.status for c in rows[4:]} == {"cut off": "open", "broken": "dead"}
    assert (rows[0].ratio, rows[0].objective, rows[0].stage, rows[0].stale) == (0.8, 8.0, "full", False)
    assert (rows[3].death, rows[3].detail, rows[3].note) == (Death.WORSE, "beaten", "why lost")
    assert (rows[0].island, rows[2].island) == (1, None)
    assert [c.name for c in archive.candidates(2, sort="new")] == ["alive", "broken"]
    assert [c.name for c in archive.candidates(status="dead")] == ["lost", "broken"]
    assert [c.name for c in archive.candidates(status="static")] == ["broken"]
    archive.begin_step(2, policies["seed"].digest, (("full", EvaluationTask((9,))),))
    assert all(c.stale for c in archive.candidates() if c.stage)


def test_children_and_edges() -> None:
    archive, first = Archive(), candidate("a = 1\n")
    second, third = candidate("a = 2\n", first), candidate("a = 3\n", first)
    fourth = candidate("a = 4\n", second, third)
    for policy in (first, second, third, fourth):
        archive.add(policy, policy.digest, 1)
    assert archive.children(first.digest) == [second, third]
    assert archive.children(fourth.digest) == []
    assert archive.edges() == [
        (first.digest, second.digest),
        (first.digest, third.digest),
        (second.digest, fourth.digest),
        (third.digest, fourth.digest),
    ]
