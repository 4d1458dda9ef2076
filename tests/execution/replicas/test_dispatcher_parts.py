"""The dispatcher's parts: text across a loss, loads, measured speeds, prefixes."""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from execution.engines.tokenizer import ByteTokenizer
from execution.engines.vocabulary import EOS_ID
from execution.replicas.continuation import Continuation
from execution.replicas.deadline import Deadline
from execution.replicas.dispatcher import Dispatcher, ServedModel
from execution.replicas.load import Flight, Load
from execution.replicas.manager import ManagerOptions, ReplicaManager
from execution.replicas.prefixes import BLOCK_TOKENS, PrefixRecord, block_hashes
from execution.replicas.rates import Kin, LinearCosts, Rates
from execution.replicas.replica import Replica
from loop.contracts import EngineFinish, EngineOutput, EngineStats, SamplingParams, ServeRequest
from strategy.baselines import load_baseline
from tests.examples import up_to
from tests.execution.replicas.scripted import CONTEXT_TOKENS, MODEL, World, device, devices, plan, spec

TOKENIZER = ByteTokenizer()
WORDS = st.text(alphabet="abé…🙂 \n", min_size=1, max_size=40)


async def _answers(
    answer: str, stop: tuple[str, ...], crashes: list[int], chunks: list[int]
) -> tuple[list[EngineOutput], list[EngineOutput]]:
    """(undisturbed, with a crash after so many outputs of each attempt)."""
    made = [*answer.encode(), EOS_ID]
    request = ServeRequest(
        "q", MODEL, tuple(b"prompt"), SamplingParams(max_tokens=len(made) + 5, temperature=0.0, stop=stop)
    )
    results = []
    for plan_of_crashes in ([], crashes):
        world = World(answer=lambda prompt: made, chunk=lambda position: chunks[position % len(chunks)])
        manager = ReplicaManager(
            world.build, devices(2), [MODEL], options=ManagerOptions(backoff_s=0.0, max_deaths=99)
        )
        dispatcher = Dispatcher(
            manager, [ServedModel(MODEL, TOKENIZER, CONTEXT_TOKENS)], load_baseline("least_loaded")
        )
        await manager.apply(plan("d0", "d1"))
        await manager.settled()
        outputs: list[EngineOutput] = []
        left = list(plan_of_crashes)
        async for output in dispatcher.serve(request):
            outputs.append(output)
            if left and output.finish is None:
                left[0] -= 1
                if left[0] <= 0:
                    left.pop(0)
                    next(e for e in world.running() if e.requests).crash()
        results.append(outputs)
        await manager.close()
    return results[0], results[1]


@settings(max_examples=up_to(40), deadline=None)
@given(
    WORDS,
    st.lists(st.text(alphabet="abé🙂 ", min_size=1, max_size=4), max_size=2),
    st.lists(st.integers(1, 12), max_size=4),
    st.lists(st.integers(1, 5), min_size=1, max_size=5),
)
def test_an_answer_is_the_same_wherever_its_replicas_die(
    answer: str, stop: list[str], crashes: list[int], chunks: list[int]
) -> None:
    expected, got = asyncio.run(_answers(answer, tuple(stop), crashes, chunks))
    assert [t for o in got for t in o.token_ids] == [t for o in expected for t in o.token_ids]
    assert "".join(o.text for o in got) == "".join(o.text for o in expected)
    assert (got[-1].finish, got[-1].stop_reason) == (expected[-1].finish, expected[-1].stop_reason)
    whole = "".join(o.text for o in expected)
    assert whole == _before_the_first_stop(answer, stop)


def _before_the_first_stop(answer: str, stop: list[str]) -> str:
    """The answer's text before the stop string that is complete first, as characters come one by one."""
    for length in range(1, len(answer) + 1):
        places = [at for s in stop if (at := answer[:length].find(s)) >= 0]
        if places:
            return answer[: min(places)]
    return answer


