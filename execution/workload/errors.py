"""What can be wrong with a trace, said with file and line."""

from __future__ import annotations

from pathlib import Path


class WorkloadError(ValueError):
    """A workload that cannot be read, generated or combined; the message names the place and the way out."""

    @classmethod
    def at(cls, path: str | Path, line: int, what: str) -> WorkloadError:
        """Something is wrong in line `line` (from 1) of a file."""
        return cls(f"{path}:{line}: {what}")
