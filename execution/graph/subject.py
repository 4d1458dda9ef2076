"""Subjects of compilation from modules: the function without its weights, as execution.compiler.port wants it.

subject = subject_of(mlp, (x,), op="swiglu", bucket=Bucket(1, 8), threads=1, attrs={})
weights = parameters_of(mlp)                   # in the order in which the subject takes them
kernel(x, *kernel.prepare(weights))            # what a back end makes of it
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from execution.compiler.port import Bucket, Setting, Subject, TensorSpec
from execution.graph.capture import export_graph, reason_of
from execution.graph.form import Graph, Signature
from execution.graph.node import HOLDERS, GraphError, Node, TensorValue, contiguous_strides
from execution.graph.rebuild import rebuild
from execution.graph.text import digest

ROWS = "rows"


def subject_of(
    module: nn.Module,
    args: Sequence[torch.Tensor],
    *,
    op: str,
    bucket: Bucket,
    threads: int,
    attrs: Mapping[str, Setting] | None = None,
    fast_math: bool = False,
) -> Subject:
    """What a back end compiles for this module, called like this, with the rows of the bucket.

    Dimension 0 of the first argument, and of all others that have as many rows, is stretched to `bucket.most`; where the
    bucket holds more than one size it is symbolic in the source. `graph` among the attributes is the graph's digest.
    Raises GraphError (NotExported) for a module that is no function of these tensors.
    """
    inputs = _stretched(args, bucket)
    graph = stateless(module, inputs, bucket)
    params = parameters_of(module)
    told = {**(attrs or {}), "graph": digest(graph)}
    return Subject(
        op=op,
        inputs=tuple(_spec(tensor) for tensor in inputs),
        params=tuple(_spec(tensor) for tensor in params),
        bucket=bucket,
        threads=threads,
        attrs=tuple(sorted(told.items())),
        source=_saved(graph, inputs, params, bucket),
        device=str(inputs[0].device.type),
        fast_math=fast_math,
    )


def parameters_of(module: nn.Module) -> tuple[torch.Tensor, ...]:
    """Parameters, then buffers, each once: the weights that a subject takes after its inputs."""
    return (*(param.detach() for param in module.parameters()), *module.buffers())


def stateless(module: nn.Module, args: Sequence[torch.Tensor], bucket: Bucket) -> Graph:
    """The module's graph with its parameters and buffers as further inputs. Raises GraphError."""
    inputs = _stretched(args, bucket)
    span = (ROWS, bucket.least, bucket.most)
    names = _names(module, len(inputs))
    dynamic = {names[place]: {0: span} for place in _varying(inputs)} if bucket.least < bucket.most else None
    graph = export_graph(module, inputs, {}, dynamic=dynamic, name=type(module).__name__)
    if any(
        target.kind in HOLDERS for node in graph.calls for target in (graph[name] for name in node.writes)
    ):
        raise GraphError(
            f"{type(module).__name__} writes to its own buffers: it is no function of its inputs"
        )
    return _lifted(module, graph)


def _lifted(module: nn.Module, graph: Graph) -> Graph:
    named = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    order: dict[int, str] = {}
    first = {name: order.setdefault(id(tensor), name) for name, tensor in named}
    holders = {node.target: node for node in graph.holders if node.kind != "constant"}
    names: dict[str, str] = {}
    lifted: list[Node] = []
    for index, name in enumerate(order.values()):
        same = [holders[other] for other, kept in first.items() if kept == name and other in holders]
        tensor = module.get_parameter(name) if _is_parameter(module, name) else module.get_buffer(name)
        value = _value(tensor) if not same else same[0].value
        made = Node(f"w{index}", "input", "input", value=value, target=f"w{index}")
        names |= {node.name: made.name for node in same}
        lifted.append(made)
    inputs = [node for node in graph.inputs if node.value is not None]
    gone = {node.name for node in holders.values()} | {node.name for node in graph.inputs}
    rest = [node.renamed(names) for node in graph if node.name not in gone]
    signature = Signature(
        input_names=tuple(node.target for node in (*inputs, *lifted)),
        output_names=graph.signature.output_names,
    )
    return Graph(
        graph.name,
        [*inputs, *lifted, *rest],
        tensors=graph.tensors,
        symbols=graph.symbols,
        signature=signature,
    )


def _saved(
    graph: Graph, inputs: Sequence[torch.Tensor], params: Sequence[torch.Tensor], bucket: Bucket
) -> bytes:
    shapes = None
    if bucket.least < bucket.most:
        rows = torch.export.Dim(ROWS, min=bucket.least, max=bucket.most)
        varying = set(_varying(inputs))
        shapes = tuple({0: rows} if place in varying else None for place in range(len(inputs) + len(params)))
    stream = io.BytesIO()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            program = torch.export.export(rebuild(graph), (*inputs, *params), dynamic_shapes=shapes)
            program.example_inputs = None  # they would carry the weights along
            torch.export.save(program, stream)
        except Exception as error:  # whatever the tracer raises is the reason
            raise GraphError(f"{graph.name}: no stateless form: {reason_of(error)}") from error
    return stream.getvalue()


def _stretched(args: Sequence[torch.Tensor], bucket: Bucket) -> tuple[torch.Tensor, ...]:
    """Arguments with `bucket.most` rows, their own repeated."""
    if not args or not all(isinstance(arg, torch.Tensor) for arg in args) or args[0].dim() == 0:
        raise GraphError("a subject takes tensors, and the first one has rows")
    varying = set(_varying(args))
    picked = torch.arange(bucket.most, device=args[0].device) % max(args[0].shape[0], 1)
    return tuple(
        arg.detach().index_select(0, picked) if place in varying else arg.detach()
        for place, arg in enumerate(args)
    )


def _varying(args: Sequence[torch.Tensor]) -> list[int]:
    rows = args[0].shape[0]
    return [place for place, arg in enumerate(args) if arg.dim() and arg.shape[0] == rows]


def _names(module: nn.Module, count: int) -> list[str]:
    import inspect  # noqa: PLC0415 slow to import, and needed here alone

    found = list(inspect.signature(module.forward).parameters)
    if len(found) < count:
        raise GraphError(f"{type(module).__name__}: forward names {len(found)} arguments, {count} were given")
    return found[:count]


def _is_parameter(module: nn.Module, name: str) -> bool:
    place, _, last = name.rpartition(".")
    return last in module.get_submodule(place)._parameters


def _value(tensor: torch.Tensor) -> TensorValue:
    return TensorValue(
        tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), contiguous_strides(tuple(tensor.shape))
    )


def _spec(tensor: torch.Tensor) -> TensorSpec:
    return TensorSpec(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
