"""The live plane: the controller's port over live replicas, from a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import pytest

from execution.engines.registry import build_engine
from execution.engines.tokenizer import ByteTokenizer
from execution.replicas.dispatcher import ServedModel
from execution.replicas.manager import ManagerOptions, ReplicaManager
from execution.replicas.plane import (
    LiveDispatcher,
    LivePlane,
    PlaneClosedError,
    Reading,
    Served,
    live_dispatcher,
)
from loop.contracts import (
    ClusterEvent,
    DeviceView,
    EngineFinish,
    EngineLimits,
    EngineSpec,
    EventKind,
    Finish,
    Memo,
    Plan,
    PlanError,
    ReplicaSpec,
    Request,
    SamplingParams,
    ServeRequest,
)
from strategy.baselines import load_baseline

T = TypeVar("T")
MODEL = "tiny-llama"
NAMES = ("here-0/cpu0", "here-0/cpu1")
LIMIT_S = 300.0


def engine_of(spec: ReplicaSpec) -> object:
    """The real simulated engine, in this process, its time standing still."""
    options = {"cluster": "local-2", "devices": ",".join(spec.devices), "time_scale": 0.0}
    return build_engine(
        EngineSpec("simulated", MODEL, limits=EngineLimits(spec.max_num_seqs), options=options)
    )


def plan(*names: str, seqs: int = 8) -> Plan:
    return Plan(tuple(ReplicaSpec(MODEL, (name,), max_num_seqs=seqs) for name in names), "test")


@dataclass
class Live:
    """A plane, what it told, and how to be its controller."""

    manager: ReplicaManager
    dispatcher: LiveDispatcher
    plane: LivePlane
    arrived: list[Request]
    served: list[Served]
    readings: list[Reading]
    threads: set[str] = field(default_factory=set)

    async def controller(self, act: Callable[[LivePlane], T]) -> T:
        """Do something in the controller's thread."""
        return await asyncio.wait_for(asyncio.to_thread(act, self.plane), LIMIT_S)

    async def ask(self, identity: str, tokens: int = 5) -> list[int]:
        """One request, to its end."""
        sampling = SamplingParams(max_tokens=tokens, temperature=0.0, ignore_eos=True)
        request = ServeRequest(identity, MODEL, tuple(range(65, 65 + 20)), sampling)
        found: list[int] = []
        async for output in self.dispatcher.serve(request):
            found += output.token_ids
            if output.finish is not None:
                assert output.finish is EngineFinish.LENGTH
        return found


@asynccontextmanager
async def live() -> AsyncIterator[Live]:
    devices = [DeviceView(n, "cpu-slot", "here-0", True, 1.0, None, 1 << 29, 0.05, spot=False) for n in NAMES]
    manager = ReplicaManager(engine_of, devices, [MODEL], options=ManagerOptions(overlap=True, poll_s=0.01))  # type: ignore[arg-type]
    models = [ServedModel(MODEL, ByteTokenizer(), 2048)]
    dispatcher = live_dispatcher(manager, models, load_baseline("round_robin"))
    arrived: list[Request] = []
    served: list[Served] = []
    readings: list[Reading] = []
    threads: set[str] = set()

    def hear(into: list[T]) -> Callable[[tuple[T, ...]], None]:
        def heard(values: tuple[T, ...]) -> None:
            threads.add(threading.current_thread().name)
            into.extend(values)

        return heard

    plane = LivePlane(
        manager,
        dispatcher,
        arrived=hear(arrived),
        served=hear(served),
        read=hear(readings),
        look_s=0.01,
        read_s=0.01,
    )
    try:
        yield Live(manager, dispatcher, plane, arrived, served, readings, threads)
    finally:
        await manager.close()


def test_a_plan_is_carried_out_requests_are_told_and_the_snapshot_shows_it():
    async def check() -> None:
        async with live() as world:
            done = await world.controller(lambda p: p.apply(plan(*NAMES)))
            assert (done.started, done.kept) == (2, 0)
            await world.manager.settled()
            answers = await asyncio.gather(*(world.ask(f"r{i}", 3 + i) for i in range(4)))
            assert [len(a) for a in answers] == [3, 4, 5, 6]
            snapshot = await world.controller(lambda p: p.snapshot())
            assert [r.devices for r in snapshot.plan.replicas] == [(NAMES[0],), (NAMES[1],)]
            assert {d.id for d in snapshot.devices} == set(NAMES)
            assert [r.model for r in snapshot.replicas] == [MODEL, MODEL]
            assert all(r.ready_in_s == 0.0 for r in snapshot.replicas)
            assert snapshot.resources.device_s > 0.0
            assert [r.id for r in world.arrived] == [0, 1, 2, 3]
            assert sorted(s.request_id for s in world.served) == ["r0", "r1", "r2", "r3"]
            assert {s.record.finish for s in world.served} == {Finish.OK}
            assert sorted(s.workload.output_tokens for s in world.served) == [3, 4, 5, 6]
            assert all(s.record.arrival_s <= s.record.first_token_s <= snapshot.now_s for s in world.served)
            assert threading.main_thread().name not in world.threads  # only the controller's thread hears

    asyncio.run(check())


