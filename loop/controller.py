"""The controller: at each monitoring point perceive, decide, charge the decision's time, act, journal.

It knows ports only: any DataPlane, any Policy, any source of new policies. Everything that it does is a
function of these and of the windows, on the data plane's own clock.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from loop.contracts import (
    ClusterEvent,
    DataPlane,
    Memo,
    Observation,
    Plan,
    PlanError,
    PlaneSnapshot,
    Policy,
    PolicyFaults,
    ReplayMode,
    Request,
    Resources,
    RunResult,
    Window,
    WindowResult,
)
from loop.contracts.live import KillSwitch
from loop.guard import GuardConfig, GuardedPolicy, servable_models, served_models
from loop.journal import Decision, Journal
from loop.perception import Perception


@dataclass(frozen=True, slots=True)
class ControllerConfig:
    """How a run is driven. Times in seconds of the data plane's clock."""

    mode: ReplayMode = ReplayMode.BATCH
    budget_s: float = 2.0
    """What `plan` may take."""
    solve_quantum_s: float = 0.05
    """The time that `plan` took is charged in whole multiples of this, so that a replay on another machine
    charges the same."""
    stuck_after_s: float = 3600.0
    """A window that cannot be served is ended after so long, its unfinished requests are lost, and all this
    time is charged: giving up never pays."""
    warm_start: bool = True
    """The policy's first plan is deployed before the clock starts, as in a system that already runs."""
    guard: GuardConfig = field(default_factory=GuardConfig)
    real_time: bool = False
    """The plane's clock goes on while the policy thinks: the time that `plan` took shows there as it was, and is
    not let pass a second time."""


_MEMOS = 8
"""Memos kept of policies that serve no more, for when they come back."""


class PolicySourcePort(Protocol):
    """Where new policies come from. Asked at each monitoring point, must answer at once."""

    def next_policy(self, obs: Observation) -> Policy | None:
        """A policy to hand over to now; None: keep the one that serves."""

    def window_ended(self, window: Window, result: WindowResult, obs: Observation) -> None:
        """A window became past; `obs` is what was seen at its start, the plan that served then included."""


def cpu_seconds() -> float:
    """The default clock for solve time: CPU time of this thread; a remote policy adds its own."""
    return time.thread_time()


