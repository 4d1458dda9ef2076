"""The sampler on a real engine core: it counts every step, looks at some, and leaves no trace in the modules."""

from typing import Any

import pytest
import torch

from execution.engines.torch.core import EngineCore
from execution.engines.torch.options import parse_options
from execution.engines.torch.sequence import Sequence
from execution.graph.cost import Peaks
from execution.live.sampler import StepSampler, bucket_of, group_of
from loop.contracts.engine import EngineRequest, EngineSpec, SamplingParams

PEAKS = Peaks(1e12, 1e12)


class Sink:
    def put(self, *_: Any) -> None: ...
    def fail(self, *_: Any) -> None: ...


@pytest.fixture
def core() -> EngineCore:
    options: dict[str, str | int | float | bool] = {"threads": 1, "max_lanes": 4, "kv_memory_bytes": 2**24}
    return EngineCore(EngineSpec("torch", "micro-llama", options=options), parse_options(options))


def serve(core: EngineCore, requests: int, tokens: int) -> None:
    sink = Sink()
    for i in range(requests):
        request = EngineRequest(
            f"r{i}", tuple(range(5, 20)), SamplingParams(max_tokens=tokens, temperature=0.0, ignore_eos=True)
        )
        core.add(Sequence(request, i, core.tokenizer, 200, 0), sink)
    while core.step(sink):
        pass


def test_all_steps_are_counted_and_some_are_looked_at(core: EngineCore) -> None:
    sampler = core.observer = StepSampler(core, threads=1, every=5)
    serve(core, 3, 40)
    assert sampler.steps == core.counters.steps == 40
    assert sampler.by_rows[3].steps == 39
    assert sampler.mixed.steps == 1
    assert 1 <= sampler.sampled <= 8
    assert sampler.sizes() == [3]
    found = {(path.unit, path.rows): path for path in sampler.profile(PEAKS)}
    assert {"decode", "layers.*", "layers.*.mlp.down", "head"} <= {unit for unit, _ in found}
    decode, down = found["decode", (3, 4)], found["layers.*.mlp.down", (3, 4)]
    assert decode.could_win_s > found["layers.*", (3, 4)].could_win_s > down.could_win_s > 0
    assert 0 < down.share < found["layers.*", (3, 4)].share < decode.share <= 1.5
    assert down.floor_s > 0


def test_the_ranking_is_by_what_could_be_won(core: EngineCore) -> None:
    sampler = core.observer = StepSampler(core, threads=1, every=5)
    serve(core, 1, 30)
    slow = sampler.profile(Peaks(1.0, 1.0))  # a machine for which everything is at its limit
    assert all(path.could_win_s == 0 for path in slow)
    told = [path.could_win_s for path in sampler.profile(PEAKS)]
    assert told == sorted(told, reverse=True)


def test_nothing_of_the_stopwatch_stays(core: EngineCore) -> None:
    core.observer = StepSampler(core, threads=1, every=2)
    serve(core, 2, 21)
    assert all("forward" not in module.__dict__ for module in core.modules().values())


@pytest.mark.slow
def test_inputs_are_recorded_as_they_were_and_within_bounds(core: EngineCore) -> None:
    sampler = core.observer = StepSampler(core, threads=1, every=3)
    serve(core, 2, 60)
    kept = sampler.inputs["layers.*.mlp.down", (2, 2)]
    assert 1 <= len(kept) <= 3
    assert kept[0].shape == (2, core.config.intermediate_size)
    assert sum(x.nbytes for xs in sampler.inputs.values() for x in xs) <= 16 << 20


@pytest.mark.slow
def test_the_costlier_a_sample_the_rarer_it_gets(core: EngineCore) -> None:
    now_s = 0.0

    def clock() -> float:
        nonlocal now_s
        now_s += 1e-3  # each look at the watch is expensive: 1 ms
        return now_s

    sampler = core.observer = StepSampler(core, threads=1, every=4, share=0.01, clock=clock)
    serve(core, 2, 120)
    assert sampler.every > 16


def test_names_and_sizes_are_grouped() -> None:
    assert group_of("layers.12.mlp.gate_up") == "layers.*.mlp.gate_up"
    assert group_of("layers.3") == "layers.*"
    assert group_of("head") == "head"
    assert [bucket_of(rows) for rows in (1, 2, 3, 16, 17, 5000)] == [
        (1, 1), (2, 2), (3, 4), (9, 16), (17, 32), (4097, 1 << 30),
    ]  # fmt: skip


def test_the_answers_are_those_of_an_unwatched_engine(core: EngineCore) -> None:
    taken: list[list[int]] = []
    for every in (1_000_000, 1):
        core.scheduler.drop_prefixes()
        tokens: list[int] = []

        class Keep(Sink):
            def put(self, *told: Any) -> None:
                if told[1] is not None:
                    tokens.append(told[1])  # noqa: B023 used before the next round

        core.observer = StepSampler(core, threads=1, every=every)
        request = EngineRequest(
            "x", tuple(range(9)), SamplingParams(max_tokens=30, temperature=0.0, ignore_eos=True)
        )
        sink = Keep()
        core.add(Sequence(request, 0, core.tokenizer, 200, 0), sink)
        while core.step(sink):
            pass
        taken.append(tokens)
    assert taken[0] == taken[1]
    assert torch.get_num_threads() == 1
