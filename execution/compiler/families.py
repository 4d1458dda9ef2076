"""What is known of each family of operations: how exact a kernel must be, and what inputs put it to the test.

An element may differ from the float64 reference by

    terms * eps * growth * scale + floor

where `eps` is the spacing of the output's type at 1, `growth` the square root of the reduction length (rounding errors
add up like a random walk; Higham and Mary, 2019), `scale` the size of what was added up, and `floor` a few of the least
normal numbers. Kinds of scale:

    value       the element itself: sums of terms of one sign, elementwise functions (at least eps of its row's largest)
    absolute    the reference with the absolute values of all arguments: products and sums of them, where terms cancel
    row         the largest element of its row (last dimension)

What is not finite: NaN where the reference has NaN, the same infinity where it has one, infinity also where the
reference is beyond the type's range; anything not finite where
absolute terms add up beyond the range (a partial sum may overflow); the sign of a zero is free. Where eager itself misses this (it overflows on the
way, say), a kernel may do as eager does, or better. Beyond the single element, the root mean square of all errors on
ordinary inputs must stay below `typical` times eager's own, or below `typical_eps` * eps where eager is nearly exact.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from execution.compiler.port import Subject

Scale = Literal["value", "absolute", "row"]
Special = Literal["nan", "inf", "-inf", "zero", "-0.0", "denormal", "tiny", "huge", "mixed", "constant"]

_ALL: tuple[Special, ...] = (
    "nan",
    "inf",
    "-inf",
    "zero",
    "-0.0",
    "denormal",
    "tiny",
    "huge",
    "mixed",
    "constant",
)


@dataclass(frozen=True, slots=True)
class Family:
    """Tolerance and trials of one kind of operation."""

    name: str
    scale: Scale
    terms: float
    reduces: bool
    """Whether its elements are sums over the last dimension of the first input."""
    specials: tuple[Special, ...] = _ALL
    typical: float = 8.0
    typical_eps: float = 1.0
    fast_terms: float = 64.0
    """Times more that is allowed where the subject permits fast math."""

    def reduction_length(self, subject: Subject) -> int:
        """Terms of the longest sum."""
        if not self.reduces:
            return 1
        if self.name == "decode_attention":
            return max((s for spec in subject.inputs for s in spec.shape), default=1)
        if self.name == "graph":
            return max((s for spec in (*subject.inputs, *subject.params) for s in spec.shape), default=1)
        return subject.inputs[0].shape[-1] if subject.inputs and subject.inputs[0].shape else 1

    def factor(self, subject: Subject) -> float:
        """`terms * growth`: multiples of eps and scale."""
        fast = self.fast_terms if subject.fast_math else 1.0
        return self.terms * fast * math.sqrt(self.reduction_length(subject))

    def describe(self, subject: Subject) -> str:
        """The tolerance in words."""
        of = {"value": "the element", "absolute": "the sum of absolute terms", "row": "the row's largest"}[
            self.scale
        ]
        return (
            f"{self.factor(subject):.3g} eps of {of}; typical error at most {self.typical:g} times eager's"
            f"{'; fast math' if subject.fast_math else ''}"
        )


FAMILIES = {
    family.name: family
    for family in (
        Family("elementwise", "value", terms=16, reduces=False, typical_eps=2.0),
        Family("swiglu", "value", terms=32, reduces=False, typical_eps=2.0),
        Family("rms_norm", "value", terms=2, reduces=True),
        Family("layer_norm", "row", terms=2, reduces=True),
        Family("softmax", "row", terms=4, reduces=True),
        Family("linear", "absolute", terms=2, reduces=True),
        Family("int8_linear", "absolute", terms=2, reduces=True),
        Family("decode_attention", "row", terms=16, reduces=True),
        Family("graph", "row", terms=16, reduces=True),
    )
}


def family_of(subject: Subject) -> Family:
    """By the subject's op; what nobody knows is a graph."""
    return FAMILIES.get(subject.op, FAMILIES["graph"])
