"""The journal of a live run: beside ticks and policies, every request that was served, every replica, and readings.

Times are seconds on the run's own clock, on which the first window begins at 0 (what was started before that has a
negative time); `config()["began_unix_s"]` is the Unix time of 0. docs/serving.md describes the tables.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, cast

import structlog
from pydantic import TypeAdapter

from loop.contracts import EngineLimits, EngineStats, Finish, ReplicaSpec, Request, RequestRecord, Role
from loop.contracts.telemetry import Forecast, TelemetryWindow
from loop.journal import Journal, JournalError

RUN_NAME = "serving"
_SEEN = TypeAdapter(TelemetryWindow)
_EXPECTED = TypeAdapter(tuple[Forecast, ...])
_log = structlog.get_logger(__name__)

_SCHEMA = """
CREATE TABLE IF NOT EXISTS served_request (
    run INTEGER NOT NULL REFERENCES run, id INTEGER NOT NULL, request TEXT NOT NULL, model TEXT NOT NULL,
    tier INTEGER NOT NULL, policy TEXT NOT NULL, finish TEXT NOT NULL, cancelled INTEGER NOT NULL,
    arrival_s REAL NOT NULL, queued_s REAL NOT NULL, scheduled_s REAL NOT NULL, first_token_s REAL NOT NULL,
    last_token_s REAL NOT NULL, input_tokens INTEGER NOT NULL, output_tokens INTEGER NOT NULL,
    cached_tokens INTEGER NOT NULL, replica INTEGER NOT NULL, preemptions INTEGER NOT NULL,
    retries INTEGER NOT NULL, max_tokens INTEGER NOT NULL, block_hashes TEXT NOT NULL, PRIMARY KEY (run, id));
CREATE TABLE IF NOT EXISTS served_replica (
    run INTEGER NOT NULL REFERENCES run, replica INTEGER NOT NULL, model TEXT NOT NULL, engine TEXT NOT NULL,
    devices TEXT NOT NULL, tp INTEGER NOT NULL, pp INTEGER NOT NULL, role TEXT NOT NULL,
    max_num_seqs INTEGER NOT NULL, max_num_batched_tokens INTEGER NOT NULL, started_s REAL NOT NULL,
    ready_s REAL, ended_s REAL, ended TEXT, kv_capacity_tokens INTEGER, max_model_len INTEGER,
    block_tokens INTEGER, PRIMARY KEY (run, replica));
CREATE TABLE IF NOT EXISTS served_event (
    run INTEGER NOT NULL REFERENCES run, at_s REAL NOT NULL, kind TEXT NOT NULL, replica INTEGER NOT NULL,
    model TEXT NOT NULL, devices TEXT NOT NULL, reason TEXT NOT NULL, pid INTEGER);
