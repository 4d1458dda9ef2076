"""Manager and dispatcher over real worker processes that are killed, stopped and replaced."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from execution.engines.tokenizer import ByteTokenizer
from execution.replicas.dispatcher import Dispatcher, ServedModel
from execution.replicas.events import ReplicaEvent, ReplicaEventKind
from execution.replicas.manager import ManagerOptions, ReplicaManager
from execution.replicas.remote import RemoteEngine
from loop.contracts import (
    EngineFinish,
    EngineLimits,
    EngineSpec,
    Finish,
    ReplicaSpec,
    RequestRecord,
    SamplingParams,
    ServeRequest,
)
from strategy.baselines import load_baseline
from tests.execution.replicas.scripted import devices, plan

pytestmark = pytest.mark.slow
MODEL = "llama-3.1-8b"
OPTIONS = ManagerOptions(
    overlap=True, start_limit_s=300.0, drain_limit_s=20.0, poll_s=0.05, backoff_s=0.05, answer_limit_s=60.0
)


def engine(wanted: ReplicaSpec) -> RemoteEngine:
    limits = EngineLimits(wanted.max_num_seqs, wanted.max_num_batched_tokens)
    options = {"time_scale": 0.5, "answer_tokens": 0.0}
    return RemoteEngine(EngineSpec("simulated", wanted.model, limits=limits, seed=3, options=options))


def on(*names: str, seqs: int = 64) -> tuple[ReplicaSpec, ...]:
    return tuple(ReplicaSpec(MODEL, (name,), max_num_seqs=seqs) for name in names)


@dataclass
class Plane:
    manager: ReplicaManager
    dispatcher: Dispatcher
    events: list[ReplicaEvent]
    records: list[RequestRecord]
    pids: set[int] = field(default_factory=set)

    async def answer(self, number: int, tokens: int = 120) -> tuple[int, ...]:
        prompt = tuple(b"a prompt of its own: %d" % number)
        request = ServeRequest(
            f"q{number}", MODEL, prompt, SamplingParams(max_tokens=tokens, temperature=0.7, seed=number)
        )
        found: list[int] = []
        text = ""
        finish = None
        async for output in self.dispatcher.serve(request):
            found += output.token_ids
            text += output.text
            finish = output.finish
        assert finish is EngineFinish.LENGTH
        assert text == bytes(found).decode("ascii")
        return tuple(found)

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await asyncio.sleep(0.005)

    def note(self) -> None:
        self.pids |= {r.pid for r in self.manager.replicas() if r.pid is not None}


def play(act: Callable[[Plane], Awaitable[None]], options: ManagerOptions = OPTIONS) -> Plane:
    """Run one scene; no process of it is left."""

    async def run() -> Plane:
        events: list[ReplicaEvent] = []
        records: list[RequestRecord] = []
        manager = ReplicaManager(engine, devices(4), [MODEL], options=options, events=events.append)
        dispatcher = Dispatcher(
            manager,
            [ServedModel(MODEL, ByteTokenizer(), 4096)],
            load_baseline("least_loaded"),
            sink=records.append,
        )
        plane = Plane(manager, dispatcher, events, records)
        try:
            async with asyncio.timeout(400.0):
                await act(plane)
                plane.note()
        finally:
            await manager.close()
        return plane

    plane = asyncio.run(run())
    assert plane.pids
    for pid in plane.pids:
        assert not Path(f"/proc/{pid}").exists()
    return plane


def test_answers_survive_kills_and_reconfigurations_token_by_token() -> None:
    async def act(plane: Plane) -> None:
        await plane.manager.apply(plan(*on("d0", "d1")))
        await plane.manager.settled()
        plane.note()
        expected = await asyncio.gather(*(plane.answer(i) for i in range(60)))
        running = [asyncio.create_task(plane.answer(i)) for i in range(60)]
        victim = plane.manager.serving(MODEL)[0]
        assert victim.pid is not None
        await plane.until(lambda: victim.load.started > 1 or any(task.done() for task in running))
        os.kill(victim.pid, signal.SIGSTOP)  # what it has begun it does not finish meanwhile
        others = [r for r in plane.manager.serving(MODEL) if r is not victim]
        await plane.until(lambda: any(r.load.started for r in others) or any(t.done() for t in running))
        os.kill(victim.pid, signal.SIGKILL)
        await plane.manager.apply(plan(*on("d1", "d2", seqs=32)))
        assert await asyncio.gather(*running) == expected
        await plane.manager.settled()
        assert sorted(r.spec.devices for r in plane.manager.serving(MODEL)) == [("d1",), ("d2",)]

    plane = play(act)
    assert {r.finish for r in plane.records} == {Finish.OK}
    assert len(plane.records) == 120
    died = [e for e in plane.events if e.kind is ReplicaEventKind.DIED]
    assert len(died) == 1
    assert died[0].pid in plane.pids
    assert sum(r.retries for r in plane.records) >= 1


def test_a_worker_that_hangs_is_killed_and_replaced() -> None:
    async def act(plane: Plane) -> None:
        await plane.manager.apply(plan(*on("d0")))
        await plane.manager.settled()
        plane.note()
        expected = await plane.answer(1)
        (first,) = plane.manager.serving(MODEL)
        assert first.pid is not None
        task = asyncio.create_task(plane.answer(1))
        await plane.until(lambda: first.load.started == 1 or task.done())
        os.kill(first.pid, signal.SIGSTOP)
        assert await task == expected
        await plane.until(lambda: plane.manager.deaths >= 1)  # the answer may have been on its way already
        await plane.manager.settled()
        assert plane.manager.serving(MODEL)[0].id != first.id

    plane = play(act, ManagerOptions(overlap=True, poll_s=0.05, answer_limit_s=4.0, backoff_s=0.05))
    assert "hangs" in next(e.reason for e in plane.events if e.kind is ReplicaEventKind.DIED)


def test_an_idle_worker_that_is_killed_is_noticed_without_a_request() -> None:
    async def act(plane: Plane) -> None:
        await plane.manager.apply(plan(*on("d0")))
        await plane.manager.settled()
        plane.note()
        (first,) = plane.manager.serving(MODEL)
        assert first.pid is not None
        os.kill(first.pid, signal.SIGKILL)
        await plane.until(lambda: plane.manager.deaths == 1)
        await plane.manager.settled()
        assert len(await plane.answer(5)) == 120

    # readings are too rare to notice it in time
    play(act, ManagerOptions(overlap=True, poll_s=500.0))


def test_closing_while_workers_start_leaves_none() -> None:
    async def act(plane: Plane) -> None:
        await plane.manager.apply(plan(*on("d0", "d1")))
        await plane.until(lambda: sum(r.pid is not None for r in plane.manager.replicas()) == 2)
        plane.note()

    play(act)
