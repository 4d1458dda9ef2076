"""Work and memory traffic of operations, from their shapes alone: no torch, nothing is run.

Conventions: a multiply-add is 2 FLOPs; an element of a cheap operation counts 1, of a division or root 4, of a
transcendental function 10 (what they take in vector instructions, roughly). Bytes are those of every distinct element
that is read and written once, as if nothing stayed in a cache from one node to the next; a view moves nothing; a
lookup reads the rows that it takes. A fused node reads its arguments and writes its results, and what lies
between costs arithmetic only: that is why one fuses. `roofline_s` (Williams et al., 2009) is the least time that a
machine with these peaks needs for a node.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from execution.graph.node import (
    GETITEM,
    ITEM_BYTES,
    Arg,
    GraphError,
    Node,
    Ref,
    TensorValue,
    Value,
    numel,
    resolve,
    tensors_of,
)

Sizes = Mapping[str, int]
Nodes = Mapping[str, Node]
Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one node or of many."""

    flops: int = 0
    bytes_read: int = 0
    bytes_written: int = 0

    @property
    def bytes(self) -> int:
        """Read and written."""
        return self.bytes_read + self.bytes_written

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.flops + other.flops,
            self.bytes_read + other.bytes_read,
            self.bytes_written + other.bytes_written,
        )


@dataclass(frozen=True, slots=True)
class Peaks:
    """What a machine can do at most, on so many threads."""

    flops_per_s: float
    bytes_per_s: float


def roofline_s(cost: Cost, peaks: Peaks) -> float:
    """Seconds that the work or the traffic takes, whichever is longer."""
    return max(cost.flops / peaks.flops_per_s, cost.bytes / peaks.bytes_per_s)


def base_name(op: str) -> str:
    """`mul` of `aten.mul_.Tensor`: without library, overload and the mark of an in-place operation."""
    parts = op.split(".")
    name = parts[1] if len(parts) > 1 and parts[0] in ("aten", "operator", "prims", "fused") else op
    return name.strip("_") if name.startswith("__") else name.rstrip("_") or name


def cost_of(node: Node, nodes: Nodes, sizes: Sizes) -> Cost:
    """Of one node whose arguments are among `nodes`, when symbols have these sizes. Raises GraphError."""
    if node.kind != "call" or node.op == GETITEM or not _works(node):
        return Cost()
    if node.inner is not None:
        return Cost(
            node.inner.total_cost(sizes).flops,
            sum(_elements_bytes(tensor, sizes) for tensor in _argument_tensors(node, nodes)),
            sum(_elements_bytes(tensor, sizes) for tensor in tensors_of(node.value)),
        )
    name = base_name(node.op)
    flops = _FLOPS.get(name)
    work = (
        flops(node, nodes, sizes)
        if flops
        else _ELEMENT.get(name, 0 if name in _COPIES else 1) * _out(node, sizes)
    )
    return Cost(work, _bytes_read(name, node, nodes, sizes), _bytes_written(name, node, nodes, sizes))


def _works(node: Node) -> bool:
    """Whether it touches memory at all."""
    return bool(node.writes) or (not node.views and bool(tensors_of(node.value)))


def _out(node: Node, sizes: Sizes) -> int:
    return sum(numel(tensor, sizes) for tensor in tensors_of(node.value))


def _argument_tensors(node: Node, nodes: Nodes) -> Iterator[TensorValue]:
    for ref in node.refs():
        yield from tensors_of(nodes[ref].value)


def _elements_bytes(tensor: TensorValue, sizes: Sizes) -> int:
    """Bytes of its distinct elements: an expanded dimension (stride 0) is stored once."""
    strides = tensor.strides if len(tensor.strides) == len(tensor.shape) else (1,) * len(tensor.shape)
    counts = (resolve(dim, sizes) for dim, stride in zip(tensor.shape, strides, strict=True) if stride != 0)
    empty = any(dim == 0 for dim in tensor.shape)
    return 0 if empty else math.prod(counts) * ITEM_BYTES.get(tensor.dtype, 4)


