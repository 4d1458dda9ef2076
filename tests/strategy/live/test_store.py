"""The live store: two processes on one file, and a process that dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from loop.contracts import PolicySource
from loop.contracts.live import CommandKind, CommandStatus, LiveRecord, LiveState, Stage
from strategy.live import LiveStore, LiveStoreError

POLICY = PolicySource("p", "source", "abc123", ("parent",), "edit", "a note")
STATE = LiveState(
    7,
    POLICY,
    Stage.PROMOTED,
    (PolicySource("old", "o", "0ld"),),
    banned={"bad": None, "worse": 9},
    budget_spent=0.5,
    evidence={"ratio": 0.9},
)
RECORD = LiveRecord(7, "stage", "abc123", "abc123", Stage.CANARY, Stage.PROMOTED, "better", {"pairs": 5.0})


def test_state_records_and_answers_come_back_in_another_connection(tmp_path: Path) -> None:
    path = tmp_path / "live.sqlite"
    with LiveStore.begin(path) as store, LiveStore(path) as operator:
        assert operator.load() is None
        number = operator.order(CommandKind.PROMOTE, POLICY)
        (command,) = store.pending()
        assert (command.id, command.kind, command.policy) == (number, CommandKind.PROMOTE, POLICY)
        store.commit(STATE, [RECORD], [replace(command, status=CommandStatus.DONE, tick=7, answer="yes")])
        assert operator.load() == STATE
        assert operator.events() == [RECORD]
        assert operator.command(number).answer == "yes"
        assert store.pending() == []
        assert operator.policy("abc") == POLICY
        assert operator.policy("") is None


def test_a_run_that_begins_anew_refuses_what_was_left_for_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "live.sqlite"
    with LiveStore.begin(path) as store:
        store.commit(STATE, [RECORD], [])
        number = store.order(CommandKind.KILL)
    with LiveStore.begin(path) as store:
        assert store.load() is None
        assert store.pending() == []
        assert store.events() == []
        assert store.command(number).status is CommandStatus.REFUSED


def test_whether_a_loop_serves_on_a_store_shows_in_every_process(tmp_path: Path) -> None:
    path = tmp_path / "live.sqlite"
    with LiveStore(path) as operator:
        assert not operator.attended()
        with LiveStore.begin(path) as store:
            assert store.attended()
            assert operator.attended()
            with pytest.raises(LiveStoreError, match="another loop serves on this store"):
                LiveStore.begin(path)
            store.attend()  # for the second time
        assert not operator.attended()
        with LiveStore(path) as resumed:
            resumed.commit(STATE, [], [])  # only a loop does that
            assert operator.attended()
        assert not operator.attended()


def test_a_file_that_is_none_is_named(tmp_path: Path) -> None:
    path = tmp_path / "live.sqlite"
    path.write_text("not a database, but long enough to look like a header of one" * 10)
    with pytest.raises(LiveStoreError, match=r"live\.sqlite: the live store cannot be opened"):
        LiveStore(path)


_WRITER = """
import sys
from dataclasses import replace
from strategy.live import LiveStore
from tests.strategy.live.test_store import RECORD, STATE
store = LiveStore(sys.argv[1])
for tick in range(1_000_000):
    store.commit(replace(STATE, tick=tick), [replace(RECORD, tick=tick)], [])
    print(tick, flush=True)
"""


@pytest.mark.slow
def test_a_writer_that_is_killed_leaves_the_state_of_its_last_commit(tmp_path: Path) -> None:
    path = tmp_path / "live.sqlite"
    LiveStore.begin(path).close()
    root = Path(__file__).parents[3]
    for rounds in range(3):
        victim = subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(path)], cwd=root, stdout=subprocess.PIPE, text=True
        )
        assert victim.stdout is not None
        for line in victim.stdout:
            if int(line) >= 20 + 7 * rounds:
                break
        os.kill(victim.pid, signal.SIGKILL)
        told = [int(line), *(int(rest) for rest in victim.stdout.read().split("\n")[:-1])]
        victim.wait()
        victim.stdout.close()
        with LiveStore(path) as store:
            state, events = store.load(), store.events(1)
            assert state is not None
            assert state.tick >= told[-1]  # what was told was kept
            assert events[0].tick == state.tick  # and never half of it
