"""Which variant runs next in a regime: the best known, now and then another, seldom a change, and why.

    state = RegimeState(["original", "pruned"], policy)
    name = state.choose()               # under a microsecond, mostly
    state.learn(name, seconds)

Every variant is tried when it arrives, until it is known to be better or worse than the best: one call may show it,
`trials` calls always do. Afterwards one is tried again when it may be better (its lower
confidence bound is below the holder's mean) and the *regret budget* allows: the seconds lost to trials stay below a
share of the seconds spent. A challenger takes over only when it is faster by a margin and by its uncertainty
(hysteresis). Drift of the holder's cost makes all costs uncertain again.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from execution.regimes.estimate import Estimate, faster

ORIGINAL = "original"


@dataclass(frozen=True, slots=True)
class Policy:
    """How much is tried, and when a change is worth it."""

    trials: int = 4
    """Calls of a new variant at most before it is judged; the very first, which warms up, is not counted."""
    least: int = 2
    """Calls of a challenger and of the holder before the one may take over from the other."""
    regret_share: float = 0.02
    """Of the regime's time that later trials may lose."""
    gain: float = 0.03
    """Least advantage for which a change is made."""
    confidence: float = 1.5
    """Standard errors by which a challenger must lead."""
    hopeless: float = 2.0
    """Standard errors by which a variant must trail for its trials to end early."""
    gap: int = 16
    """Calls between two looks at whether to try something."""


@dataclass(frozen=True, slots=True)
class Change:
    """Something decided, and why."""

    call: int
    what: str
    why: str


@dataclass(slots=True)
class RegimeState:
    """All that is known of one regime. One caller at a time."""

    policy: Policy = field(default_factory=Policy)
    holder: str = ORIGINAL
    estimates: dict[str, Estimate] = field(default_factory=lambda: {ORIGINAL: Estimate()})
    dropped: dict[str, str] = field(default_factory=dict)
    calls: int = 0
    spent_s: float = 0.0
    regret_s: float = 0.0
    changes: list[Change] = field(default_factory=list)
    _warm: set[str] = field(default_factory=set)
    _wait: int = 0

    def choose(self) -> str:
        """The variant for this call."""
        self.calls += 1
        if self._wait > 0:
            self._wait -= 1
            return self.holder
        return self._look()

    def learn(self, name: str, seconds: float) -> None:
        """What a call took."""
        self.spent_s += seconds
        if name not in self._warm:
            self._warm.add(name)
            return
        estimate = self.estimates.get(name)
        if estimate is None:
            return
        if estimate.add(seconds) and name == self.holder:
            self._drifted(name)
        if name != self.holder:
            self._judge(name, seconds)

    def arrive(self, name: str, *, warm: bool = False) -> None:
        """A new variant, to be tried; `warm`: it has run here before, so that its first call counts."""
        if name not in self.dropped and name not in self.estimates:
            self.estimates[name] = Estimate()
            self._wait = 0
            if warm:
                self._warm.add(name)

    def drop(self, name: str, reason: str) -> None:
        """Never again; the best of the others takes over where the variant held, or else the original."""
        if name == ORIGINAL:
            return
        self.dropped[name] = reason
        self.estimates.pop(name, None)
        if self.holder == name:
            self.holder = self._best()
            self.estimates.setdefault(self.holder, Estimate())
        self._note(f"dropped {name}", reason)

    @property
    def settled(self) -> bool:
        """Whether every variant has had its trials."""
        return not self._untried()

    def _untried(self) -> list[str]:
        """Names of which too little is known, the holder first, then those with the fewest calls."""
        best = min(self.estimates.values(), key=lambda estimate: estimate.seconds)
        found = []
        for name, estimate in self.estimates.items():
            enough = self.policy.trials
            if estimate is not best and faster(best, estimate, gain=0.0, confidence=self.policy.hopeless):
                enough = 1
            if estimate.count < enough:
                found.append(name)
        return sorted(found, key=lambda name: (self.estimates[name].count, name != self.holder))

    def _look(self) -> str:
        self._contest(min(self.estimates, key=lambda name: self.estimates[name].seconds))
        if untried := self._untried():
            return untried[0]
        self._wait = self.policy.gap
        holder = self.estimates[self.holder]
        hopeful, promise = "", holder.seconds
        for name, estimate in self.estimates.items():
            # What was not tried for long is known less well: its discounted weight stays, but the world moves on.
            low = estimate.seconds * math.exp(-2.0 * max(estimate.error, 0.05))
            if name != self.holder and low < promise:
                hopeful, promise = name, low
        if not hopeful:
            return self.holder
        if self.estimates[hopeful].seconds < holder.seconds:  # likely better: by turns until it is known
            self._wait = 1
        loss_s = max(0.0, self.estimates[hopeful].seconds - holder.seconds)
        if loss_s and self.regret_s + loss_s > self.policy.regret_share * self.spent_s:
            return self.holder
        return hopeful

    def _judge(self, name: str, seconds: float) -> None:
        holder = self.estimates[self.holder]
        self.regret_s += max(0.0, seconds - holder.seconds) if holder.count else 0.0
        self._contest(name)

    def _contest(self, name: str) -> None:
        """The name takes over if it is known to be better."""
        holder, challenger = self.estimates[self.holder], self.estimates[name]
        if name == self.holder or min(challenger.count, holder.count) < self.policy.least:
            return
        if faster(challenger, holder, gain=self.policy.gain, confidence=self.policy.confidence):
            why = f"{_ms(challenger)} against {_ms(holder)} of {self.holder}, {challenger.count} calls"
            self.holder = name
            self._note(f"changed to {name}", why)

    def _drifted(self, name: str) -> None:
        for other, estimate in self.estimates.items():
            if other != name:
                estimate.forget()
        self._wait = 0
        self._note("drift", f"{name} now takes {_ms(self.estimates[name])}: all are tried again")

    def _best(self) -> str:
        known = {name: e for name, e in self.estimates.items() if e.count}
        return min(known, key=lambda name: known[name].mean) if known else ORIGINAL

    def _note(self, what: str, why: str) -> None:
        self.changes.append(Change(self.calls, what, why))
        del self.changes[:-64]


def ranking(state: RegimeState) -> Iterable[tuple[str, Estimate]]:
    """Variants by cost, the cheapest first."""
    return sorted(state.estimates.items(), key=lambda item: item[1].seconds)


def _ms(estimate: Estimate) -> str:
    return f"{estimate.seconds * 1e3:.3g} ms +- {100 * estimate.error:.0f} %"
