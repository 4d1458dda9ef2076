from __future__ import annotations

import numpy as np
import pytest

from execution.workload import (
    Family,
    LognormalLengths,
    WorkloadError,
    describe,
    gamma,
    generate,
    open_workload,
    poisson,
    profiles,
    sessions,
)
from execution.workload import generators as module
from execution.workload.fit import statistics
from tests.examples import some_slow
from tests.execution.workload.strategies import well_formed

FITTED = profiles.names()
EXPECTED = [
    "azure-code",
    "azure-conv",
    "long-context",
    "mooncake-conversation",
    "servegen-m-large",
    "servegen-m-small",
]


def test_all_generators_are_packaged_with_provenance() -> None:
    assert FITTED == EXPECTED
    for name in FITTED:
        fitted = profiles.packaged(name)
        assert fitted.generator == name
        assert fitted.provenance["source"]
        assert fitted.provenance["files"]


@pytest.mark.parametrize(
    "name",
    some_slow([*EXPECTED, "poisson", "gamma"], *(n for n in EXPECTED if n != "servegen-m-small"), "gamma"),
)
def test_generated_workloads_are_well_formed_named_and_repeatable(name: str) -> None:
    made = [open_workload(n, model="m", duration_s=30.0, seed=4) for n in (name, f"generated:{name}")]
    well_formed(made[0])
    assert made[0] == made[1]
    assert made[0].generated
    assert made[0].source == f"generated:{name}"
    assert all(r.arrival_s < 30.0 for r in made[0].requests)
    assert generate(name, model="m", duration_s=30.0, seed=5).requests != made[0].requests


# rate_scale keeps the large ServeGen streams quick; their rates are compared scaled.
@pytest.mark.parametrize(
    ("name", "rate_scale"),
    [
        ("azure-code", 1.0),
        pytest.param("azure-conv", 1.0, marks=pytest.mark.slow),
        ("long-context", 1.0),
        pytest.param("mooncake-conversation", 1.0, marks=pytest.mark.slow),
        pytest.param("servegen-m-large", 0.15, marks=pytest.mark.slow),
        ("servegen-m-small", 0.02),
    ],
)
def test_generated_requests_have_the_statistics_of_the_data(name: str, rate_scale: float) -> None:
    fitted = profiles.packaged(name)
    made = [statistics(generate(name, model="m", seed=s, rate_scale=rate_scale)) for s in range(3)]
    mean = {key: float(np.mean([figures[key] for figures in made])) for key in made[0]}
    data = fitted.statistics
    # Three runs of n bursty arrivals miss the rate by about cv / sqrt(3 n).
    noise = 3 * data["cv"] / np.sqrt(3 * data["count"] * rate_scale)
    assert mean["rate_per_s"] == pytest.approx(rate_scale * data["rate_per_s"], rel=0.03 + noise)
    for key in ("input_mean", "input_p50", "input_p90", "output_mean", "output_p50", "output_p90"):
        assert mean[key] == pytest.approx(data[key], rel=0.1, abs=1.5), key
    for key in ("input_p99", "output_p99"):
        assert mean[key] == pytest.approx(data[key], rel=0.25), key
    assert mean["prefix_sharing"] == pytest.approx(data["prefix_sharing"], abs=0.04)
    assert mean["rank_correlation"] == pytest.approx(data["rank_correlation"], abs=0.12)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["azure-code", "azure-conv"])
def test_generated_arrivals_are_as_bursty_as_the_data(name: str) -> None:
    numbers = describe(generate(name, model="m"))
    assert numbers.cv == pytest.approx(profiles.packaged(name).statistics["cv"], rel=0.08)


def test_conversations_share_their_prefix_and_grow() -> None:
    requests = generate("mooncake-conversation", model="m", duration_s=900.0).requests
    assert {r.block_hashes[0] for r in requests} == {0}  # the common system prompt
    seen: dict[int, int] = {}
    continued = grown = 0
    for request in requests:
        parent = seen.get(request.block_hashes[1]) if len(request.block_hashes) > 1 else None
        if parent is not None:
            continued += 1
            grown += request.input_tokens > parent
        seen.update(dict.fromkeys(request.block_hashes[1:], request.input_tokens))
    assert continued > 0.2 * len(requests)
    assert grown > 0.6 * continued


def test_a_prompt_without_a_block_of_its_own_is_not_continued() -> None:
    """Its next turn would share only what all share: nothing would tell it from a first turn."""
    stream = profiles.packaged("mooncake-conversation").streams[0]
    assert stream.sessions is not None
    always = stream.sessions.model_copy(update={"continues": (1.0,)})
    for tokens, continued in ((900, False), (1100, True)):
        short = stream.model_copy(update={"input_tokens": (tokens,) * 106, "sessions": always})
        made = sessions.generate(
            np.random.default_rng(0),
            short,
            [0.0] * 20,
            model="m",
            block_tokens=512,
            end_s=500.0,
            longest_tokens=10**6,
        )
        assert (len(made) > 20) is continued


@pytest.mark.slow
def test_poisson_and_gamma_do_what_their_names_say() -> None:
    short = LognormalLengths(50, 200)
    calm = describe(poisson(20.0, 500.0, model="m", input_tokens=short))
    assert (calm.rate_per_s, calm.cv) == pytest.approx((20.0, 1.0), rel=0.05)
    assert calm.input_tokens.p50 == pytest.approx(50, rel=0.05)
    wild = describe(gamma(20.0, 2000.0, model="m", cv=3.0, family=Family.WEIBULL))
    assert wild.cv == pytest.approx(3.0, rel=0.1)


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ({"duration_s": 0.0}, "cannot generate 0 s"),
        ({"duration_s": float("inf")}, "cannot generate inf s"),
        ({"rate_scale": -1.0}, "rate -1"),
        ({"start_s": float("nan")}, "from nan s"),
        ({"rate_scale": 1e9}, "the limit is"),
        ({"rate_scale": 1e-9}, "no request falls into the interval"),
    ],
)
def test_impossible_requests_are_refused(arguments: dict[str, float], what: str) -> None:
    with pytest.raises(WorkloadError, match=what):
        generate("azure-conv", model="m", **arguments)


def test_unknown_names_and_broken_parameters_are_refused() -> None:
    with pytest.raises(WorkloadError, match="no generator 'x'; known: azure-code"):
        generate("x", model="m")
    with pytest.raises(WorkloadError, match="no generator"):
        profiles.packaged("../secret")
    with pytest.raises(WorkloadError, match="CV 1000"):
        gamma(1.0, 10.0, model="m", cv=1000.0)
    with pytest.raises(WorkloadError, match=r"f.json: generator: Field required"):
        profiles.parse('{"format": 1}', "f.json")
    text = profiles.packaged("azure-code").model_copy(update={"format": 9}).model_dump_json()
    with pytest.raises(WorkloadError, match="format 9"):
        profiles.parse(text, "f.json")
    assert module.names()[0] == "azure-code"
