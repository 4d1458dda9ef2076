"""What happens beside serving: variants are found, built, opened; references and audits are computed.

Helper threads do it and leave what they made in queues, which the serving thread empties between calls. Python threads
disturb each other: while something is opened, the interpreter is told to change hands every 0.1 ms instead of every
5 ms, so that a call of a hundred small operations is not held up at each of them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from execution.gil import yielding_often
from execution.regimes.builder import Builder, Site
from execution.regimes.dispatcher import RegimeState
from execution.regimes.prior import Prior
from execution.regimes.recipe import (
    BuildError,
    Built,
    Known,
    Recipe,
    Run,
    find,
    known,
    module_key,
    open_artifact,
)
from execution.regimes.regime import Regime

Answer = tuple[Tensor, ...]


@dataclass(slots=True)
class Place:
    """A regime with its variants."""

    regime: Regime
    state: RegimeState
    runs: dict[str, Run]
    unchecked: dict[str, int]
    """Calls until the next comparison, by variant."""
    examples: list[list[Tensor]] = field(default_factory=list)
    recipes: list[Recipe] = field(default_factory=list)
    """Not yet built."""
    shelved: list[Recipe] = field(default_factory=list)
    """In the store, but others were better in other regimes."""
    reference: Answer | None = None
    """The original's answer to the first example."""
    building: bool = False
    first_seen_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Arrival:
    """A variant that can be called, or why there is none."""

    place: Place
    recipe: Recipe
    built: Built | None = None
    run: Run | None = None
    why: str = ""


@dataclass(frozen=True, slots=True)
class Finding:
    """An audit that a variant's answer did not pass."""

    place: Place
    name: str
    why: str


class Supply:
    """The helpers of one module. All methods but `close` are the serving thread's and return at once."""

    def __init__(self, original: nn.Module, recipes: Sequence[Recipe], site: Site, prior: Prior) -> None:
        self.arrivals: deque[Arrival] = deque()
        self.findings: deque[Finding] = deque()
        self.pending = 0
        """Recipes being built."""
        self._original, self._recipes, self._site, self._prior = original, recipes, site, prior
        self._weights = {**dict(original.named_parameters()), **dict(original.named_buffers())}
        self._key = module_key(original, site.threads) if recipes else ""
        self._builder = Builder(original, site) if recipes else None
        self._waiter = ThreadPoolExecutor(1, "regimes-build")
        self._opener = ThreadPoolExecutor(1, "regimes-open")
        self._audits = 0

    def look_up(self, place: Place, generals: Sequence[str]) -> None:
        """Open what the store has for a regime, the most promising first; the rest is to be built."""
        place.building = True  # until it is known what the store has
        self._opener.submit(self._look_up, place, list(generals))

    def known(self) -> dict[Regime, list[Known]]:
        """What the store has for this module."""
        found: dict[Regime, list[Known]] = {}
        for each in known(self._key, self._site.store, self._recipes) if self._recipes else ():
            found.setdefault(each.built.regime, []).append(each)
        return found

    def open_now(self, built: Built) -> Run:
        """A variant of the store, in the serving thread. Raises BuildError."""
        return open_artifact(built, self._weights)

    def make(self, place: Place) -> None:
        """Have the next recipe built."""
        recipe = place.recipes.pop(0)
        place.building = True
        self.pending += 1
        self._waiter.submit(self._make, place, recipe)

    def audit(self, place: Place, name: str, inputs: Sequence[Tensor], answer: Answer) -> bool:
        """Compare an answer with the original's; False: too much to do just now."""
        if self._audits >= 2:
            return False
        self._audits += 1
        self._opener.submit(self._audit, place, name, [value.clone() for value in inputs], answer)
        return True

    def close(self) -> None:
        """End the builder and the helpers."""
        if self._builder is not None:
            self._builder.close()
        for pool in (self._waiter, self._opener):
            pool.shutdown(wait=False, cancel_futures=True)

    def _look_up(self, place: Place, names: list[str]) -> None:
        missing = []
        try:
            for recipe in sorted(
                self._recipes, key=lambda r: (self._prior.expected(r.name), r.back_end == "eager")
            ):
                built = find(recipe, place.regime, self._key, self._site.store)
                if built is None:
                    missing.append(recipe)
                elif self._prior.hopeless(recipe.name, names):
                    place.shelved.append(recipe)
                else:
                    try:
                        self._open(place, recipe, built)
                        names.append(recipe.name)
                    except BuildError:  # torn or of another machine: built again
                        missing.append(recipe)
        except Exception as error:  # noqa: BLE001 a helper that fails silently would leave the regime waiting for ever
            self.arrivals.extend(Arrival(place, recipe, why=_told(error)) for recipe in missing)
            missing = []
        place.recipes = [recipe for recipe in self._recipes if recipe in missing]
        place.building = False
        if missing and self._builder is not None:
            self._builder.warm()

    def _make(self, place: Place, recipe: Recipe) -> None:
        try:
            assert self._builder is not None  # noqa: S101 recipes come with a builder
            built = self._builder.submit(recipe, place.regime, place.examples).result()
            self._opener.submit(self._open, place, recipe, built).result()
        except BaseException as error:  # noqa: BLE001 a dead child, a refused recipe, a torn file: all are reasons
            self.arrivals.append(Arrival(place, recipe, why=str(error) or type(error).__name__))
        place.building = False
        self.pending -= 1

    def _open(self, place: Place, recipe: Recipe, built: Built) -> None:
        with yielding_often():
            run = open_artifact(built, self._weights)
            if place.reference is None:
                place.reference = self._answer(place.examples[0])
        self.arrivals.append(Arrival(place, recipe, built, run))

    def _audit(self, place: Place, name: str, inputs: list[Tensor], answer: Answer) -> None:
        try:
            worst = self._site.tolerance.worst(answer, self._answer(inputs))
            if worst > 1:
                self.findings.append(Finding(place, name, f"wrong: {worst:.3g} times the tolerance"))
        except Exception as error:  # noqa: BLE001 the original raised where the variant answered
            self.findings.append(Finding(place, name, f"the original raises: {_told(error)}"))
        finally:
            self._audits -= 1

    def _answer(self, inputs: Sequence[Tensor]) -> Answer:
        with torch.no_grad():
            answer: Answer = tuple(self._original(*inputs))
        return answer


def _told(error: BaseException) -> str:
    first = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first[:160]}"
