"""Kill -9 at random moments: nothing is lost but what was in flight."""

from __future__ import annotations

import multiprocessing as mp
import os
import random
import signal
import sqlite3
import time
from collections import Counter
from pathlib import Path

import cma  # noqa: F401  the children inherit it: importing it takes longer than most of them live
import pytest

from strategy.evolve.archive import Archive
from strategy.evolve.evolver import Evolver, EvolverConfig
from strategy.evolve.novelty import Novelty, identity_of
from strategy.evolve.synthesise import BuiltinSynthesiser
from tests.strategy.evolve.survivor import GOAL, WORLD, evolve
from tests.strategy.evolve.worlds import SyntheticEvaluator, distance

KILLS = 50
BATCH = 3
ACTS = 40
"""At most so many acts of a child before it is killed, a step takes about 25: counted by what it did and not
by the clock, so that kills fall into the same work on every machine."""


def never(_: object) -> bool:
    return False


def reached(policy) -> bool:
    return distance(policy) <= GOAL


def child(archive: Path, ledger: Path, seed: int, *, forever: bool) -> None:
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    evolve(archive, ledger, seed, never if forever else reached)


def start(archive: Path, ledger: Path, *, forever: bool):
    process = mp.get_context("fork").Process(
        target=child, args=(archive, ledger, 7), kwargs={"forever": forever}
    )
    process.start()
    return process


def read(ledger: Path) -> tuple[list[list[str]], list[tuple[str, ...]]]:
    """(answers of the synthesiser, evaluations), as far as the child came."""
    lines = (
        [line.split() for line in ledger.read_text(encoding="utf-8").splitlines()] if ledger.exists() else []
    )
    return [w[1:] for w in lines if w[0] == "asked"], [tuple(w[1:]) for w in lines if w[0] == "scored"]


def acts(ledger: Path) -> int:
    return ledger.read_bytes().count(b"\n") if ledger.exists() else 0


def kill(process, ledger: Path, more: int, later_s: float) -> None:
    """Once it has done `more`, and a moment later."""
    goal = acts(ledger) + more
    while acts(ledger) < goal and process.is_alive():
        time.sleep(0.002)
    time.sleep(later_s)
    assert process.is_alive()
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL


class Witness:
    """Looks at what each kill has left behind, and remembers it."""

    def __init__(self, archive: Path, ledger: Path) -> None:
        self.archive = archive
        self.ledger = ledger
        self.rows: set[tuple] = set()
        self.scores: set[tuple] = set()
        self.lost_scores = 0
        self.lost_candidates: set[str] = set()

    def look(self) -> None:
        with sqlite3.connect(self.archive) as db:
            assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        db.close()
        with Archive(self.archive) as archive:
            self._nothing_vanished(archive)
            self._only_what_was_in_flight_is_lost(archive)
            self._counts_agree(archive)
            self._population_comes_back(archive)

    def _nothing_vanished(self, archive: Archive) -> None:
        rows = {(*p.parents, p.digest, p.source, p.operator, p.note) for p in archive}
        assert self.rows <= rows
        self.rows = rows
        scores = set(archive._rows("SELECT id, digest, windows, world, objective FROM evaluations"))
        assert self.scores <= scores
        self.scores = scores

    def _only_what_was_in_flight_is_lost(self, archive: Archive) -> None:
        answers, scored = read(self.ledger)
        lost = len(scored) - len(self.scores)
        assert 0 <= lost - self.lost_scores <= 1
        self.lost_scores = lost
        missing = {digest for answer in answers for digest in answer if digest not in archive}
        now = missing - self.lost_candidates
        assert not now or now <= set(answers[-1])  # one answer at most
        self.lost_candidates |= missing

    def _counts_agree(self, archive: Archive) -> None:
        steps = archive.steps()
        assert [s.generation for s in steps] == list(range(1, archive.generation() + 1))
        for step in steps:
            if step.wall_s is not None:
                assert step.evaluations == archive.spent(step.generation)
                assert step.evaluations <= step.budget
        assert archive.spent() == len(self.scores)
        seen = Novelty(archive, WORLD)
        assert all(identity_of(p.source) in seen for p in archive)

    def _population_comes_back(self, archive: Archive) -> None:
        def rebuilt() -> tuple:
            return Evolver(
                BuiltinSynthesiser(1),
                SyntheticEvaluator(),
                archive,
                EvolverConfig(batch=BATCH),
                world_key=WORLD,
            ).population

        population = rebuilt()
        assert population == rebuilt()
        assert all(p.digest in archive for p in population)
        if any(s.wall_s is not None for s in archive.steps()):
            assert population


@pytest.mark.slow
def test_killed_fifty_times_it_loses_nothing_but_what_was_in_flight(tmp_path: Path) -> None:
    rng = random.Random(20)
    archive, ledger = tmp_path / "archive.sqlite", tmp_path / "ledger"
    witness = Witness(archive, ledger)
    for _ in range(KILLS):
        process = start(archive, ledger, forever=True)
        kill(process, ledger, rng.randint(0, ACTS), rng.uniform(0.0, 0.02))
        witness.look()
    process = start(archive, ledger, forever=False)
    process.join(timeout=600.0)
    assert process.exitcode == 0
    witness.look()
    with Archive(archive) as book:
        assert reached(book.champions()[0])
        assert book.unfinished() == []
        steps = book.steps()
        assert sum(step.wall_s is None for step in steps) > KILLS // 4  # the kills did hit work
        assert any(step.wall_s is not None for step in steps)
    _, scored = read(ledger)
    paid_twice = sum(n - 1 for n in Counter(scored).values())
    assert paid_twice <= witness.lost_scores  # what is in the archive is never paid for again