def test_a_replica_that_gave_less_text_than_it_could_does_no_harm() -> None:
    text = "Zoë's naïve café"
    made = list(text.encode())
    for cut in range(len(made)):
        for held in range(4):
            whole = TOKENIZER.decode(made[:cut]).rstrip("\ufffd")
            sent = whole[: len(whole) - held]
            rest = Continuation(TOKENIZER, SamplingParams(), made[:cut], sent, 1000)
            assert rest.finish(made[: max(cut, 1)]) is None
            assert sent + rest.push(made[cut:], last=True) == text


def test_a_leading_space_that_only_the_engine_gave_is_not_taken_for_text() -> None:
    rest = Continuation(TOKENIZER, SamplingParams(), list(b"Paris is"), " Paris", 1000)
    assert rest.push(list(b" nice"), last=True) == " is nice"


@pytest.mark.parametrize(
    ("made", "sampling", "finish"),
    [
        (b"abc", SamplingParams(max_tokens=9), None),
        (b"abcd", SamplingParams(max_tokens=4), EngineFinish.LENGTH),
        (b"abcSTOP", SamplingParams(max_tokens=9, stop=("STOP",)), EngineFinish.STOP),
        (b"ab\x00", SamplingParams(max_tokens=9), None),
    ],
)
def test_a_complete_answer_is_known_as_such(
    made: bytes, sampling: SamplingParams, finish: EngineFinish | None
) -> None:
    assert Continuation(TOKENIZER, sampling, list(made), "", sampling.max_tokens).finish(list(made)) is finish


def test_an_end_of_sequence_token_completes_an_answer_unless_it_is_ignored() -> None:
    made = [*b"ab", EOS_ID]
    for sampling, finish in (
        (SamplingParams(max_tokens=9), EngineFinish.STOP),
        (SamplingParams(max_tokens=9, ignore_eos=True), None),
    ):
        assert Continuation(TOKENIZER, sampling, made, "ab", 9).finish(made) is finish


class TestDeadline:
    def test_it_interrupts_the_one_who_waits_and_then_everyone(self) -> None:
        async def run() -> None:
            deadline = Deadline(time.monotonic() + 0.01)
            with pytest.raises(TimeoutError), deadline:
                await asyncio.Event().wait()
            with pytest.raises(TimeoutError), deadline:
                raise AssertionError("not reached")
            task = asyncio.current_task()
            assert task is not None
            assert task.cancelling() == 0

        asyncio.run(run())

    def test_nobody_is_interrupted_between_two_tokens(self) -> None:
        async def run() -> None:
            deadline = Deadline(time.monotonic() + 0.001)
            with deadline:
                await asyncio.sleep(0)
            while not deadline.over:
                await asyncio.sleep(0.001)
            with pytest.raises(TimeoutError), deadline:
                raise AssertionError("not reached")

        asyncio.run(run())

    @pytest.mark.parametrize("at_s", [None, 1e12])
    def test_a_cancellation_from_elsewhere_stays_one(self, at_s: float | None) -> None:
        async def wait() -> None:
            with Deadline(at_s):
                await asyncio.Event().wait()

        async def run() -> None:
            task = asyncio.create_task(wait())
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        asyncio.run(run())


class TestLoad:
    @given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9), st.integers(1, 40)), max_size=60))
    def test_sums_are_those_of_the_flights(self, acts: list[tuple[int, int, int]]) -> None:
        load, flights = Load(), list[Flight]()
        for kind, pick, size in acts:
            if kind == 0 or not flights:
                flights.append(Flight(size, max(1, size - pick), float(size + pick)))
                load.enter(flights[-1])
            elif kind == 3:
                load.leave(flights.pop(pick % len(flights)))
            else:
                load.progress(flights[pick % len(flights)], size)
            assert load.in_flight == len(flights)
            assert load.started == sum(f.started for f in flights)
            assert load.waiting_tokens == sum(f.uncached_tokens for f in flights if not f.started)
            assert load.kv_tokens == sum(f.context_tokens for f in flights)
            assert load.outstanding_tokens == pytest.approx(sum(f.left_tokens for f in flights))


