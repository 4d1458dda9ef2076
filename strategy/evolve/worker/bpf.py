"""The seccomp filter of a worker: which system calls the kernel answers once the process is locked.

Classic BPF, assembled here so that no library is needed. The program sees `struct seccomp_data`
(nr, arch, instruction pointer, six arguments) and returns an action; see seccomp(2) and the kernel's
Documentation/userspace-api/seccomp_filter.rst.
"""

from __future__ import annotations

import errno
import struct
from dataclasses import dataclass
from functools import cache

_LOAD, _JUMP_EQUAL, _JUMP_ANY_BIT, _RETURN = (
    0x20,
    0x15,
    0x45,
    0x06,
)  # BPF_LD|W|ABS, JMP|JEQ|K, JMP|JSET|K, RET|K
_ALLOW = 0x7FFF0000
_KILL_PROCESS = 0x80000000
_REFUSE = 0x00050000 | errno.EPERM  # SECCOMP_RET_ERRNO: the caller gets an OSError that names the line

_NR, _ARCH, _ARGS = 0, 4, 16  # offsets in struct seccomp_data
_PROT_EXEC = 4
_X32_BIT = 0x40000000


@dataclass(frozen=True, slots=True)
class Arch:
    """System call numbers of one machine; only what a locked worker may use."""

    audit: int
    """AUDIT_ARCH_* as seccomp reports it."""
    seccomp: int
    """The number of seccomp(2) itself, to install the filter with."""
    read: int
    write: int
    memory: tuple[int, ...]
    """mmap and mprotect: allowed unless they ask for executable pages."""
    free: tuple[int, ...]
    """Allowed whatever their arguments."""
    x32: bool = False
    """Whether another ABI hides behind a bit of the number."""


ARCHS: dict[str, Arch] = {
    "x86_64": Arch(
        audit=0xC000003E,
        seccomp=317,
        read=0,
        write=1,
        memory=(9, 10),
        # poll munmap brk rt_sigreturn mremap madvise sched_yield restart_syscall exit exit_group futex
        # clock_gettime gettimeofday getrandom rseq
        free=(7, 11, 12, 15, 25, 28, 24, 219, 60, 231, 202, 228, 96, 318, 334),
        x32=True,
    ),
    "aarch64": Arch(
        audit=0xC00000B7,
        seccomp=277,
        read=63,
        write=64,
        memory=(222, 226),
        free=(73, 215, 214, 139, 216, 233, 124, 128, 93, 94, 98, 113, 169, 278, 293),
    ),
}
"""By `os.uname().machine`. Numbers: the kernel's syscall_64.tbl, and asm-generic/unistd.h for aarch64."""


@cache
def assemble(arch: Arch, read_fd: int, write_fd: int) -> bytes:
    """The filter as an array of `struct sock_filter`: read from and write to these two descriptors, memory
    that is not executable, a few harmless calls; EPERM for everything else, death for a foreign ABI."""
    program: list[tuple[int, int, int, int]] = []

    def emit(code: int, k: int, if_true: int = 0, if_false: int = 0) -> None:
        program.append((code, if_true, if_false, k))

    emit(_LOAD, _ARCH)
    emit(_JUMP_EQUAL, arch.audit, 1, 0)
    emit(_RETURN, _KILL_PROCESS)
    emit(_LOAD, _NR)
    if arch.x32:
        emit(_JUMP_ANY_BIT, _X32_BIT, 0, 1)
        emit(_RETURN, _KILL_PROCESS)
    for number, descriptor in ((arch.read, read_fd), (arch.write, write_fd)):
        emit(_JUMP_EQUAL, number, 0, 4)
        emit(_LOAD, _ARGS)  # the low half of argument 0: both machines are little-endian
        emit(_JUMP_EQUAL, descriptor, 0, 1)
        emit(_RETURN, _ALLOW)
        emit(_RETURN, _REFUSE)
    for number in arch.memory:
        emit(_JUMP_EQUAL, number, 0, 4)
        emit(_LOAD, _ARGS + 2 * 8)
        emit(_JUMP_ANY_BIT, _PROT_EXEC, 0, 1)
        emit(_RETURN, _REFUSE)
        emit(_RETURN, _ALLOW)
    for number in arch.free:
        emit(_JUMP_EQUAL, number, 0, 1)
        emit(_RETURN, _ALLOW)
    emit(_RETURN, _REFUSE)
    return b"".join(struct.pack("<HBBI", *instruction) for instruction in program)
