"""The pieces that need no endpoint: configuration, retry rules, breaker, budget, bandit."""

from __future__ import annotations

import dataclasses
import random
import subprocess
import sys
from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategy.evolve.synthesise.llm import LlmConfig, LlmConfigError, LlmModel
from strategy.evolve.synthesise.llm.bandit import ModelBandit, reward_of
from strategy.evolve.synthesise.llm.budget import Ledger, TokenEstimator
from strategy.evolve.synthesise.llm.retry import Breaker, backoff_s, retry_after_s

MODEL = LlmModel("m")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"base_url": "localhost:8000"}, "base_url must be an http"),
        ({"base_url": "http://localhost:port/v1"}, "base_url must be an http"),
        ({"base_url": "http://me:hush-hush@localhost/v1"}, "must not hold a user name"),
        ({"models": ()}, "name at least one"),
        ({"models": (MODEL, MODEL)}, "m is named twice"),
        ({"api_key": "hush hush"}, "api_key holds"),
        ({"api_key": "hush\nhush"}, "api_key holds"),
        ({"in_flight": 0}, "in_flight must be at least 1, not 0"),
        ({"timeout_s": 0.0}, "timeout_s"),
        ({"timeout_s": float("nan")}, "timeout_s"),
        ({"token_budget": -1}, "token_budget"),
        ({"diff_share": 1.1}, "diff_share"),
        ({"temperature": 3.0}, "temperature"),
        ({"usd_budget": 1.0}, "needs the models' prices"),
    ],
)
def test_a_configuration_that_cannot_work_says_why(change: dict[str, object], message: str) -> None:
    fields: dict[str, object] = {"base_url": "http://localhost:8000/v1", "models": (MODEL,), **change}
    with pytest.raises(LlmConfigError, match=message) as caught:
        LlmConfig(**fields)  # type: ignore[arg-type]
    assert "hush" not in str(caught.value)


def test_the_key_is_trimmed_and_not_shown() -> None:
    config = LlmConfig("http://h/v1", (MODEL,), api_key="sk-hush\n")
    assert config.api_key == "sk-hush"
    assert "hush" not in repr(config)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.in_flight = 2  # type: ignore[misc]
    for bad in ({"name": " "}, {"name": "m", "usd_per_million_input": -1.0}):
        with pytest.raises(LlmConfigError):
            LlmModel(**bad)  # type: ignore[arg-type]


