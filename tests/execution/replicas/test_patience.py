"""What counts as silence: not the clock, but turns of our own loop in which nothing came."""

from __future__ import annotations

import asyncio
import itertools
import time

import pytest

from execution.replicas.patience import TURNS, answered

LIMIT_S = 0.1


def silent() -> int:
    return 0


async def never() -> int:
    question: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    return await question


def test_an_answer_is_handed_on_and_so_is_what_it_raises() -> None:
    async def fine() -> int:
        return 7

    async def wrong() -> int:
        raise ValueError("wrong")

    assert asyncio.run(answered(fine(), 100.0, silent)) == 7
    with pytest.raises(ValueError, match="wrong"):
        asyncio.run(answered(wrong(), 100.0, silent))


def test_silence_ends_the_wait_and_the_question_is_withdrawn() -> None:
    async def act() -> bool:
        question: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        async def ask() -> int:
            return await question

        with pytest.raises(TimeoutError):
            await answered(ask(), LIMIT_S, silent)
        await asyncio.sleep(0)
        return question.cancelled()

    assert asyncio.run(act())


def test_a_loop_that_stood_still_blames_nobody() -> None:
    async def act() -> int:
        loop = asyncio.get_running_loop()
        question: asyncio.Future[int] = loop.create_future()

        async def ask() -> int:
            return await question

        def asleep() -> None:
            time.sleep(5 * LIMIT_S)  # the machine is suspended; the answer came meanwhile
            loop.call_later(0.0, question.set_result, 3)

        loop.call_later(LIMIT_S / TURNS, asleep)
        return await answered(ask(), LIMIT_S, silent)

    assert asyncio.run(act()) == 3


def test_whoever_sends_tokens_is_alive_though_its_readings_do_not_come() -> None:
    async def act() -> int:
        question: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        tokens = itertools.count()
        asked = 0

        async def ask() -> int:
            return await question

        def heard() -> int:
            nonlocal asked
            asked += 1
            if asked == 3 * TURNS:
                question.set_result(asked)
            return next(tokens)

        return await answered(ask(), LIMIT_S, heard)

    assert asyncio.run(act()) == 3 * TURNS


def test_an_interrupted_wait_withdraws_the_question() -> None:
    async def act() -> None:
        task = asyncio.create_task(answered(never(), 100.0, silent))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(act())
