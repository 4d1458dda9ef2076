"""What a serving run's journal says of its engines: requests, replicas, and samples of their counters.

The journal is read as a plain SQLite file (tables run, served_request, served_replica, served_sample), and never
written. Times are seconds on the run's serving clock.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hw_profiles.performance.calibrate.rows import DataError

_TABLES = ("run", "served_request", "served_replica")


@dataclass(frozen=True, slots=True)
class WatchedRequest:
    """One request that an engine worked on."""

    arrival_s: float
    queued_s: float
    scheduled_s: float
    first_s: float
    last_s: float
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    replica: int
    clean: bool
    """Served to its end by one replica, without preemption: fit to judge by."""

    @property
    def prefill_tokens(self) -> int:
        """Prompt tokens that were not in the prefix cache; at least the last one."""
        return max(1, self.input_tokens - self.cached_tokens)

    @property
    def e2e_s(self) -> float:
        """From the front door to the last token."""
        return self.last_s - self.arrival_s


@dataclass(frozen=True, slots=True)
class WatchedReplica:
    """One replica, as it was started."""

    id: int
    model: str
    engine: str
    devices: tuple[str, ...]
    max_num_seqs: int
    max_num_batched_tokens: int
    start_s: float | None
    """From the order to ready; None: it never was."""
    kv_capacity_tokens: int


@dataclass(frozen=True, slots=True)
class WatchedRun:
    """One serving run."""

    name: str
    """File and number, for messages and provenance."""
    config: Mapping[str, Any]
    replicas: tuple[WatchedReplica, ...]
    requests: tuple[WatchedRequest, ...]
    """In order of arrival; those that an engine never held are left out."""


def read_run(path: Path, run: int | None = None) -> WatchedRun:
    """A serving run (None: the last one) of a journal. Raises DataError when there is none that can be used."""
    with _opened(path) as db:
        number, config = _pick(db, path, run)
        name = f"{path.name}, run {number}"
        replicas = tuple(_replicas(db, number))
        requests = tuple(_requests(db, number))
    if not replicas:
        raise DataError(f"{name}: no replica ever served in this run")
    if not requests:
        raise DataError(f"{name}: holds no served requests; send some traffic to the server first")
    return WatchedRun(name, config, replicas, requests)


@contextmanager
def _opened(path: Path) -> Iterator[sqlite3.Connection]:
    if not path.is_file():
        raise DataError(f"{path}: no such journal")
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as db:
            tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            missing = [name for name in _TABLES if name not in tables]
            if missing:
                raise DataError(
                    f"{path}: not the journal of a serving run (it has no {', '.join(missing)}); "
                    "`loop serve` writes one"
                )
            yield db
    except sqlite3.Error as error:
        raise DataError(f"{path}: cannot be read as a journal: {error}") from error


def _pick(db: sqlite3.Connection, path: Path, run: int | None) -> tuple[int, dict[str, Any]]:
    found: dict[int, str] = dict(db.execute("SELECT run, config FROM run ORDER BY run"))
    serving = [r for (r,) in db.execute("SELECT DISTINCT run FROM served_replica ORDER BY run")]
    if run is None and serving:
        run = serving[-1]
    if run is None or run not in found:
        known = ", ".join(map(str, serving)) or "none"
        raise DataError(f"{path}: has no serving run {'' if run is None else run} (there is: {known})")
    try:
        config = json.loads(found[run])
    except ValueError as error:
        raise DataError(f"{path}: the configuration of run {run} is not JSON: {error}") from error
    return run, config if isinstance(config, dict) else {}


def _replicas(db: sqlite3.Connection, run: int) -> Iterator[WatchedReplica]:
    rows = db.execute(
        "SELECT replica, model, engine, devices, max_num_seqs, max_num_batched_tokens, started_s, ready_s,"
        " kv_capacity_tokens FROM served_replica WHERE run = ? ORDER BY replica",
        (run,),
    )
    for replica, model, engine, devices, seqs, batched, started_s, ready_s, capacity in rows:
        yield WatchedReplica(
            id=replica,
            model=model,
            engine=engine,
            devices=tuple(json.loads(devices)),
            max_num_seqs=seqs,
            max_num_batched_tokens=batched,
            start_s=None if ready_s is None or started_s is None else ready_s - started_s,
            kv_capacity_tokens=capacity or 0,
        )


def _requests(db: sqlite3.Connection, run: int) -> Iterator[WatchedRequest]:
    rows = db.execute(
        "SELECT arrival_s, queued_s, scheduled_s, first_token_s, last_token_s, input_tokens, output_tokens,"
        " cached_tokens, replica, finish, preemptions, retries FROM served_request"
        " WHERE run = ? AND replica >= 0 AND scheduled_s >= 0 AND first_token_s >= 0 ORDER BY arrival_s, id",
        (run,),
    )
    for row in rows:
        arrival_s, queued_s, scheduled_s, first_s, last_s = times = row[:5]
        inputs, outputs, cached, replica, finish, preemptions, retries = row[5:]
        if list(times) != sorted(times) or inputs < 1 or outputs < 1:
            continue
        yield WatchedRequest(
            arrival_s=arrival_s,
            queued_s=queued_s,
            scheduled_s=scheduled_s,
            first_s=first_s,
            last_s=last_s,
            input_tokens=inputs,
            output_tokens=outputs,
            cached_tokens=min(cached, inputs - 1),
            replica=replica,
            clean=finish == "ok" and not preemptions and not retries,
        )
