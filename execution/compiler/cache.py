"""Compiled artifacts on disk, by content and hardware: shared by processes and replicas, and safe against all of them.

    ROOT/entries/AB/KEY/    manifest.json   files with their checksums, what they were made of, for which machine
                            verdict.json    what was proven of them; holds for this key, so for this machine only
                            files/          the artifact
                            lock            held shared by whoever uses the entry
    ROOT/staging/*/         what is being written; `owner` is held by its writer
    ROOT/resume/KEY/        what an interrupted compilation left for the next

An entry appears by one rename, when it is whole and on the disk, and disappears by one. A reader holds a shared lock;
what is in use is not thrown out for room. Whatever does not match its checksums is removed, and is a miss.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import stat
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from execution.compiler.machine import Machine, this_machine
from execution.compiler.port import Recipe, Subject
from execution.compiler.verdict import Verdict, verdict_from_json, verdict_to_json

FORMAT = 1
"""Part of every key: raised when entries of today could not be read by yesterday's code, or the reverse."""
DEFAULT_MAX_BYTES = 4 << 30
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_STALE_S = 3600.0
_FORGOTTEN_S = 7 * 86400.0
"""What nobody has taken up again."""


class CacheError(RuntimeError):
    """The cache cannot be used; the message says why."""


class CacheFullError(CacheError):
    """No room on the disk, or an entry larger than the whole cache."""


@dataclass(slots=True)
class Entry:
    """One artifact, held against removal until it is closed."""

    key: str
    folder: Path
    """With the files that the back end wrote."""
    meta: Mapping[str, Any]
    _lock: int = -1

    def close(self) -> None:
        """Let go; idempotent."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> Entry:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def default_root() -> Path:
    """`AUTOPOIESIS_CACHE_DIR`, or the user's cache directory."""
    told = os.environ.get("AUTOPOIESIS_CACHE_DIR")
    if told:
        return Path(told) / "kernels"
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "autopoiesis" / "kernels"


