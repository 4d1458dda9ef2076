"""Norms, softmax and gated activations that were written out of primitive operations become one node each.

    x * rsqrt(mean(x^2) + eps) * weight        fused.rms_norm      (Zhang and Sennrich, 2019)
    x / hypot(norm(x), sqrt(n eps))            fused.rms_norm, as the torch engine writes it
    (x - mean) / sqrt(var + eps) * w + b       fused.layer_norm    (Ba et al., 2016)
    exp(x - max) / sum(exp(x - max))           fused.softmax
    silu(gate) * up                            fused.silu_mul      (Shazeer, 2020)
    x * (1 + erf(x / sqrt 2)) / 2              fused.gelu          (Hendrycks and Gimpel, 2016), tanh form too

The inner graph is what was written: nothing changes until a back end puts a kernel in its place.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from execution.graph.form import Graph
from execution.graph.node import TensorValue
from execution.passes.base import register
from execution.passes.group import Clusters, Group, fuse
from execution.passes.memory import written_roots
from execution.passes.patterns import Either, Found, LastDim, Num, Term, Var, call, match


def _mul(first: Term, second: Term) -> Term:
    return call("mul", first, second, swap=True)


def _add(first: Term, second: Term) -> Term:
    return call("add", first, second, swap=True)


_X, _W, _B, _EPS, _LAST = Var("x"), Var("weight"), Var("bias"), Num("eps"), LastDim()
_SQUARE = Either((call("pow", _X, Num(value=2.0)), call("mul", _X, _X), call("square", _X)))


def _root_of(power: Term) -> tuple[Term, Term]:
    """(1 / sqrt, sqrt) of a power plus eps."""
    total = _add(power, _EPS)
    root = Either((call("sqrt", total), call("pow", total, Num(value=0.5))))
    inverse = Either((call("rsqrt", total), call("reciprocal", root), call("pow", total, Num(value=-0.5))))
    return inverse, root


def _rms() -> Term:
    inverse, root = _root_of(call("mean", _SQUARE, _LAST))
    length = call("linalg_vector_norm", _X, Num(value=2.0), _LAST)
    engine = call("div", _X, call("hypot", length, Num("shift")))
    return Either((_mul(_X, inverse), call("div", _X, root), engine))


def _layer() -> Term:
    centred = call("sub", _X, call("mean", _X, _LAST))
    squared = Either(
        (call("pow", centred, Num(value=2.0)), call("mul", centred, centred), call("square", centred))
    )
    power = Either((call("mean", squared, _LAST), call("var", _X, _LAST)))
    inverse, root = _root_of(power)
    return Either((_mul(centred, inverse), call("div", centred, root)))


def _softmax() -> Term:
    greatest = Either((call("amax", _X, _LAST), call("getitem", call("max", _X, _LAST), Num(value=0.0))))
    powers = call("exp", Either((call("sub", _X, greatest), _X)))
    return call("div", powers, call("sum", powers, _LAST))


def _silu_mul() -> Term:
    gate = Var("gate")
    return _mul(Either((call("silu", gate), _mul(gate, call("sigmoid", gate)))), Var("up"))


def _gelu() -> Term:
    scaled = Either((call("div", _X, Num(value=math.sqrt(2.0))), _mul(_X, Num(value=math.sqrt(0.5)))))
    cube = Either((call("pow", _X, Num(value=3.0)), _mul(_X, _mul(_X, _X))))
    bent = _mul(_add(_X, _mul(cube, Num(value=0.044715))), Num(value=math.sqrt(2.0 / math.pi)))
    gate = _add(Either((call("erf", scaled), call("tanh", bent))), Num(value=1.0))
    half = Num(value=0.5)
    return Either((_mul(_mul(_X, half), gate), _mul(_mul(_X, gate), half), _mul(_mul(half, gate), _X)))


_NORMS: Final = {"layer_norm": _layer(), "rms_norm": _rms()}
_OTHERS: Final = {"softmax": _softmax(), "silu_mul": _silu_mul(), "gelu": _gelu()}


@register("fuse_patterns")
@dataclass(frozen=True, slots=True)
class FusePatterns:
    """Group what computes a norm, a softmax or a gated activation into one `fused` node.

    Run `functionalise` and `simplify` before, so that in-place operations and idle casts do not hide a pattern.
    """

    kinds: str = "layer_norm rms_norm softmax silu_mul gelu"
    """Which to look for, separated by spaces."""

    def __call__(self, graph: Graph) -> Graph:
        """Bit-exact through torch."""
        wanted = [kind for kind in (*_NORMS, *_OTHERS) if kind in self.kinds.split()]
        written = written_roots(graph)
        clusters = Clusters(graph)
        groups: list[Group] = []
        taken: set[str] = set()
        for kind in wanted:
            for node in reversed(graph.calls):
                group = None if node.name in taken else _grouped(graph, node.name, kind)
                if group is None or not taken.isdisjoint(group.members):
                    continue
                if not _closed(graph, group, node.name, written) or not clusters.joinable(group.members):
                    continue
                clusters.join(group.members)
                taken.update(group.members)
                groups.append(group)
        return fuse(graph, groups)


def _grouped(graph: Graph, name: str, kind: str) -> Group | None:
    """The group that ends at a node, if it is one of this kind; the widest form first."""
    for term in _forms(kind):
        found = match(graph, name, term)
        if found is not None and _last_dimension(graph, found, kind):
            return Group(kind, tuple(dict.fromkeys(found.members)), _attrs(graph, kind, found))
    return None


def _forms(kind: str) -> Iterator[Term]:
    if kind in _OTHERS:
        yield _OTHERS[kind]
        return
    core = _NORMS[kind]
    if kind == "layer_norm":
        yield _add(_mul(core, _W), _B)
    yield _mul(core, _W)
    yield core


def _closed(graph: Graph, group: Group, last: str, written: frozenset[str]) -> bool:
    """Whether nothing but the last value is used outside, and nothing writes to what lies within."""
    inside = set(group.members)
    for name in inside:
        if name != last and not inside.issuperset(graph.users[name]):
            return False
        if written.intersection(graph.storages[name]):
            return False
    return all(root in inside or root.partition("#")[0] in inside for root in graph.storages[last])


def _last_dimension(graph: Graph, found: Found, kind: str) -> bool:
    """Whether a norm's weight and bias are vectors over the last dimension; a gate as large as what it gates."""
    shapes = {name: _shape(graph, ref) for name, ref in found.vars.items()}
    if kind == "silu_mul":
        return shapes["gate"] == shapes["up"]
    if kind in _NORMS:
        return all(shapes.get(name, shapes["x"][-1:]) == shapes["x"][-1:] for name in ("weight", "bias"))
    return True


def _shape(graph: Graph, name: str) -> tuple[int | str, ...]:
    value = graph[name].value
    return value.shape if isinstance(value, TensorValue) else ()


def _attrs(graph: Graph, kind: str, found: Found) -> tuple[tuple[str, float], ...]:
    attrs = dict(found.numbers)
    if "shift" in attrs:  # sqrt(n eps)
        width = _shape(graph, found.vars["x"])[-1]
        shift = attrs.pop("shift")
        if isinstance(width, int):
            attrs["eps"] = float(f"{shift * shift / width:.6g}")
            attrs["scale"] = float(f"{width**-0.5:.9g}")  # the result is this times the usual norm
    del kind
    return tuple(sorted(attrs.items()))
