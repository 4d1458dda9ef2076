"""What an answer is made of: its pieces, where it ends, and that it is the same wherever it is made. Part of the suite in conformance.py."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import pytest

from loop.contracts.engine import (
    EngineFeature,
    EngineFinish,
    EngineInfo,
    EngineOutput,
    Tokenizer,
)
from tests.execution.engines.rig import (
    Rig,
    Whole,
    aclose,
    answer,
    clean_piece,
    long_request,
    needs,
    new_id,
    request_of,
)


class AnswerConformance:
    """What an answer is made of: its pieces, where it ends, and that it is the same wherever it is made."""

    # -- answers ------------------------------------------------------------------------------------

    def test_it_says_what_it_is(self, rig: Rig) -> None:
        info: EngineInfo = rig.engine.info
        tokenizer: Tokenizer = rig.engine.tokenizer
        assert info.engine
        assert info.model
        assert info.vocab_size >= tokenizer.vocab_size - 8  # a tokenizer may have spare ids
        assert info.kv_capacity_tokens >= info.block_tokens >= 1
        assert info.max_model_len >= 2
        assert tokenizer.decode(tokenizer.encode("Grüße, 世界")).strip() == "Grüße, 世界"

    @pytest.mark.parametrize("temperature", [0.0, 1.0])
    def test_the_pieces_make_the_whole(self, rig: Rig, temperature: float) -> None:
        engine = rig.engine
        whole = rig.run(answer(engine, request_of(engine, max_tokens=40, temperature=temperature, seed=3)))
        assert len(whole.token_ids) == 40
        assert whole.finish is EngineFinish.LENGTH
        assert whole.text == engine.tokenizer.decode(whole.token_ids)
        assert all(part.token_ids or part.finish for part in whole.outputs)
        assert all(0 <= token < engine.info.vocab_size for token in whole.token_ids)
        assert all(part.logprobs == () for part in whole.outputs)

    def test_tokens_come_as_they_are_made(self, rig: Rig) -> None:
        engine = rig.engine

        async def check() -> None:
            request = long_request(engine)
            stream = engine.generate(request)
            seen = [await anext(stream) for _ in range(5)]
            assert all(part.token_ids and part.finish is None for part in seen)
            assert len(Whole.of(seen).token_ids) < request.sampling.max_tokens
            await aclose(stream)

        rig.run(check())

    def test_one_token(self, rig: Rig) -> None:
        whole = rig.run(answer(rig.engine, request_of(rig.engine, max_tokens=1)))
        assert (len(whole.token_ids), whole.finish) == (1, EngineFinish.LENGTH)

    def test_a_full_context_ends_the_answer(self, rig: Rig) -> None:
        engine = rig.engine
        room = 5
        prompt = (engine.tokenizer.encode("x")[-1],) * (engine.info.max_model_len - room)
        request = replace(request_of(engine, max_tokens=100), prompt_token_ids=prompt)
        whole = rig.run(answer(engine, request))
        assert (len(whole.token_ids), whole.finish) == (room, EngineFinish.LENGTH)

    def test_greedy_answers_repeat(self, rig: Rig) -> None:
        engine = rig.engine
        first = rig.run(answer(engine, request_of(engine, max_tokens=24, seed=1)))
        second = rig.run(answer(engine, request_of(engine, max_tokens=24, seed=2)))
        assert first.token_ids == second.token_ids

    def test_seeds(self, rig: Rig) -> None:
        engine = rig.engine
        needs(engine, EngineFeature.SEED)

        def tokens(seed: int | None) -> tuple[int, ...]:
            request = request_of(engine, max_tokens=24, temperature=1.0, seed=seed)
            return rig.run(answer(engine, request)).token_ids

        assert tokens(7) == tokens(7)
        assert tokens(7) != tokens(8)
        assert tokens(None) != tokens(None)

    def test_different_prompts_have_different_answers(self, rig: Rig) -> None:
        engine = rig.engine
        texts = ("red", "green", "blue")
        found = {rig.run(answer(engine, request_of(engine, text, max_tokens=24))).token_ids for text in texts}
        assert len(found) == len(texts)

    def test_company_changes_nothing(self, rig: Rig) -> None:
        engine = rig.engine
        needs(engine, EngineFeature.SEED)
        requests = [
            request_of(engine, f"Number {n} " * (1 + n % 5), max_tokens=3 + n % 9, temperature=1.0, seed=n)
            for n in range(48)
        ]

        async def all_at_once() -> list[Whole]:
            return await asyncio.gather(*(answer(engine, request) for request in requests))

        together = rig.run(all_at_once())
        assert [len(whole.token_ids) for whole in together] == [3 + n % 9 for n in range(48)]
        for number in (0, 17, 40):
            alone = rig.run(answer(engine, requests[number]))
            assert alone.token_ids == together[number].token_ids

    def test_when_it_was_scheduled(self, rig: Rig) -> None:
        engine = rig.engine

        async def check() -> None:
            before_s = time.monotonic()
            whole = await answer(engine, request_of(engine))
            for part in whole.outputs:
                assert part.scheduled_s == 0.0 or before_s <= part.scheduled_s <= time.monotonic()

        rig.run(check())

    # -- stop strings -------------------------------------------------------------------------------

    @pytest.mark.parametrize("length", [1, 3])
    def test_a_stop_string_ends_the_answer_and_never_leaks(self, rig: Rig, length: int) -> None:
        engine = rig.engine
        whole = rig.run(answer(engine, request_of(engine, max_tokens=60))).text
        stop = clean_piece(whole, length, 8)
        stopped = rig.run(answer(engine, request_of(engine, max_tokens=60, stop=("never there", stop))))
        assert stopped.finish is EngineFinish.STOP
        assert stopped.outputs[-1].stop_reason == stop
        assert stopped.text == whole[: whole.index(stop)]
        assert len(stopped.token_ids) < 60

    def test_the_first_of_several_stop_strings_counts(self, rig: Rig) -> None:
        engine = rig.engine
        whole = rig.run(answer(engine, request_of(engine, max_tokens=60))).text
        early = clean_piece(whole, 2, 5)
        late = clean_piece(whole, 2, whole.index(early) + 3)
        stopped = rig.run(answer(engine, request_of(engine, max_tokens=60, stop=(late, early))))
        assert (stopped.text, stopped.outputs[-1].stop_reason) == (whole[: whole.index(early)], early)

    def test_what_only_looked_like_a_stop_string_comes_out(self, rig: Rig) -> None:
        engine = rig.engine
        whole = rig.run(answer(engine, request_of(engine, max_tokens=60)))
        stops = (clean_piece(whole.text, 2, 8) + "\x00never", whole.text[-1] + "\x00")
        stopped = rig.run(answer(engine, request_of(engine, max_tokens=60, stop=stops)))
        assert (stopped.text, stopped.token_ids) == (whole.text, whole.token_ids)
        assert stopped.finish is EngineFinish.LENGTH
        assert stopped.outputs[-1].stop_reason is None

    # -- going on elsewhere -------------------------------------------------------------------------

    @pytest.mark.parametrize("temperature", [0.0, 1.0])
    @pytest.mark.parametrize("with_stop", [False, True])
    def test_a_continuation_is_as_if_nothing_had_been(
        self, rig: Rig, temperature: float, with_stop: bool
    ) -> None:
        engine = rig.engine
        if temperature:
            needs(engine, EngineFeature.SEED)
        first = request_of(engine, max_tokens=48, temperature=temperature, seed=11)
        whole = rig.run(answer(engine, first))
        if with_stop:
            stop = clean_piece(whole.text, 2, 12)
            first = replace(first, sampling=replace(first.sampling, stop=(stop,)))
            whole = rig.run(answer(engine, first))
            assert whole.finish is EngineFinish.STOP
        last = len(whole.token_ids) - 1

        async def interrupted(at: int) -> Whole:
            """Lose the answer after `at` tokens or so, and go on from what had come."""
            stream = engine.generate(replace(first, id=new_id()))
            parts: list[EngineOutput] = []
            while len(Whole.of(parts).token_ids) < at:
                parts.append(await anext(stream))
            await aclose(stream)
            if parts[-1].finish is not None:
                return Whole.of(parts)
            come = Whole.of(parts).token_ids
            rest = replace(
                first,
                id=new_id(),
                prompt_token_ids=first.prompt_token_ids + come,
                generated=len(come),
            )
            return Whole.of([*parts, *(await answer(engine, rest)).outputs])

        for at in (1, last // 2, last - 1, last):
            found = rig.run(interrupted(at))
            assert (found.token_ids, found.text) == (whole.token_ids, whole.text)
            assert (found.finish, found.outputs[-1].stop_reason) == (
                whole.finish,
                whole.outputs[-1].stop_reason,
            )

    # -- logprobs and prefix cache ------------------------------------------------------------------

    @pytest.mark.parametrize("wanted", [0, 3])
    def test_logprobs(self, rig: Rig, wanted: int) -> None:
        engine = rig.engine
        needs(engine, EngineFeature.LOGPROBS)
        request = request_of(engine, max_tokens=12, temperature=1.0, seed=5, logprobs=wanted)
        whole = rig.run(answer(engine, request))
        found = [entry for part in whole.outputs for entry in part.logprobs]
        assert [entry.token_id for entry in found] == list(whole.token_ids)
        for entry in found:
            assert entry.logprob <= 0.0
            assert len(entry.top) == wanted
            levels = [logprob for _, logprob in entry.top]
            assert levels == sorted(levels, reverse=True)
            assert len({token for token, _ in entry.top}) == wanted
            for token, logprob in entry.top:
                if token == entry.token_id:
                    assert logprob == pytest.approx(entry.logprob, abs=1e-4)
                else:
                    assert logprob >= entry.logprob - 1e-4 or dict(entry.top).get(entry.token_id) is not None

    def test_greedy_takes_the_likeliest(self, rig: Rig) -> None:
        engine = rig.engine
        needs(engine, EngineFeature.LOGPROBS)
        whole = rig.run(answer(engine, request_of(engine, max_tokens=12, logprobs=1)))
        for part in whole.outputs:
            for entry in part.logprobs:
                assert entry.logprob == pytest.approx(entry.top[0][1], abs=1e-4)

    def test_a_known_prefix_is_not_computed_again(self, rig: Rig) -> None:
        engine = rig.engine
        needs(engine, EngineFeature.PREFIX_CACHE)
        text = "In the beginning there was a prompt that came twice. " * 4
        request = request_of(engine, text, max_tokens=12)
        before = rig.run(engine.stats()).cached_tokens
        first = rig.run(answer(engine, request))
        again = rig.run(answer(engine, replace(request, id=new_id())))
        assert first.token_ids == again.token_ids
        cached = again.outputs[-1].cached_tokens
        assert engine.info.block_tokens <= cached < len(request.prompt_token_ids)
        assert rig.run(engine.stats()).cached_tokens - before >= cached
