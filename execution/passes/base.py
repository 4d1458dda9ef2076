"""What a pass is, and the register by which pipelines know them."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, ClassVar, Protocol, TypeVar, runtime_checkable

from execution.graph.form import Graph

Setting = str | int | float | bool


@runtime_checkable
class Pass(Protocol):
    """A frozen dataclass; its fields are its settings."""

    name: ClassVar[str]
    """As written in a pipeline."""
    exact: ClassVar[bool]
    """Whether results are the same bits when torch runs the graph."""

    def __call__(self, graph: Graph) -> Graph:
        """The graph transformed; the very same object where there is nothing to do."""
        ...


AnyPass = TypeVar("AnyPass")
_REGISTER: dict[str, type[Any]] = {}


def register(
    name: str, *, exact: bool = True, tolerance: str = ""
) -> Callable[[type[AnyPass]], type[AnyPass]]:
    """Make a pass known by a name; one that is not exact says how near it is."""

    def put(made: type[AnyPass]) -> type[AnyPass]:
        known = _REGISTER.get(name)
        if known is not None and known.__qualname__ != made.__qualname__:
            raise ValueError(f"two passes are called {name!r}: {known.__qualname__} and {made.__qualname__}")
        if not exact and not tolerance:
            raise ValueError(f"pass {name!r} is not exact: say its tolerance")
        made.name = name  # type: ignore[attr-defined]
        made.exact = exact  # type: ignore[attr-defined]
        made.tolerance = tolerance  # type: ignore[attr-defined]
        _REGISTER[name] = made
        return made

    return put


def known_passes() -> Mapping[str, type[Any]]:
    """All passes by name: every module of this package is looked at."""
    package = importlib.import_module("execution.passes")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"execution.passes.{module.name}")
    return dict(sorted(_REGISTER.items()))


def settings_of(made: type[Any]) -> Mapping[str, Any]:
    """Fields of a pass and their defaults."""
    return {field.name: field.default for field in fields(made)}