class TestRates:
    @staticmethod
    def readings(costs: LinearCosts, count: int, seed: int) -> list[EngineStats]:
        random_ = random.Random(seed)
        stats, found = EngineStats(), []
        for _ in range(count):
            steps, prompt = random_.randint(5, 60), random_.randint(0, 4000)
            made = steps * random_.randint(1, 32)
            spent_s = steps * costs.step_s + prompt * costs.prompt_token_s + made * costs.sequence_s
            stats = replace(
                stats,
                steps=stats.steps + steps,
                step_s=stats.step_s + spent_s,
                prompt_tokens=stats.prompt_tokens + prompt,
                generated_tokens=stats.generated_tokens + made,
                running=16,
                kv_tokens=16_000,
            )
            found.append(stats)
        return found

    @pytest.mark.parametrize(
        "costs",
        [LinearCosts(0.004, 2e-5, 1e-4), LinearCosts(0.0005, 1e-4, 1e-3), LinearCosts(0.02, 1e-6, 1e-5)],
    )
    def test_the_engine_s_own_costs_are_found_from_its_counters(self, costs: LinearCosts) -> None:
        rates = Rates()
        for stats in self.readings(costs, 60, 1):
            rates.learn(stats)
        for running in (1, 8, 32):
            assert rates.decode_step_s(running, 0) == pytest.approx(costs.iteration_s(running, 0), rel=0.1)
        assert rates.prefill_tokens_per_s == pytest.approx(costs.prefill_tokens_per_s, rel=0.15)
        assert rates.speed == 1.0

    def test_one_batch_size_alone_is_known_at_that_size(self) -> None:
        rates, stats = Rates(), EngineStats()
        for _ in range(10):
            stats = replace(
                stats,
                steps=stats.steps + 50,
                step_s=stats.step_s + 50 * 0.0015,
                generated_tokens=stats.generated_tokens + 50 * 32,
            )
            rates.learn(stats)
        assert rates.decode_step_s(32, 0) == pytest.approx(0.0015, rel=0.02)
        assert 0.0002 < rates.decode_step_s(1, 0) < 0.0015

    def test_with_a_performance_model_what_is_learnt_is_its_speed(self) -> None:
        nominal = LinearCosts(0.004, 2e-5, 1e-4)
        rates = Rates(nominal)
        assert rates.decode_step_s(16, 0) == pytest.approx(nominal.iteration_s(16, 0))
        for stats in self.readings(LinearCosts(0.008, 4e-5, 2e-4), 60, 2):
            rates.learn(stats)
        assert rates.speed == pytest.approx(0.5, rel=0.05)
        assert rates.decode_step_s(16, 0) == pytest.approx(2 * nominal.iteration_s(16, 0), rel=0.05)
        assert rates.prefill_tokens_per_s == pytest.approx(nominal.prefill_tokens_per_s / 2, rel=0.05)

    def test_long_prompts_with_short_answers_do_not_look_like_a_slow_replica(self) -> None:
        nominal = LinearCosts(0.004, 2e-5, 1e-4)
        rates, stats = Rates(nominal), EngineStats()
        for _ in range(40):  # a prompt of two chunks a step, now and then the one token of an answer
            stats = replace(
                stats,
                steps=stats.steps + 10,
                step_s=stats.step_s + 10 * nominal.iteration_s(0, 0, ((512, 0),)),
                prompt_tokens=stats.prompt_tokens + 5120,
                generated_tokens=stats.generated_tokens + 5,
                running=8,
                kv_tokens=4000,
            )
            rates.learn(stats)
        assert rates.speed == pytest.approx(1.0, rel=0.05)

    def test_one_that_looked_slow_and_rests_is_taken_for_what_its_like_are(self) -> None:
        usual, slow = LinearCosts(0.004, 2e-5, 1e-4), LinearCosts(0.04, 2e-4, 1e-3)
        kin = Kin()
        one, other = Rates(kin=kin), Rates(kin=kin)
        disturbed = self.readings(slow, 8, 3)
        for stats in disturbed:
            one.learn(stats)
        for stats in self.readings(usual, 60, 4):
            other.learn(stats)
        assert one.decode_step_s(8, 0) > 4 * other.decode_step_s(8, 0)
        resting = replace(disturbed[-1], running=0)
        assert [one.learn(resting) for _ in range(90)] == [True] * 90
        assert one.decode_step_s(8, 0) == pytest.approx(other.decode_step_s(8, 0), rel=0.2)

    def test_one_that_is_really_slow_is_known_to_be_while_it_works(self) -> None:
        usual, slow = LinearCosts(0.004, 2e-5, 1e-4), LinearCosts(0.04, 2e-4, 1e-3)
        kin = Kin()
        one, other = Rates(kin=kin), Rates(kin=kin)
        pairs = zip(self.readings(slow, 60, 3), self.readings(usual, 60, 4), strict=True)
        for mine, theirs in pairs:
            one.learn(mine)
            other.learn(theirs)
        assert one.decode_step_s(8, 0) == pytest.approx(slow.iteration_s(8, 0), rel=0.15)
        assert other.decode_step_s(8, 0) == pytest.approx(usual.iteration_s(8, 0), rel=0.15)

    def test_one_that_is_in_the_midst_of_a_step_does_not_rest(self) -> None:
        rates, found = Rates(), self.readings(LinearCosts(0.004, 2e-5, 1e-4), 20, 5)
        for stats in found:
            rates.learn(stats)
        assert not rates.learn(found[-1])  # 16 are running

    def test_a_new_one_begins_with_what_its_like_have_measured(self) -> None:
        usual, kin = LinearCosts(0.004, 2e-5, 1e-4), Kin()
        other = Rates(kin=kin)
        for stats in self.readings(usual, 60, 6):
            other.learn(stats)
        assert Rates(kin=kin).decode_step_s(8, 0) == pytest.approx(usual.iteration_s(8, 0), rel=0.1)

    def test_without_readings_nothing_changes(self) -> None:
        rates = Rates()
        before = rates.decode_step_s(4, 0)
        assert not rates.learn(EngineStats())
        assert not rates.learn(EngineStats())
        assert rates.decode_step_s(4, 0) == before


