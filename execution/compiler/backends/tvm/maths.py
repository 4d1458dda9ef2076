"""Elementary functions as vector expressions: what C's library does for one number, for all lanes at once.

LLVM turns `exp` of a vector into eight calls of C's; these are a few multiplications instead. Errors in float32,
measured against float64 over the range (tests hold them): exp 1.5 ulp (denormal results, 0, inf and NaN as they
should be), sigmoid and silu 3 ulp, tanh 3 ulp, erfc relative 1e-6 for arguments up to 4. Range reduction after Cody
and Waite (1980); polynomials are minimax fits of our own (Lawson's reweighting), and `erfc(z) exp(z^2)` is one in
1 / (1 + 0.4 z).

With `fast`: exp is a polynomial of degree 4 without denormals (relative error 6e-6), for kernels that may be so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from tvm import tirx
from tvm.script.ir_builder import tirx as build

Expr = Any
"""A TIR expression, or a Python number."""
_LOG2_E: Final = 1.4426950408889634
_LN2_HIGH: Final = 0.693359375  # nine bits: its product with a small integer is exact
_LN2_LOW: Final = -2.12194440e-4
_MAGIC: Final = 12582912.0  # 1.5 * 2^23: adding it rounds to an integer, which is then in the low bits
_MAGIC_BITS: Final = 0x4B400000
_EXP: Final = (
    1.0,
    1.0,
    0.4999999403953552,
    0.1666651964187622,
    0.04166840761899948,
    0.00836889911442995,
    0.0013814220437780023,
)
_FAST_EXP: Final = (1.0, 1.0, 0.5000516772270203, 0.1675397902727127, 0.04127570614218712)
_ERFCX: Final = (
    -7.066426405799575e-06,
    0.2258732169866562,
    0.22325482964515686,
    0.22480803728103638,
    0.0932312086224556,
    0.3609463572502136,
    -0.42978113889694214,
    0.7053052186965942,
    -0.6078511476516724,
    0.24136051535606384,
    -0.037140071392059326,
)
_TANH: Final = (
    -0.33333298563957214,
    0.13331958651542664,
    -0.05378668010234833,
    0.020805373787879944,
    -0.005905856844037771,
)


def lanes_of(expr: Expr) -> int:
    """How many numbers the expression is."""
    kind = str(expr.ty)
    return int(kind.rpartition("x")[2]) if "x" in kind else 1


def like(value: float, x: Expr) -> Expr:
    """The constant as often as `x` has lanes."""
    lanes = lanes_of(x)
    constant = tirx.const(value, "float32")
    return constant if lanes == 1 else tirx.Broadcast(constant, lanes)


def as_kind(base: str, x: Expr) -> Expr:
    """The numbers as another type."""
    return tirx.Cast(_kind(base, x), x)


def bind(x: Expr) -> Expr:
    """The value computed here, once: what is used twice must be bound, or the text grows with each use.

    By way of memory, which LLVM turns into a register: TVM would put a bound variable's value back in its place.
    """
    lanes = lanes_of(x)
    buffer = build.alloc_buffer((lanes,), _base(x), scope="global", layout=None)
    at = 0 if lanes == 1 else tirx.Ramp(0, 1, lanes)
    build.buffer_store(buffer, x, [at])
    return buffer[0] if lanes == 1 else buffer.vload([at])


def number(value: float) -> Expr:
    """The constant, once."""
    return tirx.const(value, "float32")


def choose(condition: Expr, a: Expr, b: Expr) -> Expr:
    """A where the condition holds, else b; both are computed."""
    return tirx.Select(condition, a, b)


def is_finite(x: Expr) -> Expr:
    """Neither NaN nor infinite."""
    return (_bits(x) & _integer(0x7FFFFFFF, x)) < _integer(0x7F800000, x)


def nearest(x: Expr) -> Expr:
    """The nearest int32 (ties to even), for |x| < 2^22."""
    return _bits(bind(x + like(_MAGIC, x))) - _integer(_MAGIC_BITS, x)


def two_in_one(low: Expr, high: Expr) -> Expr:
    """Two integers of 16 bits in one of 32."""
    return (low & tirx.const(0xFFFF, "int32")) | (high << tirx.const(16, "int32"))


def polynomial(coefficients: Sequence[float], x: Expr) -> Expr:
    """c0 + c1 x + c2 x^2 ... after Estrin (1960): pairs side by side, since a chain after Horner is what is waited for."""
    terms: list[Expr] = [like(coefficient, x) for coefficient in coefficients]
    while len(terms) > 1:
        x = bind(x)
        pairs = [low + high * x for low, high in zip(terms[::2], terms[1::2], strict=False)]
        terms = pairs + terms[len(terms) & ~1 :]
        x = x * x
    return terms[0]


def exp(x: Expr, *, fast: bool = False) -> Expr:
    """e^x: denormal results, 0 and infinity as they should be (not with `fast`)."""
    x = bind(x)
    # a NaN passes both comparisons unchanged
    low, high = (-87.0, 88.8) if fast else (-104.0, 89.0)
    exponent, power = _reduced(_within(x, low, high), fast=fast)
    if fast:
        return power * _power_of_two(exponent)
    # in two steps, so that results below the least normal number and above the greatest come out right
    half = bind(exponent >> _integer(1, x))
    return power * _power_of_two(half) * _power_of_two(exponent - half)


def one_and_exp_of_negative(x: Expr, *, fast: bool = False) -> Expr:
    """1 + e^-x; below x = -88.3 infinite."""
    exponent, power = _reduced(_within(bind(x), -88.8, 87.0), negative=True, fast=fast)
    return like(1.0, x) + power * _power_of_two(exponent)


def _within(x: Expr, low: float, high: float) -> Expr:
    capped = bind(tirx.Select(x > like(high, x), like(high, x), x))
    return bind(tirx.Select(capped < like(low, x), like(low, x), capped))


def _reduced(
    x: Expr, *, negative: bool = False, plus: Expr | None = None, fast: bool = False
) -> tuple[Expr, Expr]:
    """(n, p) with e^x = 2^n p, or e^-x where `negative`, or e^(x + plus), where x + plus would lose digits."""
    sign = -1.0 if negative else 1.0
    shifted = bind(x * like(sign * _LOG2_E, x) + like(_MAGIC, x))
    exponent = bind(_bits(shifted) - _integer(_MAGIC_BITS, x))
    whole = bind(as_kind("float32", exponent))  # not shifted - magic: TVM would cancel the magic
    rest = x - whole * like(sign * _LN2_HIGH, x) - whole * like(sign * _LN2_LOW, x)
    rest = bind(rest if plus is None else rest + plus)
    coefficients = _FAST_EXP if fast else _EXP
    signed = [c * sign**i for i, c in enumerate(coefficients)]
    # 1 is added last, so that it is rounded once
    higher = bind(rest * rest) * polynomial(signed[2:], rest)
    return exponent, like(1.0, x) + (higher - rest if negative else higher + rest)


def sigmoid(x: Expr, *, fast: bool = False) -> Expr:
    """1 / (1 + e^-x)."""
    return like(1.0, x) / one_and_exp_of_negative(x, fast=fast)


def silu(x: Expr, *, fast: bool = False) -> Expr:
    """The argument times its sigmoid."""
    x = bind(x)
    return x / one_and_exp_of_negative(x, fast=fast)


def tanh(x: Expr, *, fast: bool = False) -> Expr:
    """Hyperbolic tangent."""
    x = bind(x)
    size = bind(absolute(x))
    exponent, power = _reduced(_within(bind(size * like(2.0, x)), 0.0, 87.0), negative=True, fast=fast)
    grown = bind(power * _power_of_two(exponent))
    far = bind((like(1.0, x) - grown) / (like(1.0, x) + grown))
    far = tirx.Select(x < like(0.0, x), like(0.0, x) - far, far)
    square = bind(x * x)
    near = x + x * square * polynomial(_TANH, square)
    return tirx.Select(size < like(0.6, x), near, far)


def erfc_of_positive(z: Expr, *, fast: bool = False) -> Expr:
    """1 - erf(z), for z >= 0."""
    z = bind(z)
    return _erfcx(z) * exp(like(0.0, z) - z * z, fast=fast)


def normal_tail(x: Expr, *, fast: bool = False) -> Expr:
    """How much of the normal distribution lies beyond x >= 0; relatively exact, so that tails keep their digits."""
    x = bind(x)
    capped = bind(tirx.Select(x > like(14.4, x), like(14.4, x), x))  # there the result is 0, or a NaN
    # x^2 / 2 in two parts, of which the first is exact: half of x's digits, squared
    high = bind(_number(_bits(capped) & _integer(-4096, x)))
    low = (high - capped) * (high + capped) * like(0.5, x)
    exponent, power = _reduced(bind(high * high * like(-0.5, x)), plus=low, fast=fast)
    # 2^(n + 64) is a normal number, and what is too much is taken back with the half
    factor = like(2.0**-65, x)
    return _erfcx(capped * like(0.7071067811865476, x)) * (power * _power_of_two(exponent, 64)) * factor


def _erfcx(z: Expr) -> Expr:
    t = bind(like(1.0, z) / (like(1.0, z) + like(0.4, z) * z))
    return polynomial(_ERFCX, t)


def erf(x: Expr, *, fast: bool = False) -> Expr:
    """The error function."""
    x = bind(x)
    size = bind(absolute(x))
    far = bind(like(1.0, x) - erfc_of_positive(size, fast=fast))
    far = tirx.Select(x < like(0.0, x), like(0.0, x) - far, far)
    square = bind(x * x)
    near = x * polynomial(_ERF, square)
    return tirx.Select(size < like(0.5, x), near, far)


_ERF: Final = (1.1283791671, -0.3761263890, 0.1128379167, -0.0268661706, 0.0052239776, -0.0008548327)
"""Taylor's series: 2 / sqrt(pi) (-1)^n / (n! (2n + 1)); below 0.5 the next term is under 3e-8."""


