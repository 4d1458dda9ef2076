"""The journal survives what happens to files."""

from pathlib import Path

from execution.live.journal import FileJournal, read_journal


def test_entries_come_back_and_torn_lines_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "journal.jsonl"
    journal = FileJournal(path, clock=lambda: 12.5)
    journal.note("swapped", unit="decode", ratio=float("nan"), sizes=(1, 2))
    with path.open("ab") as file:
        file.write(b'{"at": 13, "event": "torn')
    FileJournal(path).note("after", unit="decode")
    told = list(read_journal(path))
    assert told[0] == {"at": 12.5, "event": "swapped", "unit": "decode", "ratio": None, "sizes": [1, 2]}
    assert [entry["event"] for entry in told] == ["swapped", "after"]


def test_a_path_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    journal = FileJournal(tmp_path / "file" / "journal.jsonl")
    journal.note("one")
    journal.note("two")
    assert [entry["event"] for entry in journal.entries] == ["one", "two"]
