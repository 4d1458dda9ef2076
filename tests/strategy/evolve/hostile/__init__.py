"""Policies that mean harm, or just fail; each breaks out of the static check's reach on purpose."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from loop.contracts import PolicySource
from strategy.policy import digest_of

HEAD = "import random\nfrom strategy.policy_api import Plan, ReplicaSpec\nos = random._os\nsys = os.sys\n"
GOOD = {
    "should_replan": "return True",
    "plan": "return Plan((ReplicaSpec('tiny', ('n00/0',)),), 'one')",
    "route": "return 0",
    "priority": "return request.arrival_s",
}
PARAMETERS = {
    "should_replan": "obs, memo",
    "plan": "obs, budget_s, memo",
    "route": "request, replicas, memo",
    "priority": "request, replica, memo",
}


def policy(top: str = "", **bodies: str) -> PolicySource:
    """A policy whose functions do nothing in particular, but for the bodies given."""
    parts = [HEAD, top]
    for name, parameters in PARAMETERS.items():
        body = bodies.get(name, GOOD[name]).strip().replace("\n", "\n    ")
        parts.append(f"def {name}({parameters}):\n    {body}\n")
    source = "\n".join(parts)
    return PolicySource("hostile", source, digest_of(source))


ESCAPES = {
    "reads a file": "os.open('/etc/passwd', 0)",
    "writes a file": "os.open(ESCAPED, os.O_CREAT | os.O_WRONLY)",
    "lists a directory": "os.listdir('/')",
    "stats a file": "os.stat('/etc/passwd')",
    "makes a directory": "os.mkdir(ESCAPED)",
    "changes directory": "os.chdir('/tmp')",
    "forks": "os.fork()",
    "executes": "os.execv('/bin/true', ['true'])",
    "spawns": "os.posix_spawn('/bin/true', ['true'], {})",
    "runs a shell": "os.system('touch ' + ESCAPED) == 0 or [].pop()",
    "kills its parent": "os.kill(os.getppid() if 0 else 1, 9)",
    "kills all": "os.kill(-1, 9)",
    "opens a pipe": "os.pipe()",
    "duplicates a descriptor": "os.dup(0)",
    "memory file": "os.memfd_create('x')",
    "changes user": "os.setuid(0)",
    "lifts its limits": "os.setpriority(0, 0, -20)",
    "imports a file": "sys.modules['importlib'].import_module('wave')",
    "opens a socket": "sys.modules['importlib'].import_module('socket').socket()",
    "starts a thread": "sys.modules['importlib'].import_module('_thread').start_new_thread(print, ())",
    "sends a signal to itself": "os.kill(os.getpid(), 9)",
    "reads standard input": "os.read(0, 1)",
    "writes standard error": "os.write(2, b'x')",
    "walks to builtins open": (
        "[c for c in ().__class__.__base__.__subclasses__() if c.__name__ == '_wrap_close'][0]"
        ".__init__.__globals__['__builtins__']['open']('/etc/passwd')"
    ),
}
"""One statement each, which must raise in the worker; `ESCAPED` is the path of a file that nothing may make."""


@contextmanager
def open_to_all() -> Iterator[Path]:
    """A directory of this run in which anybody may write: what holds a program must not be the permissions."""
    with tempfile.TemporaryDirectory(prefix="hostile-") as name:
        os.chmod(name, 0o777)  # noqa: S103, PTH101
        yield Path(name)
