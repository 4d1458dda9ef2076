"""What an off-line run leaves in its archive beside the candidates: for which workload, and how far it came.

One more table of the same file; rows are added and never changed, the last one counts.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from strategy.evolve.archive import ArchiveError

_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS offline_runs (id INTEGER PRIMARY KEY, setting TEXT NOT NULL, "
    "first TEXT NOT NULL, champion TEXT NOT NULL, at_s REAL NOT NULL)"
)


@dataclass(frozen=True, slots=True)
class OfflineRecord:
    """Where the last run on an archive left off."""

    setting: dict[str, Any]
    """What makes scores comparable."""
    first: str
    """Digest of the policy that it began with."""
    champion: str
    """Digest of the best that was proven; `first` when nothing was."""


def last_record(path: Path) -> OfflineRecord | None:
    """The last record of an archive; None: it has none. Raises ArchiveError when it cannot be read."""
    try:
        db = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
        try:
            tables = {n for (n,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if "offline_runs" not in tables:
                return None
            row = db.execute(
                "SELECT setting, first, champion FROM offline_runs ORDER BY id DESC LIMIT 1"
            ).fetchone()
        finally:
            db.close()
        return OfflineRecord(json.loads(row[0]), row[1], row[2]) if row else None
    except (sqlite3.Error, ValueError) as error:
        raise ArchiveError(f"cannot read the archive {path}: {error}") from error


def add_record(path: Path, setting: Mapping[str, Any], first: str, champion: str) -> None:
    """Note a beginning, or a promotion. Raises ArchiveError when it cannot be written."""
    try:
        db = sqlite3.connect(path, timeout=10.0, isolation_level=None)
        try:
            db.execute(_SCHEMA)
            db.execute(
                "INSERT INTO offline_runs (setting, first, champion, at_s) VALUES (?,?,?,?)",
                (json.dumps(dict(setting), sort_keys=True), first, champion, time.time()),
            )
        finally:
            db.close()
    except sqlite3.Error as error:
        raise ArchiveError(f"cannot write the archive {path}: {error}") from error
