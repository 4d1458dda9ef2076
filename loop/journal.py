"""The journal: every tick, every policy and every step of evolution, append-only in SQLite.

A tick holds all that its decision was made from (observation, memo, source of the policy) and what came of
it, so the decision can be asked again and compared: see `replay_decision`.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pydantic import TypeAdapter

from loop.contracts import Memo, Observation, Plan, Policy, PolicySource, WindowResult
from loop.contracts.live import LiveRecord

_SCHEMA = """
CREATE TABLE IF NOT EXISTS run (
    run INTEGER PRIMARY KEY, name TEXT NOT NULL, config TEXT NOT NULL, finished INTEGER NOT NULL DEFAULT 0);
CREATE TABLE IF NOT EXISTS policy (
    digest TEXT PRIMARY KEY, name TEXT NOT NULL, source TEXT NOT NULL, parents TEXT NOT NULL,
    operator TEXT NOT NULL, note TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS tick (
    run INTEGER NOT NULL REFERENCES run, tick INTEGER NOT NULL, policy TEXT NOT NULL,
    observation TEXT NOT NULL, memo_before TEXT NOT NULL, memo_after TEXT NOT NULL,
    forced INTEGER NOT NULL, replanned INTEGER NOT NULL, plan TEXT NOT NULL, solve_s REAL NOT NULL,
    by_fallback INTEGER NOT NULL,
    result TEXT, PRIMARY KEY (run, tick));
CREATE TABLE IF NOT EXISTS evolution (
    run INTEGER NOT NULL REFERENCES run, tick INTEGER NOT NULL, incumbent TEXT NOT NULL,
    champion TEXT, reason TEXT NOT NULL, detail TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS live (
    run INTEGER NOT NULL REFERENCES run, tick INTEGER NOT NULL, record TEXT NOT NULL);
"""

_OBSERVATION = TypeAdapter(Observation)
_PLAN = TypeAdapter(Plan)
_RESULT = TypeAdapter(WindowResult)
_LIVE = TypeAdapter(LiveRecord)


@dataclass(frozen=True, slots=True)
class Decision:
    """What was decided at one tick, and from what."""

    tick: int
    policy: str
    """Digest."""
    observation: Observation
    memo_before: dict[str, float]
    memo_after: dict[str, float]
    forced: bool
    """The guard asked for a plan because a model had no replica left."""
    replanned: bool
    plan: Plan
    """The plan that serves after the decision."""
    solve_s: float
    by_fallback: bool = False
    """The policy gave no usable answer: the fallback decided."""
    result: WindowResult | None = None
    """None while the window runs."""


@dataclass(frozen=True, slots=True)
class EvolutionRecord:
    """One step of evolution: what it started from, what it handed over, and why."""

    tick: int
    incumbent: str
    champion: str | None
    reason: str
    detail: dict[str, Any]


class JournalError(RuntimeError):
    """The journal cannot be read or written; the message names the file."""


class Journal:
    """One SQLite file (WAL). Writers commit once a tick; readers may look on meanwhile."""

    def __init__(self, path: Path | str, *, run: str = "", config: dict[str, Any] | None = None) -> None:
        """Open for reading, or, with a `run` name, begin a run.

        Raises:
            JournalError: the file is no journal, or cannot be opened.
        """
        self.path = str(path)
        try:
            self._db = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.executescript(_SCHEMA)
        except sqlite3.Error as error:
            raise JournalError(f"{self.path}: not a journal that can be opened: {error}") from error
        self._run = 0
        if run:
            cursor = self._db.execute(
                "INSERT INTO run (name, config) VALUES (?, ?)", (run, json.dumps(config or {}))
            )
            self._run = int(cursor.lastrowid or 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def policy(self, source: PolicySource) -> None:
        """Keep a policy's source; a second time is no error."""
        self._db.execute(
            "INSERT OR IGNORE INTO policy VALUES (?, ?, ?, ?, ?, ?)",
            (
                source.digest,
                source.name,
                source.source,
                json.dumps(source.parents),
                source.operator,
                source.note,
            ),
        )

    def decided(self, decision: Decision) -> None:
        """Write a tick before its window runs."""
        self._db.execute(
            "INSERT INTO tick VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, NULL)",
            (
                self._run,
                decision.tick,
                decision.policy,
                _OBSERVATION.dump_json(decision.observation).decode(),
                json.dumps(decision.memo_before),
                json.dumps(decision.memo_after),
                decision.forced,
                decision.replanned,
                _PLAN.dump_json(decision.plan).decode(),
                decision.solve_s,
                decision.by_fallback,
            ),
        )

    def ended(self, tick: int, result: WindowResult) -> None:
        """Add what came of a tick."""
        self._db.execute(
            "UPDATE tick SET result = ? WHERE run = ? AND tick = ?",
            (_RESULT.dump_json(result).decode(), self._run, tick),
        )

    def evolved(self, record: EvolutionRecord) -> None:
        """Add one step of evolution."""
        self._db.execute(
            "INSERT INTO evolution VALUES (?, ?, ?, ?, ?, ?)",
            (
                self._run,
                record.tick,
                record.incumbent,
                record.champion,
                record.reason,
                json.dumps(record.detail),
            ),
        )

    def went_live(self, record: LiveRecord) -> None:
        """Add a step of a policy on its way into service, or an act of an operator."""
        self._db.execute(
            "INSERT INTO live VALUES (?, ?, ?)", (self._run, record.tick, _LIVE.dump_json(record).decode())
        )

    def finish(self) -> None:
        """Mark the run as complete."""
        self._db.execute("UPDATE run SET finished = 1 WHERE run = ?", (self._run,))

    def runs(self) -> list[tuple[int, str, bool]]:
        """(run, name, finished) in order of their beginning."""
        return [(r, n, bool(f)) for r, n, f in self._db.execute("SELECT run, name, finished FROM run")]

    def decisions(self, run: int | None = None) -> Iterator[Decision]:
        """The ticks of a run (the last one by default), in order."""
        rows = self._db.execute(
            "SELECT tick, policy, observation, memo_before, memo_after, forced, replanned, plan, solve_s,"
            " by_fallback, result"
            " FROM tick WHERE run = ? ORDER BY tick",
            (self._pick(run),),
        )
        for row in rows:
            yield Decision(
                tick=row[0],
                policy=row[1],
                observation=_OBSERVATION.validate_json(row[2]),
                memo_before=json.loads(row[3]),
                memo_after=json.loads(row[4]),
                forced=bool(row[5]),
                replanned=bool(row[6]),
                plan=_PLAN.validate_json(row[7]),
                solve_s=row[8],
                by_fallback=bool(row[9]),
                result=_RESULT.validate_json(row[10]) if row[10] else None,
            )

    def evolution(self, run: int | None = None) -> list[EvolutionRecord]:
        """The steps of evolution of a run (the last one by default), in order."""
        rows = self._db.execute(
            "SELECT tick, incumbent, champion, reason, detail FROM evolution WHERE run = ? ORDER BY rowid",
            (self._pick(run),),
        )
        return [EvolutionRecord(t, i, c, r, json.loads(d)) for t, i, c, r, d in rows]

    def live(self, run: int | None = None, *, tick: int | None = None) -> list[LiveRecord]:
        """What became of policies in service, in order: of a run (the last one by default), or of one tick."""
        rows = self._db.execute(
            "SELECT record FROM live WHERE run = ? AND (? IS NULL OR tick = ?) ORDER BY rowid",
            (self._pick(run), tick, tick),
        )
        return [_LIVE.validate_json(text) for (text,) in rows]

    def source(self, digest: str) -> PolicySource:
        """A policy by its digest. Raises JournalError when it is not here."""
        row = self._db.execute("SELECT * FROM policy WHERE digest = ?", (digest,)).fetchone()
        if row is None:
            raise JournalError(f"{self.path}: no policy {digest}")
        return PolicySource(
            name=row[1],
            source=row[2],
            digest=row[0],
            parents=tuple(json.loads(row[3])),
            operator=row[4],
            note=row[5],
        )

    def _pick(self, run: int | None) -> int:
        if run is not None:
            return run
        return self._run or max((r for r, _, _ in self.runs()), default=0)


def replay_decision(decision: Decision, policy: Policy, *, budget_s: float) -> list[str]:
    """Ask a policy a journaled tick's question again; return each difference in words, none when it is the
    same answer bit for bit.
    """
    memo = Memo(decision.memo_before)
    obs = decision.observation
    asked = policy.should_replan(obs, memo)
    replanned = asked or decision.forced
    differences: list[str] = []
    if replanned != decision.replanned:
        differences.append(f"replanned: was {decision.replanned}, is {replanned}")
    if replanned:
        plan = policy.plan(obs, budget_s, memo)
        if plan != decision.plan:
            differences.append(f"plan: was {decision.plan.reason!r}, is {plan.reason!r}")
    if dict(memo) != decision.memo_after:
        differences.append(f"memo: was {decision.memo_after}, is {dict(memo)}")
    return differences
