"""The tables of a live run: what is written is read again, by others too."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from loop.contracts import EngineLimits, EngineStats, Finish, ReplicaSpec
from loop.journal import Journal, JournalError
from loop.journal_serving import EngineSample, ServedEvent, ServedReplica, ServingJournal
from tests.loop.serving.builders import record, served


def test_what_is_written_is_read_again(tmp_path: Path):
    path = tmp_path / "journal.sqlite"
    requests = [served(0), served(1, arrival_s=0.5), served(2, finish=Finish.CANCELLED, replica=-1)]
    replica = ServedReplica(3, ReplicaSpec("m", ("n/a", "n/b"), tp=2), "torch", -4.0)
    ready = replace(replica, ready_s=-1.0, kv_capacity_tokens=1024, max_model_len=512, block_tokens=16)
    event = ServedEvent(2.5, "died", 3, "m", ("n/a", "n/b"), "signal 9", 77)
    stats = EngineStats(3, 2, 50, 400, EngineLimits(8, 256), 1000, 2.5, 1, 5000, 600, 128, 40)
    with ServingJournal(path, config={"kind": "serving"}) as journal:
        journal.began({"kind": "serving", "window_s": 5.0})
        journal.requests(requests)
        journal.requests(())
        journal.replica(replica)
        journal.replica(ready)
        journal.event(event)
        journal.samples([EngineSample(1.0, 3, stats)])
        with ServingJournal(path) as reader:  # while it is being written
            assert reader.config() == {"kind": "serving", "window_s": 5.0}
            assert list(reader.served()) == [requests[1], requests[0], requests[2]]
            assert reader.served_replicas() == [ready]
            assert reader.served_events() == [event]
            assert list(reader.served_samples()) == [EngineSample(1.0, 3, stats)]


def test_requests_can_be_asked_for_by_their_arrival(tmp_path: Path):
    with ServingJournal(tmp_path / "j.sqlite", config={}) as journal:
        journal.requests(served(i, arrival_s=float(i)) for i in range(5))
        assert [s.record.id for s in journal.served(since_s=1.0, until_s=3.0)] == [1, 2]


def test_a_request_is_what_the_twin_replays():
    made = served(4, output_tokens=0, finish=Finish.CANCELLED)
    assert made.cancelled
    request = made.as_request()
    assert (request.id, request.input_tokens, request.output_tokens, request.tier) == (4, 20, 1, 1)
    assert request.block_hashes == made.block_hashes


def test_each_run_has_its_own_rows_and_the_last_one_is_meant(tmp_path: Path):
    path = tmp_path / "j.sqlite"
    for number in range(2):
        with ServingJournal(path, config={"number": number}) as journal:
            journal.requests([served(0, output_tokens=number + 1)])
            journal.finish()
    with ServingJournal(path) as reader:
        assert reader.serving_runs() == [1, 2]
        assert reader.config()["number"] == 1
        assert [s.record.output_tokens for s in reader.served()] == [2]
        assert [s.record.output_tokens for s in reader.served(1)] == [1]


def test_a_journal_without_a_live_run_says_so(tmp_path: Path):
    path = tmp_path / "j.sqlite"
    Journal(path, run="evolving").close()
    with ServingJournal(path) as reader, pytest.raises(JournalError, match=r"no live run in it.*loop serve"):
        list(reader.served())
    with ServingJournal(path) as reader, pytest.raises(JournalError, match="run 1 is no live run"):
        list(reader.served(1))


def test_a_full_disk_costs_rows_and_not_the_server(tmp_path: Path):
    path = tmp_path / "j.sqlite"
    with ServingJournal(path, config={}, lenient=True) as journal:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("DROP TABLE served_request")  # whatever the reason
        journal.requests([served(0)])
        journal.requests([served(1)])
        journal.event(ServedEvent(1.0, "ready", 0, "m", ("a",), ""))
        other.close()
        assert len(journal.served_events()) == 1
    with ServingJournal(path, config={}) as strict:
        strict.requests([served(2)])
        with pytest.raises(sqlite3.IntegrityError):
            strict.requests([served(2)])
        assert record(2) in [s.record for s in strict.served()]  # and nothing hangs in a transaction
