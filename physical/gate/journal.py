"""What the gate has done, line by line, on disk before and after each step.

One JSON object a line, appended and synced; a line that a crash has torn is the last one, and is cut off before the
next is written. The file is locked while a gate holds it: there is one gate at a time.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Record = dict[str, Any]


class JournalError(RuntimeError):
    """The journal cannot be read, written or locked; the message names the file."""


class GateJournal:
    """An append-only file of records; a context manager that holds its lock."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = -1

    def __enter__(self) -> GateJournal:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._cut_torn()
        except BlockingIOError:
            self._close()
            raise JournalError(f"another gate is at work: {self.path} is locked") from None
        except OSError as error:
            self._close()
            raise JournalError(f"cannot use the journal {self.path}: {error.strerror}") from error
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def write(self, event: str, **values: Any) -> None:
        """Append a record and wait until it is on disk."""
        line = json.dumps({"event": event, **values}, allow_nan=False, sort_keys=True) + "\n"
        try:
            data = line.encode()
            while data:
                data = data[os.write(self._fd, data) :]
            os.fsync(self._fd)
        except OSError as error:
            raise JournalError(f"cannot write the journal {self.path}: {error.strerror}") from error

    def records(self) -> list[Record]:
        """All, oldest first."""
        return list(read_records(self.path))

    def _cut_torn(self) -> None:
        size = os.fstat(self._fd).st_size
        if not size:
            return
        text = self.path.read_bytes()
        if not text.endswith(b"\n"):
            os.ftruncate(self._fd, text.rfind(b"\n") + 1)
            os.fsync(self._fd)

    def _close(self) -> None:
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                os.close(self._fd)
            self._fd = -1


def read_records(path: Path) -> Iterator[Record]:
    """Records of a journal, without its lock. Raises JournalError."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else [""]
    except (OSError, UnicodeDecodeError) as error:
        raise JournalError(f"cannot read the journal {path}: {error}") from error
    for number, line in enumerate(lines[:-1], 1):  # what follows the last line end is torn
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise JournalError(f"{path}, line {number}: no record ({error.msg})") from error
        if not isinstance(record, dict) or "event" not in record:
            raise JournalError(f"{path}, line {number}: no record")
        yield record
