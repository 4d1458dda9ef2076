"""Tables of the archive, and how a file of an earlier version is brought up to date."""

from __future__ import annotations

import sqlite3

VERSION = 2
"""In `PRAGMA user_version`. Files of the first version carry 0."""

_CANDIDATES = """
CREATE TABLE IF NOT EXISTS candidates (
    digest TEXT PRIMARY KEY, name TEXT NOT NULL, source TEXT NOT NULL, normalised TEXT NOT NULL,
    parents TEXT NOT NULL, operator TEXT NOT NULL, note TEXT NOT NULL,
    generation INTEGER NOT NULL, at_s REAL NOT NULL)
"""
_EVALUATIONS = """
CREATE TABLE IF NOT EXISTS evaluations (
    id INTEGER PRIMARY KEY, digest TEXT NOT NULL REFERENCES candidates, stage TEXT NOT NULL,
    windows TEXT NOT NULL, world INTEGER NOT NULL, generation INTEGER NOT NULL,
    objective REAL, score TEXT, death TEXT, detail TEXT NOT NULL, wall_s REAL NOT NULL, at_s REAL NOT NULL)
"""
_OUTCOMES = """
CREATE TABLE IF NOT EXISTS outcomes (
    id INTEGER PRIMARY KEY, digest TEXT NOT NULL REFERENCES candidates, generation INTEGER NOT NULL,
    death TEXT, detail TEXT NOT NULL, at_s REAL NOT NULL)
"""
_FIRST = (
    _CANDIDATES,
    _EVALUATIONS,
    _OUTCOMES,
    "CREATE INDEX IF NOT EXISTS evaluations_by_digest ON evaluations (digest)",
    "CREATE INDEX IF NOT EXISTS outcomes_by_digest ON outcomes (digest)",
)
_SECOND = (
    # NULL: not made by the search, but given to it (incumbents, baselines).
    "ALTER TABLE candidates ADD COLUMN island INTEGER",
    # Scores of different set-ups never mix; '' is a set-up without a name.
    "ALTER TABLE evaluations ADD COLUMN world_key TEXT NOT NULL DEFAULT ''",
    # Objective against the incumbent's of that moment on the same task.
    "ALTER TABLE evaluations ADD COLUMN ratio REAL",
    "CREATE INDEX evaluations_by_task ON evaluations (windows, world, world_key)",
    "CREATE INDEX evaluations_by_generation ON evaluations (generation)",
    """CREATE TABLE steps (
        generation INTEGER PRIMARY KEY, incumbent TEXT NOT NULL, tasks TEXT NOT NULL, world_key TEXT NOT NULL,
        regime TEXT NOT NULL, budget INTEGER NOT NULL, began_s REAL NOT NULL, evaluations INTEGER,
        candidates INTEGER, best TEXT, ratio REAL, reason TEXT, wall_s REAL)""",
    """CREATE TABLE placements (
        id INTEGER PRIMARY KEY, digest TEXT NOT NULL REFERENCES candidates, island INTEGER NOT NULL,
        generation INTEGER NOT NULL, ratio REAL NOT NULL, replan_rate REAL NOT NULL, scaling REAL NOT NULL,
        how TEXT NOT NULL)""",
    "CREATE INDEX placements_by_digest ON placements (digest)",
    """CREATE TABLE exchanges (
        id INTEGER PRIMARY KEY, digest TEXT, model TEXT NOT NULL, prompt TEXT NOT NULL, answer TEXT NOT NULL,
        outcome TEXT NOT NULL, detail TEXT NOT NULL, prompt_tokens INTEGER NOT NULL,
        completion_tokens INTEGER NOT NULL, usd REAL NOT NULL, wall_s REAL NOT NULL, at_s REAL NOT NULL)""",
    "CREATE INDEX exchanges_by_digest ON exchanges (digest)",
    # Scores of this set-up up to this row count no more: its world was calibrated anew.
    "CREATE TABLE forgotten (world_key TEXT NOT NULL, up_to INTEGER NOT NULL)",
)
_STEPS_OF_VERSION = {1: _FIRST, 2: _SECOND}


class ArchiveError(ValueError):
    """The archive cannot be opened, or holds no such candidate."""


def open_database(where: str) -> sqlite3.Connection:
    """A connection to an archive of the present version; an older file is brought up to date in one
    transaction.

    Raises:
        ArchiveError: the file is no archive, is of a later version, or cannot be written.
    """
    try:
        db = sqlite3.connect(where, isolation_level=None, check_same_thread=False)
        db.execute("PRAGMA busy_timeout=10000")
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=NORMAL")
        _migrate(db, where)
    except sqlite3.Error as error:
        raise ArchiveError(f"cannot open the archive {where}: {error}") from error
    return db


def _migrate(db: sqlite3.Connection, where: str) -> None:
    db.execute("BEGIN IMMEDIATE")
    try:
        version = int(db.execute("PRAGMA user_version").fetchone()[0])
        if version > VERSION:
            raise ArchiveError(
                f"the archive {where} has version {version}; this program knows versions up to {VERSION}: "
                "use the newer program, or another file"
            )
        for step in range(version + 1, VERSION + 1):
            for statement in _STEPS_OF_VERSION[step]:
                db.execute(statement)
        db.execute(f"PRAGMA user_version={VERSION}")
    except BaseException:
        db.execute("ROLLBACK")
        raise
    db.execute("COMMIT")
