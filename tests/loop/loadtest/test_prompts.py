from __future__ import annotations

import json

import pytest

from loop.contracts import Request
from loop.loadtest.prompts import Prompts


def request(number: int, tokens: int, hashes: tuple[int, ...] = ()) -> Request:
    return Request(number, 0.0, "m", tokens, 8, hashes)


def made(prompts: Prompts, asked: Request) -> list[int]:
    found = json.loads(prompts.of(asked, asked.input_tokens))
    assert isinstance(found, list)
    return found


@pytest.mark.parametrize("tokens", [1, 5, 12, 13, 100, 70_000])
def test_token_prompts_have_exactly_the_wanted_length(tokens: int) -> None:
    prompts = Prompts(as_tokens=True, block_tokens=16, salt=1)
    assert len(made(prompts, request(7, tokens))) == tokens


def test_shared_blocks_are_shared_and_nothing_else_is() -> None:
    prompts = Prompts(as_tokens=True, block_tokens=16, salt=1)
    a = made(prompts, request(1, 50, (11, 12, 13)))
    b = made(prompts, request(2, 50, (11, 12, 99)))
    assert len(a) == len(b) == 50
    assert a[:32] == b[:32]
    assert a[32:48] != b[32:48]
    assert a[48:] != b[48:] or len(a[48:]) < 3


def test_requests_without_blocks_begin_differently() -> None:
    prompts = Prompts(as_tokens=True, block_tokens=16, salt=1)
    heads = {tuple(made(prompts, request(i, 64))[:8]) for i in range(200)}
    assert len(heads) == 200


def test_another_salt_makes_other_prompts_and_the_same_salt_the_same() -> None:
    asked = request(1, 64, (5, 6))
    one, same, other = (made(Prompts(as_tokens=True, block_tokens=16, salt=s), asked) for s in (1, 1, 2))
    assert one == same
    assert one[:16] != other[:16]


def test_blocks_beyond_a_shortened_prompt_are_left_out() -> None:
    prompts = Prompts(as_tokens=True, block_tokens=16, salt=1)
    asked = request(1, 64, (1, 2, 3, 4))
    short = json.loads(prompts.of(asked, 20))
    assert len(short) == 20
    assert short[:16] == made(prompts, asked)[:16]


def test_text_prompts_take_the_servers_tokens_of_a_word_into_account() -> None:
    prompts = Prompts(as_tokens=False, block_tokens=16, salt=1, tokens_per_word=2.5)
    text = json.loads(prompts.of(request(1, 100), 100))
    assert len(text.split(" ")) == 40