class ArtifactCache:
    """See the module. Any number of processes may have one for the same root; a process may share one among threads."""

    def __init__(
        self, root: Path, *, max_bytes: int = DEFAULT_MAX_BYTES, machine: Machine | None = None
    ) -> None:
        """Raises CacheError when the root cannot be made, or others may write to it: code is loaded from there."""
        if max_bytes <= 0:
            raise CacheError(f"artifact cache: max_bytes must be above 0, is {max_bytes}")
        self.root = root
        self.max_bytes = max_bytes
        self._machine = machine
        try:
            for name in ("entries", "staging", "resume"):
                (root / name).mkdir(mode=0o700, parents=True, exist_ok=True)
            told = root.stat()
        except OSError as error:
            raise CacheError(f"artifact cache {root}: {error.strerror or error}") from error
        if told.st_uid not in (os.geteuid(), 0) or told.st_mode & stat.S_IWOTH:
            raise CacheError(f"artifact cache {root}: others may write there; code is loaded from it")
        self._sweep()

    @classmethod
    def default(cls) -> ArtifactCache:
        """The user's own."""
        return cls(default_root())

    def machine(self, device: str = "cpu") -> Machine:
        """For which it keeps and finds entries."""
        return self._machine or this_machine(device)

    def key(self, subject: Subject, recipe: Recipe, versions: Mapping[str, str]) -> str:
        """sha256 of all that an artifact depends on."""
        told = [
            FORMAT,
            subject.key,
            dict(subject.attrs).get("graph") or hashlib.sha256(subject.source).hexdigest(),
            asdict(recipe),
            asdict(self.machine(subject.device)),
            dict(sorted(versions.items())),
        ]
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()

    def get(self, key: str) -> Entry | None:
        """The entry, checked and held; None: not there, or it was damaged and is so no more."""
        home = self._home(key)
        lock = _lock_entry(home)
        if lock < 0:
            return None
        try:
            meta = _checked(home)
        except ValueError:
            os.close(lock)
            self._remove(home)
            return None
        except OSError:  # thrown out meanwhile
            os.close(lock)
            return None
        with contextlib.suppress(OSError):
            os.utime(home / "manifest.json")
        return Entry(key, home / "files", meta, lock)

    @contextlib.contextmanager
    def staging(self, key: str = "") -> Iterator[Path]:
        """An empty folder to compile into, removed afterwards; what an interrupted compilation of `key` left under
        `resume/` is in it, and what is left there on an exception is kept for the next."""
        home, owner = self._stage()
        work = home / "files"
        kept = self.root / "resume" / key if key else None
        try:
            if kept is not None:
                with contextlib.suppress(OSError):
                    kept.rename(work / "resume")
            try:
                yield work
            except BaseException:
                if kept is not None and (work / "resume").is_dir() and any((work / "resume").iterdir()):
                    with contextlib.suppress(OSError):
                        (work / "resume").rename(kept)
                raise
        finally:
            shutil.rmtree(home, ignore_errors=True)
            os.close(owner)

    def publish(self, key: str, folder: Path, meta: Mapping[str, Any]) -> Entry:
        """Put a folder's files in as one entry; who comes second takes the first one's. Raises CacheFullError."""
        size = sum(p.stat().st_size for p in _files(folder))
        if size > self.max_bytes:
            raise CacheFullError(
                f"artifact cache {self.root}: {size} bytes are more than it may hold, {self.max_bytes}"
            )
        self._evict(self.max_bytes - size)
        for _ in range(3):
            try:
                self._write(key, folder, meta)
            except OSError as error:
                if error.errno in _NO_ROOM:
                    raise CacheFullError(f"artifact cache {self.root}: {error.strerror}") from error
                raise CacheError(f"artifact cache {self.root}: {error.strerror or error}") from error
            entry = self.get(key)
            if entry is not None:
                return entry
        raise CacheError(f"artifact cache {self.root}: entry {key[:12]} is damaged as soon as it is written")

    def verdict(self, key: str) -> Verdict | None:
        """What was proven of the entry; None: nothing, or it cannot be read."""
        path = self._home(key) / "verdict.json"
        try:
            told = json.loads(path.read_bytes())
            if told["sha256"] != _digest_of(told["verdict"]) or told["key"] != key:
                raise ValueError("checksum")
            return verdict_from_json(told["verdict"])
        except OSError:
            return None
        except (ValueError, KeyError, TypeError):
            with contextlib.suppress(OSError):
                path.unlink()
            return None

    def store_verdict(self, key: str, verdict: Verdict, meta: Mapping[str, Any] | None = None) -> None:
        """Beside the artifact; where there is none (it did not compile), an entry without files is made.

        Raises CacheError.
        """
        told = verdict_to_json(verdict)
        text = json.dumps({"key": key, "sha256": _digest_of(told), "verdict": told})
        home = self._home(key)
        try:
            if not home.is_dir():
                with self.staging() as empty:
                    self.publish(key, empty, meta or {}).close()
            _write_whole(home / f".verdict-{uuid.uuid4().hex}", text, home / "verdict.json")
        except OSError as error:
            kind = CacheFullError if error.errno in _NO_ROOM else CacheError
            raise kind(f"artifact cache {self.root}: {error.strerror or error}") from error

    def entries(self) -> list[tuple[str, int, float, Mapping[str, Any]]]:
        """Key, bytes, last use (Unix time) and meta of each readable entry, the longest unused first."""
        found = []
        for home in self._homes():
            with contextlib.suppress(OSError, ValueError, KeyError):
                used_s = (home / "manifest.json").stat().st_mtime
                manifest = _manifest(home)
                found.append((home.name, _bytes(home), used_s, manifest["meta"]))
        return sorted(found, key=lambda e: (e[2], e[0]))

    def total_bytes(self) -> int:
        """Of all entries."""
        return sum(_bytes(home) for home in self._homes())

    def remove(self, key: str) -> bool:
        """Throw an entry out, unless it is in use; whether it did."""
        return self._throw_out(self._home(key))

    def clear(self) -> int:
        """Throw out all that is not in use; how many."""
        return sum(self._throw_out(home) for home in self._homes())

    def _home(self, key: str) -> Path:
        return self.root / "entries" / key[:2] / key

    def _homes(self) -> list[Path]:
        with contextlib.suppress(OSError):
            return [p for part in sorted((self.root / "entries").iterdir()) for p in sorted(part.iterdir())]
        return []

    def _stage(self) -> tuple[Path, int]:
        home = self.root / "staging" / uuid.uuid4().hex
        try:
            (home / "files").mkdir(parents=True)
            owner = os.open(home / "owner", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except OSError as error:
            shutil.rmtree(home, ignore_errors=True)
            kind = CacheFullError if error.errno in _NO_ROOM else CacheError
            raise kind(f"artifact cache {self.root}: {error.strerror or error}") from error
        fcntl.flock(owner, fcntl.LOCK_EX)
        return home, owner

    def _write(self, key: str, folder: Path, meta: Mapping[str, Any]) -> None:
        home, owner = self._stage()
        try:
            listed = {}
            for source in _files(folder):
                name = source.relative_to(folder).as_posix()
                target = home / "files" / name
                target.parent.mkdir(parents=True, exist_ok=True)
                listed[name] = _copy(source, target)
            body = {"format": FORMAT, "key": key, "files": listed, "meta": dict(meta)}
            text = json.dumps({"sha256": _digest_of(body), **body}, sort_keys=True)
            _write_whole(home / ".manifest", text, home / "manifest.json")
            (home / "lock").touch(mode=0o600)
            for inner in {home, home / "files", *(p for p in (home / "files").rglob("*") if p.is_dir())}:
                _sync(inner)
            final = self._home(key)
            final.parent.mkdir(mode=0o700, exist_ok=True)
            (home / "owner").unlink()
            try:
                home.rename(final)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
            _sync(final.parent)
        finally:
            shutil.rmtree(home, ignore_errors=True)
            os.close(owner)

    def _evict(self, allowed_bytes: int) -> None:
        """Throw out what was not used for longest, until the rest is no more than so much."""
        listed = self.entries()
        total = sum(size for _, size, _, _ in listed)
        for key, size, _, _ in listed:
            if total <= allowed_bytes:
                return
            if self._throw_out(self._home(key)):
                total -= size

    def _throw_out(self, home: Path) -> bool:
        try:
            lock = os.open(home / "lock", os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return self._remove(home)
        except BlockingIOError:
            return False
        finally:
            os.close(lock)

    def _remove(self, home: Path) -> bool:
        """Out of sight by one rename, then off the disk."""
        grave = self.root / "staging" / f"gone-{uuid.uuid4().hex}"
        try:
            home.rename(grave)
        except OSError:
            return False
        shutil.rmtree(grave, ignore_errors=True)
        return True

    def _sweep(self) -> None:
        """Remove what killed writers left behind."""
        with contextlib.suppress(OSError):
            for home in list((self.root / "staging").iterdir()):
                if _abandoned(home):
                    shutil.rmtree(home, ignore_errors=True)
            for kept in list((self.root / "resume").iterdir()):
                if time.time() - kept.stat().st_mtime > _FORGOTTEN_S:
                    shutil.rmtree(kept, ignore_errors=True)


def _abandoned(home: Path) -> bool:
    try:
        lock = os.open(home / "owner", os.O_RDWR | os.O_CLOEXEC)
    except OSError:  # just made, or between two steps
        with contextlib.suppress(OSError):
            return home.name.startswith("gone-") or time.time() - home.stat().st_mtime > _STALE_S
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(lock)
    return True


def _lock_entry(home: Path) -> int:
    """A shared lock on an entry that is in its place; -1: there is none."""
    try:
        lock = os.open(home / "lock", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return -1
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        here, there = os.fstat(lock), (home / "lock").stat()
        if (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino):
            return lock
    except OSError:  # being thrown out
        pass
    os.close(lock)
    return -1


def _manifest(home: Path) -> dict[str, Any]:
    """Raises ValueError when it is damaged."""
    try:
        told = json.loads((home / "manifest.json").read_bytes())
        body = {name: told[name] for name in ("format", "key", "files", "meta")}
    except (KeyError, TypeError, UnicodeDecodeError) as error:
        raise ValueError("manifest") from error
    except FileNotFoundError as error:
        raise ValueError("no manifest") from error
    if told.get("sha256") != _digest_of(body) or body["key"] != home.name:
        raise ValueError("manifest checksum")
    return body


def _checked(home: Path) -> Mapping[str, Any]:
    """The meta of an entry whose files are all as they were. Raises ValueError."""
    body = _manifest(home)
    for name, (size, digest) in body["files"].items():
        path = home / "files" / name
        try:
            if path.stat().st_size != size or _hash_file(path) != digest:
                raise ValueError(name)
        except FileNotFoundError as error:
            raise ValueError(name) from error
    meta: Mapping[str, Any] = body["meta"]
    return meta


def _digest_of(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _files(folder: Path) -> list[Path]:
    """Of an artifact; what is kept for resuming is not."""
    return [
        p for p in sorted(folder.rglob("*")) if p.is_file() and p.relative_to(folder).parts[0] != "resume"
    ]


def _copy(source: Path, target: Path) -> tuple[int, str]:
    """Copy to the disk itself; size and checksum of what was meant to be written."""
    digest, size = hashlib.sha256(), 0
    with source.open("rb") as old, target.open("wb") as new:
        while block := old.read(1 << 20):
            new.write(block)
            digest.update(block)
            size += len(block)
        new.flush()
        os.fsync(new.fileno())
    shutil.copymode(source, target)
    return size, digest.hexdigest()


def _write_whole(draft: Path, text: str, path: Path) -> None:
    try:
        with draft.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        draft.rename(path)
    except OSError:
        draft.unlink(missing_ok=True)
        raise


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _bytes(home: Path) -> int:
    with contextlib.suppress(OSError):
        return sum(p.stat().st_size for p in home.rglob("*") if p.is_file())
    return 0
