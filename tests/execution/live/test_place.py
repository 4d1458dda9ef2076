"""The trial in place, on drawn step times."""

import random

import pytest

from execution.compiler.port import Bucket
from execution.live.place import PlaceTrial
from execution.live.variants import Variant


def trial_of(gain: float, *, mixed: bool = False, steps: int = 600) -> tuple[PlaceTrial, Variant]:
    rng = random.Random(7)
    variant = Variant("tried", Bucket(1, 8), lambda: None)
    trial = PlaceTrial([variant], pairs=12, mixed=mixed)
    for number in range(steps):
        prompt = 32 if mixed and number % 3 else 0
        trial.begins(prompt)
        drift = 1 + 0.5 * (number / steps)  # the machine gets slower meanwhile
        taken_s = drift * rng.lognormvariate(0, 0.1) / (gain if variant.on else 1.0)
        trial.ended(4, taken_s, prompt_tokens=prompt)
        if trial.enough:
            break
    trial.end(on=True)
    return trial, variant


@pytest.mark.parametrize("mixed", [False, True])
def test_a_faster_variant_is_seen_through_noise_and_drift(mixed: bool) -> None:
    trial, variant = trial_of(1.4, mixed=mixed)
    (speed,) = trial.verdicts(threads=1, min_gain=1.1).values()
    assert speed.ok
    assert 1.2 < speed.ratio < 1.6
    assert variant.on


def test_a_slower_one_is_seen_too() -> None:
    (speed,) = trial_of(0.8)[0].verdicts(threads=1, min_gain=1.0).values()
    assert not speed.ok
    assert speed.ratio < 0.95


def test_too_few_steps_say_nothing() -> None:
    trial, _ = trial_of(2.0, steps=20)
    assert trial.verdicts(threads=1, min_gain=1.0) == {}
