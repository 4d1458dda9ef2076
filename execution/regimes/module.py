"""RegimeModule: any module, answered by the variant that is best for the kind of input that it is given.

    served = RegimeModule(model, reader, recipes=STANDARD_RECIPES, site=Site(folder))
    answer = served(*inputs)             # the model's, within the stated tolerance
    print(served.explain())

The original answers whatever the reader does not know. A regime that has no variant yet is served by the stand-in: the
first of the `general` variants, else the original. Variants are built in the background once a regime has been seen a
few times, hot regimes first. One that raises, or whose answer differs from the original's, is dropped with the reason.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from execution.regimes.builder import Site
from execution.regimes.dispatcher import ORIGINAL, Policy, RegimeState, ranking
from execution.regimes.estimate import Estimate
from execution.regimes.planner import build_order
from execution.regimes.prior import Prior
from execution.regimes.recipe import BuildError, Known, Recipe, Run
from execution.regimes.regime import Reader, Regime
from execution.regimes.rehearsal import rehearse
from execution.regimes.supply import Answer, Arrival, Place, Supply


@dataclass(frozen=True, slots=True)
class Budget:
    """How much is built, and when."""

    seen: int = 2
    """Calls of a regime before anything is built for it."""
    build_s: float = 3600.0
    """Seconds of building in all."""
    regimes: int = 64
    """At most, with variants."""
    examples: int = 2
    """Recorded inputs on which a variant is proven."""


@dataclass(frozen=True, slots=True)
class Checks:
    """How often a variant's answer is compared with the original's."""

    every: int = 256
    """Calls of a variant in a regime."""
    beside: bool = True
    """Whether samples are compared by a helper thread; else within the call, before the answer is given. What is
    built is compared before its first answer either way, and so is the first answer of each general variant."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened, for the journal."""

    at_s: float
    regime: Regime
    what: str
    why: str


