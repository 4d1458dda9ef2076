"""Variants timed before the first call: each as often as it would be tried, in turns, on a recorded input.

What is learned counts like calls, but for the budget of trials: nobody waited for these.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from execution.regimes.builder import Tolerance
from execution.regimes.recipe import Run
from execution.regimes.supply import Place


def rehearse(
    place: Place,
    runs: Mapping[str, Run],
    inputs: Sequence[Tensor],
    tolerance: Tolerance,
    clock: Callable[[], float],
) -> dict[str, str]:
    """Teach the place's state what each of the runs takes; which of them failed, and how.

    The first turn is compared with the place's reference and warms up; so does the second where a name never ran here.
    """
    assert place.reference is not None  # noqa: S101 whoever makes the place computes it
    state, faults = place.state, dict[str, str]()
    for turn in range(state.policy.trials + 2):
        for name, run in runs.items():
            if name in faults or name not in state.estimates:
                continue
            started_s = clock()
            try:
                answer = tuple(run(*inputs))
            except Exception as error:  # noqa: BLE001 whatever it raises is the reason
                told = str(error).strip().splitlines() or [""]
                faults[name] = f"raised {type(error).__name__} at the start: {told[0][:160]}"
                continue
            took_s = clock() - started_s
            worst = tolerance.worst(answer, place.reference) if not turn else 0.0
            if worst > 1:
                faults[name] = f"wrong at the start: {worst:.3g} times the tolerance"
            elif turn:
                state.learn(name, took_s)
    state.choose()
    state.calls, state.spent_s, state.regret_s = 0, 0.0, 0.0
    return faults
