"""Sampling: the distribution, the truncations, and that only (seed, position) matter."""

import math

import pytest

pytest.importorskip("torch", reason="needs the extra torch: pip install 'autopoiesis[torch]'")

import torch
from hypothesis import given
from hypothesis import strategies as st

from execution.engines.torch.sampler import Wish, logprobs, sample, uniform
from loop.contracts.engine import SamplingParams


def logits_of(seed: int, rows: int, vocabulary: int = 50) -> torch.Tensor:
    return torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed))


@pytest.mark.slow
def test_frequencies_follow_the_probabilities() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0, -torch.inf]])
    count = 5_000
    sampling = SamplingParams(temperature=0.5)
    tokens = sample(logits.expand(count, -1), [Wish(sampling, 1, i) for i in range(count)])
    expected = torch.softmax(logits[0].double() / 0.5, 0)
    for token, probability in enumerate(expected.tolist()):
        spread = 5 * math.sqrt(probability * (1 - probability) / count)
        assert abs(tokens.count(token) / count - probability) <= spread


@given(seed=st.integers(0, 2**64), top_k=st.integers(1, 60), position=st.integers(0, 1000))
def test_top_k_are_the_likeliest(seed: int, top_k: int, position: int) -> None:
    logits = logits_of(3, 1)
    [token] = sample(logits, [Wish(SamplingParams(temperature=3.0, top_k=top_k), seed, position)])
    assert token in logits[0].topk(min(top_k, 50)).indices.tolist()


@given(seed=st.integers(0, 2**64), top_p=st.floats(0.01, 1.0))
def test_top_p_is_the_smallest_set_that_holds_it(seed: int, top_p: float) -> None:
    logits = logits_of(4, 1)
    [token] = sample(logits, [Wish(SamplingParams(temperature=1.0, top_p=top_p), seed, 0)])
    weights, ids = torch.softmax(logits[0].double(), 0).sort(descending=True)
    before = weights.cumsum(0) - weights
    assert token in ids[before < top_p + 1e-9].tolist()


@given(
    seed=st.integers(),
    position=st.integers(0, 10_000),
    others=st.integers(0, 5),
    top_k=st.sampled_from([0, 5]),
)
def test_the_rest_of_the_batch_has_no_part(seed: int, position: int, others: int, top_k: int) -> None:
    logits = logits_of(5, others + 1)
    wish = Wish(SamplingParams(temperature=1.5, top_k=top_k), seed, position)
    crowd = [Wish(SamplingParams(temperature=0.7, top_p=0.5), i, i) for i in range(others)]
    assert sample(logits, [*crowd, wish])[-1] == sample(logits[-1:], [wish])[0]
    assert 0 <= uniform(seed, position) < 1


def test_greedy_and_what_is_no_number() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0], [0.0, torch.nan, 1.0], [torch.inf, 0.0, 0.0]])
    greedy = Wish(SamplingParams(temperature=0.0), 0, 0)
    assert sample(logits, [greedy, greedy, greedy]) == [1, -1, -1]


def test_logprobs_are_of_the_untouched_distribution() -> None:
    logits = logits_of(6, 2)
    first, second = logprobs(logits, [7, 8], [0, 3])
    expected = torch.log_softmax(logits, -1)
    assert first.logprob == pytest.approx(float(expected[0, 7]))
    assert first.top == ()
    assert [token for token, _ in second.top] == expected[1].topk(3).indices.tolist()
    assert second.logprob == pytest.approx(float(expected[1, 8]))
