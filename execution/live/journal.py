"""What the nerves did and why: a port with one method, and a file of JSON lines behind it.

    {"at": 1764000000.1, "event": "swapped", "unit": "decode", "variant": "native rows=6 ...", "pause_ms": 0.02}

Lines are written whole and at once, so that several processes may share a file; one that was torn by a crash or a
full disk is skipped when it is read.
"""

from __future__ import annotations

import json
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import structlog

log = structlog.get_logger()
Entry = dict[str, Any]


class ExecutionJournal(Protocol):
    """Where it is told. Must not raise, and must not take long."""

    def note(self, event: str, **figures: Any) -> None:
        """One step."""


class FileJournal:
    """Appends to a file; keeps the last entries in memory too. Thread-safe."""

    def __init__(
        self, path: Path | None, *, clock: Callable[[], float] = time.time, keep: int = 1000
    ) -> None:
        """`path` None: in memory only. A file that cannot be written is told to the log once, and given up."""
        self.path = path
        self.entries: deque[Entry] = deque(maxlen=keep)
        self._clock = clock
        self._lock = threading.Lock()
        self._broken = False

    def note(self, event: str, **figures: Any) -> None:
        """Append one entry."""
        entry = {"at": round(self._clock(), 3), "event": event} | _plain(figures)
        with self._lock:
            self.entries.append(entry)
            if self.path is None or self._broken:
                return
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                line = (json.dumps(entry, default=str, allow_nan=False) + "\n").encode()
                descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
                try:
                    size = os.fstat(descriptor).st_size
                    torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
                    os.write(descriptor, b"\n" + line if torn else line)
                finally:
                    os.close(descriptor)
            except OSError as error:
                self._broken = True
                log.warning("execution journal given up", path=str(self.path), error=str(error))


def read_journal(path: Path) -> Iterator[Entry]:
    """All whole entries of a file, oldest first. Raises OSError."""
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if isinstance(entry, dict) and "event" in entry:
                yield entry


def _plain(value: Any) -> Any:
    """JSON has no NaN."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value
