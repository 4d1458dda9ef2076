"""The policy API in a prompt: made from the real signatures and docstrings, so that it cannot grow stale."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from enum import Enum
from functools import lru_cache
from typing import Any

from loop.contracts import Memo
from strategy import policy_api
from strategy.evolve.static import ALLOWED_IMPORTS, FORBIDDEN_NAMES, MAX_SOURCE_BYTES, PARAMETERS

_FIRST = ("Observation", "Demand", "DeploymentOption", "DeviceView", "RequestView", "ReplicaView", "Plan")


@lru_cache(maxsize=2)
def api_text(*, brief: bool = False) -> str:
    """Types with their fields, functions with signature and meaning; `brief`: without the meanings."""
    names = [*_FIRST, *(n for n in policy_api.__all__ if n not in _FIRST)]
    types, functions, values = [], [], []
    for name in names:
        thing = getattr(policy_api, name)
        if inspect.isclass(thing) and thing.__module__.startswith("collections"):
            values.append(f"{name} is {thing.__module__}.{name}")
        elif inspect.isclass(thing):
            types.append(_type_text(thing, brief=brief))
        elif inspect.isfunction(thing):
            functions.append(_function_text(thing, brief=brief))
        elif isinstance(thing, float | int) or name.isupper():
            values.append(f"{name} = {thing!r}")
    return "\n".join([*types, *functions, *values])


@lru_cache(maxsize=1)
def rules_text() -> str:
    """What every policy must keep to, with the figures of the static check."""
    allowed = ", ".join(sorted(ALLOWED_IMPORTS - {"strategy.policy_api", "__future__"}))
    forbidden = ", ".join(sorted(FORBIDDEN_NAMES))
    signatures = "\n".join(_signature(name) for name in PARAMETERS)
    return f"""A policy is one Python module of plain functions, no classes. It defines exactly these four:
{signatures}
should_replan and plan are asked at the end of every window, route and priority for every request (one lean
pass). The lower the priority, the sooner; REJECT refuses. The four are one strategy: the time that `plan`
takes and the stall of the change that it asks for (drain, weights load) are charged, the old plan serves
meanwhile.
- Import names from strategy.policy_api (what stands below), and modules {allowed}; random only as random.Random(seed).
- The only state is `memo`: at most {Memo.LIMIT} named floats. No globals that change, no clock, no files.
- Deterministic: same arguments, same answer. Never change an argument (other than the memo).
- A plan uses available devices, each at most once, tp * pp of one kind per replica, a stage within one node,
  only combinations with a DeploymentOption, and at least one replica for every model. `fill` keeps to all that.
- Not allowed: {forbidden}, names with leading underscores of others, with, del, while True without an exit.
- At most {MAX_SOURCE_BYTES} bytes. Every function has a docstring. Constants worth tuning stand on top in capitals with
  their range: `COOLDOWN_WINDOWS = 2  # 0 to 8: windows of rest after a change`."""


def _signature(name: str) -> str:
    """As the docstring of the API module has it."""
    for line in (policy_api.__doc__ or "").splitlines():
        if line.strip().startswith(f"{name}("):
            return f"    def {line.strip()}"
    raise ValueError(f"the docstring of strategy.policy_api lacks {name}")


def _function_text(function: Any, *, brief: bool) -> str:
    signature = re.sub(r"<([\w.]+): \w+>", r"\1", str(inspect.signature(function)).replace("'", ""))
    return f"def {function.__name__}{signature}" + ("" if brief else f": {_meaning(function.__doc__)}")


def _type_text(cls: type, *, brief: bool) -> str:
    """`class Name: meaning`, and one line a field."""
    head = f"class {cls.__name__}" + ("" if brief else f": {_meaning(cls.__doc__)}")
    if issubclass(cls, Enum):
        return f"{head} [{', '.join(f'{member.name}={member.value!r}' for member in cls)}]"
    fields = _fields(cls)
    if brief:
        return f"{head} ({', '.join(f'{name}: {kind}' for name, kind, _ in fields)})" if fields else head
    lines = [
        f"    {name}: {kind}" + (f"  # {_meaning(text, sentences=1)}" if text else "")
        for name, kind, text in fields
    ]
    return "\n".join([head, *lines])


def _fields(cls: type) -> list[tuple[str, str, str]]:
    """(name, type, meaning) of each annotated field, from the source of the class."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
    body = tree.body[0].body if isinstance(tree.body[0], ast.ClassDef) else []
    found: list[tuple[str, str, str]] = []
    for node in body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            default = f" = {ast.unparse(node.value)}" if node.value is not None else ""
            found.append((node.target.id, ast.unparse(node.annotation) + default, ""))
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and found:
            name, kind, _ = found[-1]
            found[-1] = (name, kind, str(node.value.value))
    return found


def _meaning(text: str | None, sentences: int = 2) -> str:
    """The first paragraph in one line, cut at a full stop."""
    paragraph = " ".join((text or "").strip().split("\n\n")[0].split())
    parts = re.split(r"(?<=\.) (?=[A-Z])", re.sub(r" \(DESIGN section \d+\)", "", paragraph))
    return " ".join(parts[:sentences]).rstrip(".")