def _bytes_read(name: str, node: Node, nodes: Nodes, sizes: Sizes) -> int:
    if name in _LOOKUPS:  # rows taken, and the indices that say which
        indices = [tensor for tensor in _argument_tensors(node, nodes) if tensor.dtype in ("int64", "int32")]
        made = sum(_elements_bytes(tensor, sizes) for tensor in tensors_of(node.value))
        return made + sum(_elements_bytes(tensor, sizes) for tensor in indices)
    read = 0
    for place, ref in enumerate(node.refs()):
        if place == 0 and (name in _OVERWRITES or name in _SHAPE_ONLY):
            continue
        read += sum(_elements_bytes(tensor, sizes) for tensor in tensors_of(nodes[ref].value))
    return read


def _bytes_written(name: str, node: Node, nodes: Nodes, sizes: Sizes) -> int:
    if name in _SCATTERS and node.writes:  # the rows that are put, not all that could be
        put = [nodes[ref] for ref in node.refs() if ref not in node.writes]
        return max((_tensor_bytes(value.value, sizes) for value in put), default=0)
    if node.writes:
        written = sum(_tensor_bytes(nodes[ref].value, sizes) for ref in node.writes)
        return written if node.views else written + _tensor_bytes(node.value, sizes)
    return _tensor_bytes(node.value, sizes)


def _tensor_bytes(value: Value, sizes: Sizes) -> int:
    return sum(_elements_bytes(tensor, sizes) for tensor in tensors_of(value))


def _shape(arg: Arg, node: Node, nodes: Nodes, sizes: Sizes) -> Shape:
    tensors = tensors_of(nodes[arg.name].value) if isinstance(arg, Ref) else ()
    if len(tensors) != 1:
        raise GraphError(f"{node.name}: {node.op} takes a tensor, not {arg}")
    return tuple(resolve(dim, sizes) for dim in tensors[0].shape)


def _shapes(node: Node, nodes: Nodes, sizes: Sizes) -> list[Shape]:
    """Of the arguments that are tensors, in order, doubles included."""
    found = []
    for arg in (*node.args, *(value for _, value in node.kwargs)):
        if isinstance(arg, Ref) and len(tensors_of(nodes[arg.name].value)) == 1:
            found.append(_shape(arg, node, nodes, sizes))
    return found


def _product(first: int) -> Callable[[Node, Nodes, Sizes], int]:
    """Matrix product in which the tensor at this place is the left side; one FLOP an output more for a bias."""

    def flops(node: Node, nodes: Nodes, sizes: Sizes) -> int:
        shapes = _shapes(node, nodes, sizes)
        return _out(node, sizes) * (2 * shapes[first][-1] + int(len(shapes) > 2))

    return flops


def _convolution(node: Node, nodes: Nodes, sizes: Sizes) -> int:
    weight = _shapes(node, nodes, sizes)[1]  # [outputs, inputs / groups, *kernel]
    return 2 * _out(node, sizes) * math.prod(weight[1:])


def _transposed_convolution(node: Node, nodes: Nodes, sizes: Sizes) -> int:
    data, weight = _shapes(node, nodes, sizes)[:2]  # [inputs, outputs / groups, *kernel]
    return 2 * math.prod(data) * math.prod(weight[1:])


def _any_convolution(node: Node, nodes: Nodes, sizes: Sizes) -> int:
    transposed = len(node.args) > 6 and node.args[6] is True
    return (_transposed_convolution if transposed else _convolution)(node, nodes, sizes)


def _attention(node: Node, nodes: Nodes, sizes: Sizes) -> int:
    """Two products and a softmax over [.., queries, head_dim] x [.., keys, head_dim]."""
    queries, keys, values = _shapes(node, nodes, sizes)[:3]
    scores = math.prod(queries[:-1]) * keys[-2]
    return scores * (2 * queries[-1] + 2 * values[-1] + _ELEMENT_SOFTMAX)