def gelu(x: Expr, *, fast: bool = False) -> Expr:
    """X times the normal distribution function (Hendrycks and Gimpel, 2016)."""
    x = bind(x)
    tail = bind(normal_tail(absolute(x), fast=fast))
    return x * tirx.Select(_bits(x) < _integer(0, x), tail, like(1.0, x) - tail)


def gelu_tanh(x: Expr, *, fast: bool = False) -> Expr:
    """The same by a hyperbolic tangent: x sigmoid(2 u), u = sqrt(2 / pi) (x + 0.044715 x^3)."""
    x = bind(x)
    doubled = like(1.5957691216057308, x) * (x + like(0.044715, x) * x * x * x)
    # not x / (1 + e^-2u): that is inf / inf far on the left
    return x * sigmoid(doubled, fast=fast)


def square_root(x: Expr) -> Expr:
    """Correctly rounded."""
    return tirx.sqrt(x)


def negative(x: Expr) -> Expr:
    """-x, by the sign bit: 0 becomes -0."""
    return _number(_bits(x) ^ _integer(-0x80000000, x))


def absolute(x: Expr) -> Expr:
    """|x|, by the sign bit: -0 and NaN too."""
    return _number(_bits(x) & _integer(0x7FFFFFFF, x))


def greater(a: Expr, b: Expr) -> Expr:
    """The greater one; b if either is NaN. One instruction."""
    a, b = bind(a), bind(b)
    return tirx.Select(a > b, a, b)


