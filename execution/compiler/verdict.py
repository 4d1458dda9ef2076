"""What was found out about a kernel: values that can be stored, shown, and read back.

Verdict     all of it; `ok` and, if not, `stage` and `reason`
Numerics    errors against the float64 reference
Speed       ratios of paired runs
Trial       what it did to the process in which it ran first
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Worst:
    """The element that came closest to what is allowed, or went furthest beyond."""

    case: str
    """Input on which it was seen, as execution.compiler.proof_cases names it."""
    index: tuple[int, ...]
    want: float
    """Of the float64 reference."""
    got: float
    error: float
    allowed: float

    def __str__(self) -> str:
        where = ", ".join(map(str, self.index))
        return (
            f"{self.case}, element [{where}]: {self.got:.9g} where {self.want:.9g} is right; "
            f"error {self.error:.3g}, allowed {self.allowed:.3g}"
        )


@dataclass(frozen=True, slots=True)
class Numerics:
    """Errors of a kernel over all cases, beside those of eager."""

    ok: bool
    reason: str
    """Why not; empty when ok."""
    cases: int
    elements: int
    worst: Worst | None = None
    error_rms: float = 0.0
    """Root mean square of the error on recorded and ordinary inputs, relative to the size of the outputs."""
    eager_error_rms: float = 0.0
    raises: tuple[str, ...] = ()
    """Unusual inputs that it refuses by an exception: whoever calls it must fall back then."""


@dataclass(frozen=True, slots=True)
class Speed:
    """Paired, interleaved runs of what is there and what would replace it."""

    ok: bool
    reason: str
    ratio: float
    """Median over the pairs of before / after; above 1 is faster."""
    low: float
    high: float
    """Confidence interval of it."""
    p_value: float
    """Chance of this or more, were the gain no more than `min_gain`."""
    pairs: int
    before_s: float
    after_s: float
    """Medians of one call."""
    threads: int
    min_gain: float


@dataclass(frozen=True, slots=True)
class Trial:
    """The first run of a kernel, in a process of its own."""

    ok: bool
    reason: str
    calls: int
    seconds: float
    guarded: tuple[str, ...] = ()
    """What was watched: `inputs unchanged`, `fenced inputs`, `outputs are new`, `heap`."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """All that is known of one kernel on one machine."""

    ok: bool
    stage: str
    """Where it failed: `compile`, `trial`, `numerics`, `determinism`, `speed`; `accepted` when ok."""
    reason: str
    trial: Trial | None = None
    numerics: Numerics | None = None
    deterministic: bool | None = None
    speed: Speed | None = None
    against: str = "eager"
    """Name of what the speed was compared with."""

    def explain(self) -> str:
        """A few lines for people."""
        lines = [f"{'accepted' if self.ok else 'refused at ' + self.stage}: {self.reason}"]
        if self.numerics is not None:
            n = self.numerics
            lines.append(
                f"numerics: {n.cases} cases, {n.elements} elements; typical error {n.error_rms:.2g} "
                f"(eager {n.eager_error_rms:.2g})"
            )
            if n.worst is not None:
                lines.append(f"worst: {n.worst}")
            if n.raises:
                lines.append(f"refuses: {', '.join(n.raises)}")
        if self.speed is not None:
            s = self.speed
            lines.append(
                f"speed: {s.ratio:.2f}x of {self.against} [{s.low:.2f}, {s.high:.2f}], p = {s.p_value:.2g}, "
                f"{s.pairs} pairs, {s.before_s * 1e6:.1f} us -> {s.after_s * 1e6:.1f} us on {s.threads} "
                f"thread{'s' if s.threads != 1 else ''}"
            )
        return "\n".join(lines)


def verdict_to_json(verdict: Verdict) -> dict[str, Any]:
    """Plain values."""
    return asdict(verdict)


def verdict_from_json(told: Mapping[str, Any]) -> Verdict:
    """The verdict that `verdict_to_json` told. Raises ValueError when it is none."""
    try:
        known = dict(told)
        for kind, name in ((Trial, "trial"), (Numerics, "numerics"), (Speed, "speed")):
            known[name] = part_of(kind, told[name])
        return Verdict(**known)
    except (KeyError, TypeError) as error:
        raise ValueError(f"no verdict: {error}") from error


def part_of(kind: type[T], told: Mapping[str, Any] | None) -> T | None:
    """A part of a verdict as `asdict` told it, maybe through JSON. Raises ValueError when it is none."""
    if told is None:
        return None
    names = {f.name for f in fields(kind)}  # type: ignore[arg-type]
    if set(told) != names:
        raise ValueError(f"{kind.__name__} has the fields {sorted(names)}, not {sorted(told)}")
    known = {name: tuple(value) if isinstance(value, list) else value for name, value in told.items()}
    if kind is Numerics:
        known["worst"] = part_of(Worst, told["worst"])
    return kind(**known)
