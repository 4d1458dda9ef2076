"""Small cases, computed by hand from the cost model: what vLLM's scheduler would do, to the iteration."""

from __future__ import annotations

import pytest

from loop.contracts import Finish
from tests.execution.twin.doubles import (
    BASE_S,
    PER_CHUNK_CONTEXT_S,
    PER_CONTEXT_S,
    PER_PROMPT_TOKEN_S,
    PER_SEQUENCE_S,
    Bench,
    LeastLoaded,
    Picky,
    request,
    spec,
)


@pytest.fixture(params=[True, False], ids=["leap", "step"])
def leap(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def decode_s(n: int, kv: int) -> float:
    return BASE_S + n * PER_SEQUENCE_S + kv * PER_CONTEXT_S


def test_one_request_alone(leap: bool) -> None:
    bench = Bench(leap=leap).serving(spec("d0"))
    at_s = bench.twin.now_s + 1.0
    bench.twin.submit([request(0, at_s, 100, 4)])
    assert bench.twin.run_until_idle(1e9)
    record = bench.record(0)
    assert record.queued_s == record.scheduled_s == at_s
    assert record.first_token_s - at_s == pytest.approx(BASE_S + 100 * PER_PROMPT_TOKEN_S)
    decodes = sum(decode_s(1, kv) for kv in (100, 101, 102))
    assert record.last_token_s - record.first_token_s == pytest.approx(decodes)
    assert (record.replica, record.finish, record.cached_tokens) == (0, Finish.OK, 0)


def test_a_single_output_token_needs_no_decode_step() -> None:
    bench = Bench().serving(spec("d0"))
    bench.twin.submit([request(0, bench.twin.now_s, 10, 1)])
    assert bench.twin.run_until_idle(1e9)
    assert bench.record(0).first_token_s == bench.record(0).last_token_s


def test_padded_attention_pays_for_the_longest(leap: bool) -> None:
    bench = Bench(leap=leap, padded=True).serving(spec("d0"))
    start_s = bench.twin.now_s
    bench.twin.submit([request(0, start_s, 300, 4), request(1, start_s, 20, 7)])
    assert bench.twin.run_until_idle(1e9)
    both_s = sum(decode_s(2, 2 * context) for context in (300, 301, 302))
    alone_s = sum(decode_s(1, context) for context in (23, 24, 25))
    assert bench.record(0).last_token_s - bench.record(0).first_token_s == pytest.approx(both_s)
    assert bench.record(1).last_token_s - bench.record(1).first_token_s == pytest.approx(both_s + alone_s)


def test_prompts_are_chunked_to_the_token_budget(leap: bool) -> None:
    bench = Bench(leap=leap).serving(spec("d0", budget=100))
    start_s = bench.twin.now_s
    bench.twin.submit([request(0, start_s, 60, 3), request(1, start_s, 90, 2)])
    assert bench.twin.run_until_idle(1e9)
    # Iteration 1: all 60 of the first, 40 of the second. 2: one decode, the other 50. 3: both decode.
    first_s = start_s + BASE_S + 100 * PER_PROMPT_TOKEN_S
    second_s = first_s + decode_s(1, 60) + 50 * (PER_PROMPT_TOKEN_S + 40 * PER_CHUNK_CONTEXT_S)
    third_s = second_s + decode_s(2, 61 + 90)
    assert bench.record(0).first_token_s == pytest.approx(first_s)
    assert bench.record(1).first_token_s == pytest.approx(second_s)
    assert bench.record(0).last_token_s == pytest.approx(third_s)
    assert bench.record(1).last_token_s == pytest.approx(third_s)


def test_an_arrival_joins_at_the_next_iteration_boundary(leap: bool) -> None:
    bench = Bench(leap=leap).serving(spec("d0"))
    start_s = bench.twin.now_s
    first_s = start_s + BASE_S + 50 * PER_PROMPT_TOKEN_S
    boundaries = [first_s]
    for kv in range(50, 60):
        boundaries.append(boundaries[-1] + decode_s(1, kv))
    arrival_s = (boundaries[4] + boundaries[5]) / 2
    bench.twin.submit([request(0, start_s, 50, 40), request(1, arrival_s, 20, 2)])
    assert bench.twin.run_until_idle(1e9)
    assert bench.record(1).scheduled_s == pytest.approx(boundaries[5])
    assert bench.record(1).first_token_s == pytest.approx(
        boundaries[5] + decode_s(1, 55) + 20 * PER_PROMPT_TOKEN_S
    )


def test_seats_limit_the_batch(leap: bool) -> None:
    bench = Bench(leap=leap).serving(spec("d0", seqs=1))
    bench.twin.submit([request(i, bench.twin.now_s, 10, 5) for i in range(3)])
    assert bench.twin.run_until_idle(1e9)
    for before, after in ((0, 1), (1, 2)):
        assert bench.record(after).scheduled_s == pytest.approx(bench.record(before).last_token_s)


def test_when_blocks_run_out_the_latest_arrival_is_preempted_and_recomputed(leap: bool) -> None:
    # 6 blocks of 16. Two prompts of 32 take 4, their first decode tokens the other 2, so that at 48 tokens
    # of context each, both ask for one more: the first gets it from the second, which is put out.
    bench = Bench(leap=leap, kv_capacity_tokens=96).serving(spec("d0"))
    start_s = bench.twin.now_s
    bench.twin.submit([request(0, start_s, 32, 30), request(1, start_s + 1e-6, 32, 30)])
    assert bench.twin.run_until_idle(1e9)
    first, second = bench.record(0), bench.record(1)
    assert (first.preemptions, second.preemptions) == (0, 1)
    # Alone, the first took 1 prefill, 1 mixed and 28 decode iterations; the second waits for room: the first
    # holds 4 blocks from 48 tokens on, 2 are free, and 48 tokens of the second need 3.
    resumed_s = first.last_token_s
    recompute_s = BASE_S + (32 + 16) * PER_PROMPT_TOKEN_S
    rest_s = sum(decode_s(1, 48 + j) for j in range(13))
    assert second.last_token_s == pytest.approx(resumed_s + recompute_s + rest_s)


def test_of_two_classes_the_lower_one_is_preempted(leap: bool) -> None:
    bench = Bench(leap=leap, policy=LeastLoaded(), kv_capacity_tokens=96).serving(spec("d0"))
    start_s = bench.twin.now_s
    bench.twin.submit([request(0, start_s, 32, 30), request(1, start_s + 1e-6, 32, 30, tier=1)])
    assert bench.twin.run_until_idle(1e9)
    assert (bench.record(0).preemptions, bench.record(1).preemptions) == (1, 0)


def test_a_shared_prefix_is_computed_once(leap: bool) -> None:
    bench = Bench(leap=leap).serving(spec("d0"))
    start_s = bench.twin.now_s
    bench.twin.submit(
        [
            request(0, start_s, 200, 2, hashes=(1, 2, 3, 4)),
            request(1, start_s + 1.0, 200, 2, hashes=(1, 2, 9, 10)),
            request(2, start_s + 2.0, 192, 2, hashes=(1, 2, 3)),
        ]
    )
    assert bench.twin.run_until_idle(1e9)
    assert [bench.record(i).cached_tokens for i in range(3)] == [0, 128, 176]
    # The last is held completely: its last block is computed all the same.
    chunk_s = 72 * (PER_PROMPT_TOKEN_S + 128 * PER_CHUNK_CONTEXT_S)
    assert bench.record(1).first_token_s == pytest.approx(start_s + 1.0 + BASE_S + chunk_s)


def test_idle_prefixes_yield_their_memory_oldest_first(leap: bool) -> None:
    # 20 blocks of 16: prefixes of 4 blocks each.
    bench = Bench(leap=leap, kv_capacity_tokens=320).serving(spec("d0"))
    start_s = bench.twin.now_s
    prompts = [(1, (1,)), (2, (2,)), (3, (3,)), (4, (1,)), (5, (40, 41, 42)), (6, (1,)), (7, (2,))]
    bench.twin.submit([request(i, start_s + i, 64 * len(h) + 1, 2, hashes=h) for i, h in prompts])
    assert bench.twin.run_until_idle(1e9)
    hits = {i: bench.record(i).cached_tokens for i, _ in prompts}
    assert hits == {1: 0, 2: 0, 3: 0, 4: 64, 5: 0, 6: 64, 7: 0}


def test_admission_control() -> None:
    bench = Bench(policy=Picky()).serving(spec("d0"))
    bench.twin.submit([request(0, 9.0, 101, 5), request(1, 9.0, 100, 5)])
    assert bench.twin.run_until_idle(1e9)
    assert bench.finishes() == {0: Finish.REJECTED, 1: Finish.OK}
    assert bench.record(0).first_token_s == -1.0


def test_a_request_that_fits_no_replica_is_infeasible_and_one_that_fits_some_goes_there() -> None:
    bench = Bench(kv_capacity_tokens=160).serving(spec("d0"), spec("d1", "d2"))
    prompts = [(0, 320, 2), (1, 300, 21), (2, 300, 2), (3, 100, 61)]
    bench.twin.submit([request(i, 9.0, prompt, output) for i, prompt, output in prompts])
    assert bench.twin.run_until_idle(1e9)
    assert bench.finishes() == {0: Finish.INFEASIBLE, 1: Finish.OK, 2: Finish.OK, 3: Finish.OK}
    assert bench.record(1).replica == bench.record(2).replica == 1
