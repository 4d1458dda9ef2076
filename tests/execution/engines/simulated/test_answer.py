"""Answers of the simulated engine: functions of prompt, seed and position, and nothing else."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from statistics import median
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from execution.engines.simulated.answer import ALPHABET, Answer
from execution.engines.tokenizer import ByteTokenizer
from loop.contracts.engine import EngineFinish, EngineRequest, SamplingParams

TOKENIZER = ByteTokenizer()
(EOS,) = TOKENIZER.eos_token_ids


def answer_of(
    request: EngineRequest, *, seed: int | None = None, room: int = 10_000, median_tokens: float = 0.0
) -> Answer:
    chosen = request.sampling.seed if seed is None else seed
    return Answer(request, chosen or 0, b"weights", TOKENIZER, room, median_tokens, 0.7)


def request_of(text: str = "prompt", **sampling: Any) -> EngineRequest:
    params = SamplingParams(**{"max_tokens": 300, "seed": 1, **sampling})
    return EngineRequest("r", tuple(TOKENIZER.encode(text)), params)


def whole_text(answer: Answer) -> str:
    return answer.text(answer.first, answer.end)


@given(st.integers(0, 300), st.integers(0, 300), st.integers(0, 300), st.floats(0.0, 2.0))
def test_any_part_can_be_made_alone(a: int, b: int, c: int, temperature: float) -> None:
    start, middle, end = sorted((a, b, c))
    request = request_of(temperature=temperature)
    parts = answer_of(request).tokens(start, middle) + answer_of(request).tokens(middle, end)
    assert parts == answer_of(request).tokens(0, 300)[start:end]
    assert TOKENIZER.decode(parts) == answer_of(request).text(start, end)


@given(st.integers(1, 299), st.floats(0.0, 2.0), st.integers(0, 5))
def test_a_continuation_makes_the_same_tokens(at: int, temperature: float, seed: int) -> None:
    request = request_of(temperature=temperature, seed=seed)
    whole = answer_of(request).tokens(0, 300)
    rest = replace(request, prompt_token_ids=request.prompt_token_ids + whole[:at], generated=at)
    answer = answer_of(rest)
    assert answer.tokens(answer.first, answer.end) == whole[at:]


@given(st.text("etaoin ", min_size=1, max_size=4), st.integers(0, 299))
def test_stop_strings_end_it_where_the_text_says(stop: str, at: int) -> None:
    """Also where the first `at` tokens were made elsewhere."""
    plain = request_of()
    whole = answer_of(plain).tokens(0, 300)
    text = bytes(whole).decode()
    stopping = replace(plain, sampling=replace(plain.sampling, stop=(stop,)))
    answer = answer_of(stopping)
    found = text.find(stop)
    if found < 0:
        assert (answer.end, answer.finish, answer.stop_reason) == (300, EngineFinish.LENGTH, None)
    else:
        assert (answer.end, answer.finish) == (found + len(stop), EngineFinish.STOP)
        assert answer.stop_reason == stop
        assert whole_text(answer) == text[:found]
    rest = replace(stopping, prompt_token_ids=plain.prompt_token_ids + whole[:at], generated=at)
    other = answer_of(rest)
    if at < answer.end:
        assert (other.end, other.finish) == (answer.end, answer.finish)
        assert answer.text(0, at) + whole_text(other) == whole_text(answer)
    else:
        assert other.end <= other.first


def test_lengths_follow_the_seed_and_the_median() -> None:
    lengths = [
        answer_of(request_of(max_tokens=10**6), seed=seed, room=10**6, median_tokens=100.0).end
        for seed in range(2000)
    ]
    assert 90 <= median(lengths) <= 110
    assert 80 <= median(length for length in lengths if length > 100) / math.exp(0.7 * 0.674) <= 120
    again = answer_of(request_of(max_tokens=10**6), seed=3, room=10**6, median_tokens=100.0)
    assert again.end == lengths[3]


def test_a_natural_end_is_an_end_of_sequence_token() -> None:
    answer = answer_of(request_of(max_tokens=10**6), room=10**6, median_tokens=50.0)
    tokens = answer.tokens(0, answer.end)
    assert answer.finish is EngineFinish.STOP
    assert (len(tokens), tokens[-1], tokens.count(EOS)) == (answer.end, EOS, 1)
    assert whole_text(answer) == TOKENIZER.decode(tokens)
    assert answer.tokens(answer.end - 1, answer.end) == (EOS,)
    assert answer.text(answer.end - 1, answer.end) == ""
    (last,) = answer.logprobs(answer.end - 1, answer.end, 2)
    assert last.token_id == last.top[0][0] == EOS


def test_ignoring_the_end_goes_on_to_the_limit() -> None:
    ignoring = answer_of(request_of(max_tokens=5000, ignore_eos=True), median_tokens=50.0)
    assert (ignoring.end, ignoring.finish) == (5000, EngineFinish.LENGTH)
    assert EOS not in ignoring.tokens(0, 5000)
    assert answer_of(request_of(max_tokens=5000, ignore_eos=True), room=70).end == 70


def test_the_choice_follows_the_distribution() -> None:
    answer = answer_of(request_of(max_tokens=10_000))
    tokens = answer.tokens(0, 4000)
    entries = answer.logprobs(0, 4000, len(ALPHABET))
    ranks = Counter(
        [token for token, _ in entry.top].index(entry.token_id)
        for entry, token in zip(entries, tokens, strict=True)
        if entry.token_id == token
    )
    assert sum(ranks.values()) == 4000
    assert ranks[0] / 4000 == pytest.approx(0.5, abs=0.04)
    assert ranks[1] / 4000 == pytest.approx(0.25, abs=0.04)
    assert sum(math.exp(logprob) for _, logprob in entries[0].top) == pytest.approx(1.0)


@pytest.mark.parametrize("narrow", [{"top_k": 1}, {"top_p": 0.4}, {"temperature": 1e-9}])
def test_narrow_sampling_is_greedy(narrow: dict[str, Any]) -> None:
    greedy = answer_of(request_of(temperature=0.0)).tokens(0, 300)
    assert answer_of(request_of(**narrow)).tokens(0, 300) == greedy
    assert answer_of(request_of()).tokens(0, 300) != greedy


def test_top_k_keeps_the_likeliest() -> None:
    answer = answer_of(request_of(top_k=2, temperature=5.0))
    for entry in answer.logprobs(0, 300, 2):
        assert entry.token_id in dict(entry.top)


def test_seeds_and_prompts_matter() -> None:
    found = {
        answer_of(request_of(text), seed=seed).tokens(0, 40)
        for text in ("a", "b", "ab")
        for seed in (0, 1, -1, 2**200)
    }
    assert len(found) == 12
