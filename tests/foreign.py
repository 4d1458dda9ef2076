"""Files of somebody else, which a command must not take for its own, nor touch."""

from __future__ import annotations

import sqlite3
from pathlib import Path


def foreign_files(folder: Path) -> tuple[Path, ...]:
    """An empty file, a SQLite database of somebody else, and a text."""
    empty, other, text = (folder / name for name in ("empty", "other.sqlite", "text"))
    empty.touch()
    with sqlite3.connect(other) as db:
        db.execute("CREATE TABLE mine (x)")
    text.write_text("not a database, but long enough to be taken for one" * 50)
    return empty, other, text