def _einsum(node: Node, nodes: Nodes, sizes: Sizes) -> int:
    """As one contraction over all letters; pairwise paths can be cheaper."""
    equation = next((arg for arg in node.args if isinstance(arg, str)), "")
    operands = next((arg for arg in node.args if isinstance(arg, tuple)), ())
    letters: dict[str, int] = {}
    for term, operand in zip(equation.replace(" ", "").split("->")[0].split(","), operands, strict=False):
        shape = _shape(operand, node, nodes, sizes)
        letters.update(zip(reversed(term.replace(".", "")), reversed(shape), strict=False))
    return max(len(operands), 1) * math.prod(letters.values())


def _over_input(weight: int) -> Callable[[Node, Nodes, Sizes], int]:
    """So many FLOPs an element of the first tensor."""

    def flops(node: Node, nodes: Nodes, sizes: Sizes) -> int:
        shapes = _shapes(node, nodes, sizes)
        return weight * math.prod(shapes[0]) if shapes else weight * _out(node, sizes)

    return flops


def _recurrent(gates: int) -> Callable[[Node, Nodes, Sizes], int]:
    """Each step multiplies every weight matrix with every row."""

    def flops(node: Node, nodes: Nodes, sizes: Sizes) -> int:
        rows = math.prod(_shapes(node, nodes, sizes)[0][:-1])
        weights = sum(
            numel(tensor, sizes)
            for arg in node.args
            if isinstance(arg, tuple)
            for ref in arg
            if isinstance(ref, Ref) and len((tensor := tensors_of(_node(nodes, ref).value)[0]).shape) == 2
        )
        return 2 * rows * weights + gates * rows

    return flops


def _node(nodes: Nodes, ref: Ref) -> Node:
    return nodes[ref.name]


_ELEMENT_SOFTMAX: Final = 14
_FLOPS: Final[Mapping[str, Callable[[Node, Nodes, Sizes], int]]] = {
    **dict.fromkeys(("mm", "bmm", "matmul", "dot", "mv", "linear", "_int_mm"), _product(0)),
    **dict.fromkeys(("addmm", "baddbmm", "addmv", "addbmm"), _product(1)),
    **dict.fromkeys(("_weight_int8pack_mm", "_weight_int4pack_mm_for_cpu", "linear_relu"), _product(0)),
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _convolution),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _transposed_convolution),
    **dict.fromkeys(("convolution", "_convolution"), _any_convolution),
    **dict.fromkeys(
        (
            "scaled_dot_product_attention",
            "_scaled_dot_product_flash_attention",
            "_scaled_dot_product_flash_attention_for_cpu",
            "_scaled_dot_product_efficient_attention",
            "_scaled_dot_product_cudnn_attention",
            "_scaled_dot_product_attention_math",
        ),
        _attention,
    ),
    "einsum": _einsum,
    "lstm": _recurrent(40),
    "gru": _recurrent(30),
    **dict.fromkeys(
        ("sum", "mean", "amax", "amin", "max", "min", "argmax", "argmin", "prod"), _over_input(1)
    ),
    **dict.fromkeys(("any", "all", "cumsum", "cumprod", "nansum", "count_nonzero"), _over_input(1)),
    **dict.fromkeys(("norm", "linalg_vector_norm", "vector_norm"), _over_input(2)),
    **dict.fromkeys(("var", "std", "var_mean", "std_mean"), _over_input(4)),
    **dict.fromkeys(("logsumexp", "logcumsumexp"), _over_input(12)),
    **dict.fromkeys(("sort", "topk", "argsort", "median", "kthvalue"), _over_input(20)),
    **dict.fromkeys(("rms_norm", "_fused_rms_norm"), _over_input(5)),
    **dict.fromkeys(("layer_norm", "native_layer_norm", "group_norm", "native_group_norm"), _over_input(8)),
    **dict.fromkeys(("instance_norm", "batch_norm", "native_batch_norm"), _over_input(8)),
    **dict.fromkeys(("_native_batch_norm_legit", "_native_batch_norm_legit_no_training"), _over_input(8)),
    **dict.fromkeys(("softmax", "_softmax", "_safe_softmax", "log_softmax", "_log_softmax"), _over_input(14)),
    **dict.fromkeys(
        ("avg_pool1d", "avg_pool2d", "adaptive_avg_pool1d", "adaptive_avg_pool2d"), _over_input(1)
    ),
    **dict.fromkeys(("max_pool1d", "max_pool2d", "max_pool2d_with_indices"), _over_input(1)),
    **dict.fromkeys(("_adaptive_avg_pool2d", "cross_entropy_loss", "nll_loss", "mse_loss"), _over_input(4)),
}

