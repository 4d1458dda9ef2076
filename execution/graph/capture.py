"""A module's graph by torch.export; of a module that does not export, the graphs of the parts that do.

    captured = capture(model, (x,), dynamic={"x": {0: ("rows", 1, 512)}})
    captured.graph                     the whole, where it exports
    captured.parts, captured.refused   else: graphs by qualified name, and what has none, with the reason
    captured.module()                  runs like the model, with the parts' graphs put in

In evaluation mode and without gradients: what is captured is serving. The original is not changed.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from execution.graph.convert import graph_of_export
from execution.graph.form import Graph
from execution.graph.guard import Guarded
from execution.graph.node import GraphError
from execution.graph.rebuild import rebuild

Range = str | tuple[str, int, int | None]
Dynamic = str | Mapping[str, Mapping[int, Range]]
"""Sizes that vary: {input: {dimension: name or (name, least, most)}}, or a name for dimension 0 of all inputs."""


@dataclass(frozen=True, slots=True)
class Part:
    """One captured module."""

    name: str
    """Qualified; empty: the model itself."""
    graph: Graph


@dataclass(frozen=True, slots=True)
class Refusal:
    """A module that stays as it is."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Capture:
    """What of a model became graphs."""

    original: nn.Module
    parts: tuple[Part, ...]
    refused: tuple[Refusal, ...] = ()

    @property
    def whole(self) -> bool:
        """Whether the model is one graph."""
        return len(self.parts) == 1 and not self.parts[0].name

    @property
    def graph(self) -> Graph:
        """The whole model. Raises GraphError where only parts were captured."""
        if not self.whole:
            told = "; ".join(f"{item.name or 'the model'}: {item.reason}" for item in self.refused[:1])
            raise GraphError(
                f"{type(self.original).__name__} is no single graph ({told}): look at parts and refused"
            )
        return self.parts[0].graph

    def transformed(self, transform: Callable[[Graph], Graph]) -> Capture:
        """The same with every graph transformed, say by a pipeline's `run`."""
        return replace(self, parts=tuple(Part(part.name, transform(part.graph)) for part in self.parts))

    def module(self) -> nn.Module:
        """A module that runs like the original, its captured parts by their graphs.

        Inputs that a graph was not captured for (other shapes beyond its ranges, other types) run the original part.
        """
        made = {
            part.name: Guarded(self._submodule(part.name), part.graph, rebuild(part.graph))
            for part in self.parts
        }
        return _with_parts(self.original, made, "")

    def _submodule(self, name: str) -> nn.Module:
        return self.original.get_submodule(name)


def capture(
    module: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic: Dynamic | None = None,
    decompose: bool = False,
    name: str = "",
) -> Capture:
    """Graphs of a module called like this; `decompose` to core aten operations, functional, nothing in place.

    What does not export is reported in `refused`, its submodules are tried one by one (with sizes fixed to those of
    this call, unless `dynamic` is one name for all). Raises GraphError when the module does not run on the example.
    """
    told = dict(kwargs or {})
    title = name or type(module).__name__
    with _serving(module):
        try:
            whole = export_graph(module, args, told, dynamic=dynamic, decompose=decompose, name=title)
            return Capture(module, (Part("", whole),))
        except NotExported as error:
            walk = _Walk(_calls(module, args, told), dynamic if isinstance(dynamic, str) else None, decompose)
            walk.refused.append(Refusal("", str(error)))
        walk.below(module, "")
    return Capture(module, tuple(walk.parts), tuple(walk.refused))


class NotExported(GraphError):
    """torch.export, or our form, cannot take a module; the message is the reason in one line."""


def export_graph(
    module: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    *,
    dynamic: Dynamic | None = None,
    decompose: bool = False,
    name: str = "",
) -> Graph:
    """One graph of the whole module. Raises NotExported, and GraphError for a `dynamic` that does not fit it."""
    shapes, dims = _dynamic_shapes(module, args, kwargs, dynamic)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            program = torch.export.export(module, tuple(args), dict(kwargs), dynamic_shapes=shapes)
            program = program.run_decompositions() if decompose else program
        except Exception as error:  # whatever a user's forward or the tracer raises is the reason
            raise NotExported(reason_of(error)) from error
        try:
            return graph_of_export(program, name, dims)
        except GraphError as error:
            raise NotExported(str(error)) from error


