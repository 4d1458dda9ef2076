"""The embedded synthesiser: no key, no network, the same candidates for the same seed and the same answers."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import structlog

from loop.contracts import Evaluation, Observation, Parent, PolicySource, SynthesisCost
from strategy.evolve.idioms import Idiom, catalogue
from strategy.evolve.parts import Parts, describe, graft, take_apart
from strategy.evolve.source import make_source
from strategy.evolve.static import check_policy, normalised_digest
from strategy.evolve.synthesise.constants import (
    Constant,
    Tuner,
    find_constants,
    random_values,
    skeleton,
    with_constants,
)
from strategy.evolve.synthesise.edits import EDITS, Edited

_log = structlog.get_logger(__name__)
_TRIES = 12
"""Attempts for one candidate that is new and passes the static check."""
_FUNCTIONS = ("should_replan", "plan", "route", "priority")


@dataclass(frozen=True, slots=True)
class _Draft:
    """A candidate before it has a digest."""

    source: str
    note: str
    parents: tuple[str, ...]
    tuner: tuple[str, int] | None = None
    """(skeleton, number of the point) when CMA-ES asked for it."""
    idiom: tuple[str, str] | None = None
    """(function, name) when an idiom was swapped in."""


@dataclass(slots=True)
class _Record:
    """How an operator has fared."""

    tried: int = 0
    won: float = 0.0

    @property
    def weight(self) -> float:
        """Mean success, with a benefit of doubt that fades; never zero."""
        return (self.won + 1.0) / (self.tried + 3.0) + 0.05


@dataclass(slots=True)
class BuiltinSynthesiser:
    """Edits policies at source level: constants by CMA-ES, idioms, conditions and terms, crossover.

    Which operator is used follows what it has been worth so far. Implements the Synthesiser port.
    """

    seed: int
    idioms: tuple[Idiom, ...] = field(default_factory=catalogue)

    _rng: random.Random = field(init=False)
    _records: dict[str, _Record] = field(init=False)
    _idiom_records: dict[tuple[str, str], _Record] = field(init=False)
    _swaps: dict[str, tuple[str, str]] = field(init=False, default_factory=dict)
    _tuners: dict[str, Tuner] = field(init=False, default_factory=dict)
    _seen: set[str] = field(init=False, default_factory=set)
    _points: dict[str, tuple[str, int]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._rng = random.Random(self.seed)
        names = [
            "cma",
            "step-constant",
            "swap-idiom",
            "swap-pair",
            "crossover",
            *(f"edit:{name}" for name in EDITS),
        ]
        self._records = {name: _Record() for name in names}
        self._idiom_records = {(i.function, i.name): _Record() for i in self.idioms}

    @property
    def pending(self) -> int:
        """Nothing ever is: answers come at once."""
        return 0

    @property
    def cost(self) -> SynthesisCost:
        """Nothing but CPU time."""
        return SynthesisCost()

    def close(self) -> None:
        """Nothing is under way."""

    def ask(self, parents: Sequence[Parent], obs: Observation | None, count: int) -> list[PolicySource]:
        """New candidates, each unlike all before it, each passing the static check."""
        if not parents:
            return []
        self._seen.update(normalised_digest(parent.policy.source) for parent in parents)
        found: list[PolicySource] = []
        for _ in range(count * _TRIES):
            if len(found) == count:
                break
            candidate = self._attempt(parents, obs)
            if candidate is not None:
                found.append(candidate)
        return found

    def tell(self, candidate: PolicySource, evaluation: Evaluation, parent_objective: float | None) -> None:
        """Learn which operators pay, and where the constants should go."""
        score = evaluation.score
        objective = score.objective if score is not None else None
        relative = None
        if objective is not None and parent_objective:
            relative = objective / parent_objective
        records = [self._records.setdefault(candidate.operator, _Record())]
        swap = self._swaps.pop(candidate.digest, None)
        if swap is not None:
            records.append(self._idiom_records[swap])
        for record in records:
            record.tried += 1
            if relative is not None and relative < 1.0:
                record.won += min(1.0, 0.5 + 10.0 * (1.0 - relative))
        tuned, number = self._points.pop(candidate.digest, ("", -1))
        if tuned in self._tuners:
            self._tuners[tuned].tell(number, relative if relative is not None else objective)

    def _attempt(self, parents: Sequence[Parent], obs: Observation | None) -> PolicySource | None:
        operator = self._choose()
        parent = self._pick(parents)
        try:
            draft = self._draft(operator, parent, parents, obs)
        except ValueError as error:  # a parent that cannot be taken apart, e.g. written by another author
            _log.debug(
                "edit not applicable", operator=operator, parent=parent.policy.digest, error=str(error)
            )
            return None
        if draft is None:
            return None
        identity = normalised_digest(draft.source)
        problems = check_policy(draft.source)
        if identity in self._seen or problems:
            return None
        self._seen.add(identity)
        candidate = make_source(draft.source, parents=draft.parents, operator=operator, note=draft.note)
        if draft.tuner is not None:
            self._points[candidate.digest] = draft.tuner
        if draft.idiom is not None:
            self._swaps[candidate.digest] = draft.idiom
        return candidate

    def _choose(self) -> str:
        names = list(self._records)
        return self._rng.choices(names, [self._records[name].weight for name in names])[0]

    def _pick(self, parents: Sequence[Parent]) -> Parent:
        """The better of two."""
        pair = [self._rng.choice(parents) for _ in range(2)]
        return min(pair, key=lambda parent: parent.objective)

    def _draft(
        self, operator: str, parent: Parent, parents: Sequence[Parent], obs: Observation | None
    ) -> _Draft | None:
        if operator == "cma":
            return self._tuned(parent.policy)
        if operator == "step-constant":
            return self._stepped(parent.policy)
        parts = take_apart(parent.policy.source)
        if operator == "swap-idiom":
            return self._swapped(parent.policy, parts, obs)
        if operator == "swap-pair":
            return self._paired(parent.policy, parts)
        if operator == "crossover":
            return self._crossed(parent.policy, parts, parents)
        edited = EDITS[operator.removeprefix("edit:")](parts, self._rng)
        return None if edited is None else _finished(edited, (parent.policy.digest,))

    def _tuned(self, policy: PolicySource) -> _Draft | None:
        constants = find_constants(policy.source)
        if not constants:
            return None
        identity = skeleton(policy.source)
        if identity not in self._tuners:
            self._tuners[identity] = Tuner(constants, seed=self._rng.randrange(1 << 30))
        number, values = self._tuners[identity].ask()
        note = _changes(constants, values)
        if not note:
            return None
        parts = take_apart(with_constants(policy.source, values))
        source = describe(parts, "Constants tuned by CMA-ES", f"Changed: {note}.").render()
        return _Draft(source, f"tuned {note}", (policy.digest,), (identity, number))

    def _stepped(self, policy: PolicySource) -> _Draft | None:
        """One constant moved by a tenth to a third of its range: what few evaluations can tell apart."""
        constants = find_constants(policy.source)
        if not constants:
            return None
        constant = self._rng.choice(constants)
        step = self._rng.uniform(0.1, 0.33) * self._rng.choice((-1.0, 1.0))
        value = constant.from_unit(min(1.0, max(0.0, constant.to_unit(constant.value) + step)))
        values = {c.name: c.value for c in constants} | {constant.name: value}
        note = _changes(constants, values)
        if not note:
            return None
        parts = take_apart(with_constants(policy.source, values))
        source = describe(parts, f"{constant.name} moved", f"Changed: {note}.").render()
        return _Draft(source, f"moved {note}", (policy.digest,))

    def _swapped(self, policy: PolicySource, parts: Parts, obs: Observation | None) -> _Draft | None:
        idiom = self._rng.choices(
            self.idioms, [self._idiom_records[i.function, i.name].weight ** 2 for i in self.idioms]
        )[0]
        if idiom.name == "prefix_affinity" and obs is not None and not _shares_prefixes(obs):
            return None
        edited = Edited(
            graft(parts, idiom.parts, idiom.function),
            f"{idiom.function}: {idiom.what[0].lower()}{idiom.what[1:]}",
            idiom.why,
        )
        draft = _finished(edited, (policy.digest,))
        return replace(draft, idiom=(idiom.function, idiom.name))

    def _paired(self, policy: PolicySource, parts: Parts) -> _Draft:
        """A new trigger and a new planner together: when to change is worth nothing without what to."""
        pair = [
            self._rng.choice([i for i in self.idioms if i.function == function])
            for function in ("should_replan", "plan")
        ]
        for idiom in pair:
            parts = graft(parts, idiom.parts, idiom.function)
        what = "; ".join(f"{i.function}: {i.what[0].lower()}{i.what[1:]}" for i in pair)
        return _finished(Edited(parts, what, " ".join(i.why for i in pair)), (policy.digest,))

    def _crossed(self, policy: PolicySource, parts: Parts, parents: Sequence[Parent]) -> _Draft | None:
        others = [p for p in parents if p.policy.digest != policy.digest]
        if not others:
            return None
        other = self._pick(others)
        donor = take_apart(other.policy.source)
        functions = self._rng.choice(
            [("should_replan", "plan"), ("route", "priority"), ("route",), ("plan",)]
        )
        for function in functions:
            parts = graft(parts, donor, function)
        what = f"{' and '.join(functions)} taken over from {other.policy.name}"
        edited = Edited(parts, what, "Both parents did well; their parts may add up.")
        return _finished(edited, (policy.digest, other.policy.digest))


def random_program(seed: int) -> PolicySource:
    """A random combination of idioms with random constants: what honest search must beat."""
    rng = random.Random(seed)
    parts = Parts("", frozenset(), {}, {}, {})
    names = []
    for function in _FUNCTIONS:
        idiom = rng.choice([i for i in catalogue() if i.function == function])
        parts = graft(parts, idiom.parts, function)
        names.append(idiom.name)
    parts = describe(parts, f"Random program {seed}", f"Idioms: {', '.join(names)}; constants at random.")
    source = parts.render()
    source = with_constants(source, random_values(find_constants(source), rng.random))
    return make_source(source, name=f"random-{seed}", operator="random", note=", ".join(names))


def _finished(edited: Edited, parents: tuple[str, ...]) -> _Draft:
    parts = describe(edited.parts, edited.what[0].upper() + edited.what[1:], edited.why)
    return _Draft(parts.render(), edited.what, parents)


def _changes(constants: Sequence[Constant], values: dict[str, float], most: int = 4) -> str:
    """The largest changes in words, the largest first."""

    def moved(constant: Constant) -> float:
        return abs(constant.to_unit(values[constant.name]) - constant.to_unit(constant.value))

    changed = sorted((c for c in constants if values[c.name] != c.value), key=moved, reverse=True)
    texts = [f"{c.name} {c.value:g} -> {values[c.name]:g}" for c in changed[:most]]
    more = len(changed) - most
    return ", ".join(texts) + (f" and {more} more" if more > 0 else "")


def _shares_prefixes(obs: Observation) -> bool:
    return any(d.prefix_hit > 0 for window in (obs.demand, *obs.history) for d in window)