class Controller:
    """Drives one policy (or a source of them) over a data plane, window by window."""

    def __init__(
        self,
        plane: DataPlane,
        policy: Policy,
        fallback: Policy,
        perception: Perception,
        config: ControllerConfig,
        *,
        journal: Journal | None = None,
        source: PolicySourcePort | None = None,
        solve_clock: Callable[[], float] = cpu_seconds,
        start: Observation | None = None,
        initial_events: Sequence[ClusterEvent] = (),
    ) -> None:
        """Drive `policy` from nothing; or, in a replay that starts in the middle of another run, from what
        was seen there (`start`), after `initial_events` have brought the devices into that state.
        """
        self._plane = plane
        self._fallback = fallback
        self._perception = perception
        self._config = config
        self._journal = journal
        self._source = source
        self._solve_clock = solve_clock
        self._memo = Memo()
        self._memos: dict[str, Memo] = {}
        self._guarded = GuardedPolicy(policy, fallback, config.guard)
        self._faults_before = PolicyFaults()
        self._retired_faults = PolicyFaults()
        self._carried_faults = PolicyFaults()
        self._ticks_since_replan = start.ticks_since_replan if start else 0
        self._last_serving_s = start.last_serving_s if start else 0.0
        self._last_stall_s = start.last_reconfiguration_s if start else 0.0
        self._resources_offset = Resources()
        self._initial_plan = start.plan if start else None
        self._initial_events = initial_events
        self._started = False
        self._applied = False
        self._origin_s = 0.0
        plane.use(self._guarded, self._memo)

    def run(self, windows: Iterable[Window]) -> RunResult:
        """All windows; see `steps` for one at a time."""
        results = tuple(self.steps(windows))
        return self.result(results)

    def result(self, windows: Sequence[WindowResult]) -> RunResult:
        """Sum up a run whose windows have all been stepped through."""
        spent = _minus(self._plane.snapshot().resources, self._resources_offset)
        return RunResult(
            policy=windows[-1].policy if windows else self._guarded.digest,
            windows=tuple(windows),
            stats=self._perception.run.stats(),
            resources=spent,
            faults=_plus(self._retired_faults, self._guarded.faults),
        )

    def steps(self, windows: Iterable[Window]) -> Iterator[WindowResult]:
        """Run window after window, yielding each result. The next window is asked for when the one before it
        has passed: they may come without end, and end when somebody wants to.
        """
        ahead = iter(windows)
        window = next(ahead, None)
        while window is not None:
            result, window = self._step(window, ahead)
            yield result

    @property
    def origin_s(self) -> float:
        """The plane's time at which trace time was 0; known when the first window has begun."""
        return self._origin_s

    def _step(self, window: Window, ahead: Iterator[Window]) -> tuple[WindowResult, Window | None]:
        """One window, and the next one; None: it was the last."""
        batch = self._config.mode is ReplayMode.BATCH
        if not self._started:
            self._started = True
            self._deploy(window.index, window.requests if batch else ())
            self._origin_s = self._plane.now_s - window.start_s
        self._happen(window, batch=batch)
        requests = self._requests(window, batch=batch)
        before = self._plane.snapshot()
        obs = self._observe(window.index, before, requests if batch else ())
        self._hand_over(obs)
        decision = self._decide(obs)
        self._perception.arrived(requests)
        self._plane.submit(requests)
        exposed_solve_s = self._act(obs, decision, before)
        following = self._finish(window, ahead, batch=batch)
        result = self._close(window, before, decision, exposed_solve_s)
        if self._source is not None:
            self._source.window_ended(window, result, obs)
        return result, following

    def _deploy(self, tick: int, released: Sequence[Request]) -> None:
        """Bring up the first plan before anything is released, and set the meters to zero."""
        obs = self._observe(tick, self._plane.snapshot(), released)
        plan = self._initial_plan
        if plan is None and self._config.warm_start:
            plan = self._guarded.plan(obs, self._config.budget_s, self._memo)
        if plan is not None and plan.replicas:
            try:
                self._plane.apply(plan)
            except PlanError as error:
                self._guarded.refused(f"tick {tick}: plan: {error}")
                self._plane.apply(self._fallback.plan(obs, self._config.budget_s, Memo()))
            snapshot = self._plane.snapshot()
            while waits := [r.ready_in_s for r in snapshot.replicas if r.ready_in_s > 0]:
                self._plane.run_until(snapshot.now_s + max(waits) + 0.1)
                snapshot = self._plane.snapshot()
        for event in self._initial_events:
            self._plane.inject(replace(event, at_s=self._plane.now_s))
        self._plane.run_until(self._plane.now_s)
        self._resources_offset = self._plane.snapshot().resources

    def _happen(self, window: Window, *, batch: bool) -> None:
        """Let the window's dynamics happen: in batch replay at its start, online at their time."""
        for event in window.events:
            at_s = self._plane.now_s if batch else event.at_s + self._origin_s
            self._plane.inject(replace(event, at_s=at_s))
        self._plane.run_until(self._plane.now_s)  # what happens now is seen now

    def _requests(self, window: Window, *, batch: bool) -> list[Request]:
        """The window's requests on the plane's clock: all now in batch replay, else when they arrived."""
        if batch:
            now = self._plane.now_s
            return [r._replace(arrival_s=now) for r in window.requests]
        origin = self._origin_s
        return [r._replace(arrival_s=r.arrival_s + origin) for r in window.requests]

    def _observe(self, tick: int, snapshot: PlaneSnapshot, released: Sequence[Request]) -> Observation:
        return self._perception.observe(
            snapshot,
            tick=tick,
            released=released,
            last_serving_s=self._last_serving_s,
            last_reconfiguration_s=self._last_stall_s,
            ticks_since_replan=self._ticks_since_replan,
        )

    def _hand_over(self, obs: Observation) -> None:
        """Swap to the policy that evolution offers, if it does; in-flight requests are not moved."""
        policy = self._source.next_policy(obs) if self._source is not None else None
        if policy is not None:
            self._swap(policy)
            self._carried_faults = PolicyFaults()  # the new policy answers for this window alone

    def _swap(self, policy: Policy) -> None:
        """Let another policy decide. Memos are kept by digest: who comes back goes on where it stopped, and
        the same policy in another wrapping does not notice.
        """
        self._guarded.sync(self._memo)  # what it wrote since the last monitoring point
        faults = self._guarded.faults
        self._retired_faults = _plus(self._retired_faults, faults)
        self._carried_faults = _plus(self._carried_faults, _difference(faults, self._faults_before))
        self._faults_before = PolicyFaults()
        self._memos[self._guarded.digest] = self._memo
        self._memo = self._memos.pop(policy.digest, Memo())
        while len(self._memos) > _MEMOS:
            del self._memos[next(iter(self._memos))]
        self._guarded = GuardedPolicy(policy, self._fallback, self._config.guard)
        self._plane.use(self._guarded, self._memo)

    def _decide(self, obs: Observation) -> Decision:
        """Ask the policy, under the guard; a model without any replica forces a plan."""
        self._guarded.sync(self._memo)
        before, faults = dict(self._memo), self._guarded.faults.total
        forced = bool(servable_models(obs) - served_models(obs.plan))
        began_s = self._plane.now_s
        began = self._solve_clock() + self._guarded.solve_cpu_s
        replan = self._guarded.should_replan(obs, self._memo) or forced
        plan = self._guarded.plan(obs, self._config.budget_s, self._memo) if replan else obs.plan
        took = self._solve_clock() + self._guarded.solve_cpu_s - began
        quantum = self._config.solve_quantum_s
        charged = math.ceil(took / quantum) * quantum
        if self._config.real_time:
            charged = self._plane.now_s - began_s
        decision = Decision(
            tick=obs.tick,
            policy=self._guarded.digest,
            observation=obs,
            memo_before=before,
            memo_after=dict(self._memo),
            forced=forced,
            replanned=replan,
            plan=plan,
            solve_s=charged if replan else 0.0,
            by_fallback=self._guarded.faults.total > faults,
        )
        if self._journal is not None:
            self._journal.decided(decision)
        return decision

    def _act(self, obs: Observation, decision: Decision, before: PlaneSnapshot) -> float:
        """Let the old plan serve while the solver works, then change over. Returns the exposed solve time;
        `before` is the state at the monitoring point."""
        if not decision.replanned:
            self._ticks_since_replan += 1
            return 0.0
        if not self._config.real_time:
            before = self._plane.snapshot()
            self._plane.run_until(before.now_s + decision.solve_s)
        exposed = self._plane.snapshot().idle_pending_s - before.idle_pending_s
        self._ticks_since_replan += 1
        if not decision.plan.replicas or decision.plan.replicas == obs.plan.replicas:
            return exposed
        if self._apply(decision.plan, obs):
            self._ticks_since_replan = 0
            self._applied = True
        return exposed

    def _apply(self, plan: Plan, obs: Observation) -> bool:
        """Begin to carry out a plan; False: the data plane refuses, and what serves goes on."""
        try:
            self._plane.apply(plan)
        except PlanError as error:
            now = [(d.id, d.available) for d in self._plane.snapshot().devices]
            if now == [(d.id, d.available) for d in obs.devices]:
                self._guarded.refused(f"tick {obs.tick}: plan: {error}")
            return False  # else the world moved on while the solver worked: nobody's fault
        return True

    def _finish(self, window: Window, ahead: Iterator[Window], *, batch: bool) -> Window | None:
        """Serve until the window is over: all done in batch replay, its end in online replay, and after the last
        one all. Returns the next window."""
        if not batch:
            self._plane.run_until(max(self._plane.now_s, window.end_s + self._origin_s))
        following = next(ahead, None)
        last = following is None
        limit_s = self._plane.now_s + self._config.stuck_after_s
        while (batch or last) and not self._plane.run_until_idle(limit_s):
            if self._plane.now_s >= limit_s or not self._rescue(window.index):
                self._plane.run_until(limit_s)
                self._plane.close()
        return following

    def _rescue(self, tick: int) -> bool:
        """Work is left that no replica can serve: a model has lost its last one within the window. Ask for a
        plan at once; False: there is none that helps.
        """
        obs = self._observe(tick, self._plane.snapshot(), ())
        if not servable_models(obs) - served_models(obs.plan):
            return False
        if isinstance(self._source, KillSwitch) and (safe := self._source.urgent_policy(obs)) is not None:
            self._swap(safe)
        plan = self._guarded.plan(obs, self._config.budget_s, self._memo)
        return plan.replicas != obs.plan.replicas and self._apply(plan, obs)

    def _close(
        self, window: Window, before: PlaneSnapshot, decision: Decision, solve_s: float
    ) -> WindowResult:
        after = self._plane.snapshot()
        total = after.now_s - before.now_s
        stall = after.reconfiguration_stall_s - before.reconfiguration_stall_s
        faults = self._guarded.faults
        result = WindowResult(
            index=window.index,
            total_s=total,
            serving_s=total - stall - solve_s,
            solve_s=solve_s,
            reconfiguration_s=stall,
            solve_charged_s=decision.solve_s,
            replanned=decision.replanned,
            policy=decision.policy,
            plan=decision.plan,
            stats=self._perception.window.stats(),
            resources=_minus(after.resources, before.resources),
            faults=_plus(self._carried_faults, _difference(faults, self._faults_before)),
        )
        self._faults_before, self._carried_faults = faults, PolicyFaults()
        self._last_serving_s = result.serving_s
        if self._applied:
            self._last_stall_s = stall
            self._applied = False
        self._perception.end_window(total)
        if self._journal is not None:
            self._journal.ended(decision.tick, result)
        return result


def _minus(a: Resources, b: Resources) -> Resources:
    return Resources(a.device_s - b.device_s, a.joules - b.joules, a.usd - b.usd)


def _plus(a: PolicyFaults, b: PolicyFaults) -> PolicyFaults:
    return PolicyFaults(
        a.errors + b.errors, a.timeouts + b.timeouts, a.infeasible + b.infeasible, (*a.examples, *b.examples)
    )


def _difference(a: PolicyFaults, b: PolicyFaults) -> PolicyFaults:
    fresh = tuple(e for e in a.examples if e not in b.examples)
    return PolicyFaults(a.errors - b.errors, a.timeouts - b.timeouts, a.infeasible - b.infeasible, fresh)
