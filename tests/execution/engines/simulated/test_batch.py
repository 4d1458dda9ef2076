"""The batch that serves is the twin's: the same steps at the same times, and nothing left behind by who leaves."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from heapq import heappop
from random import Random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from execution.engines.simulated.answer import Answer
from execution.engines.simulated.batch import LiveBatch, LiveSequence
from execution.engines.simulated.hardware import Hardware
from execution.engines.simulated.options import SimulatedOptions
from execution.engines.simulated.stream import Stream
from execution.engines.tokenizer import ByteTokenizer
from execution.twin.engine import Agenda, Engine
from execution.twin.prefix_cache import PrefixCache, PrefixIndex
from execution.twin.sequence import Sequence
from loop.contracts import EngineFinish, EngineLimits, EngineRequest, Request, SamplingParams
from tests.examples import up_to
from tests.execution.twin.doubles import LinearCosts

LIMITS = EngineLimits(max_num_seqs=6, max_num_batched_tokens=64)
TOKENIZER = ByteTokenizer()
Job = tuple[float, int, int, float, int]
"""Arrival, prompt tokens, output tokens, priority, blocks that it shares with others."""
Leave = tuple[float, int]

CAPACITIES = st.sampled_from([192, 256, 384])
moments = st.integers(0, 60).map(lambda tick: tick * 0.007)
"""A step takes some 0.011 s, so that all happens while much is under way."""
jobs = st.lists(
    st.tuples(
        moments,
        st.integers(1, 120),
        st.integers(1, 60),
        st.sampled_from([0.0, 1.0]),
        st.integers(0, 3),
    ),
    min_size=4,
    max_size=12,
)


def request_of(number: int, job: Job) -> Request:
    arrival_s, prompt, output, _, shared = job
    hashes = tuple(range(1, 1 + min(shared, prompt // 16)))
    return Request(number, arrival_s, "m", prompt, output, hashes)


@dataclass
class TwinHost:
    """Notes when what was done."""

    first_s: dict[int, float] = field(default_factory=dict)
    last_s: dict[int, float] = field(default_factory=dict)

    def changed(self) -> None:
        pass

    def rest(self, now_s: float) -> None:
        pass

    def prefilled(self, seq: Sequence, now_s: float) -> bool:
        self.first_s.setdefault(seq.request.id, now_s)
        return False

    def finished(self, seq: Sequence, now_s: float) -> None:
        self.first_s.setdefault(seq.request.id, now_s)
        self.last_s[seq.request.id] = now_s


class Noting(LiveBatch):
    """Notes when what was done."""

    last_s: dict[int, float]

    def finished(self, seq: Sequence, now_s: float) -> None:
        self.last_s[seq.request.id] = now_s
        assert isinstance(seq, LiveSequence)
        stream = seq.stream
        if stream.finish is None:
            assert stream.made == seq.request.output_tokens - 1
        super().finished(seq, now_s)


def live(jobs: list[Job], capacity: int) -> tuple[Noting, Agenda, list[Sequence], list[Stream]]:
    """The batch that serves, and one stream for each job."""
    agenda: Agenda = []
    batch = Noting(
        Hardware(LinearCosts(kv_capacity_tokens=capacity), capacity, capacity),
        agenda,
        limits=LIMITS,
        options=SimulatedOptions(),
        seed=0,
        real_time=lambda: 1.0,
    )
    batch.last_s = {}
    streams = []
    for number, job in enumerate(jobs):
        sampling = SamplingParams(max_tokens=job[2], ignore_eos=True)
        asked = EngineRequest(str(number), (65,) * job[1], sampling)
        stream = Stream(asked, Answer(asked, 0, b"w", TOKENIZER, 10_000, 0.0, 0.0), lambda _: None)
        stream.seq = LiveSequence(request_of(number, job), number, stream, job[3])
        streams.append(stream)
    return batch, agenda, [stream.seq for stream in streams if stream.seq is not None], streams


def drive(
    engine: Engine,
    agenda: Agenda,
    arrivals: list[Sequence],
    leave: Callable[[int], None],
    leaving: list[Leave],
) -> None:
    """Virtual time: departures, arrivals and steps in order."""
    pending = sorted(arrivals, key=lambda seq: (seq.request.arrival_s, seq.number))
    leaving = sorted(leaving)
    while pending or agenda:
        step_s = agenda[0][0] if agenda else math.inf
        arrive_s = pending[0].request.arrival_s if pending else math.inf
        if leaving and leaving[0][0] <= min(step_s, arrive_s):
            leave(leaving.pop(0)[1])
        elif arrive_s <= step_s:
            if engine.enqueue(pending.pop(0), arrive_s):
                engine.begin(arrive_s)
        else:
            heappop(agenda)
            engine.fire(step_s)


@settings(max_examples=up_to(30))
@given(jobs, CAPACITIES)
def test_it_keeps_the_twins_times(jobs: list[Job], capacity: int) -> None:
    batch, agenda, sequences, streams = live(jobs, capacity)
    drive(batch, agenda, sequences, lambda _: None, [])
    host, twin_agenda = TwinHost(), list[Any]()
    twin = Engine(
        LinearCosts(kv_capacity_tokens=capacity),
        host,
        twin_agenda,
        0,
        max_seqs=LIMITS.max_num_seqs,
        max_batched=LIMITS.max_num_batched_tokens,
        cache=PrefixCache(PrefixIndex(), 1, 1),
        jitter=0.0,
        random=Random(0),
        leap=False,
    )
    others = [Sequence(request_of(number, job), number) for number, job in enumerate(jobs)]
    for seq, job in zip(others, jobs, strict=True):
        seq.priority = job[3]
    drive(twin, twin_agenda, others, lambda _: None, [])
    assert batch.last_s == host.last_s
    assert [stream.made for stream in streams] == [job[2] for job in jobs]
    assert all(stream.finish is EngineFinish.LENGTH for stream in streams)
    assert batch.preemptions == sum(seq.preemptions for seq in others)
    check_empty(batch)


@settings(max_examples=up_to(30))
@given(jobs, CAPACITIES, st.data())
def test_who_leaves_leaves_nothing_behind(jobs: list[Job], capacity: int, data: st.DataObject) -> None:
    batch, agenda, sequences, streams = live(jobs, capacity)
    leaving = data.draw(st.lists(st.tuples(moments, st.integers(0, len(jobs) - 1)), min_size=2, max_size=8))
    waiting_room = {entry.number: entry for entry in sequences}
    left = set()

    def leave(number: int) -> None:
        stream, seq = streams[number], waiting_room[number]
        on_board = seq.queued_s >= 0.0
        if on_board and stream.finish is None and isinstance(seq, LiveSequence):
            stream.finish = EngineFinish.CANCELLED
            left.add(number)
            batch.withdraw(seq)

    drive(batch, agenda, sequences, leave, leaving)
    for number, stream in enumerate(streams):
        expected = EngineFinish.CANCELLED if number in left else EngineFinish.LENGTH
        assert stream.finish is expected
        if number not in left:
            assert stream.made == jobs[number][2]
    check_empty(batch)


def check_empty(batch: LiveBatch) -> None:
    assert (batch.used_tokens, batch.running, batch.prompt_tokens, batch.waiting) == (0, 0, 0, [])
    assert batch.free_blocks() == batch.capacity_blocks
    batch.anchor_step = batch.step
    assert batch.outstanding_tokens() == 0
    assert not batch._decoders
    assert not batch._joined
