"""What other regimes tell: only where both were seen, often enough, and clearly."""

import math

from execution.regimes.prior import Prior


def _prior(ratios: dict[str, list[float]]) -> Prior:
    prior = Prior()
    for name, costs in ratios.items():
        for regime, ratio in enumerate(costs):
            prior.learn(regime, name, math.log(ratio))
    return prior


def test_one_regime_proves_nothing() -> None:
    assert not _prior({"fast": [0.2], "slow": [5.0]}).hopeless("slow", ["fast"])


def test_clear_leads_in_two_regimes_do() -> None:
    prior = _prior({"fast": [0.4, 0.5], "slow": [1.0, 1.1]})
    assert prior.hopeless("slow", ["fast", "slow"])
    assert not prior.hopeless("fast", ["slow"])
    assert not prior.hopeless("slow", ["slow", "unknown"])


def test_what_changes_places_is_never_hopeless() -> None:
    assert not _prior({"one": [0.5, 2.0], "other": [1.0, 1.0]}).hopeless("one", ["other"])


def test_the_newest_figure_of_a_regime_counts() -> None:
    prior = _prior({"one": [2.0]})
    prior.learn(0, "one", math.log(0.5))
    prior.learn(1, "one", math.inf)
    assert prior.expected("one") == math.log(0.5)
    assert prior.expected("unknown") == 0.0