def reason_of(error: BaseException) -> str:
    """The first telling line of an exception of torch.export."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


_Call = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass
class _Walk:
    """Captures what it can below a module that does not export."""

    calls: Mapping[nn.Module, _Call]
    dynamic: str | None
    decompose: bool
    parts: list[Part] = field(default_factory=list)
    refused: list[Refusal] = field(default_factory=list)

    def below(self, module: nn.Module, path: str) -> None:
        """All children of a module."""
        for name, child in module.named_children():
            self._visit(child, f"{path}.{name}" if path else name)

    def _visit(self, module: nn.Module, path: str) -> None:
        if module in self.calls:
            try:
                graph = self._graph(module, path)
            except GraphError as error:
                self.refused.append(Refusal(path, str(error)))
            else:
                if graph.calls:
                    self.parts.append(Part(path, graph))
                return
        elif not isinstance(module, nn.ModuleList | nn.ModuleDict):
            self.refused.append(Refusal(path, "not called on this input"))
            return
        self.below(module, path)

    def _graph(self, module: nn.Module, path: str) -> Graph:
        args, kwargs = self.calls[module]
        if self.dynamic:
            try:
                return export_graph(
                    module, args, kwargs, dynamic=self.dynamic, decompose=self.decompose, name=path
                )
            except GraphError:
                pass  # its first dimensions are not all the same one: sizes fixed, then
        return export_graph(module, args, kwargs, decompose=self.decompose, name=path)


def _calls(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[nn.Module, _Call]:
    """What each submodule is first called with when the module runs. Raises GraphError when it does not run."""
    found: dict[nn.Module, _Call] = {}

    def note(called: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        found.setdefault(called, (_snapshot(given), _snapshot(named)))

    handles = [child.register_forward_pre_hook(note, with_kwargs=True) for child in module.modules()]
    try:
        with torch.no_grad():
            module(*args, **kwargs)
    except Exception as error:  # a user's forward may raise anything
        raise GraphError(
            f"{type(module).__name__} does not run on the example input: {reason_of(error)}"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    return found


def _snapshot(value: Any) -> Any:
    """Arguments as they were at the call, before anything wrote to them."""
    return pytree.tree_map(
        lambda leaf: leaf.detach().clone() if isinstance(leaf, torch.Tensor) else leaf, value
    )


def _dynamic_shapes(
    module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], dynamic: Dynamic | None
) -> tuple[Any, dict[tuple[str, int], str]]:
    """torch.export's `dynamic_shapes`, and the names of dimensions by input."""
    if dynamic is None:
        return None, {}
    bound = _bind(module, args, kwargs)
    if isinstance(dynamic, str):
        tensors = [name for name, value in bound.items() if isinstance(value, torch.Tensor) and value.dim()]
        dynamic = {name: {0: dynamic} for name in tensors}
    if unknown := sorted(set(dynamic) - set(bound)):
        raise GraphError(f"dynamic: no input is called {unknown[0]!r}; there are {', '.join(bound)}")
    made: dict[str, torch.export.Dim] = {}
    shapes: dict[str, Any] = {}
    dims: dict[tuple[str, int], str] = {}
    for name, value in bound.items():
        wanted = dynamic.get(name)
        shapes[name] = None
        if wanted:
            if not isinstance(value, torch.Tensor):
                raise GraphError(f"dynamic: input {name!r} is a {type(value).__name__}, not a tensor")
            shapes[name] = {place: _dim(name, place, value, told, made) for place, told in wanted.items()}
            dims |= {(name, place): dim.__name__ for place, dim in shapes[name].items()}
        elif not isinstance(value, torch.Tensor):
            shapes[name] = pytree.tree_map(lambda _: None, value)
    return shapes, dims


def _dim(name: str, place: int, value: torch.Tensor, told: Range, made: dict[str, Any]) -> Any:
    if not -value.dim() <= place < value.dim() or place < 0:
        raise GraphError(f"dynamic: input {name!r} has dimensions 0 to {value.dim() - 1}, not {place}")
    if value.shape[place] < 2:
        raise GraphError(
            f"dynamic: dimension {place} of input {name!r} is {value.shape[place]} in the example: "
            "give an example of 2 or more, smaller sizes are special to torch.export"
        )
    label, least, most = (told, 1, None) if isinstance(told, str) else told
    if label not in made:
        made[label] = torch.export.Dim(label, min=least, max=most)
    return made[label]


def _bind(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments by the names that forward gives them."""
    import inspect  # noqa: PLC0415 slow, and needed for dynamic sizes alone

    try:
        return dict(inspect.signature(module.forward).bind(*args, **kwargs).arguments)
    except TypeError as error:
        raise GraphError(f"{type(module).__name__}: the example does not fit forward: {error}") from error


@contextmanager
def _serving(module: nn.Module) -> Iterator[None]:
    """Evaluation mode, and back to what each submodule was in."""
    before = {child: child.training for child in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for child, training in before.items():
            child.training = training


def _with_parts(module: nn.Module, parts: Mapping[str, nn.Module], path: str) -> nn.Module:
    """The module with parts exchanged: new objects along the way to them, all else shared."""
    if path in parts:
        return parts[path]
    if not any(name.startswith(f"{path}." if path else "") for name in parts):
        return module
    twin = copy.copy(module)
    twin._modules = {
        name: child if child is None else _with_parts(child, parts, f"{path}.{name}" if path else name)
        for name, child in module._modules.items()
    }
    return twin