CREATE TABLE IF NOT EXISTS served_sample (
    run INTEGER NOT NULL REFERENCES run, at_s REAL NOT NULL, replica INTEGER NOT NULL, running INTEGER NOT NULL,
    waiting INTEGER NOT NULL, waiting_tokens INTEGER NOT NULL, kv_tokens INTEGER NOT NULL,
    max_num_seqs INTEGER NOT NULL, max_num_batched_tokens INTEGER NOT NULL, steps INTEGER NOT NULL,
    step_s REAL NOT NULL, preemptions INTEGER NOT NULL, prompt_tokens INTEGER NOT NULL,
    generated_tokens INTEGER NOT NULL, cached_tokens INTEGER NOT NULL, finished INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS served_telemetry (
    run INTEGER NOT NULL REFERENCES run, tick INTEGER NOT NULL, seen TEXT NOT NULL, expected TEXT NOT NULL,
    PRIMARY KEY (run, tick));
"""


def _insert(table: str, columns: int, how: str = "INSERT") -> str:
    return f"{how} INTO {table} VALUES ({', '.join('?' * columns)})"


_INSERT_REQUEST = _insert("served_request", 21)
_INSERT_REPLICA = _insert("served_replica", 17, "INSERT OR REPLACE")
_INSERT_SAMPLE = _insert("served_sample", 16)


@dataclass(frozen=True, slots=True)
class ServedRequest:
    """One request that is over."""

    record: RequestRecord
    request: str
    """As the gateway called it."""
    tier: int
    policy: str
    """Digest of the policy that served when it was accepted."""
    max_tokens: int
    block_hashes: tuple[int, ...] = ()
    """Prefix identity, one hash per whole block of prompt tokens."""

    @property
    def cancelled(self) -> bool:
        """Its client went away; `record.output_tokens` is what it had got."""
        return self.record.finish is Finish.CANCELLED

    def as_request(self) -> Request:
        """As a workload has it, with its true output length: what the twin replays."""
        r = self.record
        return Request(
            r.id, r.arrival_s, r.model, r.input_tokens, max(1, r.output_tokens), self.block_hashes, self.tier
        )


@dataclass(frozen=True, slots=True)
class ServedReplica:
    """One process of one replica."""

    id: int
    spec: ReplicaSpec
    """As it was started; batch limits may have changed since."""
    engine: str
    started_s: float
    ready_s: float | None = None
    ended_s: float | None = None
    ended: str | None = None
    """`stopped`, `died` or `failed`."""
    kv_capacity_tokens: int | None = None
    max_model_len: int | None = None
    block_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class ServedEvent:
    """A step in the life of a replica, by the words of its manager."""

    at_s: float
    kind: str
    replica: int
    model: str
    devices: tuple[str, ...]
    reason: str
    pid: int | None = None


@dataclass(frozen=True, slots=True)
class EngineSample:
    """A reading of one replica's counters, which run from its start."""

    at_s: float
    replica: int
    stats: EngineStats


@dataclass(frozen=True, slots=True)
class ServedTelemetry:
    """What the devices showed in the window before a tick, and what was expected of them at it."""

    tick: int
    seen: TelemetryWindow
    expected: tuple[Forecast, ...]


class ServingJournal(Journal):
    """A journal with the tables of a live run."""

    def __init__(
        self, path: Path | str, *, config: dict[str, Any] | None = None, lenient: bool = False
    ) -> None:
        """Open for reading, or, with a `config`, begin a run. `lenient`: what cannot be written from then on (a full
        disk) is lost, and logged; serving goes on. Raises JournalError."""
        super().__init__(path, run=RUN_NAME if config is not None else "", config=config)
        try:
            self._db.executescript(_SCHEMA)
        except sqlite3.Error as error:
            raise JournalError(f"{self.path}: not a journal that can be opened: {error}") from error
        if lenient:
            self._db = cast(sqlite3.Connection, _Lenient(self._db, self.path))

    # -- writing -----------------------------------------------------------------------------------------

    def began(self, config: dict[str, Any]) -> None:
        """What the run was told, once all of it is known."""
        self._db.execute("UPDATE run SET config = ? WHERE run = ?", (json.dumps(config), self._run))

    def requests(self, served: Iterable[ServedRequest]) -> None:
        """Add requests that are over, in one transaction."""
        rows = [
            (
                self._run,
                r.id,
                s.request,
                r.model,
                s.tier,
                s.policy,
                r.finish,
                s.cancelled,
                *r[3:8],
                *r[8:14],
                s.max_tokens,
                json.dumps(s.block_hashes),
            )
            for s in served
            for r in (s.record,)
        ]
        self._many(_INSERT_REQUEST, rows)

    def replica(self, replica: ServedReplica) -> None:
        """Add a replica, or what became of it."""
        spec = replica.spec
        row = (
            self._run,
            replica.id,
            spec.model,
            replica.engine,
            json.dumps(spec.devices),
            spec.tp,
            spec.pp,
            spec.role,
            spec.max_num_seqs,
            spec.max_num_batched_tokens,
            replica.started_s,
            replica.ready_s,
            replica.ended_s,
            replica.ended,
            replica.kv_capacity_tokens,
            replica.max_model_len,
            replica.block_tokens,
        )
        self._db.execute(_INSERT_REPLICA, row)

    def event(self, event: ServedEvent) -> None:
        """Add a step in the life of a replica."""
        row = (
            self._run,
            event.at_s,
            event.kind,
            event.replica,
            event.model,
            json.dumps(event.devices),
            event.reason,
            event.pid,
        )
        self._db.execute("INSERT INTO served_event VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)

    def samples(self, samples: Iterable[EngineSample]) -> None:
        """Add readings, in one transaction."""
        rows = [
            (
                self._run,
                sample.at_s,
                sample.replica,
                s.running,
                s.waiting,
                s.waiting_tokens,
                s.kv_tokens,
                s.limits.max_num_seqs,
                s.limits.max_num_batched_tokens,
                s.steps,
                s.step_s,
                s.preemptions,
                s.prompt_tokens,
                s.generated_tokens,
                s.cached_tokens,
                s.finished,
            )
            for sample in samples
            for s in (sample.stats,)
        ]
        self._many(_INSERT_SAMPLE, rows)

    def telemetry(self, entry: ServedTelemetry) -> None:
        """Add what devices showed before a tick."""
        row = (
            self._run,
            entry.tick,
            _SEEN.dump_json(entry.seen).decode(),
            _EXPECTED.dump_json(entry.expected).decode(),
        )
        self._db.execute("INSERT OR REPLACE INTO served_telemetry VALUES (?, ?, ?, ?)", row)

    # -- reading -----------------------------------------------------------------------------------------

    def serving_runs(self) -> list[int]:
        """Numbers of the live runs in this file, oldest first."""
        return [run for run, name, _ in self.runs() if name == RUN_NAME]

    def config(self, run: int | None = None) -> dict[str, Any]:
        """What a live run (the last one by default) was told. Raises JournalError."""
        row = self._db.execute("SELECT config FROM run WHERE run = ?", (self._live(run),)).fetchone()
        found: dict[str, Any] = json.loads(row[0])
        return found

    def served(
        self, run: int | None = None, *, since_s: float = float("-inf"), until_s: float = float("inf")
    ) -> Iterator[ServedRequest]:
        """Requests of a live run (the last one by default) that arrived in [since_s, until_s), by arrival."""
        rows = self._db.execute(
            "SELECT id, request, model, tier, policy, finish, cancelled, arrival_s, queued_s, scheduled_s,"
            " first_token_s, last_token_s, input_tokens, output_tokens, cached_tokens, replica, preemptions,"
            " retries, max_tokens, block_hashes"
            " FROM served_request WHERE run = ? AND arrival_s >= ? AND arrival_s < ? ORDER BY arrival_s, id",
            (self._live(run), since_s, until_s),
        )
        for row in rows:
            record = RequestRecord(row[0], row[2], Finish(row[5]), *row[7:18])
            hashes = tuple(json.loads(row[19]))
            yield ServedRequest(record, row[1], row[3], row[4], row[18], hashes)

    def served_replicas(self, run: int | None = None) -> list[ServedReplica]:
        """Every process of a live run (the last one by default), in order of start."""
        rows = self._db.execute(
            "SELECT replica, model, engine, devices, tp, pp, role, max_num_seqs, max_num_batched_tokens,"
            " started_s, ready_s, ended_s, ended, kv_capacity_tokens, max_model_len, block_tokens"
            " FROM served_replica WHERE run = ? ORDER BY replica",
            (self._live(run),),
        )
        return [
            ServedReplica(
                row[0],
                ReplicaSpec(row[1], tuple(json.loads(row[3])), row[4], row[5], Role(row[6]), row[7], row[8]),
                row[2],
                *row[9:16],
            )
            for row in rows
        ]

    def served_events(self, run: int | None = None) -> list[ServedEvent]:
        """What happened to replicas of a live run (the last one by default), in order."""
        rows = self._db.execute(
            "SELECT at_s, kind, replica, model, devices, reason, pid FROM served_event WHERE run = ? ORDER BY rowid",
            (self._live(run),),
        )
        return [
            ServedEvent(row[0], row[1], row[2], row[3], tuple(json.loads(row[4])), row[5], row[6])
            for row in rows
        ]

    def served_samples(self, run: int | None = None) -> Iterator[EngineSample]:
        """Readings of a live run (the last one by default), in order."""
        names = [f.name for f in fields(EngineStats) if f.name != "limits"]
        rows = self._db.execute(
            f"SELECT at_s, replica, max_num_seqs, max_num_batched_tokens, {', '.join(names)}"  # noqa: S608 - ours
            " FROM served_sample WHERE run = ? ORDER BY rowid",
            (self._live(run),),
        )
        for row in rows:
            values = dict(zip(names, row[4:], strict=True))
            yield EngineSample(row[0], row[1], EngineStats(limits=EngineLimits(row[2], row[3]), **values))

    def served_telemetry(self, run: int | None = None, *, tick: int | None = None) -> list[ServedTelemetry]:
        """What devices showed in a live run (the last one by default), tick by tick, or before one tick."""
        rows = self._db.execute(
            "SELECT tick, seen, expected FROM served_telemetry"
            " WHERE run = ? AND (? IS NULL OR tick = ?) ORDER BY tick",
            (self._live(run), tick, tick),
        )
        return [
            ServedTelemetry(number, _SEEN.validate_json(seen), _EXPECTED.validate_json(expected))
            for number, seen, expected in rows
        ]

    # -- details -----------------------------------------------------------------------------------------

    def _live(self, run: int | None) -> int:
        if run is None and self._run:
            return self._run
        runs = self.serving_runs()
        if run is None and runs:
            return runs[-1]
        if run in runs:
            return int(run)
        what = f"run {run} is no live run" if run is not None else "no live run in it"
        raise JournalError(f"{self.path}: {what}: `autopoiesis loop serve` keeps one in its --out folder")

    def _many(self, statement: str, rows: Sequence[tuple[Any, ...]]) -> None:
        if not rows:
            return
        self._db.execute("BEGIN")
        try:
            self._db.executemany(statement, rows)
        finally:
            self._db.execute("COMMIT")


class _Lenient:
    """A connection whose failures are logged, the first of a row of them, and no more."""

    def __init__(self, db: sqlite3.Connection, path: str) -> None:
        self._db = db
        self._path = path
        self._failing = False

    def execute(self, statement: str, values: Sequence[Any] = ()) -> sqlite3.Cursor:
        """As of sqlite3; an empty cursor where it fails."""
        return self._tried(lambda: self._db.execute(statement, values))

    def executemany(self, statement: str, rows: Sequence[Sequence[Any]]) -> sqlite3.Cursor:
        """Likewise."""
        return self._tried(lambda: self._db.executemany(statement, rows))

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def _tried(self, act: Callable[[], sqlite3.Cursor]) -> sqlite3.Cursor:
        try:
            cursor = act()
        except sqlite3.Error as error:
            if not self._failing:
                _log.warning("the journal cannot be written", path=self._path, reason=str(error))
            self._failing = True
            return self._db.cursor()
        self._failing = False
        return cursor