class RegimeModule(nn.Module):
    """A module with variants. Calls come from one thread at a time, without gradients."""

    def __init__(
        self,
        original: nn.Module,
        reader: Reader,
        *,
        general: Mapping[str, Run] | None = None,
        recipes: Sequence[Recipe] = (),
        site: Site | None = None,
        policy: Policy | None = None,
        budget: Budget | None = None,
        checks: Checks | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`general`: variants that are right for every regime; the first of them stands in where nothing is known.

        `recipes` need a `site` to be built in.
        """
        super().__init__()
        if recipes and site is None:
            raise ValueError("recipes are given, but no site to build them in: pass Site(folder)")
        self.original = original.eval()
        self.reader = reader
        self.site = site or Site(store=Path())
        self.policy, self.budget, self.checks = policy or Policy(), budget or Budget(), checks or Checks()
        self.events: deque[Event] = deque(maxlen=1000)
        self._general = dict(general or {})
        self._vouched: set[str] = set()
        self._stand_in = next(iter(self._general), ORIGINAL)
        self._recipes = build_order(recipes)
        self._clock = clock
        self._places: dict[Regime, Place] = {}
        self._prior = Prior()
        self._supply = Supply(original, self._recipes, self.site, self._prior)
        self._built_s = 0.0

    @torch.no_grad()
    def forward(self, *inputs: Tensor) -> Answer:
        """The original's answer, or a variant's."""
        regime = self.reader.read(inputs)
        if regime is None:
            answer: Answer = self.original(*inputs)
            return answer
        place = self._places.get(regime) or self._meet(regime, inputs)
        if self._supply.arrivals or self._supply.findings:
            self._welcome()
        if place.recipes and not place.building:
            self._consider(place, inputs)
        state = place.state
        name = state.choose()
        if name == ORIGINAL:
            started_s = self._clock()
            answer = self.original(*inputs)
            state.learn(ORIGINAL, self._clock() - started_s)
            return answer
        return self._by_variant(place, name, inputs)

    def _by_variant(self, place: Place, name: str, inputs: Sequence[Tensor]) -> Answer:
        started_s = self._clock()
        try:
            if name in self._general:
                answer: Answer = tuple(place.runs[name](*inputs))
            else:
                made = place.runs[name](*self.reader.fit(inputs, place.regime))
                answer = self.reader.trim(tuple(made), inputs)
        except Exception as error:  # noqa: BLE001 whatever a variant raises, the original answers
            told = str(error).strip().splitlines() or [""]
            return self._fallen(place, name, f"raised {type(error).__name__}: {told[0][:160]}", inputs)
        place.state.learn(name, self._clock() - started_s)
        left = place.unchecked.get(name, 0)
        if left > 0:
            place.unchecked[name] = left - 1
            return answer
        return self._checked(place, name, inputs, answer)

    def _checked(self, place: Place, name: str, inputs: Sequence[Tensor], answer: Answer) -> Answer:
        place.unchecked[name] = self.checks.every
        if self.checks.beside and name in self._vouched:
            if not self._supply.audit(place, name, inputs, answer):
                place.unchecked[name] = 0
            return answer
        self._vouched.add(name)
        reference: Answer = self.original(*inputs)
        worst = self.site.tolerance.worst(answer, reference)
        if worst > 1:
            return self._fallen(place, name, f"wrong: {worst:.3g} times the tolerance", inputs, reference)
        return answer

    def _fallen(
        self,
        place: Place,
        name: str,
        reason: str,
        inputs: Sequence[Tensor],
        reference: Answer | None = None,
    ) -> Answer:
        self._drop(place, name, reason)
        answer: Answer = self.original(*inputs) if reference is None else reference
        return answer

    def _drop(self, place: Place, name: str, reason: str) -> None:
        place.state.drop(name, reason)
        place.runs.pop(name, None)
        self._note(place.regime, f"dropped {name}", reason)
        if place.shelved and not place.building:  # not hopeless any more, perhaps
            place.recipes += place.shelved
            place.shelved = []

    def _meet(self, regime: Regime, inputs: Sequence[Tensor]) -> Place:
        names = [ORIGINAL, *self._general]
        hopeful = [name for name in names if name == self._stand_in or not self._prior.hopeless(name, names)]
        state = RegimeState(self.policy, self._stand_in, {name: Estimate() for name in hopeful})
        place = Place(regime, state, dict(self._general), {}, first_seen_s=self._clock())
        if self._recipes and len(self._places) < self.budget.regimes:
            self._record(place, inputs)
            self._supply.look_up(place, hopeful)
        self._places[regime] = place
        self._note(regime, "new regime", f"first seen; {self._stand_in} serves")
        return place

    def _record(self, place: Place, inputs: Sequence[Tensor]) -> None:
        if len(place.examples) < self.budget.examples:
            place.examples.append([value.clone() for value in self.reader.fit(inputs, place.regime)])

    def _consider(self, place: Place, inputs: Sequence[Tensor]) -> None:
        """Record examples, and build when the regime is the hottest of those that wait."""
        if place.state.calls:
            self._record(place, inputs)
        pending = self._supply.pending
        if place.state.calls + 1 < self.budget.seen or pending or self._built_s > self.budget.build_s:
            return
        waiting = [p for p in self._places.values() if p.recipes and not p.building and p.examples]
        # All get what is quick to build before any gets what is slow; then by the time spent in the regime.
        hottest = min(waiting, key=lambda p: (p.recipes[0].back_end != "eager", -p.state.spent_s))
        self._supply.make(hottest)

    def _welcome(self) -> None:
        """One arrival a call, since each is run once before it may answer."""
        while self._supply.findings:
            found = self._supply.findings.popleft()
            if found.name in found.place.runs:
                self._drop(found.place, found.name, found.why)
        if self._supply.arrivals:
            self._accept(self._supply.arrivals.popleft())

    def _accept(self, arrival: Arrival) -> None:
        place, built, run, name = arrival.place, arrival.built, arrival.run, arrival.recipe.name
        why = arrival.why if built is None or run is None else self._faults(place, run)
        if built is None or run is None or why:
            place.state.drop(name, why)
            self._note(place.regime, f"refused {name}", why)
            return
        self._built_s += 0.0 if built.cached else built.build_s
        place.runs[name] = run
        place.unchecked[name] = self.checks.every
        self._vouched.add(name)
        self._learn(place)
        place.state.arrive(name, warm=True)
        how = "found" if built.cached else "built"
        told = f"{how} in {built.build_s:.1f} s; {built.operations} operations; {built.predicted_s * 1e3:.3g} ms predicted"
        self._note(place.regime, f"arrived {name}", told)

    def _faults(self, place: Place, run: Run) -> str:
        """Run a new variant on a recorded input: it warms up, and shows here too that it answers as it should."""
        assert place.reference is not None  # noqa: S101 computed before anything arrives
        try:
            worst = self.site.tolerance.worst(tuple(run(*place.examples[0])), place.reference)
        except Exception as error:  # noqa: BLE001 whatever it raises is the reason
            told = str(error).strip().splitlines() or [""]
            return f"raised {type(error).__name__}: {told[0][:160]}"
        return f"wrong: {worst:.3g} times the tolerance" if worst > 1 else ""

    def _learn(self, place: Place) -> None:
        """Tell the prior what every regime but this one has found."""
        for other in self._places.values():
            base = other.state.estimates.get(self._stand_in)
            if other is place or base is None or not base.count:
                continue
            for name, estimate in other.state.estimates.items():
                if estimate.count:
                    self._prior.learn(other.regime, name, math.log(estimate.seconds / base.seconds))

    @torch.no_grad()
    def preload(self) -> int:
        """Open what the store has for this module, see that it still answers as it should, and time it against what
        serves without it, on an input recorded when it was built; how many variants there are. For the start of a
        server, before its first request: a restart then knows what the last run had learned, in about a second."""
        opened = 0
        for regime, noted in self._supply.known().items():
            if regime not in self._places and len(self._places) < self.budget.regimes:
                opened += self._preload(regime, noted)
        return opened

    def _preload(self, regime: Regime, noted: Sequence[Known]) -> int:
        inputs = [torch.from_numpy(value) for value in noted[0].example]
        state = RegimeState(
            self.policy, self._stand_in, {name: Estimate() for name in (ORIGINAL, *self._general)}
        )
        place = Place(regime, state, dict(self._general), {}, first_seen_s=self._clock())
        place.reference = tuple(self.original(*inputs))
        self._record(place, inputs)
        self._places[regime] = place
        for each in noted:
            try:
                run = self._supply.open_now(each.built)
            except BuildError as error:
                self._note(regime, f"refused {each.built.recipe.name}", str(error))
            else:
                self._accept(Arrival(place, each.built.recipe, each.built, run))
        place.recipes = [recipe for recipe in self._recipes if recipe.name not in place.runs]
        place.recipes = [recipe for recipe in place.recipes if recipe.name not in state.dropped]
        runs: dict[str, Run] = {ORIGINAL: self.original, **place.runs}
        for name, why in rehearse(place, runs, inputs, self.site.tolerance, self._clock).items():
            self._drop(place, name, why)
        return sum(name not in self._general for name in place.runs)

    def holder(self, regime: Regime) -> str:
        """Name of the variant in force."""
        place = self._places.get(regime)
        return ORIGINAL if place is None else place.state.holder

    def states(self) -> Mapping[Regime, RegimeState]:
        """What is known of each regime."""
        return {regime: place.state for regime, place in self._places.items()}

    @property
    def idle(self) -> bool:
        """Whether nothing is being built and nothing waits to be."""
        budget = self._built_s <= self.budget.build_s
        waiting = budget and any(p.recipes or p.building for p in self._places.values())
        return not self._supply.pending and not self._supply.arrivals and not waiting

    def explain(self, regime: Regime | None = None) -> str:
        """For each regime: who holds, what each variant costs, what was dropped, and the last changes."""
        lines = []
        for each, place in sorted(self._places.items()):
            if regime is not None and each != regime:
                continue
            state = place.state
            lines.append(f"{each}: {state.holder}, {state.calls} calls, {state.spent_s:.3g} s")
            for name, estimate in ranking(state):
                cost = (
                    f"{estimate.seconds * 1e3:.3g} ms +- {100 * estimate.error:.0f} %"
                    if estimate.count
                    else "untried"
                )
                lines.append(f"  {name}: {cost}, {estimate.count} calls")
            lines.extend(f"  {name}: dropped, {why}" for name, why in state.dropped.items())
            lines.extend(
                f"  call {change.call}: {change.what}: {change.why}" for change in state.changes[-5:]
            )
        return "\n".join(lines)

    def close(self) -> None:
        """End the builder and the helpers."""
        self._supply.close()

    def __enter__(self) -> RegimeModule:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _note(self, regime: Regime, what: str, why: str) -> None:
        self.events.append(Event(self._clock(), regime, what, why))
