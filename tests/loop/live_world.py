"""A small real world to go live in: the twin on 32 H100, a policy that evolution wrote, in its sandbox."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack

from loop.compose.replay import replay
from loop.compose.scoring import Segment, past_segments
from loop.contracts import (
    Policy,
    PolicySource,
    ReplayMode,
    RequestRecord,
    RunResult,
    Window,
)
from loop.contracts.live import Counterfactual, LiveStorePort
from loop.controller import Controller
from loop.guard import GuardedPolicy, plan_problems
from loop.journal import Journal
from loop.perception import Perception
from loop.runner.evolution import BackgroundEvolution, StepRunner
from strategy.baselines import load_baseline
from strategy.evolve.sandbox import SandboxedPolicy, SandboxLimits
from strategy.evolve.synthesise.builtin import random_program
from strategy.live import Live, LiveConfig
from strategy.policy import digest_of
from tests.loop.test_controller import MODEL, config, world

BASELINE = load_baseline("least_loaded")
FIRST = BASELINE.as_source()


def evolved() -> PolicySource:
    """A program of the built-in synthesiser's."""
    return random_program(1)


def edited(name: str, function: str, body: str) -> PolicySource:
    """least_loaded with `body` put at the beginning of one of its functions."""
    text = BASELINE.source
    start = text.index(f"def {function}(")
    end = text.index('"""', text.index('"""', start) + 3) + 3
    changed = f"{text[:end]}\n    {body}{text[end:]}"
    return PolicySource(name, changed, digest_of(changed))


class World:
    """Loads policies into sandboxes, and serves windows under a live layer. A context manager."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self.loaded: list[SandboxedPolicy] = []

    def __enter__(self) -> World:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def load(self, source: PolicySource) -> Policy:
        policy = self._stack.enter_context(SandboxedPolicy(source, SandboxLimits().patient()))
        self.loaded.append(policy)
        return policy

    def live(self, how: LiveConfig, store: LiveStorePort | None = None, first: PolicySource = FIRST) -> Live:
        return Live(
            first,
            self.load,
            how,
            guard=GuardedPolicy,
            check=plan_problems,
            trusted={FIRST.digest: BASELINE},
            store=store,
        )

    def evolution(
        self,
        step: StepRunner,
        live: Live,
        *,
        judge: bool = False,
        journal: Journal | None = None,
    ) -> BackgroundEvolution:
        evolution: BackgroundEvolution

        def simulated(
            policies: Sequence[PolicySource], windows: Sequence[int]
        ) -> Mapping[str, Sequence[float]]:
            past = [p for p in evolution.past if p.window.index in windows]
            return {
                p.digest: [w.total_s for s in past_segments(past) for w in self._again(p, s).windows]
                for p in policies
            }

        asked: Counterfactual | None = simulated if judge else None
        evolution = BackgroundEvolution(
            FIRST, step, self.load, clock=lambda: 0.0, live=live, counterfactual=asked, journal=journal
        )
        self._stack.callback(evolution.close)
        return evolution

    def _again(self, source: PolicySource, segment: Segment) -> RunResult:
        """What a policy would have done with past windows, in another world of the same make."""
        policy = BASELINE if source.digest == FIRST.digest else None
        with ExitStack() as stack:
            mine = policy or stack.enter_context(SandboxedPolicy(source, SandboxLimits().patient()))
            return replay(
                world(),
                mine,
                BASELINE,
                segment.windows,
                config(),
                start=segment.start,
            )

    def serve(
        self,
        evolution: BackgroundEvolution,
        cut: Sequence[Window],
        mode: ReplayMode = ReplayMode.BATCH,
        journal: Journal | None = None,
    ) -> RunResult:
        settings = config(mode)
        perception = Perception(
            (MODEL,), world().options, slo=settings.slo, mode=mode, window_s=settings.window_s
        )

        def sink(record: RequestRecord) -> None:
            perception(record)
            evolution.finished(record)

        controller = Controller(
            world().twin(sink, block_tokens=settings.block_tokens),
            BASELINE,
            BASELINE,
            perception,
            settings.controller,
            journal=journal,
            source=evolution,
            solve_clock=lambda: 0.0,
        )
        run = controller.run(cut)
        evolution.close()
        return run
