"""Entry points for sandboxed workers, as loop.compose will provide one for scoring."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from loop.contracts import Memo, Policy, RequestView
from loop.guard import GuardedPolicy
from strategy.baselines import load_baseline
from strategy.evolve.worker.lockdown import locked
from strategy.evolve.worker.untrusted import load_untrusted
from tests.strategy.builders import observation, replica


def score(init_payload: bytes) -> Callable[[bytes], bytes]:
    """Calls a candidate's `priority` function on what was loaded before the lockdown."""
    assert locked() is None
    data = Path(init_payload.decode()).read_text(encoding="utf-8")

    def answer(payload: bytes) -> bytes:
        candidate = load_untrusted(payload.decode())
        value = candidate.priority(data, None, None)  # type: ignore[arg-type]
        return json.dumps({"value": value}).encode()

    return answer


def misbehave(init_payload: bytes) -> Callable[[bytes], bytes]:
    """Does as it is told."""

    def answer(payload: bytes) -> bytes:
        if payload == b"hang":
            while True:
                pass
        if payload == b"die":
            os._exit(7)
        if payload == b"raise":
            raise ValueError("told to")
        if payload.startswith(b"busy"):
            began = time.monotonic()
            while time.monotonic() < began + float(payload[4:]):
                pass
            return json.dumps([began, time.monotonic()]).encode()
        return init_payload + payload

    return answer


def broken(init_payload: bytes) -> Callable[[bytes], bytes]:
    """Cannot start."""
    raise FileNotFoundError(f"no data at {init_payload.decode()}")


SERVED_S = 1.0
"""What serving a request costs in the trial; a candidate may try to change it."""


def cost_s(index: int, priority: float) -> float:
    """What one decision costs in the trial."""
    return SERVED_S * (1 + index) + 1e-3 * priority


def trial(policy: Policy) -> dict[str, object]:
    """A tiny twin: three windows of requests, guarded as in the loop; the score and the faults."""
    guarded, memo, total = GuardedPolicy(policy, load_baseline("least_loaded")), Memo(), 0.0
    for tick in range(3):
        obs = replace(observation(), tick=tick)
        if guarded.should_replan(obs, memo):
            total += len(guarded.plan(obs, 1.0, memo).replicas)
        for number in range(5):
            request = RequestView(number, "tiny", 2.5, 3.0, 500, 100.0, 0, 0)
            index, priority = guarded.dispatch(request, [replica(i, waiting=i) for i in range(4)], memo)
            total += cost_s(index, priority)
    return {"score": total, "faults": guarded.faults.total}


def judge(init_payload: bytes) -> Callable[[bytes], bytes]:
    """Scores candidates as the loop does: the twin and the candidate in one process."""
    load_baseline("least_loaded")

    def answer(payload: bytes) -> bytes:
        return json.dumps(trial(load_untrusted(payload.decode("utf-8", "surrogatepass")))).encode()

    return answer


_PIDS = [os.getpid()]
os.register_at_fork(after_in_child=lambda: _PIDS.append(os.getpid()))


def whoami(init_payload: bytes) -> Callable[[bytes], bytes]:
    """Tells the process that answers, which cannot ask the kernel any more."""

    def answer(payload: bytes) -> bytes:
        assert locked() is not None
        return str(_PIDS[-1]).encode()

    return answer
