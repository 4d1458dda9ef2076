"""The live store: one SQLite file in a run's folder, where a loop keeps its live state and hears its operators.

Write-ahead log, and each commit is one transaction: a process that is killed at any moment leaves the state of
the last monitoring point behind. Other processes read the state and queue commands meanwhile.
"""

from __future__ import annotations

import fcntl
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from pydantic import TypeAdapter, ValidationError

from loop.contracts import PolicySource
from loop.contracts.live import CommandKind, CommandStatus, LiveCommand, LiveRecord, LiveState

FILE_NAME = "live.sqlite"
"""In the folder of a run."""

_BUSY_S = 5.0
_LOCK_ATTEMPTS, _LOCK_PAUSE_S = 5, 0.02
_SCHEMA = """
CREATE TABLE IF NOT EXISTS live_state (id INTEGER PRIMARY KEY CHECK (id = 1), state TEXT NOT NULL, at_s REAL NOT NULL);
CREATE TABLE IF NOT EXISTS live_policy (digest TEXT PRIMARY KEY, source TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS live_event (
    id INTEGER PRIMARY KEY, run INTEGER NOT NULL, at_s REAL NOT NULL, record TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS live_command (
    id INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL, digest TEXT, given_at_s REAL NOT NULL,
    status TEXT NOT NULL, tick INTEGER, answer TEXT NOT NULL DEFAULT '');
CREATE TABLE IF NOT EXISTS live_run (run INTEGER PRIMARY KEY, at_s REAL NOT NULL);
"""

_STATE = TypeAdapter(LiveState)
_RECORD = TypeAdapter(LiveRecord)
_SOURCE = TypeAdapter(PolicySource)


class LiveStoreError(RuntimeError):
    """The store cannot be read or written; the message names the file."""