@pytest.mark.slow
def test_openai_is_imported_late_and_one_error_names_the_extra() -> None:
    program = """
import sys, types
from strategy.evolve.synthesise.llm import LlmConfig, LlmConfigError, LlmModel, LlmSynthesiser
print("openai" in sys.modules)
old = types.ModuleType("openai")
old.__version__ = "1.99.0"
for module in (None, old):
    sys.modules["openai"] = module
    try:
        LlmSynthesiser(LlmConfig("http://h/v1", (LlmModel("m"),)))
    except LlmConfigError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    way_out = "install it with: pip install 'autopoiesis[llm]'"
    assert done.stdout.splitlines() == [
        "False",
        f"the llm synthesiser needs the openai package; {way_out}",
        f"openai 1.99.0 is too old: 2 or later is needed; {way_out}",
    ]
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, None),
        ({"retry-after": "3"}, 3.0),
        ({"retry-after": " 0.5 "}, 0.5),
        ({"retry-after": "-3"}, 0.0),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "1e99"}, 1e6),
        ({"retry-after": formatdate(1_000_090, usegmt=True)}, 90.0),
        ({"retry-after": formatdate(999_000, usegmt=True)}, 0.0),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after-ms": "x", "retry-after": "9"}, 9.0),
    ],
)
def test_retry_after(headers: dict[str, str], expected: float | None) -> None:
    assert retry_after_s(headers, now_s=1_000_000) == expected


@given(st.integers(0, 10_000), st.integers(0, 99))
def test_backoff_doubles_up_to_its_cap(attempt: int, seed: int) -> None:
    pause_s = backoff_s(attempt, 1.0, 60.0, random.Random(seed))
    assert min(60.0, 0.5 * 2.0 ** min(attempt, 32)) <= pause_s <= min(60.0, 1.5 * 2.0 ** min(attempt, 32))


def test_the_breaker_opens_probes_and_closes() -> None:
    now = 0.0
    breaker = Breaker(2, 10.0, 30.0, lambda: now)
    breaker.failure()
    assert (breaker.is_open, breaker.opens_in_s) == (False, 0.0)
    breaker.failure()
    assert (breaker.is_open, breaker.opens_in_s) == (True, 10.0)
    breaker.failure()  # one that was under way
    assert breaker.opens_in_s == 10.0
    for pause_s in (20.0, 30.0, 30.0):
        now += breaker.opens_in_s
        assert (breaker.is_open, breaker.opens_in_s) == (True, 0.0)
        breaker.failure()
        assert breaker.opens_in_s == pause_s
    breaker.success()
    assert not breaker.is_open
    breaker.failure()
    breaker.failure()
    assert breaker.opens_in_s == 10.0


@given(
    st.lists(
        st.tuples(st.integers(1, 500), st.integers(1, 500), st.floats(0, 1), st.booleans()), max_size=60
    ),
    st.integers(0, 5000),
)
def test_the_ledger_never_overshoots(requests: list[tuple[int, int, float, bool]], budget: int) -> None:
    model = LlmModel("m", 1.0, 3.0)
    ledger = Ledger(budget, model.usd(budget, budget))
    open_ones = []
    for prompt, completion, share, settle_first in requests:
        if settle_first and open_ones:
            reservation, used = open_ones.pop(0)
            ledger.settle(reservation, reservation.prompt_tokens, used, failed=False)
        reservation = ledger.reserve(model, prompt, completion)
        if reservation is not None:
            open_ones.append((reservation, int(share * completion)))
    for reservation, used in open_ones:
        ledger.settle(reservation, reservation.prompt_tokens, used, failed=True)
    spent = ledger.cost.prompt_tokens + ledger.cost.completion_tokens
    assert spent <= budget
    assert ledger.cost.usd == pytest.approx(
        model.usd(ledger.cost.prompt_tokens, ledger.cost.completion_tokens)
    )
    assert ledger.reserve(model, budget - spent + 1, 0) is None
    if spent < budget:
        assert ledger.reserve(model, 0, (budget - spent) // 3 or 1) is not None


def test_the_estimate_follows_the_endpoint_up_at_once_and_down_slowly() -> None:
    estimator, text = TokenEstimator(), "x" * 10_000
    first = estimator.tokens(text)
    estimator.learn(text, 6000)
    assert estimator.tokens(text) > 6000
    estimator.learn(text, 2000)
    assert 2000 < estimator.tokens(text) < 6000
    for _ in range(40):
        estimator.learn(text, 2500)
    assert 2500 <= estimator.tokens(text) < first
    estimator.learn("short", 10**9)
    assert estimator.tokens(text) < first


def choices(bandit: ModelBandit, n: int = 400) -> dict[str, int]:
    rng = random.Random(5)
    drawn = [bandit.choose(rng, {"a", "b"}) for _ in range(n)]
    return {name: drawn.count(name) for name in ("a", "b")}


def test_the_bandit_prefers_gain_for_its_cost_and_never_gives_up_on_a_model() -> None:
    models = (LlmModel("a", 1.0, 4.0), LlmModel("b", 1.0, 4.0))
    bandit = ModelBandit(models, (5000, 1000))
    assert min(choices(bandit).values()) > 140
    for _ in range(20):
        bandit.reward("a", reward_of(0.9))
        bandit.reward("b", reward_of(1.2))
    assert choices(bandit)["a"] > 380
    for _ in range(300):
        bandit.reward("a", 0.0)
    assert choices(bandit)["b"] > 40
    dear = ModelBandit((LlmModel("a", 1.0, 4.0), LlmModel("b", 20.0, 80.0)), (5000, 1000))
    assert choices(dear)["a"] > 320
    long = ModelBandit((LlmModel("a"), LlmModel("b")), (5000, 1000))
    for _ in range(20):
        long.charge("a", 5000, 500)
        long.charge("b", 5000, 40_000)
    assert choices(long)["a"] > 320
    assert bandit.choose(random.Random(1), {"b"}) == "b"


def test_rewards() -> None:
    assert [reward_of(r) for r in (None, float("nan"), 1.0, 2.0, 0.99, 0.5)] == [
        0,
        0,
        0,
        0,
        pytest.approx(0.6),
        1,
    ]
