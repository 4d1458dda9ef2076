"""The benchmark of swaps under load: it would see what it looks for, and a small run of the real thing is clean."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, cast

import pytest

from benchmarks import swap
from benchmarks.common import parse_options
from benchmarks.swapping.cases import STOPS, Case, answered, questions
from benchmarks.swapping.clients import Outcome, _ask, _judged
from benchmarks.swapping.disturb import plans_on, schedule
from benchmarks.swapping.wardrobe import BASELINES, EVOLVED, sources
from execution.replicas.dispatcher import Dispatcher
from loop.contracts import EngineFinish, EngineOutput, SamplingParams, ServeRequest, UnavailableError
from strategy.evolve.static import check_policy

CASE = Case("hi", (104, 105), SamplingParams(max_tokens=3), (97, 98, 99), "abc", EngineFinish.LENGTH)


class Answers:
    """A backend that answers with given outputs."""

    def __init__(self, *outputs: tuple[bytes, EngineFinish | None], error: Exception | None = None) -> None:
        self.outputs = outputs
        self.error = error

    async def serve(self, request: ServeRequest) -> AsyncIterator[EngineOutput]:
        for data, finish in self.outputs:
            yield EngineOutput(request.id, tuple(data), data.decode(), finish=finish)
        if self.error is not None:
            raise self.error


END = EngineFinish.LENGTH


@pytest.mark.parametrize(
    ("answers", "lost", "corrupted", "repeated"),
    [
        (Answers((b"ab", None), (b"c", END)), False, False, False),
        (Answers((b"ab", None), (b"d", END)), False, True, False),
        (Answers((b"ab", None), (b"b", None), (b"c", END)), False, True, True),
        (Answers((b"ac", END)), False, True, False),
        (Answers((b"abc", EngineFinish.STOP)), False, True, False),
        (Answers((b"abc", None)), True, False, False),
        (Answers((b"a", None), error=UnavailableError("gone")), True, False, False),
    ],
)
def test_a_client_sees_what_is_wrong(answers: Answers, lost: bool, corrupted: bool, repeated: bool) -> None:
    outcome = asyncio.run(_ask(cast(Dispatcher, answers), "m", "r", CASE))
    assert (outcome.lost, outcome.corrupted, outcome.repeated) == (lost, corrupted, repeated)


def test_a_second_end_is_counted() -> None:
    outcome = asyncio.run(_ask(cast(Dispatcher, Answers((b"abc", END), (b"", END))), "m", "r", CASE))
    assert outcome.finals == 2


@pytest.mark.parametrize(
    ("status", "text", "lost", "corrupted", "repeated"),
    [
        (200, "abc", False, False, False),
        (200, "abcc", False, True, True),
        (200, "ab", False, True, False),
        (503, "no replica", True, False, False),
    ],
)
def test_an_http_client_sees_what_is_wrong(
    status: int, text: str, lost: bool, corrupted: bool, repeated: bool
) -> None:
    outcome = _judged(status, text, CASE)
    assert (outcome.lost, outcome.corrupted, outcome.repeated) == (lost, corrupted, repeated)


def test_the_schedule_spreads_each_kind_over_the_run() -> None:
    acts = schedule(10_000, 50, 5, 5)
    assert Counter(act.kind for act in acts) == {"swap": 50, "plan": 5, "kill": 5}
    assert [act.after for act in acts] == sorted(act.after for act in acts)
    assert acts[0].after > 0
    assert acts[-1].after < 9_300
    swaps = [act.after for act in acts if act.kind == "swap"]
    gaps = {b - a for a, b in pairwise(swaps)}
    assert max(gaps) - min(gaps) <= 1


def test_each_plan_differs_from_the_one_before_it() -> None:
    for count in (3, 4, 6):
        layouts = plans_on("m", [f"d{i}" for i in range(count)], 64)
        for before, after in pairwise(layouts):
            assert before != after
        for layout in layouts:
            names = [name for spec in layout.replicas for name in spec.devices]
            assert names
            assert len(set(names)) == len(names)


def test_cases_are_many_kinds_and_the_same_for_a_seed() -> None:
    cases = questions(100, 3, greedy=False, most_tokens=32)
    assert cases == questions(100, 3, greedy=False, most_tokens=32)
    assert {c.sampling.temperature for c in cases} == {0.0, 0.8}
    assert {c.sampling.stop for c in cases} == {(), STOPS}
    assert {c.sampling.temperature for c in questions(20, 3, greedy=True, most_tokens=8)} == {0.0}
    assert len({c.prompt for c in cases}) == 100


def test_the_policies_are_different_and_sound() -> None:
    found = sources(0)
    assert len({source.digest for source in found}) == len(BASELINES) + EVOLVED
    for source in found:
        assert not check_policy(source.source)


def test_what_went_wrong_misses_its_target() -> None:
    record = SimpleNamespace(id=1, retries=1)
    run = SimpleNamespace(
        outcomes=[
            Outcome(error="x"),
            Outcome(finals=2),
            Outcome(finals=1, corrupted=True),
            Outcome(finals=1),
        ],
        records=[record, record],
        events=[],
        disturber=SimpleNamespace(done={"swap": 1, "plan": 0, "kill": 0}, faults=0),
        pauses_s=[0.004, 0.006],
        decisions_s=[0.001],
        stalls_s=[],
        stalls_between_s=[],
        moves=0,
        policies=1,
        wall_s=2.0,
        leftover=0,
    )
    rows, targets = swap.judge(cast(Any, run), swap.SIZES["simulated", True], "m")
    values = {target.name: (target.value, target.met) for target in targets}
    assert values["lost/m"] == (1, False)
    assert values["answered_twice/m"] == (2, False)
    assert values["corrupted/m"] == (1, False)
    assert values["pause_p99_ms/m"] == (pytest.approx(6.0), False)
    assert not values["swaps/m"][1]
    assert {row["what"]: row["value"] for row in rows}["requests/s"] == 2.0
    assert any(row["what"] == "x" for row in rows)


@pytest.mark.slow
def test_a_small_run_of_the_real_thing_is_clean() -> None:
    size = replace(
        swap.SIZES["simulated", True],
        requests=240, cases=60, concurrency=24, swaps=4, plans=2, kills=1, devices=3,
    )  # fmt: skip
    options = parse_options("swap", "", ["--quick"], extend=swap._extend)

    async def run() -> None:
        spec = swap._engine_spec(
            "simulated", plans_on("llama-3.1-8b", ["d0"], 64)[0].replicas[0], at_once=True
        )
        cases = await answered(spec, questions(size.cases, 0, greedy=False, most_tokens=size.most_tokens))
        for gateway in (False, True):
            done = await swap.run_once(options, size, cases, gateway=gateway)
            _, targets = swap.judge(done, size, "m")
            values = {target.name: target.value for target in targets}
            assert (values["lost/m"], values["answered_twice/m"], values["corrupted/m"]) == (0, 0, 0)
            assert (values["swaps/m"], values["reconfigurations/m"], values["kills/m"]) == (4, 2, 1)
            assert len(done.records) == size.requests
            assert done.leftover == 0

    asyncio.run(run())