class LiveStore:
    """The state of one run, and the commands for it. Several processes may have it open."""

    def __init__(self, path: Path | str, *, now: Callable[[], float] = time.time) -> None:
        """Open; the file is made when it is not there.

        Raises:
            LiveStoreError: the file is no live store, or cannot be opened.
        """
        self.path = str(path)
        self._now = now
        self._attending: IO[bytes] | None = None
        with self._errors("opened"):
            self._db = sqlite3.connect(
                self.path, isolation_level=None, check_same_thread=False, timeout=_BUSY_S
            )
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.executescript(_SCHEMA)

    @classmethod
    def begin(cls, path: Path | str, *, now: Callable[[], float] = time.time) -> LiveStore:
        """Open for a run that begins anew: the state of an earlier run is given up, and commands that it left
        unanswered are refused. Events and policies stay. (To go on where a run stopped: the constructor, and
        `attend`.)

        Raises:
            LiveStoreError: as the constructor; or another loop serves on this store.
        """
        store = cls(path, now=now)
        store.attend()
        with store._transaction("reset"):
            store._db.execute("INSERT INTO live_run (at_s) VALUES (?)", (store._now(),))
            store._db.execute("DELETE FROM live_state")
            store._db.execute(
                "UPDATE live_command SET status = ?, answer = 'another run began' WHERE status = ?",
                (CommandStatus.REFUSED, CommandStatus.PENDING),
            )
        return store

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; a loop that served on it does so no more."""
        self._db.close()
        if self._attending is not None:
            self._attending.close()
            self._attending = None

    def attend(self) -> None:
        """Say that a loop serves on this store, until it is closed or its process ends, in whatever way.

        Raises:
            LiveStoreError: another loop does.
        """
        if self._attending is not None:
            return
        lock = self._open_lock()
        for attempt in range(_LOCK_ATTEMPTS):
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:  # another loop, or only somebody who looks whether there is one
                if attempt + 1 < _LOCK_ATTEMPTS:
                    time.sleep(_LOCK_PAUSE_S)
            else:
                self._attending = lock
                return
        lock.close()
        raise LiveStoreError(
            f"{self.path}: another loop serves on this store: end it first, or use another folder"
        )

    def attended(self) -> bool:
        """Whether a loop serves on this store now, here or in another process."""
        if self._attending is not None:
            return True
        with self._open_lock() as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    def _open_lock(self) -> IO[bytes]:
        """A file beside the store: to close a second descriptor of the store would drop SQLite's own locks."""
        path = Path(self.path).with_suffix(".lock")
        try:
            return path.open("ab")
        except OSError as error:
            raise LiveStoreError(f"{path}: cannot be opened: {error.strerror}") from error

    def load(self) -> LiveState | None:
        """The state at the last commit; None: no loop has served on this store yet."""
        with self._errors("read"):
            row = self._db.execute("SELECT state FROM live_state").fetchone()
        if row is None:
            return None
        try:
            return _STATE.validate_json(row[0])
        except ValidationError as error:
            raise LiveStoreError(
                f"{self.path}: its state cannot be understood ({error.error_count()} problems): another "
                "version wrote it; move the file away to begin anew"
            ) from error

    def committed_at_s(self) -> float | None:
        """Unix time of the last commit; None: there was none."""
        with self._errors("read"):
            row = self._db.execute("SELECT at_s FROM live_state").fetchone()
        return None if row is None else float(row[0])

    def pending(self) -> list[LiveCommand]:
        """Commands without an answer, in order."""
        return self._commands("WHERE status = ? ORDER BY id", (CommandStatus.PENDING,))

    def commit(
        self, state: LiveState, records: Sequence[LiveRecord], answered: Sequence[LiveCommand]
    ) -> None:
        """Keep the state, what happened and what was answered, in one transaction."""
        now_s = self._now()
        with suppress(LiveStoreError):  # a loop that went on without saying so
            self.attend()
        with self._transaction("written"):
            self._db.execute(
                "INSERT OR REPLACE INTO live_state VALUES (1, ?, ?)",
                (_STATE.dump_json(state).decode(), now_s),
            )
            known = (state.champion, *state.predecessors, *((state.challenger,) if state.challenger else ()))
            self._keep(known)
            run = self._db.execute("SELECT COALESCE(MAX(run), 0) FROM live_run").fetchone()[0]
            self._db.executemany(
                "INSERT INTO live_event (run, at_s, record) VALUES (?, ?, ?)",
                [(run, now_s, _RECORD.dump_json(r).decode()) for r in records],
            )
            self._db.executemany(
                "UPDATE live_command SET status = ?, tick = ?, answer = ? WHERE id = ?",
                [(c.status, c.tick, c.answer, c.id) for c in answered],
            )

    def order(self, kind: CommandKind, policy: PolicySource | None = None) -> int:
        """Queue a command; returns its number."""
        with self._transaction("written"):
            if policy is not None:
                self._keep((policy,))
            cursor = self._db.execute(
                "INSERT INTO live_command (kind, digest, given_at_s, status) VALUES (?, ?, ?, ?)",
                (kind, policy.digest if policy else None, self._now(), CommandStatus.PENDING),
            )
            return int(cursor.lastrowid or 0)

    def command(self, number: int) -> LiveCommand:
        """A command by its number. Raises LiveStoreError when there is none."""
        found = self._commands("WHERE id = ?", (number,))
        if not found:
            raise LiveStoreError(f"{self.path}: no command {number}")
        return found[0]

    def commands(self, count: int = 10) -> list[LiveCommand]:
        """The last so many commands, oldest first."""
        return self._commands("ORDER BY id DESC LIMIT ?", (count,))[::-1]

    def events(self, count: int = 10) -> list[LiveRecord]:
        """The last so many records of the run that goes on, oldest first."""
        with self._errors("read"):
            rows = self._db.execute(
                "SELECT record FROM live_event WHERE run = (SELECT COALESCE(MAX(run), 0) FROM live_run)"
                " ORDER BY id DESC LIMIT ?",
                (count,),
            ).fetchall()
        return [_RECORD.validate_json(text) for (text,) in reversed(rows)]

    def policy(self, digest: str) -> PolicySource | None:
        """A policy that the store knows, by its digest or an unambiguous beginning of it; None: no such one."""
        with self._errors("read"):
            rows = self._db.execute(
                "SELECT source FROM live_policy WHERE substr(digest, 1, ?) = ? LIMIT 2", (len(digest), digest)
            ).fetchall()
        return _SOURCE.validate_json(rows[0][0]) if len(rows) == 1 and digest else None

    def _keep(self, policies: Iterable[PolicySource]) -> None:
        self._db.executemany(
            "INSERT OR IGNORE INTO live_policy VALUES (?, ?)",
            [(p.digest, _SOURCE.dump_json(p).decode()) for p in policies],
        )

    def _commands(self, where: str, values: tuple[object, ...]) -> list[LiveCommand]:
        with self._errors("read"):
            rows = self._db.execute(
                "SELECT id, kind, live_policy.source, given_at_s, status, tick, answer FROM live_command"  # noqa: S608 - `where` is ours
                f" LEFT JOIN live_policy USING (digest) {where}",
                values,
            ).fetchall()
        return [
            LiveCommand(
                number,
                CommandKind(kind),
                _SOURCE.validate_json(source) if source else None,
                given_at_s,
                CommandStatus(status),
                tick,
                answer,
            )
            for number, kind, source, given_at_s, status, tick, answer in rows
        ]

    @contextmanager
    def _transaction(self, done: str) -> Iterator[None]:
        with self._errors(done):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    @contextmanager
    def _errors(self, done: str) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise LiveStoreError(f"{self.path}: the live store cannot be {done}: {error}") from error
