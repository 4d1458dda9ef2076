"""The order of an engine's queue, by a policy that runs in a process of its own.

At each step of the engine the scheduler shows the queue; `QueueOrder.arrange` says who comes next and who is not
admitted. Whoever is new is asked about at once, the others when a seat is free, within a budget of time. A request
for which there is no usable answer keeps the place that first come, first served would give it, so no fault can
starve it. Policies are loaded and swapped from another thread: the engine goes on meanwhile.
"""

from __future__ import annotations

import hashlib
import importlib
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from loop.contracts import (
    Memo,
    PolicyCrashed,
    PolicyError,
    PolicyFault,
    PolicyFaults,
    PolicySource,
    PolicyTimeout,
    ReplicaView,
    RequestView,
)

_EXAMPLES = 5
_BATCH = 256
"""Requests in one crossing, for a runner that takes many."""


class Runner(Protocol):
    """A loaded policy: the part of the Policy port that a queue needs. Raises PolicyFault."""

    def priority(self, request: RequestView, replica: ReplicaView, memo: Memo) -> float:
        """Lower first; REJECT refuses."""

    def close(self) -> None:
        """End its process."""


@runtime_checkable
class BatchRunner(Protocol):
    """A runner that crosses to its process once for many requests."""

    def priorities(
        self, requests: Sequence[RequestView], replica: ReplicaView, memo: Memo
    ) -> Sequence[float]:
        """One for each request."""


Load = Callable[[PolicySource], Runner]
"""Start a policy; raises PolicyFault when it cannot serve."""


class Waiting(Protocol):
    """A request in the queue."""

    @property
    def key(self) -> str:
        """Its id."""

    @property
    def given(self) -> float:
        """The priority that came with it; what counts without a policy."""

    @property
    def begun(self) -> bool:
        """It has given tokens already: it is never refused."""

    def view(self, now_s: float) -> RequestView:
        """As a policy sees it."""


@dataclass(slots=True)
class _Counts:
    asked: int = 0
    steps: int = 0
    asking_s: float = 0.0
    rejected: int = 0
    swaps: int = 0
    reverted: int = 0
    errors: int = 0
    timeouts: int = 0
    infeasible: int = 0
    examples: deque[str] = field(default_factory=lambda: deque(maxlen=_EXAMPLES))


@dataclass(slots=True)
class _Loaded:
    source: PolicySource
    runner: Runner
    memo: Memo = field(default_factory=Memo)
    answers: dict[str, float] = field(default_factory=dict)
    """Last answer for each request that waits, oldest first."""
    faulty_steps: int = 0


