"""bubblewrap around a template, where it is installed and works: namespaces of its own, no network, the file
system read-only. One layer more than what a worker locks itself with (docs/adr/0005-templates.md)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

import structlog

_log = structlog.get_logger(__name__)
_PROBE_S = 10.0
_SYSTEM = ("/usr", "/lib", "/lib32", "/lib64", "/bin", "/etc/ld.so.cache")


def wrap(command: Sequence[str], paths: Iterable[str] | None) -> list[str]:
    """The command inside of bubblewrap. It sees these paths and what the interpreter needs (None: the whole
    file system), read-only, and is process 1 of its own namespace, which ends with the parent."""
    root = os.geteuid() == 0
    options = ["--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"]
    if root:  # a user namespace would make the unprivileged user of the lockdown unreachable
        options += ["--cap-drop", "ALL"]
        for capability in ("SETUID", "SETGID", "DAC_READ_SEARCH", "KILL"):
            options += ["--cap-add", f"CAP_{capability}"]
    else:
        options += ["--unshare-user"]
    if paths is None:
        options += ["--ro-bind", "/", "/"]
    else:
        for path in _needed(paths):
            options += ["--ro-bind-try", path, path]
    options += ["--proc", "/proc", "--dev", "/dev", "--chdir", "/"]
    options += ["--die-with-parent", "--as-pid-1"]
    return [_program() or "bwrap", *options, "--", *command]


@cache
def works() -> bool:
    """Whether it is on PATH and starts this interpreter; tried once in a process."""
    if not _program() or sys.platform != "linux":
        return False
    try:
        done = subprocess.run(  # noqa: S603
            wrap([sys.executable, "-S", "-c", "import os; os._exit(os.getpid() != 1)"], sys.path),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_PROBE_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        reason = str(error)
    else:
        if done.returncode == 0:
            return True
        reason = done.stderr.decode(errors="replace").strip() or f"exit code {done.returncode}"
    _log.warning("bubblewrap is installed and does not work; going on without", reason=reason[:300])
    return False


def outer_pid(inner: int, bwrap_pid: int) -> int:
    """The process id, as this process sees it, of a worker that the template inside of `bwrap_pid` forked;
    0: not found."""
    found = {}
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            text = status.read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
        found[int(status.parent.name)] = int(fields["PPid"]), fields.get("NSpid", "").split()
    for pid, (parent, names) in found.items():
        if names[1:] and names[-1] == str(inner) and found.get(parent, (0, []))[0] == bwrap_pid:
            return pid
    return 0


def _program() -> str | None:
    return shutil.which("bwrap")


def _needed(paths: Iterable[str]) -> list[str]:
    """Each directory once, those above others only."""
    wanted = [*_SYSTEM, sys.prefix, sys.base_prefix, str(Path(sys.executable).resolve().parent)]
    real = [Path(p) for p in [*wanted, *paths] if p]
    return sorted({str(p) for p in real if p.exists() and not any(q in p.parents for q in real)})
