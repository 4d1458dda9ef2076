"""How the tests ask: a synthesiser at a scripted endpoint, impatient, and what it recorded."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from loop.contracts import Exchange, Parent, PolicySource
from strategy.evolve.synthesise.llm import LlmConfig, LlmModel, LlmSynthesiser
from tests.strategy.builders import observation
from tests.strategy.evolve.llm.server import Endpoint, Script, endpoint
from tests.strategy.evolve.worlds import knobs

KEY = "sk-tests-0123456789abcdef"
BASE = knobs()
PARENTS = (Parent(BASE, 1.0),)
OBS = observation()
PATIENCE_S = 240.0
"""A test that waits so long has failed."""


def diff_to(weight: float, base: float = 30.0) -> str:
    """An answer that sets the weight."""
    return (
        f"The queue shall weigh {weight}.\n\n"
        f"<<<<<<< SEARCH\nWEIGHT = {base}  # 0.01 to 100: best at 3\n"
        f"=======\nWEIGHT = {weight}  # 0.01 to 100: best at 3\n>>>>>>> REPLACE\n"
    )


class Asking:
    """A synthesiser, its endpoint, what it recorded and gave."""

    def __init__(self, server: Endpoint, synthesiser: LlmSynthesiser, exchanges: list[Exchange]) -> None:
        self.server = server
        self.synthesiser = synthesiser
        self.exchanges = exchanges
        self.given: list[PolicySource] = []

    @property
    def outcomes(self) -> list[str]:
        return [exchange.outcome for exchange in self.exchanges]

    def until(self, done: Callable[[], bool], count: int = 4) -> None:
        """Ask again and again until something is so."""
        give_up_s = time.monotonic() + PATIENCE_S
        while not done():
            assert time.monotonic() < give_up_s, (self.outcomes, self.synthesiser.trouble)
            self.given += self.synthesiser.ask(PARENTS, OBS, count)

    def settle(self) -> None:
        """Wait, without asking anything new, until nothing is under way."""
        give_up_s = time.monotonic() + PATIENCE_S
        while self.synthesiser.pending:
            assert time.monotonic() < give_up_s
            self.given += self.synthesiser.ask((), None, 64)


@contextmanager
def asking(
    script: Script, *, models: tuple[LlmModel, ...] = (LlmModel("m"),), **options: Any
) -> Iterator[Asking]:
    """One question at a time and next to no pauses, unless told otherwise."""
    settings: dict[str, Any] = {
        "api_key": KEY,
        "in_flight": 1,
        "timeout_s": 120.0,
        "backoff_s": 0.001,
        "breaker_pause_s": 0.01,
        "breaker_cap_s": 0.05,
        "wait_s": 0.05,
        "diff_share": 1.0,
    }
    goal = options.pop("goal", "total execution time")
    seed = options.pop("seed", 0)
    exchanges: list[Exchange] = []
    with endpoint(script) as server:
        config = LlmConfig(options.pop("base_url", server.url), models, **{**settings, **options})
        synthesiser = LlmSynthesiser(config, seed=seed, record=exchanges.append, goal=goal)
        try:
            yield Asking(server, synthesiser, exchanges)
        finally:
            synthesiser.close()
