"""One SQLite file, used from several threads."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

from loop.contracts import EvaluationTask
from strategy.evolve.archive.rows import load_tasks


@dataclass(frozen=True, slots=True)
class Current:
    """Which scores count at the moment: those on the tasks of the last step."""

    tasks: frozenset[tuple[str, int]]
    """(windows as JSON, world)."""
    world_key: str
    forgotten: int
    """Evaluations up to this row do not count."""

    def has(self, windows: str, world: int, world_key: str, row: int) -> bool:
        """Whether an evaluation counts."""
        return (windows, world) in self.tasks and world_key == self.world_key and row > self.forgotten


class Database:
    """What all queries stand on."""

    def __init__(self, db: sqlite3.Connection, where: str) -> None:
        self._db = db
        self._where = where
        self._lock = threading.RLock()

    def _execute(self, statement: str, values: Sequence[Any] = ()) -> sqlite3.Cursor:
        with self._lock:
            return self._db.execute(statement, values)

    def _rows(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        with self._lock:
            return self._db.execute(statement, values).fetchall()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    def _current(self) -> Current | None:
        """Which scores count; None: no step is recorded, so nothing is known to be stale."""
        rows = self._rows("SELECT tasks, world_key FROM steps ORDER BY generation DESC LIMIT 1")
        if not rows:
            return None
        tasks, world_key = rows[0]
        keys = frozenset((windows_of(task), task.world) for _, task in load_tasks(tasks))
        return Current(keys, world_key, self._forgotten(world_key))

    def _forgotten(self, world_key: str) -> int:
        query = "SELECT coalesce(max(up_to), 0) FROM forgotten WHERE world_key = ?"
        return int(self._rows(query, (world_key,))[0][0])

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def windows_of(task: EvaluationTask) -> str:
    """The windows of a task as they stand in the tables."""
    return json.dumps(task.windows)
