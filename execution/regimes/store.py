"""The folder of artifacts is bounded: what was opened longest ago is thrown out when something new comes in.

    make_room(store, max_bytes, keep=folder)     # after `folder` was written
    opened(folder)                               # it is used: others go first

An artifact that is thrown out while a process has it open goes on working there: graphs are read whole, and a shared
library stays mapped until it is let go. One that vanishes between its note and its opening is built again.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from pathlib import Path

_STALE_S = 6 * 3600.0
"""After which a half-written artifact was left by a process that died."""


def opened(folder: Path) -> None:
    """Note the use of an artifact, as its time of change."""
    with contextlib.suppress(OSError):  # read-only, or just thrown out
        os.utime(folder)


def bytes_of(store: Path) -> int:
    """Of all artifacts."""
    return sum(size for _, size, _ in _artifacts(store))


def make_room(store: Path, max_bytes: int, *, keep: Path) -> list[Path]:
    """Throw out artifacts, the longest unused first, until no more than `max_bytes` are there; which they were.

    `keep` stays, even when it is larger than that by itself.
    """
    listed = sorted(_artifacts(store))
    total = sum(size for _, size, _ in listed)
    gone = []
    for _, size, folder in listed:
        if total <= max_bytes:
            break
        if folder.name == keep.name:
            continue
        if discard(folder):
            gone.append(folder)
            total -= size
    if gone:
        _sweep(store)
    return gone


def _artifacts(store: Path) -> list[tuple[float, int, Path]]:
    """Last use (Unix time), bytes and folder of each."""
    found = []
    with contextlib.suppress(OSError):
        for folder in store.iterdir():
            if folder.name.startswith(".") or folder.name == "index" or not folder.is_dir():
                continue
            with contextlib.suppress(OSError):
                size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
                found.append((folder.stat().st_mtime, size, folder))
    return found


def discard(folder: Path) -> bool:
    """Throw one artifact out: out of sight by one rename, then off the disk; whether it was there."""
    grave = folder.with_name(f".gone-{folder.name}-{os.getpid()}")
    try:
        folder.rename(grave)
    except OSError:
        return False
    shutil.rmtree(grave, ignore_errors=True)
    return True


def _sweep(store: Path) -> None:
    """What processes that died left half written or half thrown out."""
    with contextlib.suppress(OSError):
        for folder in store.glob(".*-*"):
            with contextlib.suppress(OSError):
                if time.time() - folder.stat().st_mtime > _STALE_S:
                    shutil.rmtree(folder, ignore_errors=True)
