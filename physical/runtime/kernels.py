"""Which function does a kernel's work on which kind of unit.

A function takes the values that its task reads, in the order of the task's accesses, and returns what it writes: one
value, or a tuple where the task writes several data. It may change nothing that it was given. Functions are named
`package.module:function`, so that a process of its own finds them too.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

from physical.scheduling.graph import GraphError

Function = Callable[..., Any]


class Kernels:
    """Functions by (kernel, kind of unit). Read-only.

    Raises GraphError for a name that is not `package.module:function`.
    """

    def __init__(self, functions: Mapping[tuple[str, str], str]) -> None:
        for (kernel, kind), name in functions.items():
            if name.count(":") != 1 or not all(name.split(":")):
                raise GraphError(
                    f"kernel '{kernel}' on '{kind}': '{name}' is not of the form package.module:function"
                )
        self._functions = dict(functions)

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """All (kernel, kind of unit) that there is a function for."""
        return tuple(self._functions)

    def name_of(self, kernel: str, kind: str) -> str:
        """`package.module:function`. Raises GraphError."""
        try:
            return self._functions[kernel, kind]
        except KeyError:
            raise GraphError(f"no function does kernel '{kernel}' on a unit of kind '{kind}'") from None


def resolve(name: str) -> Function:
    """The function of a name. Raises GraphError."""
    module, _, attribute = name.partition(":")
    try:
        function: Function = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise GraphError(f"kernel function '{name}' cannot be loaded: {error}") from error
    return function
