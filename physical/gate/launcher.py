"""What a started process is before it becomes itself: pins and limits itself, waits for the word, then turns into the
command.

Run as `python -I launcher.py FD` with a JSON object in the environment. It says that it is there and waits for one
byte; when the gate dies before that, it ends without having become anything. Standard library only: it must run from
any directory.
"""

from __future__ import annotations

import json
import os
import resource
import socket
import sys

VARIABLE = "AUTOPOIESIS_LAUNCH"


def main() -> int:
    """Becomes the command; returns only when that fails."""
    link = socket.socket(fileno=int(sys.argv[1]))
    link.set_inheritable(False)
    wanted = json.loads(os.environ.pop(VARIABLE))
    try:
        if wanted["cwd"]:
            os.chdir(wanted["cwd"])
        if wanted["cpus"]:
            os.sched_setaffinity(0, wanted["cpus"])
        if wanted["nice"] is not None:
            os.setpriority(os.PRIO_PROCESS, 0, wanted["nice"])
        for number, value in wanted["limits"]:
            _, hard = resource.getrlimit(number)
            resource.setrlimit(number, (value, hard))
        link.sendall(b"r")
        if link.recv(1) != b"g":
            return 1
        os.execvp(wanted["command"][0], wanted["command"])  # noqa: S606 - no shell is the point
    except (OSError, ValueError) as error:
        link.sendall(f"e{error}".encode())
    return 127


if __name__ == "__main__":
    sys.exit(main())
