"""The embedded synthesiser: no key, no network, the same candidates for the same seed and the same answers."""

from __future__ import annotations

import random
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace

import structlog

from loop.contracts import Evaluation, Observation, Parent, PolicySource, SynthesisCost
from strategy.evolve.idioms import Idiom, catalogue
from strategy.evolve.parts import Parts, describe, graft, take_apart
from strategy.evolve.source import make_source
from strategy.evolve.static import check_policy, normalised_digest
from strategy.evolve.synthesise.bandit import Bandit, Regime, regime_of, success_of
from strategy.evolve.synthesise.combine import combined_planners, combined_routes, combined_triggers
from strategy.evolve.synthesise.constants import Constant, Tuner, find_constants, skeleton, with_constants
from strategy.evolve.synthesise.edited import Edited
from strategy.evolve.synthesise.edits import EDITS
from strategy.evolve.synthesise.moves import OPERATORS, Move, idiom_priors, opening

_log = structlog.get_logger(__name__)
_TRIES = 12
"""Attempts for one candidate that is new and passes the static check."""
_OPENING_SHARE = 0.75
"""How often the next opening move is made, while there are some for the present demand."""


@dataclass(frozen=True, slots=True)
class _Draft:
    """A candidate before it has a digest."""

    source: str
    note: str
    parents: tuple[str, ...]
    tuner: tuple[str, int] | None = None
    """(skeleton, number of the point) when CMA-ES asked for it."""
    idioms: tuple[tuple[str, str], ...] = ()
    """(function, name) of the idioms that were brought in."""


@dataclass(frozen=True, slots=True)
class _Asked:
    """What to learn from, once a candidate has been evaluated."""

    regime: Regime
    arms: tuple[Hashable, ...]
    tuner: tuple[str, int] | None


