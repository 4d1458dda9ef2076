"""Locking a process for good before foreign code runs in it: rlimits, no_new_privs, Landlock, seccomp.

Each layer is independent: what one of them misses, another holds. Nothing here can be undone by the process
itself. Which layers the kernel granted is returned, and the parent reports it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from strategy.evolve.worker.bpf import ARCHS, assemble

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 1, 4, 38
_LANDLOCK_CREATE, _LANDLOCK_RESTRICT = 444, 446  # the same numbers on every machine
_LANDLOCK_VERSION_FLAG = 1
_SECCOMP_SET_MODE_FILTER, _SECCOMP_FILTER_FLAG_TSYNC = 1, 1
_NOBODY = 65534

WANTED = ("rlimits", "no_new_privs", "landlock", "seccomp")
"""What a locked process has on a current Linux; `unprivileged` joins them where the parent is root."""


class NotLockedError(RuntimeError):
    """Foreign code was about to run in a process that is not locked."""


@dataclass(frozen=True, slots=True)
class Locked:
    """What became of a lockdown."""

    layers: tuple[str, ...]
    missing: tuple[tuple[str, str], ...]
    """(layer, why it is not there)."""


class _State:
    locked: Locked | None = None


def locked() -> Locked | None:
    """The lockdown of this process; None: it is not locked."""
    return _State.locked


def die_with_parent(parent_pid: int) -> None:
    """Ask the kernel to kill this process when the thread that started it ends; exit if it already has."""
    if hasattr(_libc(), "prctl"):
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        os._exit(0)


def lock(read_fd: int, write_fd: int, memory_bytes: int, cpu_s: int) -> Locked:
    """Lock this process for good: from now on it computes, reads `read_fd` and writes `write_fd`, no more.

    `memory_bytes` bounds its address space, `cpu_s` its CPU time from its start. Layers that the kernel does
    not offer are left out, and named with the reason in the answer.
    """
    layers: list[str] = []
    missing: list[tuple[str, str]] = []

    def attempt(layer: str, action: Callable[[], None]) -> None:
        try:
            action()
        except (OSError, ValueError, AttributeError) as error:
            missing.append((layer, str(error) or type(error).__name__))
        else:
            layers.append(layer)

    _offer_to_oom_killer()
    if os.name == "posix" and os.geteuid() == 0:
        attempt("unprivileged", _become_nobody)
    attempt("rlimits", lambda: _limit(memory_bytes, cpu_s))
    attempt("no_new_privs", lambda: _prctl(_PR_SET_NO_NEW_PRIVS, 1))
    attempt("landlock", _deny_files)
    attempt("seccomp", lambda: _filter_calls(read_fd, write_fd))
    _State.locked = Locked(tuple(layers), tuple(missing))
    return _State.locked


def _offer_to_oom_killer() -> None:
    """When the machine runs out of memory, foreign code goes first."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")


def _become_nobody() -> None:
    """Give root away; the death signal is cleared by a change of user, so it is asked for again."""
    parent = os.getppid()
    os.setgroups([])
    os.setresgid(_NOBODY, _NOBODY, _NOBODY)
    os.setresuid(_NOBODY, _NOBODY, _NOBODY)
    _prctl(_PR_SET_DUMPABLE, 0)
    die_with_parent(parent)


def _limit(memory_bytes: int, cpu_s: int) -> None:
    for kind, bound in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_CPU, cpu_s),
        (resource.RLIMIT_AS, memory_bytes),
        # Landlock needs one descriptor below; seccomp forbids to open any afterwards
        (resource.RLIMIT_NOFILE, 16),
    ):
        hard = resource.getrlimit(kind)[1]
        value = bound if hard == resource.RLIM_INFINITY else min(bound, hard)
        resource.setrlimit(kind, (value, value))


def _deny_files() -> None:
    """A Landlock domain without a single rule: no file, no TCP port, no signal or socket beyond it."""
    if _threads() > 1:
        raise OSError("other threads run already, and Landlock binds only the one that asks for it")
    syscall = _libc().syscall
    abi = syscall(_LANDLOCK_CREATE, None, 0, _LANDLOCK_VERSION_FLAG)
    if abi < 1:
        raise _os_error("landlock")
    files = (1 << (16 if abi >= 5 else 15 if abi >= 3 else 14 if abi == 2 else 13)) - 1
    attributes = struct.pack("QQQ", files, 3 if abi >= 4 else 0, 3 if abi >= 6 else 0)
    size = 24 if abi >= 6 else 16 if abi >= 4 else 8
    ruleset = syscall(_LANDLOCK_CREATE, attributes, ctypes.c_size_t(size), 0)
    if ruleset < 0:
        raise _os_error("landlock_create_ruleset")
    restricted = syscall(_LANDLOCK_RESTRICT, ruleset, 0)
    os.close(ruleset)
    if restricted != 0:
        raise _os_error("landlock_restrict_self")


def _filter_calls(read_fd: int, write_fd: int) -> None:
    machine = os.uname().machine
    if machine not in ARCHS or os.uname().sysname != "Linux":
        raise OSError(f"no filter for {os.uname().sysname} on {machine}")
    program = assemble(ARCHS[machine], read_fd, write_fd)
    code = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(code))
    if _libc().syscall(ARCHS[machine].seccomp, _SECCOMP_SET_MODE_FILTER, _SECCOMP_FILTER_FLAG_TSYNC, header):
        raise _os_error("seccomp")


def _threads() -> int:
    tasks = Path("/proc/self/task")
    return len(list(tasks.iterdir())) if tasks.is_dir() else 1


def _prctl(option: int, value: int) -> None:
    zero = ctypes.c_ulong(0)
    if _libc().prctl(option, ctypes.c_ulong(value), zero, zero, zero) != 0:
        raise _os_error(f"prctl({option})")


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _os_error(what: str) -> OSError:
    code = ctypes.get_errno()
    return OSError(code, f"{what}: {os.strerror(code)}")
