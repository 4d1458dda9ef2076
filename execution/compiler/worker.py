"""The program of a helper process: `compile` works in itself; `trial` and `measure` fork for each job, so that what a
kernel does to its process dies with it.

    python -m execution.compiler.worker MODE REQUESTS ANSWERS LIFELINE PARENT MEMORY_BYTES PRIORITY

Requests are pickles from the parent; answers are lines of JSON, the last one of a job with `end`.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import json
import os
import pickle
import resource
import select
import signal
import struct
import sys
import threading
from typing import Any

from execution.compiler.port import CompileError

_HEADER = struct.Struct("<Q")
_PR_SET_PDEATHSIG = 1
_LOW_NICE, _LOWEST_NICE = 10, 19


def main() -> None:
    """Serve requests until the parent goes."""
    mode, *numbers, priority = sys.argv[1:]
    requests, answers, lifeline, parent, memory_bytes = map(int, numbers)
    die_with_parent(parent)
    _stand_back(parent, priority)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    faulthandler.enable()
    if mode == "compile":
        threading.Thread(target=_watch, args=(lifeline,), daemon=True).start()
        _limit(memory_bytes)
    else:
        import torch  # noqa: F401, PLC0415 - before the first fork, so that each has it at once
    while (data := _request(requests)) is not None:
        if mode == "compile":
            _answer(answers, _compile(pickle.loads(data)))  # noqa: S301 - from our parent
        else:
            _forked(data, answers, requests, memory_bytes)


def die_with_parent(parent: int) -> None:
    """SIGKILL when the parent is gone, also when it went before this was said."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(0)


def _stand_back(parent: int, priority: str) -> None:
    """As `Budget.priority` says."""
    if priority == "normal":
        return
    nice = _LOW_NICE if priority == "low" else _LOWEST_NICE
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, nice)
    with contextlib.suppress(OSError, AttributeError):
        if priority == "idle":
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    with contextlib.suppress(OSError):
        if os.getsid(0) != os.getsid(parent):  # then the session weighs, not the process
            with open("/proc/self/autogroup", "w", encoding="ascii") as file:  # noqa: PTH123 - no file
                file.write(str(nice))


def _limit(memory_bytes: int) -> None:
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _watch(lifeline: int) -> None:
    """Nobody holds the other end any more: the parent is dead."""
    os.read(lifeline, 1)
    os.killpg(0, signal.SIGKILL)


def _request(handle: int) -> bytes | None:
    header = _exactly(handle, _HEADER.size)
    return None if header is None else _exactly(handle, _HEADER.unpack(header)[0])


def _exactly(handle: int, count: int) -> bytes | None:
    data = b""
    while len(data) < count:
        block = os.read(handle, count - len(data))
        if not block:
            return None
        data += block
    return data


def _answer(handle: int, message: dict[str, Any]) -> None:
    view = memoryview(json.dumps(message).encode() + b"\n")
    while view:
        view = view[os.write(handle, view) :]


def _compile(request: dict[str, Any]) -> dict[str, Any]:
    from execution.compiler.backends import make_backend  # noqa: PLC0415 - only what is asked for

    try:
        make_backend(request["backend"]).compile(request["subject"], request["recipe"], request["folder"])
    except MemoryError as error:
        return {"end": "memory", "reason": str(error) or "out of memory"}
    except CompileError as error:
        return {"end": "failed", "reason": str(error)}
    except Exception as error:  # noqa: BLE001 - compilers raise whatever they like
        text = f"{type(error).__name__}: {str(error).strip()[:2000]}"
        memory = "allocate memory" in text or "bad_alloc" in text
        return {"end": "memory" if memory else "failed", "reason": text}
    return {"end": "done"}


def _forked(data: bytes, answers: int, requests: int, memory_bytes: int) -> None:
    """One job in a child; its answers are its own, its end is told here."""
    template = os.getpid()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            die_with_parent(template)
            request = pickle.loads(data)  # noqa: S301 - from our parent
            if request["subject"].device == "cpu":  # what maps a GPU's memory needs room
                _limit(memory_bytes)
            _tried(request, answers)
            code = 0
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    handle = os.pidfd_open(pid)
    try:
        ready, _, _ = select.select([handle, requests], [], [])
        if handle not in ready:  # the parent is gone: nothing is asked while a job runs
            os.kill(pid, signal.SIGKILL)
    finally:
        os.close(handle)
    _, status = os.waitpid(pid, 0)
    _answer(answers, {"end": "exit", "code": os.waitstatus_to_exitcode(status)})


def _tried(request: dict[str, Any], answers: int) -> None:
    from execution.compiler import trial  # noqa: PLC0415 - only what is asked for

    def tell(message: dict[str, Any]) -> None:
        _answer(answers, message)

    try:
        trial.run(request, tell)
    except MemoryError as error:
        tell({"fault": "memory", "reason": str(error) or "out of memory"})
    except Exception as error:  # noqa: BLE001 - kernels raise whatever they like
        text = f"{type(error).__name__}: {str(error).strip()[:2000]}"
        tell({"fault": "memory" if "allocate memory" in text else "failed", "reason": text})


if __name__ == "__main__":
    main()