class QueueOrder:
    """Who comes next. `arrange` belongs to the engine's thread, all else to any."""

    def __init__(
        self,
        load: Load,
        *,
        budget_s: float = 0.002,
        max_faulty_steps: int = 8,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._load = load
        self._budget_s = budget_s
        self._max_faulty_steps = max_faulty_steps
        self._clock = clock
        self._wall = wall
        self._now: _Loaded | None = None
        self._before: PolicySource | None = None
        self._counts = _Counts()
        self._lock = threading.Lock()
        self._loader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="policy-loader")
        self._closed = False

    # -- policies ----------------------------------------------------------------------------------------

    @property
    def policy(self) -> PolicySource | None:
        """What orders the queue; None: first come, first served, by the priorities given with the requests."""
        loaded = self._now
        return loaded.source if loaded else None

    @property
    def faults(self) -> PolicyFaults:
        """Answers that were late, wrong or absent."""
        counts = self._counts
        return PolicyFaults(counts.errors, counts.timeouts, counts.infeasible, tuple(counts.examples))

    def swap(self, source: PolicySource | None, example: ReplicaView) -> Future[PolicySource | None]:
        """Order by this policy as soon as it has shown that it can answer; None: by none.

        The future has what orders the queue then, or the PolicyFault for which the policy was refused; the one
        before stays in that case.
        """
        return self._loader.submit(self._swap, source, example)

    def close(self) -> None:
        """End the policy's process; idempotent."""
        self._closed = True
        self._loader.shutdown(wait=True, cancel_futures=True)
        with self._lock:
            gone, self._now = self._now, None
        if gone:
            gone.runner.close()

    def report(self) -> dict[str, Any]:
        """The state in plain values."""
        policy, faults, counts = self.policy, self.faults, self._counts
        return {
            "policy": {"name": policy.name, "digest": policy.digest} if policy else None,
            "before": self._before.name if self._before else None,
            "swaps": counts.swaps,
            "reverted": counts.reverted,
            "asked": counts.asked,
            "asking_s": counts.asking_s,
            "asking_steps": counts.steps,
            "rejected": counts.rejected,
            "faults": {
                "errors": faults.errors,
                "timeouts": faults.timeouts,
                "infeasible": faults.infeasible,
                "examples": list(faults.examples),
            },
        }

    def _swap(self, source: PolicySource | None, example: ReplicaView) -> PolicySource | None:
        fresh = self._loaded(source, example) if source else None
        with self._lock:
            gone, self._now = self._now, fresh
            self._before = gone.source if gone else None
            self._counts.swaps += 1
        if gone:
            gone.runner.close()
        return source

    def _loaded(self, source: PolicySource, example: ReplicaView) -> _Loaded:
        runner = self._load(source)
        try:
            for request in _examples(example, self._wall()):
                checked(runner.priority(request, example, Memo()))
        except BaseException:
            runner.close()
            raise
        return _Loaded(source, runner)

    def _revert(self, loaded: _Loaded, example: ReplicaView) -> None:
        """The policy fails step after step: the one before takes over, or none."""
        with self._lock:
            if self._now is not loaded:
                return  # somebody swapped it meanwhile
            self._now = None
            before, self._before = self._before, None
            self._counts.reverted += 1
        loaded.runner.close()
        if before is None:
            return
        try:
            fresh = self._loaded(before, example)
        except PolicyFault as fault:
            self._note(fault)
            return
        with self._lock:
            if self._now is None and not self._closed:
                self._now = fresh
                return
        fresh.runner.close()

    # -- the queue ---------------------------------------------------------------------------------------

    def arrange(
        self, queue: Sequence[Waiting], replica: ReplicaView, *, seats: bool
    ) -> tuple[list[int], list[int]]:
        """(indices in the order to serve, indices not admitted). `queue` is in order of arrival; without free
        `seats` only those are asked about that were not yet."""
        arrival = sorted(range(len(queue)), key=lambda i: queue[i].given)
        with self._lock:
            loaded = self._now
            if loaded is None:
                return arrival, []
            answers = self._answers(loaded, queue, replica, seats=seats)
        order: list[int] = []
        rejected: list[int] = []
        ranked = [i for i in arrival if queue[i].key in answers]
        ranked.sort(key=lambda i: answers[queue[i].key])
        by_answer = iter(ranked)
        for i in arrival:  # who has no answer keeps the place of first come, first served
            j = next(by_answer) if queue[i].key in answers else i
            refused = answers.get(queue[j].key) == math.inf and not queue[j].begun
            (rejected if refused else order).append(j)
        self._counts.rejected += len(rejected)
        for j in rejected:
            answers.pop(queue[j].key, None)
        return order, rejected

    def _answers(
        self, loaded: _Loaded, queue: Sequence[Waiting], replica: ReplicaView, *, seats: bool
    ) -> dict[str, float]:
        known = loaded.answers
        by_key = {request.key: request for request in queue}
        if len(known) > 2 * len(queue) + 16:
            for key in [key for key in known if key not in by_key]:
                del known[key]
        ask = [key for key in by_key if key not in known]
        if seats:  # those asked longest ago first
            ask += [key for key in known if key in by_key]
        if ask:
            self._ask(loaded, [by_key[key] for key in ask], replica)
        return known

    def _ask(self, loaded: _Loaded, requests: Sequence[Waiting], replica: ReplicaView) -> None:
        began, now_s, faulty = self._clock(), self._wall(), False
        size = _BATCH if isinstance(loaded.runner, BatchRunner) else 1
        counts = self._counts
        for at in range(0, len(requests), size):
            chunk = requests[at : at + size]
            try:
                faulty |= self._ask_chunk(loaded, chunk, replica, now_s)
            except PolicyFault as fault:
                faulty = True
                self._note(fault)
                for request in chunk:
                    loaded.answers.pop(request.key, None)
                if isinstance(fault, PolicyTimeout | PolicyCrashed):
                    break
            if self._clock() - began > self._budget_s:
                break
        counts.steps += 1
        counts.asking_s += self._clock() - began
        loaded.faulty_steps = loaded.faulty_steps + 1 if faulty else 0
        if loaded.faulty_steps == self._max_faulty_steps and not self._closed:
            self._loader.submit(self._revert, loaded, replica)

    def _ask_chunk(
        self, loaded: _Loaded, chunk: Sequence[Waiting], replica: ReplicaView, now_s: float
    ) -> bool:
        """Whether the policy raised on one of a batch, for which it then says NaN."""
        faulty = False
        views = [request.view(now_s) for request in chunk]
        self._counts.asked += len(chunk)
        if isinstance(loaded.runner, BatchRunner):
            given = loaded.runner.priorities(views, replica, loaded.memo)
            if len(given) != len(views):
                raise PolicyError(f"{len(given)} priorities for {len(views)} requests")
        else:
            given = [loaded.runner.priority(view, replica, loaded.memo) for view in views]
        for request, answer in zip(chunk, given, strict=True):
            loaded.answers.pop(request.key, None)  # to the end: asked last
            if isinstance(loaded.runner, BatchRunner) and math.isnan(answer):
                faulty = True
                self._note(PolicyError("priority raised, or answered NaN"))
                continue
            try:
                loaded.answers[request.key] = checked(answer)
            except PolicyError as fault:
                self._counts.infeasible += 1
                self._counts.examples.append(str(fault)[:200])
        return faulty

    def _note(self, fault: PolicyFault) -> None:
        if isinstance(fault, PolicyTimeout):
            self._counts.timeouts += 1
        else:
            self._counts.errors += 1
        self._counts.examples.append(str(fault)[:200])