def maximum(a: Expr, b: Expr) -> Expr:
    """The greater one; NaN if either is, as torch has it."""
    a, b = bind(a), bind(b)
    return tirx.Select(_is_number(a), tirx.Select(a > b, a, b), a)  # a > b fails for a NaN b: then b is taken


def minimum(a: Expr, b: Expr) -> Expr:
    """The lesser one; NaN if either is."""
    a, b = bind(a), bind(b)
    return tirx.Select(_is_number(a), tirx.Select(a < b, a, b), a)


def _is_number(x: Expr) -> Expr:
    """By its bits: `x == x` is simplified away."""
    return (_bits(x) & _integer(0x7FFFFFFF, x)) <= _integer(0x7F800000, x)


def _base(x: Expr) -> str:
    return str(x.ty).partition("x")[0]


def _kind(base: str, x: Expr) -> str:
    lanes = lanes_of(x)
    return base if lanes == 1 else f"{base}x{lanes}"


def _bits(x: Expr) -> Expr:
    return tirx.reinterpret(_kind("int32", x), x)


def _number(bits: Expr) -> Expr:
    return tirx.reinterpret(_kind("float32", bits), bits)


def _integer(value: int, x: Expr) -> Expr:
    lanes = lanes_of(x)
    constant = tirx.const(value, "int32")
    return constant if lanes == 1 else tirx.Broadcast(constant, lanes)


def _power_of_two(exponent: Expr, more: int = 0) -> Expr:
    return _number((exponent + _integer(127 + more, exponent)) << _integer(23, exponent))
