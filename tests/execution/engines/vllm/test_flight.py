"""From vLLM's tokens to the engine's outputs: text, stop strings, ends, continuation."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from execution.engines.tokenizer import ByteTokenizer
from execution.engines.vllm.flight import Chunk, Flight
from loop.contracts import (
    EngineBusyError,
    EngineCrashedError,
    EngineFinish,
    EngineOutput,
    EngineRequest,
    SamplingParams,
)

TOKENIZER = ByteTokenizer()
EOS = next(iter(TOKENIZER.eos_token_ids))
REQUEST = EngineRequest("r", (1, 2, 3), SamplingParams(max_tokens=100))


def ids(text: str) -> tuple[int, ...]:
    return tuple(TOKENIZER.encode(text))


def with_stop(*stop: str) -> EngineRequest:
    return replace(REQUEST, sampling=replace(REQUEST.sampling, stop=stop))


def outputs(request: EngineRequest, *items: Chunk | BaseException | None) -> list[EngineOutput]:
    """All outputs of a request to which these came at once."""

    async def read() -> list[EngineOutput]:
        flight = Flight(request, TOKENIZER)
        for item in items:
            flight.put(item)
        found = [await flight.next()]
        while found[-1].finish is None:
            found.append(await flight.next())
        return found

    return asyncio.run(asyncio.wait_for(read(), 120))


def test_what_a_slow_reader_left_comes_in_one_piece() -> None:
    (only,) = outputs(REQUEST, Chunk(ids("Hel")), Chunk(ids("lo"), finish="length", cached_tokens=2))
    assert (only.text, only.token_ids) == ("Hello", ids("Hello"))
    assert (only.finish, only.cached_tokens) == (EngineFinish.LENGTH, 2)


def test_the_end_of_the_answer_has_no_text() -> None:
    (only,) = outputs(REQUEST, Chunk((*ids("Hi"), EOS), finish="stop"))
    assert (only.text, only.token_ids) == ("Hi", (*ids("Hi"), EOS))
    assert (only.finish, only.stop_reason) == (EngineFinish.STOP, None)


def test_an_ignored_end_is_a_token_like_others() -> None:
    request = replace(REQUEST, sampling=replace(REQUEST.sampling, ignore_eos=True))
    (only,) = outputs(request, Chunk((EOS, *ids("x")), finish="length"))
    assert (only.text, only.finish) == ("x", EngineFinish.LENGTH)


def test_a_stop_string_over_two_chunks_ends_it_and_what_comes_later_is_dropped() -> None:
    (only,) = outputs(
        with_stop("END"), Chunk(ids("abE")), Chunk(ids("NDcd")), Chunk(ids("ef"), finish="length")
    )
    assert (only.text, only.stop_reason, only.finish) == ("ab", "END", EngineFinish.STOP)
    assert only.token_ids == ids("abEND")


def test_text_that_may_become_a_stop_string_is_held_back_until_it_cannot() -> None:
    async def read() -> None:
        flight = Flight(with_stop("END"), TOKENIZER)
        flight.put(Chunk(ids("abE")))
        assert (await flight.next()).text == "ab"
        flight.put(Chunk(ids("x"), finish="length"))
        assert (await flight.next()).text == "Ex"

    asyncio.run(read())


def test_half_a_character_waits_for_the_other_half() -> None:
    async def read() -> None:
        flight = Flight(REQUEST, TOKENIZER)
        first, second = ids("é")
        flight.put(Chunk((first,)))
        assert (await flight.next()).text == ""
        flight.put(Chunk((second,), finish="length"))
        assert (await flight.next()).text == "é"

    asyncio.run(read())


def test_a_cancelled_request_ends_with_what_had_come() -> None:
    (only,) = outputs(REQUEST, Chunk(ids("ab")), None)
    assert (only.text, only.finish) == ("ab", EngineFinish.CANCELLED)


def test_an_error_comes_after_the_tokens_before_it() -> None:
    async def read() -> None:
        flight = Flight(REQUEST, TOKENIZER)
        flight.put(Chunk(ids("ab")))
        flight.put(EngineCrashedError("gone"))
        assert (await flight.next()).text == "ab"
        with pytest.raises(EngineCrashedError, match="gone"):
            await flight.next()

    asyncio.run(read())


def test_a_refusal_by_the_policy_is_told_as_one() -> None:
    with pytest.raises(EngineBusyError, match="rejected by policy short"):
        outputs(REQUEST, Chunk(finish="abort", stop_reason="rejected by policy short"))
    (only,) = outputs(REQUEST, Chunk(finish="abort"))
    assert only.finish is EngineFinish.CANCELLED


@pytest.mark.parametrize("at", range(1, 9))
def test_a_continuation_ends_at_the_same_stop_string(at: int) -> None:
    answer = ids("ab END cd")
    whole = outputs(with_stop("END"), Chunk(answer, finish="length"))
    request = replace(with_stop("END"), prompt_token_ids=(1, 2, 3, *answer[:at]), generated=at)
    flight = Flight(request, TOKENIZER)
    over = flight.over(100)
    rest = [over] if over else outputs(request, Chunk(answer[at:], finish="length"))
    assert (rest[-1].finish, rest[-1].stop_reason) == (whole[-1].finish, "END")

    async def before() -> str:
        lost = Flight(with_stop("END"), TOKENIZER)
        lost.put(Chunk(answer[:at]))
        return (await lost.next()).text

    assert asyncio.run(before()) + "".join(o.text for o in rest) == "ab "


def test_an_answer_that_was_complete_is_not_asked_for_again() -> None:
    done = replace(REQUEST, prompt_token_ids=(1, *ids("abc")), generated=3)
    last = Flight(done, TOKENIZER).over(3)
    assert last is not None
    assert (last.finish, last.token_ids, last.text) == (EngineFinish.LENGTH, (), "")
    assert Flight(done, TOKENIZER).over(4) is None
    ended = replace(REQUEST, prompt_token_ids=(1, 97, EOS), generated=2)
    last = Flight(ended, TOKENIZER).over(100)
    assert last is not None
    assert last.finish is EngineFinish.STOP