def checked(answer: object) -> float:
    """A priority that can be sorted by. Raises PolicyError."""
    if isinstance(answer, bool) or not isinstance(answer, int | float):
        raise PolicyError(f"priority answered {answer!r:.60}, not a number")
    if math.isnan(answer) or answer == -math.inf:
        raise PolicyError(f"priority answered {answer}")
    return float(answer)


def policy_source(name: str, source: str) -> PolicySource:
    """A policy as a value, named after its digest where it has no name."""
    digest = hashlib.sha256(source.encode()).hexdigest()[:12]
    return PolicySource(name or digest, source, digest)


def sandboxed(module: str, ask_s: float) -> Load:
    """Load policies by SandboxedPolicy and SandboxLimits of this module; `ask_s` bounds one crossing.

    Raises:
        ModuleNotFoundError, AttributeError: the module does not offer them.
    """
    found: Any = importlib.import_module(module)
    make, limits = found.SandboxedPolicy, found.SandboxLimits(route_s=ask_s)

    def load(source: PolicySource) -> Runner:
        runner: Runner = make(source, limits)
        return runner

    return load


def _examples(replica: ReplicaView, now_s: float) -> list[RequestView]:
    """Requests to try a policy on."""
    return [
        RequestView(
            id=i, model=replica.model, arrival_s=now_s - waited_s, now_s=now_s, input_tokens=tokens,
            predicted_output_tokens=64.0, tier=i, retries=0,
        )
        for i, (waited_s, tokens) in enumerate(((0.0, 1), (3.0, 512)))
    ]  # fmt: skip