_ELEMENT: Final[Mapping[str, int]] = {
    **dict.fromkeys(("div", "true_divide", "reciprocal", "sqrt", "rsqrt", "remainder", "fmod", "hypot"), 4),
    **dict.fromkeys(("floor_divide", "linalg_cross"), 4),
    **dict.fromkeys(("exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "sin", "cos", "tan"), 10),
    **dict.fromkeys(("tanh", "sinh", "cosh", "sigmoid", "erf", "erfc", "pow", "atan2", "softplus"), 10),
    **dict.fromkeys(("silu", "elu", "selu", "celu", "logsigmoid", "log_sigmoid_forward", "mish"), 12),
    **dict.fromkeys(("gelu", "glu"), 14),
    **dict.fromkeys(("addcmul", "addcdiv", "lerp", "hardswish", "hardsigmoid"), 3),
}
"""FLOPs an output element, where it is not one."""

_COPIES: Final = frozenset(
    [
        "clone",
        "contiguous",
        "copy",
        "_to_copy",
        "to",
        "cat",
        "stack",
        "concat",
        "repeat",
        "repeat_interleave",
        "flip",
        "roll",
        "pad",
        "constant_pad_nd",
        "fill",
        "zeros",
        "ones",
        "full",
        "empty",
        "zeros_like",
        "ones_like",
        "full_like",
        "empty_like",
        "new_zeros",
        "new_ones",
        "new_full",
        "new_empty",
        "arange",
        "tril",
        "triu",
        "zero",
        "lift_fresh_copy",
        "reshape",
        "view_copy",
        "_unsafe_view",
        "index_select",
        "gather",
        "embedding",
        "index",
        "take",
        "take_along_dim",
        "index_put",
        "index_copy",
        "scatter",
        "select_scatter",
        "slice_scatter",
        "expand_copy",
        "where",
        "masked_fill",
        "one_hot",
        "unfold",
        "im2col",
        "type_as",
        "float",
        "half",
        "double",
        "int",
        "long",
        "bool",
        "cpu",
        "cuda",
        "alias",
        "detach",
        "dropout",
    ]
)
"""Operations that move elements and compute nothing."""
_LOOKUPS: Final = frozenset(["embedding", "index_select", "gather", "index", "take", "take_along_dim"])
_SCATTERS: Final = frozenset(["index_put", "index_copy", "scatter", "index_fill", "index_add", "scatter_add"])
_OVERWRITES: Final = frozenset(["copy", "fill", "zero"])
_SHAPE_ONLY: Final = frozenset(
    [
        "zeros_like",
        "ones_like",
        "full_like",
        "empty_like",
        "new_zeros",
        "new_ones",
        "new_full",
        "new_empty",
        "rand_like",
        "randn_like",
    ]
)


def is_movement(name: str) -> bool:
    """Whether an operation, by its base name, moves elements and computes nothing."""
    return name in _COPIES