def test_another_policy_takes_over_between_two_requests():
    class Last:
        """Everything to the replica with the highest id."""

        name, digest = "last", "1" * 12

        def should_replan(self, *_: object) -> bool:
            return False

        def plan(self, *_: object) -> Plan:
            raise NotImplementedError

        def route(self, request: object, replicas: list[object], memo: Memo) -> int:
            memo["asked"] = memo.get("asked", 0.0) + 1.0
            return len(replicas) - 1

        def priority(self, *_: object) -> float:
            return 0.0

    async def check() -> None:
        async with live() as world:
            await world.controller(lambda p: p.apply(plan(*NAMES)))
            await world.manager.settled()
            await world.ask("before")
            memo = Memo()
            await world.controller(lambda p: p.use(Last(), memo))  # type: ignore[arg-type]
            for i in range(3):
                await world.ask(f"r{i}")
            await world.controller(lambda p: p.snapshot())
            assert memo["asked"] == 3.0
            assert [s.policy for s in world.served] == [load_baseline("round_robin").digest, *["1" * 12] * 3]
            assert len({s.record.replica for s in world.served[1:]}) == 1

    asyncio.run(check())


def test_a_plan_that_cannot_be_changes_nothing_and_neither_does_any_after_the_stop():
    async def check() -> None:
        async with live() as world:
            await world.controller(lambda p: p.apply(plan(NAMES[0])))
            with pytest.raises(PlanError, match="nowhere"):
                await world.controller(lambda p: p.apply(plan("nowhere")))
            world.plane.stop()
            assert world.plane.stopping
            with pytest.raises(PlanError, match="stopping"):
                await world.controller(lambda p: p.apply(plan(*NAMES)))
            assert [s.devices for s in world.manager.plan().replicas] == [(NAMES[0],)]

    asyncio.run(check())


def test_waiting_for_the_clock_ends_at_its_time_or_when_told_to_stop():
    async def check() -> None:
        async with live() as world:
            until_s = world.plane.now_s + 0.05
            await world.controller(lambda p: p.run_until(until_s))
            assert world.plane.now_s >= until_s
            waiting = asyncio.create_task(world.controller(lambda p: p.run_until(p.now_s + 3600.0)))
            await asyncio.sleep(0)
            world.plane.stop()
            await waiting  # LIMIT_S guards it

    asyncio.run(check())


def test_idle_is_when_nothing_is_in_flight():
    async def check() -> None:
        async with live() as world:
            assert await world.controller(lambda p: p.run_until_idle(p.now_s + LIMIT_S))
            await world.controller(lambda p: p.apply(plan(NAMES[0])))
            held = asyncio.create_task(world.ask("held"))
            await asyncio.sleep(0)
            assert world.dispatcher.pending == 1
            assert await world.controller(lambda p: p.run_until_idle(p.now_s + LIMIT_S))
            assert len(await held) == 5
            assert [s.request_id for s in world.served] == ["held"]

    asyncio.run(check())


def test_what_is_given_up_is_waited_for_no_more():
    async def check() -> None:
        async with live() as world:
            await world.controller(lambda p: p.apply(plan(NAMES[0])))
            sampling = SamplingParams(max_tokens=5)
            stream = world.dispatcher.serve(ServeRequest("open", MODEL, (65,) * 8, sampling))
            await anext(stream)  # and nobody reads on
            assert [r.id for r in await world.controller(lambda p: p.open_requests())] == [0]
            assert not await world.controller(lambda p: p.run_until_idle(p.now_s))
            world.plane.hurry()
            assert not await world.controller(lambda p: p.run_until_idle(p.now_s + 3600.0))
            await world.controller(lambda p: p.close())
            assert await world.controller(lambda p: p.run_until_idle(p.now_s + 3600.0))
            await stream.aclose()
            await world.controller(lambda p: p.close())
            assert [s.record.finish for s in world.served] == [Finish.CANCELLED]

    asyncio.run(check())


def test_readings_are_the_engines_own_counters():
    async def check() -> None:
        async with live() as world:
            await world.controller(lambda p: p.apply(plan(NAMES[0])))
            await world.ask("r", 7)
            while not world.readings or world.readings[-1].stats.finished == 0:
                await asyncio.sleep(0.01)
                await world.controller(lambda p: p.run_until(p.now_s))
            last = world.readings[-1]
            assert (last.replica, last.stats.generated_tokens, last.stats.prompt_tokens) == (0, 7, 20)
            assert 0.0 < last.at_s <= world.plane.now_s

    asyncio.run(check())


def test_what_a_trace_orders_does_not_happen_here():
    async def check() -> None:
        async with live() as world:
            with pytest.raises(NotImplementedError, match="gateway"):
                world.plane.submit([Request(7, 0.0, MODEL, 1, 1)])
            world.plane.submit(())
            with pytest.raises(NotImplementedError, match="down"):
                world.plane.inject(ClusterEvent(0.0, EventKind.DOWN, NAMES[0]))

    asyncio.run(check())


def test_without_its_event_loop_it_says_so():
    async def make() -> LivePlane:
        async with live() as world:
            return world.plane

    plane = asyncio.run(make())
    with pytest.raises(PlaneClosedError, match="closed"):
        plane.snapshot()
