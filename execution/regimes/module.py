"""RegimeModule: any module, answered by the variant that is best for the kind of input that it is given.

    served = RegimeModule(model, reader, recipes=STANDARD_RECIPES, site=Site(folder))
    answer = served(*inputs)             # the model's, within the stated tolerance
    print(served.explain())

The original answers whatever is unknown: other inputs than the reader knows, regimes without variants yet. Variants are
built in the background once a regime has been seen a few times, hot regimes first. One that raises, or whose answer
differs from the original's when it is checked, is dropped with the reason; the caller gets the original's answer.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from execution.regimes.builder import Builder, Site
from execution.regimes.dispatcher import ORIGINAL, Policy, RegimeState, ranking
from execution.regimes.planner import build_order
from execution.regimes.recipe import BuildError, Built, Recipe, Run, find, module_key, open_artifact
from execution.regimes.regime import Reader, Regime


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
    """Calls of a variant in a regime; the first is always compared."""


@dataclass(slots=True)
class _Place:
    """A regime with its variants."""

    regime: Regime
    state: RegimeState
    runs: dict[str, Run]
    unchecked: dict[str, int]
    """Calls until the next comparison, by variant."""
    examples: list[list[Tensor]] = field(default_factory=list)
    recipes: list[Recipe] = field(default_factory=list)
    """Not yet built."""
    building: bool = False
    first_seen_s: float = 0.0


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
        """`general`: variants that are right for every regime. `recipes` need a `site` to be built in."""
        super().__init__()
        if recipes and site is None:
            raise ValueError("recipes are given, but no site to build them in: pass Site(folder)")
        self.original = original.eval()
        self.reader = reader
        self.site = site or Site(store=Path())
        self.policy, self.budget, self.checks = policy or Policy(), budget or Budget(), checks or Checks()
        self.events: deque[Event] = deque(maxlen=1000)
        self._general = dict(general or {})
        self._recipes = build_order(recipes)
        self._clock = clock
        self._places: dict[Regime, _Place] = {}
        self._builder = Builder(original, self.site) if recipes else None
        self._weights = {**dict(original.named_parameters()), **dict(original.named_buffers())}
        self._arrivals: deque[tuple[_Place, Built | None, Run | None, str, Recipe]] = deque()
        self._building = 0
        self._key = module_key(original, self.site.threads) if recipes else ""
        # One thread waits for the builder, the other opens what is found: neither start-up nor loading stalls a call.
        self._helpers = ThreadPoolExecutor(2, "regimes") if recipes else None
        self._built_s = 0.0

    @torch.no_grad()
    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The original's answer, or a variant's."""
        regime = self.reader.read(inputs)
        if regime is None:
            answer: tuple[Tensor, ...] = self.original(*inputs)
            return answer
        place = self._places.get(regime) or self._meet(regime)
        if self._arrivals:
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

    def _by_variant(self, place: _Place, name: str, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        started_s = self._clock()
        try:
            if name in self._general:
                answer: tuple[Tensor, ...] = tuple(place.runs[name](*inputs))
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
        place.unchecked[name] = self.checks.every
        reference: tuple[Tensor, ...] = self.original(*inputs)
        worst = self.site.tolerance.worst(answer, reference)
        if worst > 1:
            return self._fallen(place, name, f"wrong: {worst:.3g} times the tolerance", inputs, reference)
        return answer

    def _fallen(
        self,
        place: _Place,
        name: str,
        reason: str,
        inputs: Sequence[Tensor],
        reference: tuple[Tensor, ...] | None = None,
    ) -> tuple[Tensor, ...]:
        place.state.drop(name, reason)
        place.runs.pop(name, None)
        self._note(place.regime, f"dropped {name}", reason)
        answer: tuple[Tensor, ...] = self.original(*inputs) if reference is None else reference
        return answer

    def _meet(self, regime: Regime) -> _Place:
        place = _Place(regime, RegimeState(self.policy), dict(self._general), {}, first_seen_s=self._clock())
        for name in self._general:
            place.state.arrive(name)
        if self._builder is not None and len(self._places) < self.budget.regimes:
            place.building = True  # until it is known what the store has
            assert self._helpers is not None  # noqa: S101 recipes come with helpers
            self._helpers.submit(self._look_up, place)
        self._places[regime] = place
        self._note(regime, "new regime", "first seen; the original and what is general serve")
        return place

    def _consider(self, place: _Place, inputs: Sequence[Tensor]) -> None:
        """Record examples, and build when the regime is the hottest of those that wait."""
        if len(place.examples) < self.budget.examples:
            place.examples.append([value.clone() for value in self.reader.fit(inputs, place.regime)])
        if place.state.calls + 1 < self.budget.seen or self._building or self._built_s > self.budget.build_s:
            return
        waiting = [p for p in self._places.values() if p.recipes and not p.building and p.examples]
        # All get what is quick to build before any gets what is slow; then by the time spent in the regime.
        hottest = min(waiting, key=lambda p: (p.recipes[0].back_end != "eager", -p.state.spent_s))
        self._build(hottest)

    def _build(self, place: _Place) -> None:
        assert self._helpers is not None  # noqa: S101 recipes come with helpers
        recipe = place.recipes.pop(0)
        place.building = True
        self._building += 1
        self._helpers.submit(self._make, place, recipe)

    def _look_up(self, place: _Place) -> None:
        """In a helper's thread: open what the store has for the regime; the rest is to be built."""
        missing = []
        for recipe in self._recipes:
            built = find(recipe, place.regime, self._key, self.site.store)
            if built is None:
                missing.append(recipe)
                continue
            try:
                self._arrivals.append((place, built, open_artifact(built, self._weights), "", recipe))
            except BuildError:  # torn or of another machine: built again
                missing.append(recipe)
        place.recipes = missing
        place.building = False

    def _make(self, place: _Place, recipe: Recipe) -> None:
        """In a helper's thread: have it built, open it, and leave it for the next call."""
        built, run, why = None, None, ""
        try:
            assert self._builder is not None  # noqa: S101 recipes come with a builder
            built = self._builder.submit(recipe, place.regime, place.examples).result()
            run = open_artifact(built, self._weights)
        except BaseException as error:  # noqa: BLE001 a dead child, a refused recipe, a torn file: all are reasons
            why = str(error) or type(error).__name__
        self._arrivals.append((place, built, run, why, recipe))
        place.building = False
        self._building -= 1

    def _welcome(self) -> None:
        while self._arrivals:
            place, built, run, why, recipe = self._arrivals.popleft()
            if built is None or run is None:
                place.state.dropped[recipe.name] = why
                self._note(place.regime, f"refused {recipe.name}", why)
                continue
            self._built_s += 0.0 if built.cached else built.build_s
            place.runs[recipe.name] = run
            place.state.arrive(recipe.name)
            how = "found" if built.cached else "built"
            told = f"{how} in {built.build_s:.1f} s; {built.operations} operations; {built.predicted_s * 1e3:.3g} ms predicted"
            self._note(place.regime, f"arrived {recipe.name}", told)

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
        return not self._building and not self._arrivals and not waiting

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
        """End the builder."""
        if self._builder is not None:
            self._builder.close()
        if self._helpers is not None:
            self._helpers.shutdown(wait=False, cancel_futures=True)

    def __enter__(self) -> RegimeModule:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _note(self, regime: Regime, what: str, why: str) -> None:
        self.events.append(Event(self._clock(), regime, what, why))