@dataclass(slots=True)
class BuiltinSynthesiser:
    """Edits policies at source level: constants by CMA-ES, idioms, conditions and terms, crossover, and policies
    extended by idioms.

    It opens with moves that are known to pay, anew when the demand has changed; then the choice of operator
    and idiom follows what each has been worth. Implements the Synthesiser port.
    """

    seed: int
    idioms: tuple[Idiom, ...] = field(default_factory=catalogue)

    _rng: random.Random = field(init=False)
    _bandit: Bandit = field(init=False)
    _operators: list[str] = field(init=False)
    _openings: dict[Regime, list[Move]] = field(init=False, default_factory=dict)
    _regime: Regime = field(init=False, default=())
    _asked: dict[str, _Asked] = field(init=False, default_factory=dict)
    _tuners: dict[str, Tuner] = field(init=False, default_factory=dict)
    _seen: set[str] = field(init=False, default_factory=set)

    def __post_init__(self) -> None:
        self._rng = random.Random(self.seed)
        self._operators = [
            "cma",
            "step-constant",
            "swap-idiom",
            "swap-pair",
            "extend",
            "crossover",
            *(f"edit:{name}" for name in EDITS),
        ]
        known = idiom_priors()
        priors: dict[Hashable, float] = {**OPERATORS}
        priors |= {(i.function, i.name): known.get((i.function, i.name), 0.15) for i in self.idioms}
        self._bandit = Bandit(priors)

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
        self._enter(obs)
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
        asked = self._asked.pop(candidate.digest, None)
        if asked is None:  # somebody else's
            return
        objective = evaluation.score.objective if evaluation.score is not None else None
        relative = objective / parent_objective if objective is not None and parent_objective else None
        for arm in asked.arms:
            self._bandit.learn(arm, asked.regime, success_of(relative))
        skeleton_of, number = asked.tuner or ("", -1)
        if skeleton_of in self._tuners:
            self._tuners[skeleton_of].tell(number, relative if relative is not None else objective)

    def _enter(self, obs: Observation | None) -> None:
        """The regime that the demand is in: a known one that is near, else a new one with its own opening."""
        seen = regime_of(obs)
        near = (r for r in self._openings if len(r) == len(seen) and _near(r, seen))
        self._regime = next(near, seen)
        if self._regime not in self._openings:
            moves = opening(self._rng)
            if self._openings:  # what has paid elsewhere comes first
                moves.sort(key=lambda move: -max(self._worth(arm) for arm in _arms(move)))
            self._openings[self._regime] = moves

    def _worth(self, arm: Hashable) -> float:
        return self._bandit.worth(arm, self._regime)

    def _attempt(self, parents: Sequence[Parent], obs: Observation | None) -> PolicySource | None:
        moves = self._openings[self._regime]
        opens = bool(moves) and self._rng.random() < _OPENING_SHARE
        operator = "opening" if opens else self._choose()
        parent = min(parents, key=lambda p: p.objective) if opens else self._pick(parents)
        try:
            if opens:
                move = moves.pop(0)
                operator, draft = self._opened(parent.policy, move, obs)
            else:
                draft = self._draft(operator, parent, parents, obs)
        except ValueError as error:  # a parent that cannot be taken apart, e.g. written by another author
            _log.debug(
                "edit not applicable", operator=operator, parent=parent.policy.digest, error=str(error)
            )
            return None
        return self._accepted(draft, operator) if draft is not None else None

    def _accepted(self, draft: _Draft, operator: str) -> PolicySource | None:
        """The draft as a candidate, when it is new and keeps the rules."""
        if check_policy(draft.source):
            return None
        identity = normalised_digest(draft.source)
        if identity in self._seen:
            return None
        self._seen.add(identity)
        candidate = make_source(draft.source, parents=draft.parents, operator=operator, note=draft.note)
        self._asked[candidate.digest] = _Asked(self._regime, (operator, *draft.idioms), draft.tuner)
        return candidate

    def _choose(self) -> str:
        return self._rng.choices(self._operators, self._bandit.weights(self._operators, self._regime))[0]

    def _pick(self, parents: Sequence[Parent]) -> Parent:
        """The better of two."""
        pair = [self._rng.choice(parents) for _ in range(2)]
        return min(pair, key=lambda parent: parent.objective)

    def _idiom(self, obs: Observation | None, *functions: str) -> Idiom:
        """One of the idioms of these functions (all: none named), by what it has been worth."""
        fitting = [i for i in self.idioms if (not functions or i.function in functions) and _suits(i, obs)]
        arms = [(i.function, i.name) for i in fitting]
        return self._rng.choices(fitting, self._bandit.weights(arms, self._regime, 2.0))[0]

    def _draft(
        self, operator: str, parent: Parent, parents: Sequence[Parent], obs: Observation | None
    ) -> _Draft | None:
        if operator == "cma":
            return self._tuned(parent.policy)
        if operator == "step-constant":
            return self._stepped(parent.policy)
        parts = take_apart(parent.policy.source)
        if operator in ("swap-idiom", "swap-pair"):
            functions: Sequence[tuple[str, ...]] = ((),)
            if operator == "swap-pair":
                functions = (("should_replan",), ("plan",))
            return _swapped(parent.policy, parts, [self._idiom(obs, *f) for f in functions])
        if operator == "extend":
            return self._extended(parent.policy, parts, self._idiom(obs, "should_replan", "plan", "route"))
        if operator == "crossover":
            return self._crossed(parent.policy, parts, parents)
        edited = EDITS[operator.removeprefix("edit:")](parts, self._rng)
        return None if edited is None else _finished(edited, (parent.policy.digest,))

    def _opened(self, policy: PolicySource, move: Move, obs: Observation | None) -> tuple[str, _Draft | None]:
        """An opening move: (the operator that it counts for, the draft)."""
        if move.constants:
            known = {c.name: c for c in find_constants(policy.source)}
            wanted = {n: v for n, v in move.constants if n in known and known[n].low <= v <= known[n].high}
            values = {c.name: c.value for c in known.values()} | wanted
            return "step-constant", _with_values(policy, values, "Constants set", "set")
        by_name = {(i.function, i.name): i for i in self.idioms}
        idioms = [by_name[name] for name in move.idioms if name in by_name]
        if len(idioms) != len(move.idioms) or not all(_suits(i, obs) for i in idioms):
            return "swap-idiom", None
        operator = "swap-idiom" if len(idioms) == 1 else "swap-pair"
        return operator, _swapped(policy, take_apart(policy.source), idioms)

    def _tuned(self, policy: PolicySource) -> _Draft | None:
        constants = find_constants(policy.source)
        if not constants:
            return None
        identity = skeleton(policy.source)
        if identity not in self._tuners:
            self._tuners[identity] = Tuner(constants, seed=self._rng.randrange(1 << 30))
        number, values = self._tuners[identity].ask()
        draft = _with_values(policy, values, "Constants tuned by CMA-ES", "tuned")
        return None if draft is None else replace(draft, tuner=(identity, number))

    def _stepped(self, policy: PolicySource) -> _Draft | None:
        """One constant moved by a tenth to a third of its range: what few evaluations can tell apart."""
        constants = find_constants(policy.source)
        if not constants:
            return None
        constant = self._rng.choice(constants)
        step = self._rng.uniform(0.1, 0.33) * self._rng.choice((-1.0, 1.0))
        value = constant.from_unit(min(1.0, max(0.0, constant.to_unit(constant.value) + step)))
        values = {c.name: c.value for c in constants} | {constant.name: value}
        return _with_values(policy, values, f"{constant.name} moved", "moved")

    def _extended(self, policy: PolicySource, parts: Parts, idiom: Idiom) -> _Draft | None:
        """The policy as it is, and an idiom beside it."""
        donor, name = idiom.parts, idiom.name
        if idiom.function == "should_replan":
            edited = combined_triggers(parts, donor, name, self._rng)
        elif idiom.function == "plan":
            edited = combined_planners(parts, donor, name)
        else:
            edited = combined_routes(parts, donor, name, self._rng)
        if edited is None:
            return None
        edited = replace(edited, why=f"{edited.why} {idiom.what}: {idiom.why}")
        return replace(_finished(edited, (policy.digest,)), idioms=((idiom.function, idiom.name),))

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
    """A random combination of idioms with random constants: what honest search must beat.

    Given its best: every other one is made of opening moves, with constants near those that the idioms come
    with; the others may be anything.
    """
    rng = random.Random(seed)
    by_name = {(i.function, i.name): i for i in catalogue()}
    chosen = {i.function: i for i in rng.sample(catalogue(), len(catalogue()))}
    sane = seed % 2 == 0
    if sane:
        for move in reversed(opening(rng)):
            chosen |= {function: by_name[function, name] for function, name in move.idioms}
    parts = Parts("", frozenset(), {}, {}, {})
    for function in ("should_replan", "plan", "route", "priority"):
        parts = graft(parts, chosen[function].parts, function)
    names = ", ".join(chosen[f].name for f in ("should_replan", "plan", "route", "priority"))
    spread = "near their defaults" if sane else "at random"
    parts = describe(parts, f"Random program {seed}", f"Idioms: {names}; constants {spread}.")
    source = parts.render()
    values = {}
    for constant in find_constants(source):
        unit = constant.to_unit(constant.value) + rng.gauss(0.0, 0.12) if sane else rng.random()
        values[constant.name] = constant.from_unit(unit)
    return make_source(with_constants(source, values), name=f"random-{seed}", operator="random", note=names)


