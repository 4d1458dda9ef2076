"""Options that several commands share, as one frozen dataclass each."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from functools import wraps
from typing import Any, get_type_hints

_Command = Callable[..., None]


def folded(command: _Command) -> _Command:
    """A command for typer in which each parameter whose type is a dataclass stands for that class's fields.

    The fields are annotated as typer wants its parameters, and stand in the help where the parameter stood.
    """
    own = inspect.signature(command, eval_str=True).parameters.values()
    kinds: dict[str, Any] = {p.name: p.annotation for p in own if is_dataclass(p.annotation)}
    spread = [one for p in own for one in (_fields(kinds[p.name]) if p.name in kinds else [p])]
    parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in spread]

    @wraps(command)
    def unfolded(**given: Any) -> None:
        for name, kind in kinds.items():
            given[name] = kind(**{f.name: given.pop(f.name) for f in fields(kind)})
        command(**given)

    unfolded.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    unfolded.__annotations__ = {p.name: p.annotation for p in parameters}
    return unfolded


def _fields(kind: Any) -> list[inspect.Parameter]:
    hints = get_type_hints(kind, include_extras=True)
    return [
        inspect.Parameter(
            f.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if f.default is MISSING else f.default,
            annotation=hints[f.name],
        )
        for f in fields(kind)
    ]
