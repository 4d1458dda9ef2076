"""Foreign policy code becomes callable here, and only in a process that is locked."""

from __future__ import annotations

import builtins
import hashlib
import importlib
from collections.abc import Callable, Mapping, Sequence
from types import CodeType
from typing import Any

import strategy.policy_api  # noqa: F401  loaded before the lockdown: no file can be read after it
from loop.contracts import Memo, Observation, Plan, ReplicaView, RequestView
from strategy.evolve.worker.importable import IMPORTABLE
from strategy.evolve.worker.lockdown import NotLockedError, locked

FILENAME = "<policy>"
"""In tracebacks: tells the policy's own frames from all others."""

FUNCTIONS = ("should_replan", "plan", "route", "priority")

_WITHHELD = frozenset(
    {
        "breakpoint",
        "compile",
        "copyright",
        "credits",
        "delattr",
        "dir",
        "eval",
        "exec",
        "exit",
        "getattr",
        "globals",
        "help",
        "input",
        "license",
        "locals",
        "memoryview",
        "open",
        "print",
        "quit",
        "setattr",
        "vars",
    }
)

for _name in IMPORTABLE:
    importlib.import_module(_name)


class UntrustedPolicy:
    """A loaded candidate; implements the Policy port. Its answers are whatever it says: check them."""

    def __init__(self, name: str, source: str, namespace: Mapping[str, Any]) -> None:
        self.name = name
        self.digest = hashlib.sha256(source.encode()).hexdigest()[:12]
        missing = [f for f in FUNCTIONS if not callable(namespace.get(f))]
        if missing:
            raise ValueError(f"the policy does not define {', '.join(missing)}()")
        self.should_replan: Callable[[Observation, Memo], bool] = namespace["should_replan"]
        self.plan: Callable[[Observation, float, Memo], Plan] = namespace["plan"]
        self.route: Callable[[RequestView, Sequence[ReplicaView], Memo], int] = namespace["route"]
        self.priority: Callable[[RequestView, ReplicaView, Memo], float] = namespace["priority"]


def load_untrusted(source: str, name: str = "candidate") -> UntrustedPolicy:
    """Execute a policy's source. What it raises while it loads comes through.

    The names that it lacks (open, getattr, ...) are a courtesy that makes mistakes visible; what holds it is
    the lockdown of this process.

    Raises:
        NotLockedError: this process is not locked down.
        ValueError: one of the four functions is missing.
    """
    if locked() is None:
        raise NotLockedError("refused to load foreign code: this process is not locked down")
    namespace: dict[str, Any] = {"__name__": "policy", "__builtins__": _builtins()}
    _execute(compile(source, FILENAME, "exec", dont_inherit=True), namespace)
    return UntrustedPolicy(name, source, namespace)


def describe(error: BaseException) -> tuple[str, str, int]:
    """(type, message, line of the policy or 0) of what came out of a policy; robust against objects that
    raise when they are printed."""
    line = 0
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == FILENAME:
            line = trace.tb_lineno
        trace = trace.tb_next
    if isinstance(error, SyntaxError):
        line = error.lineno or 0
    try:
        kind, message = str(type(error).__name__), str(error)
        return str.__getitem__(kind, slice(80)), str.__getitem__(message, slice(500)), line
    except BaseException:  # noqa: BLE001 - __str__ of a foreign class, and its metaclass
        return "Exception", "(its message cannot be printed)", line


def _execute(code: CodeType, namespace: dict[str, Any]) -> None:
    exec(code, namespace)  # noqa: S102  in the locked process: this is what it is for


def _builtins() -> dict[str, Any]:
    visible = {name: value for name, value in vars(builtins).items() if name not in _WITHHELD}
    visible["__import__"] = _import
    return visible


def _import(
    name: str,
    globals: Mapping[str, object] | None = None,  # noqa: A002  the signature of __import__
    locals: Mapping[str, object] | None = None,  # noqa: A002
    fromlist: Sequence[str] = (),
    level: int = 0,
) -> Any:
    if level or name not in IMPORTABLE:
        raise ImportError(f"a policy may not import {'.' * level}{name}")
    return __import__(name, globals, locals, fromlist, level)
