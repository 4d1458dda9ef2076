"""Plans become replicas: who starts, stays and goes, in which order, and what failure leaves behind."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from execution.replicas.events import ReplicaEvent, ReplicaEventKind
from execution.replicas.load import Flight
from execution.replicas.manager import ManagerOptions, ReplicaManager
from execution.replicas.replica import Replica
from loop.contracts import Plan, PlanError, ReplicaStage, Role
from tests.execution.replicas.scripted import MODEL, OTHER, World, device, devices, plan, spec

QUICK = ManagerOptions(backoff_s=0.0, max_deaths=3, poll_s=0.01, start_estimate_s=2.0)
Kind = ReplicaEventKind


class Stage:
    """A manager over scripted engines, with what it has told."""

    def __init__(self, world: World, options: ManagerOptions, count: int = 4) -> None:
        self.world = world
        self.events: list[ReplicaEvent] = []
        world.exclusive = not options.overlap
        self.manager = ReplicaManager(
            world.build, devices(count), [MODEL, OTHER], options=options, events=self.events.append
        )

    def told(self, *kinds: Kind) -> list[tuple[str, str]]:
        """(kind, device) of each event, or of those of some kinds."""
        return [(e.kind.value, e.devices[0]) for e in self.events if not kinds or e.kind in kinds]

    def served_on(self, model: str = MODEL) -> list[str]:
        return sorted(name for r in self.manager.serving(model) for name in r.spec.devices)

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(60.0):
            while not condition():
                await self.manager.change.wait()


def play(
    act: Callable[[Stage], Awaitable[None]], options: ManagerOptions = QUICK, world: World | None = None
) -> Stage:
    """Run one scene; whatever happened in it, nothing is left running and no device had two holders."""

    async def run() -> Stage:
        stage = Stage(world or World(), options)
        try:
            async with asyncio.timeout(120.0):
                await act(stage)
        finally:
            await stage.manager.close()
        assert not stage.world.running()
        assert all(e.stopped for e in stage.world.engines)
        assert not stage.world.clashes
        assert stage.manager.replicas() == ()
        return stage

    return asyncio.run(run())


def holding(replica: Replica) -> Flight:
    """A request in flight."""
    flight = Flight(10, 10, 5.0)
    replica.enter(flight)
    return flight


def test_a_plan_starts_its_replicas() -> None:
    async def act(stage: Stage) -> None:
        change = await stage.manager.apply(plan("d0", spec("d1", "d2"), reason="two of them"))
        assert (change.started, change.stopped, change.kept, change.resized) == (2, 0, 0, 0)
        assert change.expected_s == pytest.approx(2.0, abs=0.1)
        assert {r.stage for r in stage.manager.planned()} <= {ReplicaStage.STARTING}
        await stage.manager.settled()
        assert stage.served_on() == ["d0", "d1", "d2"]
        first, second = stage.manager.replicas()
        assert (first.id, second.id) == (0, 1)
        assert first.stage is ReplicaStage.READY
        assert first.ready_s is not None
        assert first.ready_s >= first.started_s
        assert first.info is not None
        assert stage.manager.plan() == plan("d0", spec("d1", "d2"), reason="two of them")

    stage = play(act)
    assert stage.told(Kind.STARTED, Kind.READY) == [
        ("started", "d0"), ("started", "d1"), ("ready", "d0"), ("ready", "d1"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (plan(spec("d1", model="gpt")), "unknown model"),
        (plan("d9"), "no device 'd9'"),
        (plan("d1", spec("d1", model=OTHER)), "belongs to replica 0 already"),
        (plan(replace(spec("d1", "d2"), tp=1)), "needs 1 devices, not 2"),
        (plan(replace(spec("d1"), devices=(), tp=1)), "no device"),
        (plan(replace(spec("d1"), max_num_seqs=0)), "at least 1"),
        (plan(replace(spec("d1"), role=Role.DECODE)), "role decode"),
        (plan("d3"), "is down"),
        (plan("d2"), "too small"),
    ],
)
def test_an_infeasible_plan_changes_nothing(bad: Plan, says: str) -> None:
    async def run() -> None:
        world = World()
        manager = ReplicaManager(
            world.build,
            [device("d0"), device("d1"), device("d2"), device("d3", available=False)],
            [MODEL, OTHER],
            options=QUICK,
            fits=lambda s: "too small" if "d2" in s.devices else "",
        )
        await manager.apply(plan("d0"))
        await manager.settled()
        before = (manager.plan(), manager.replicas(), manager.version)
        with pytest.raises(PlanError, match=says):
            await manager.apply(bad)
        assert (manager.plan(), manager.replicas(), manager.version) == before
        assert len(world.engines) == 1
        await manager.close()

    asyncio.run(run())


def test_what_stands_in_both_plans_is_kept_and_resized_live() -> None:
    async def act(stage: Stage) -> None:
        await stage.manager.apply(plan("d0", "d1"))
        await stage.manager.settled()
        before = stage.manager.replicas()
        change = await stage.manager.apply(plan("d1", spec("d0", seqs=3)))
        assert (change.started, change.stopped, change.kept, change.resized) == (0, 0, 2, 1)
        await stage.manager.settled()
        assert stage.manager.replicas() == before
        assert stage.world.on("d0").limits.max_num_seqs == 3
        assert stage.manager.plan() == plan("d1", spec("d0", seqs=3))
        views = {r.spec.devices[0]: r.view(0.0).max_num_seqs for r in stage.manager.planned()}
        assert views == {"d0": 3, "d1": 8}

    stage = play(act)
    assert len(stage.world.engines) == 2


def test_limits_that_change_during_a_start_are_in_force_when_it_is_ready() -> None:
    async def act(stage: Stage) -> None:
        gate = stage.world.gates["d0"] = asyncio.Event()
        await stage.manager.apply(plan("d0"))
        await stage.until(lambda: bool(stage.world.engines))
        await stage.manager.apply(plan(spec("d0", seqs=2)))
        gate.set()
        await stage.manager.settled()
        assert stage.world.on("d0").limits.max_num_seqs == 2
        assert stage.manager.serving(MODEL)[0].spec.max_num_seqs == 2

    play(act)


def test_the_old_one_serves_until_its_successor_is_ready_and_finishes_what_it_has() -> None:
    async def act(stage: Stage) -> None:
        await stage.manager.apply(plan("d0"))
        await stage.manager.settled()
        gate = stage.world.gates["d1"] = asyncio.Event()
        (old,) = stage.manager.serving(MODEL)
        flight = holding(old)
        change = await stage.manager.apply(plan("d1"))
        assert (change.started, change.stopped) == (1, 1)
        await stage.until(lambda: len(stage.world.engines) == 2)
        assert stage.served_on() == ["d0"]
        assert stage.manager.plan() == plan("d1")
        gate.set()
        await stage.until(lambda: stage.served_on() == ["d1"])
        await stage.until(lambda: old.stage is ReplicaStage.DRAINING)
        assert stage.world.on("d0").alive
        old.leave(flight)
        await stage.manager.settled()
        assert [e.spec.devices for e in stage.world.running()] == [("d1",)]

    stage = play(act)
    order = stage.told(Kind.READY, Kind.DRAINING, Kind.STOPPED)[:4]
    assert order == [("ready", "d0"), ("ready", "d1"), ("draining", "d0"), ("stopped", "d0")]


def test_a_model_of_its_own_on_other_devices_is_no_successor() -> None:
    async def act(stage: Stage) -> None:
        await stage.manager.apply(plan("d0"))
        await stage.manager.settled()
        stage.world.gates["d1"] = asyncio.Event()
        await stage.manager.apply(plan(spec("d1", model=OTHER)))
        await stage.until(lambda: not stage.manager.serving(MODEL))
        assert not stage.manager.coming(MODEL)
        assert stage.manager.coming(OTHER)

    play(act)


def test_exclusive_devices_are_freed_before_their_next_holder_starts() -> None:
    async def act(stage: Stage) -> None:
        await stage.manager.apply(plan("d0"))
        await stage.manager.settled()
        (old,) = stage.manager.serving(MODEL)
        flight = holding(old)
        change = await stage.manager.apply(plan(spec("d0", "d1")))
        assert change.expected_s > 0.0
        await stage.until(lambda: old.stage is ReplicaStage.DRAINING)
        assert len(stage.world.engines) == 1
        assert stage.manager.coming(MODEL)
        old.leave(flight)
        await stage.manager.settled()
        assert stage.served_on() == ["d0", "d1"]

    stage = play(act)
    assert stage.told(Kind.STOPPED, Kind.READY)[:3] == [("ready", "d0"), ("stopped", "d0"), ("ready", "d0")]


def test_with_overlap_both_exist_for_the_moment_of_the_change() -> None:
    async def act(stage: Stage) -> None:
        await stage.manager.apply(plan("d0"))
        await stage.manager.settled()
        gate = stage.world.gates["d1"] = asyncio.Event()
        await stage.manager.apply(plan(spec("d0", "d1")))
        await stage.until(lambda: len(stage.world.engines) == 2)
        assert stage.served_on() == ["d0"]
        gate.set()
        await stage.until(lambda: stage.served_on() == ["d0", "d1"])
        await stage.manager.settled()
        assert len(stage.world.running()) == 1

    play(act, replace(QUICK, overlap=True))


def test_a_swap_of_devices_does_not_lock_up() -> None:
    async def act(stage: Stage) -> None:
        await stage.manager.apply(plan("d0", spec("d1", model=OTHER)))
        await stage.manager.settled()
        await stage.manager.apply(plan("d1", spec("d0", model=OTHER)))
        await stage.manager.settled()
        assert (stage.served_on(), stage.served_on(OTHER)) == (["d1"], ["d0"])

    play(act)


@pytest.mark.parametrize("overlap", [False, True])
def test_a_successor_that_does_not_start_leaves_the_old_one_serving(overlap: bool) -> None:
    async def act(stage: Stage) -> None:
        await stage.manager.apply(plan("d0"))
        await stage.manager.settled()
        stage.world.failures["d1"] = 99
        await stage.manager.apply(plan("d1"))
        await stage.manager.settled()
        assert stage.served_on() == ["d0"]
        assert stage.manager.plan().replicas == plan("d0").replicas

    stage = play(act, replace(QUICK, overlap=overlap))
    assert stage.told(Kind.FAILED) == [("failed", "d1")] * 3
    assert stage.told(Kind.GAVE_UP, Kind.KEPT) == [("gave-up", "d1"), ("kept", "d0")]
    assert "no luck on d1" in next(e.reason for e in stage.events if e.kind is Kind.GAVE_UP)
    assert len([e for e in stage.world.engines if e.spec.devices == ("d0",)]) == 1


def test_an_old_one_that_had_to_go_first_is_started_again_when_its_successor_fails() -> None:
    async def act(stage: Stage) -> None:
        await stage.manager.apply(plan("d0"))
        await stage.manager.settled()
        stage.world.unbuildable.add("d1")
        await stage.manager.apply(plan(spec("d0", "d1")))
        await stage.manager.settled()
        assert stage.served_on() == ["d0"]
        assert stage.manager.plan().replicas == plan("d0").replicas

    stage = play(act)
    assert "cannot be built: ValueError" in next(e.reason for e in stage.events if e.kind is Kind.FAILED)


def test_a_start_that_never_ends_is_given_up() -> None:
    async def act(stage: Stage) -> None:
        stage.world.gates["d0"] = asyncio.Event()
        await stage.manager.apply(plan("d0"))
        await stage.manager.settled()
        assert stage.manager.plan().replicas == ()
        assert not stage.manager.coming(MODEL)

    stage = play(act, replace(QUICK, start_limit_s=0.01, max_deaths=2))
    assert "not ready after 0.01 s" in stage.events[-1].reason


def test_a_dead_replica_is_replaced_by_another_with_an_id_of_its_own() -> None:
    async def act(stage: Stage) -> None:
        await stage.manager.apply(plan("d0", "d1"))
        await stage.manager.settled()
        victim = stage.manager.serving(MODEL)[0]
        stage.manager.lost(victim, "its socket closed")
        assert stage.served_on() == ["d1"]  # at once
        assert stage.manager.coming(MODEL)
        await stage.manager.settled()
        assert stage.served_on() == ["d0", "d1"]
        assert [r.id for r in stage.manager.serving(MODEL)] == [1, 2]
        assert (stage.manager.deaths, stage.manager.restarts) == (1, 1)

    stage = play(act)
    assert stage.told(Kind.DIED, Kind.RESTART) == [("died", "d0"), ("restart", "d0")]


def test_an_engine_that_crashes_or_hangs_is_noticed_by_its_readings() -> None:
    async def act(stage: Stage) -> None:
        await stage.manager.apply(plan("d0", "d1"))
        await stage.manager.settled()
        stage.world.on("d0").crash("out of memory")
        stage.world.on("d1").mute = True
        await stage.until(lambda: stage.manager.deaths == 2)
        await stage.manager.settled()
        assert stage.served_on() == ["d0", "d1"]

    stage = play(act, replace(QUICK, answer_limit_s=0.05))
    reasons = sorted(e.reason for e in stage.events if e.kind is Kind.DIED)
    assert reasons == ["hangs: no answer for 0.05 s", "out of memory"]


def test_repeated_deaths_open_the_breaker_and_a_new_plan_gets_one_attempt() -> None:
    async def act(stage: Stage) -> None:
        stage.world.failures["d0"] = 3
        await stage.manager.apply(plan("d0", "d1"))
        await stage.manager.settled()
        assert stage.manager.plan().replicas == plan("d1").replicas
        assert len(stage.world.engines) == 4
        stage.world.failures["d0"] = 99
        await stage.manager.apply(plan("d0", "d1"))
        await stage.manager.settled()
        assert len(stage.world.engines) == 5

    stage = play(act)
    assert stage.told(Kind.GAVE_UP) == [("gave-up", "d0")] * 2
    assert "3 deaths in a row" in next(e.reason for e in stage.events if e.kind is Kind.GAVE_UP)


def test_the_pause_before_a_restart_doubles() -> None:
    async def act(stage: Stage) -> None:
        stage.world.failures["d0"] = 3
        await stage.manager.apply(plan("d0"))
        await stage.manager.settled()

    stage = play(act, replace(QUICK, backoff_s=0.001, max_backoff_s=0.003, max_deaths=9))
    pauses = [e.reason.split(",")[0] for e in stage.events if e.kind is Kind.RESTART]
    assert pauses == ["in 0.001 s", "in 0.002 s", "in 0.003 s"]


def test_what_does_not_drain_in_time_is_stopped_all_the_same() -> None:
    async def act(stage: Stage) -> None:
        await stage.manager.apply(plan("d0"))
        await stage.manager.settled()
        holding(stage.manager.serving(MODEL)[0])
        await stage.manager.apply(plan())
        await stage.manager.settled()
        assert not stage.world.running()

    stage = play(act, replace(QUICK, drain_limit_s=0.02))
    assert stage.events[-1].reason == "1 requests go on elsewhere"


def test_one_that_drains_comes_back_when_it_is_wanted_again() -> None:
    async def act(stage: Stage) -> None:
        await stage.manager.apply(plan("d0", "d1"))
        await stage.manager.settled()
        old = stage.manager.serving(MODEL)[0]
        flight = holding(old)
        await stage.manager.apply(plan("d1"))
        await stage.until(lambda: old.stage is ReplicaStage.DRAINING)
        change = await stage.manager.apply(plan("d0", "d1"))
        assert (change.started, change.kept) == (0, 2)
        await stage.manager.settled()
        assert old in stage.manager.serving(MODEL)
        old.leave(flight)
        await stage.manager.apply(plan("d1"))
        await stage.manager.settled()
        assert stage.served_on() == ["d1"]

    stage = play(act)
    assert len(stage.world.engines) == 2


def test_one_that_dies_while_it_drains_is_not_restarted() -> None:
    async def act(stage: Stage) -> None:
        await stage.manager.apply(plan("d0", "d1"))
        await stage.manager.settled()
        old = stage.manager.serving(MODEL)[0]
        holding(old)
        await stage.manager.apply(plan("d1"))
        await stage.until(lambda: old.stage is ReplicaStage.DRAINING)
        stage.manager.lost(old, "killed")
        await stage.manager.settled()
        assert stage.served_on() == ["d1"]

    stage = play(act)
    assert len(stage.world.engines) == 2
    assert stage.told(Kind.DIED) == [("died", "d0")]


def test_a_newer_plan_calls_off_what_an_older_one_began() -> None:
    async def act(stage: Stage) -> None:
        await stage.manager.apply(plan("d0"))
        await stage.manager.settled()
        stage.world.gates["d1"] = asyncio.Event()
        last = stage.world.gates["d2"] = asyncio.Event()
        await stage.manager.apply(plan("d1"))
        await stage.until(lambda: len(stage.world.engines) == 2)
        await stage.manager.apply(plan("d2"))
        await stage.until(lambda: len(stage.world.engines) == 3 and stage.world.engines[1].stopped)
        assert stage.served_on() == ["d0"]  # waits for the newest now
        last.set()
        await stage.manager.settled()
        assert stage.served_on() == ["d2"]
        assert [e.spec.devices for e in stage.world.running()] == [("d2",)]

    play(act)


def test_plans_that_follow_each_other_at_once_leave_the_last_one() -> None:
    async def act(stage: Stage) -> None:
        await stage.manager.apply(plan("d0", "d1"))
        await stage.manager.apply(plan("d2"))  # before any of the first has begun
        await stage.manager.apply(plan("d1", spec("d2", seqs=2)))
        await stage.manager.settled()
        assert stage.served_on() == ["d1", "d2"]

    play(act)


def test_going_back_to_the_old_plan_keeps_the_old_replica() -> None:
    async def act(stage: Stage) -> None:
        await stage.manager.apply(plan("d0"))
        await stage.manager.settled()
        stage.world.gates["d1"] = asyncio.Event()
        await stage.manager.apply(plan("d1"))
        await stage.until(lambda: len(stage.world.engines) == 2)
        change = await stage.manager.apply(plan("d0"))
        assert (change.started, change.stopped, change.kept) == (0, 1, 1)
        await stage.manager.settled()
        assert stage.served_on() == ["d0"]
        assert stage.told(Kind.DRAINING) == []

    play(act)


def test_device_seconds_and_price_are_what_the_clock_says() -> None:
    async def run() -> None:
        now = [100.0]
        world = World()
        manager = ReplicaManager(world.build, devices(4), [MODEL], options=QUICK, clock=lambda: now[0])
        await manager.apply(plan("d0", spec("d1", "d2")))
        await manager.settled()
        now[0] += 10.0
        assert manager.resources().device_s == pytest.approx(30.0)
        await manager.apply(plan("d0"))
        await manager.settled()
        now[0] += 5.0
        spent = manager.resources()
        assert spent.device_s == pytest.approx(35.0)
        assert spent.usd == pytest.approx(35.0 * 3.6 / 3600.0)
        await manager.close()
        now[0] += 5.0
        assert manager.resources() == spent

    asyncio.run(run())


def test_a_reconfiguration_with_requests_waiting_counts_as_stall() -> None:
    async def run() -> None:
        now = [0.0]
        world = World(gates={"d1": asyncio.Event()})
        manager = ReplicaManager(world.build, devices(4), [MODEL], options=QUICK, clock=lambda: now[0])
        await manager.apply(plan("d0"))
        await manager.settled()
        manager.meter.pending = 1
        await manager.apply(plan("d0", "d1"))
        now[0] += 4.0
        world.gates["d1"].set()
        await manager.settled()
        now[0] += 4.0
        manager.changed()
        assert manager.meter.stall_s == pytest.approx(2.0)  # half of two devices, for 4 s
        await manager.close()

    asyncio.run(run())


@pytest.mark.slow
def test_a_listener_that_fails_harms_nobody() -> None:
    async def run() -> None:
        def listen(event: ReplicaEvent) -> None:
            raise OSError("disk full")

        world = World()
        manager = ReplicaManager(world.build, devices(1), [MODEL], options=QUICK, events=listen)
        await manager.apply(plan("d0"))
        await manager.settled()
        assert len(manager.serving(MODEL)) == 1
        await manager.close()

    asyncio.run(run())


def test_closing_in_the_middle_of_everything_leaves_nothing() -> None:
    async def act(stage: Stage) -> None:
        await stage.manager.apply(plan("d0", "d1"))
        await stage.manager.settled()
        holding(stage.manager.serving(MODEL)[0])
        stage.world.gates["d2"] = asyncio.Event()
        await stage.manager.apply(plan("d2", spec("d1", "d3")))
        await stage.until(lambda: len(stage.world.engines) == 4)
        await stage.manager.close()
        await stage.manager.close()
        with pytest.raises(RuntimeError, match="closed"):
            await stage.manager.apply(plan("d0"))

    play(act)
