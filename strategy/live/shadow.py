"""Shadow: the challenger is asked what the champion was asked, after the champion has answered."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from loop.contracts import (
    BatchedPolicy,
    Memo,
    Observation,
    Plan,
    Policy,
    PolicyFault,
    PolicyTimeout,
    ReplicaView,
    RequestView,
)
from strategy.live.arms import ServingArm, in_share
from strategy.live.config import LiveConfig

PlanCheck = Callable[[Plan, Observation], Sequence[str]]
"""Why a plan cannot be carried out, each in words; empty: it can."""


@dataclass(frozen=True, slots=True)
class ShadowCounts:
    """What came of asking a challenger."""

    asked: int = 0
    disagreed: int = 0
    late: int = 0
    faults: int = 0
    fault: str = ""
    """The first one, in words."""


@dataclass(slots=True)
class _Point:
    """What the champion was asked at a monitoring point, and what it answered."""

    obs: Observation
    replan: bool
    budget_s: float = 0.0
    plan: Plan | None = None


@dataclass(frozen=True, slots=True)
class _Dispatch:
    """What the champion was asked for one request, and the replica that it chose."""

    request: RequestView
    replicas: Sequence[ReplicaView]
    index: int


class ShadowRecorder(ServingArm):
    """The champion, which serves, and a note of a bounded sample of the questions that it was asked.

    Nobody else is asked here: a note is all that the champion's callers wait for.
    """

    def __init__(self, champion: Policy, salt: str, config: LiveConfig) -> None:
        super().__init__(champion)
        self._salt = salt
        self._share = config.shadow_share
        self._most = config.shadow_requests
        self._points: list[_Point] = []
        self._requests: list[_Dispatch] = []

    def should_replan(self, obs: Observation, memo: Memo) -> bool:
        """The champion's answer."""
        answer = super().should_replan(obs, memo)
        self._points = [_Point(obs, bool(answer))]
        return answer

    def plan(self, obs: Observation, budget_s: float, memo: Memo) -> Plan:
        """The champion's plan."""
        plan = super().plan(obs, budget_s, memo)
        if self._points and self._points[0].obs is obs:
            self._points[0].budget_s, self._points[0].plan = budget_s, plan
        return plan

    def route(self, request: RequestView, replicas: Sequence[ReplicaView], memo: Memo) -> int:
        """The champion's choice."""
        index = super().route(request, replicas, memo)
        self._note(request, replicas, index)
        return index

    def dispatch(
        self, request: RequestView, replicas: Sequence[ReplicaView], memo: Memo
    ) -> tuple[int, float]:
        """The champion's answer."""
        answer = super().dispatch(request, replicas, memo)
        self._note(request, replicas, answer[0])
        return answer

    def take(self) -> tuple[list[_Point], list[_Dispatch]]:
        """The sample since the last call, oldest first."""
        points, self._points = self._points, []
        requests, self._requests = self._requests, []
        return points, requests

    def _note(self, request: RequestView, replicas: Sequence[ReplicaView], index: int) -> None:
        if len(self._requests) < self._most and in_share(request.id, self._share, self._salt):
            self._requests.append(_Dispatch(request, replicas, index))


class Shadow:
    """A challenger with a memo of its own, asked off the path of the traffic.

    `ask` may run in a thread beside serving; it touches nothing that serves.
    """

    def __init__(
        self,
        challenger: Policy,
        check: PlanCheck,
        *,
        budget_s: float = 2.0,
        late_s: float | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`budget_s`: what `plan` is given where the champion was not asked for a plan."""
        self._policy = challenger
        self._batched = challenger if isinstance(challenger, BatchedPolicy) else None
        self._check = check
        self._budget_s = budget_s
        self._late_s = math.inf if late_s is None else late_s
        self._clock = clock
        self._memo = Memo()

    def ask(self, sample: tuple[Sequence[_Point], Sequence[_Dispatch]]) -> ShadowCounts:
        """What the challenger answers to these questions; ends at the first fault, which is enough."""
        asked = disagreed = late = 0
        points, requests = sample
        try:
            for point in points:
                asked += 1
                disagreed += not self._agrees_to_plan(point)
            for question in requests:
                asked += 1
                began = self._clock()
                index = self._route(question)
                late += self._clock() - began > self._late_s
                disagreed += index != question.index
        except PolicyTimeout as error:
            return ShadowCounts(asked, disagreed, late + 1, 0, str(error))
        except Exception as error:  # noqa: BLE001 - a policy is foreign code: anything may come out of it
            text = str(error) if isinstance(error, PolicyFault) else f"{type(error).__name__}: {error}"
            return ShadowCounts(asked, disagreed, late, 1, text[:300])
        return ShadowCounts(asked, disagreed, late)

    def _agrees_to_plan(self, point: _Point) -> bool:
        replan = self._policy.should_replan(point.obs, self._memo)
        if not isinstance(replan, bool):
            raise PolicyFault(f"should_replan returned {replan!r:.60}, not a bool")
        if not replan:
            return not point.replan
        plan = self._policy.plan(point.obs, point.budget_s or self._budget_s, self._memo)
        problems = self._check(plan, point.obs)
        if problems:
            raise PolicyFault(f"tick {point.obs.tick}: plan: {problems[0]}")
        return point.plan is not None and point.plan.replicas == plan.replicas

    def _route(self, question: _Dispatch) -> int:
        request, replicas = question.request, question.replicas
        if self._batched is not None:
            index, priority = self._batched.dispatch(request, replicas, self._memo)
        else:
            index = self._policy.route(request, replicas, self._memo)
            priority = 0.0
        if not (index.__class__ is int and 0 <= index < len(replicas)):
            raise PolicyFault(f"route returned {index!r:.60} for {len(replicas)} replicas")
        if self._batched is None:
            priority = self._policy.priority(request, replicas[index], self._memo)
        if priority != priority or priority == -math.inf:  # noqa: PLR0124  NaN
            raise PolicyFault(f"priority returned {priority}")
        return index