def _swapped(policy: PolicySource, parts: Parts, idioms: Sequence[Idiom]) -> _Draft:
    """Idioms in the place of what the policy did; a trigger and a planner together, since when to change is worth
    nothing without what to.
    """
    for idiom in idioms:
        parts = graft(parts, idiom.parts, idiom.function)
    what = "; ".join(f"{i.function}: {i.what[0].lower()}{i.what[1:]}" for i in idioms)
    draft = _finished(Edited(parts, what, " ".join(i.why for i in idioms)), (policy.digest,))
    return replace(draft, idioms=tuple((i.function, i.name) for i in idioms))


def _with_values(policy: PolicySource, values: dict[str, float], headline: str, verb: str) -> _Draft | None:
    """The policy with other constants; None: none differs."""
    note = _changes(find_constants(policy.source), values)
    if not note:
        return None
    parts = take_apart(with_constants(policy.source, values))
    source = describe(parts, headline, f"Changed: {note}.").render()
    return _Draft(source, f"{verb} {note}", (policy.digest,))


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


def _arms(move: Move) -> tuple[Hashable, ...]:
    return move.idioms or ("step-constant",)


def _near(a: Regime, b: Regime) -> bool:
    """Whether two regimes differ by no more than a step anywhere, and not in the state of the devices."""
    return a[-2:] == b[-2:] and all(abs(x - y) <= 1 for x, y in zip(a, b, strict=True))


def _suits(idiom: Idiom, obs: Observation | None) -> bool:
    """Whether an idiom can make a difference to what was seen."""
    if obs is None:
        return True
    if idiom.name in ("prefix_affinity", "cached_first"):
        return any(d.prefix_hit > 0 for window in (obs.demand, *obs.history) for d in window)
    if idiom.name == "balance_models":
        return len(obs.demand) > 1
    return True
