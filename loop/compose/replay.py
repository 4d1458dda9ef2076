"""One policy over some windows of one world: what baselines, candidates and the evolving system all go
through.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from loop.compose.world import World, state_events
from loop.contracts import Observation, Policy, ReplayMode, RunResult, Slo, Window, WindowResult
from loop.controller import Controller, ControllerConfig, PolicySourcePort, cpu_seconds
from loop.journal import Journal
from loop.perception import Perception


@dataclass(frozen=True, slots=True)
class ReplayConfig:
    """How windows are replayed; the same for every system of an experiment."""

    controller: ControllerConfig
    slo: Slo
    window_s: float
    block_tokens: int

    @property
    def mode(self) -> ReplayMode:
        """Batch or online."""
        return self.controller.mode


@dataclass(frozen=True, slots=True)
class Start:
    """Where in another run a replay starts: what was seen at its first window, and at the one before."""

    obs: Observation
    previous: Observation | None


def replay(
    world: World,
    policy: Policy,
    fallback: Policy,
    windows: Sequence[Window],
    config: ReplayConfig,
    *,
    start: Start | None = None,
    journal: Journal | None = None,
    source: PolicySourcePort | None = None,
    on_window: Callable[[WindowResult], None] | None = None,
    solve_clock: Callable[[], float] = cpu_seconds,
) -> RunResult:
    """Serve `windows` in `world` by `policy`; `fallback` answers where it fails."""
    perception = Perception(
        tuple(world.models), world.options, slo=config.slo, mode=config.mode, window_s=config.window_s
    )
    twin = world.twin(perception, block_tokens=config.block_tokens)
    if start is not None:
        perception.prime(start.obs, start.previous)
    controller = Controller(
        twin,
        policy,
        fallback,
        perception,
        config.controller,
        journal=journal,
        source=source,
        solve_clock=solve_clock,
        start=start.obs if start is not None else None,
        initial_events=state_events(start.obs) if start is not None else (),
    )
    results: list[WindowResult] = []
    for result in controller.steps(windows):
        results.append(result)
        if on_window is not None:
            on_window(result)
    return controller.result(results)
