"""Start a process so that a crash of the gate leaves either nothing or one that is found again by its mark."""

from __future__ import annotations

import json
import os
import resource
import socket
import subprocess
import sys
from pathlib import Path

from physical.gate.actuator import ActuatorError
from physical.gate.launcher import VARIABLE
from physical.gate.mutations import Resource, StartProcess, from_dict, to_dict
from physical.gate.procfs import Process, find, with_variable

RLIMITS = {
    Resource.MEMORY_BYTES: resource.RLIMIT_AS,
    Resource.OPEN_FILES: resource.RLIMIT_NOFILE,
    Resource.CPU_SECONDS: resource.RLIMIT_CPU,
}
_LAUNCHER = Path(__file__).with_name("launcher.py")
_READY_S = 60.0
"""For a Python interpreter to come up on a crowded machine."""


class Marks:
    """The mark that started processes carry in their environment: whose they are, what they are."""

    def __init__(self, owner: str) -> None:
        self._variable = f"AUTOPOIESIS_GATE_{owner}"

    def environment(self, wanted: StartProcess, token: str) -> dict[str, str]:
        """The mark, as an environment variable."""
        return {self._variable: json.dumps({"token": token, "start": to_dict(wanted)})}

    def found(self) -> list[tuple[Process, StartProcess, str]]:
        """(process, what it was started as, token) of all that live, oldest first."""
        result = []
        for process, text in with_variable(self._variable):
            value = json.loads(text)
            start = from_dict(value["start"])
            if isinstance(start, StartProcess):
                result.append((process, start, str(value["token"])))
        return result


def start(wanted: StartProcess, marks: Marks, token: str, log: Path) -> Process:
    """Start it; returns once it has become the command. Raises ActuatorError, and then nothing is left of it."""
    ours, theirs = socket.socketpair()
    ours.settimeout(_READY_S)
    launch = {
        "command": list(wanted.command),
        "cwd": wanted.cwd,
        "cpus": list(wanted.cpus),
        "nice": wanted.nice,
        "limits": [(RLIMITS[name], value) for name, value in wanted.limits.items()],
    }
    env = {**os.environ, **wanted.env, **marks.environment(wanted, token), VARIABLE: json.dumps(launch)}
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            child = subprocess.Popen(  # noqa: S603 - the command is what the gate was asked to start; no shell
                [sys.executable, "-I", str(_LAUNCHER), str(theirs.fileno())],
                env=env,
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
    except OSError as error:
        ours.close()
        raise ActuatorError(f"cannot start {wanted.name}: {error}") from error
    finally:
        theirs.close()
    try:
        _agree(ours, wanted)
    except BaseException:
        child.kill()
        child.wait()
        raise
    finally:
        ours.close()
    process = find(child.pid)
    if process is None:
        child.wait()
        raise ActuatorError(f"{wanted.name} ended at once with exit code {child.returncode}; see {log}")
    # It goes on without us: no handle is kept, and whoever ends it collects it.
    child.returncode = 0
    return process


def _agree(link: socket.socket, wanted: StartProcess) -> None:
    """Wait until it is there, let it go, and learn whether it became the command."""
    try:
        first = link.recv(4096)
        if first == b"r":
            link.sendall(b"g")
            first = link.recv(4096)
            if not first:
                return
    except TimeoutError:
        raise ActuatorError(f"{wanted.name} did not come up within {_READY_S:g} s") from None
    except OSError as error:
        raise ActuatorError(f"{wanted.name} did not come up: {error}") from error
    said = first[1:].decode("utf-8", "replace") or "the launcher ended"
    raise ActuatorError(f"cannot start {wanted.name}: {said}")