class TestPrefixes:
    @staticmethod
    async def replicas(capacity_tokens: int) -> list[Replica]:
        world = World()
        made = []
        for identity in range(2):
            engine = world.build(spec("d0"))
            replica = Replica(
                identity,
                spec("d0"),
                engine,
                (device("d0"),),
                started_s=0.0,
                start_estimate_s=1.0,
                nominal=None,
            )
            replica.info = replace(engine.info, kv_capacity_tokens=capacity_tokens)
            made.append(replica)
        return made

    def test_the_longest_common_beginning_counts_and_the_last_token_never(self) -> None:
        one, two = asyncio.run(self.replicas(10_000))
        record, prompt = PrefixRecord(), tuple(range(100))
        record.add(one, block_hashes(prompt))
        record.add(two, block_hashes(prompt[:40]))
        assert record.cached(block_hashes(prompt), 100, [two, one]) == (32, 96)
        assert record.cached(block_hashes(prompt[:96]), 96, [one, two]) == (80, 32)
        assert record.cached(block_hashes((7, *prompt)), 101, [one, two]) == ()
        record.keep_only(frozenset({two.id}))
        assert record.cached(block_hashes(prompt), 100, [one, two]) == (0, 32)

    def test_the_record_is_bounded_by_the_cache_and_forgets_ends_before_beginnings(self) -> None:
        one, _ = asyncio.run(self.replicas(4 * BLOCK_TOKENS))
        record = PrefixRecord()
        first, second = tuple(range(48)), tuple(range(1000, 1048))
        record.add(one, block_hashes(first))
        record.add(one, block_hashes(second))
        assert record.cached(block_hashes((*second, 1)), 49, [one]) == (48,)
        assert record.cached(block_hashes((*first, 1)), 49, [one]) == (16,)

    def test_no_two_prompts_of_other_tokens_share_a_block(self) -> None:
        assert block_hashes(range(15)) == ()
        a, b = block_hashes((*range(32), 1)), block_hashes((*range(16), *range(17, 33)))
        assert a[0] == b[0]
        assert a[1] != b[1]
