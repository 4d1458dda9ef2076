"""Whatever plans, failures and deaths come in whatever order: the last feasible plan serves, and nothing else runs."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st

from execution.replicas.load import Flight
from execution.replicas.manager import ManagerOptions, ReplicaManager
from loop.contracts import Plan, ReplicaSpec
from tests.examples import up_to
from tests.execution.replicas.scripted import MODEL, OTHER, World, devices, plan, spec

OPTIONS = ManagerOptions(backoff_s=0.0, max_deaths=1000, drain_limit_s=0.01, poll_s=0.01)


class Step(NamedTuple):
    """What happens next, and how many turns of the loop later."""

    kind: str
    plan: Plan
    pick: int
    turns: int


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Any feasible plan on four devices."""
    names = draw(st.permutations(["d0", "d1", "d2", "d3"]))
    specs: list[ReplicaSpec] = []
    while names and draw(st.booleans()):
        size = draw(st.integers(1, min(2, len(names))))
        model = draw(st.sampled_from([MODEL, OTHER]))
        specs.append(spec(*names[:size], model=model, seqs=draw(st.integers(1, 3))))
        names = names[size:]
    return plan(*specs)


steps = st.builds(
    Step,
    st.sampled_from(["plan", "plan", "kill", "fail", "hold"]),
    plans(),
    st.integers(0, 7),
    st.integers(0, 6),
)


@settings(max_examples=up_to(60), deadline=None)
@given(st.lists(steps, min_size=1, max_size=8), st.booleans())
def test_the_last_plan_is_what_serves_in_the_end(orders: list[Step], overlap: bool) -> None:
    asyncio.run(_play(orders, replace(OPTIONS, overlap=overlap)))


async def _play(orders: list[Step], options: ManagerOptions) -> None:
    world = World(exclusive=not options.overlap)
    manager = ReplicaManager(world.build, devices(4), [MODEL, OTHER], options=options)
    last = plan()
    for order in orders:
        if order.kind == "plan":
            await manager.apply(order.plan)
            last = order.plan
        elif order.kind == "kill" and world.running():
            world.running()[order.pick % len(world.running())].crash()
        elif order.kind == "fail":
            world.failures[f"d{order.pick % 4}"] = 1
        elif order.kind == "hold" and manager.present():
            manager.present()[order.pick % len(manager.present())].enter(Flight(1, 1, 1.0))
        for _ in range(order.turns):
            await asyncio.sleep(0)
    world.failures.clear()
    async with asyncio.timeout(120.0):
        await _quiet(manager, world)
    assert manager.plan().replicas == last.replicas
    serving = [r for model in (MODEL, OTHER) for r in manager.serving(model)]
    assert {r.spec for r in serving} == set(last.replicas)
    assert sorted(e.spec.devices for e in world.running()) == sorted(s.devices for s in last.replicas)
    for replica in serving:
        assert world.on(replica.spec.devices[0]).limits.max_num_seqs == replica.spec.max_num_seqs
    assert not world.clashes
    await manager.close()
    assert not world.running()
    assert all(e.stopped for e in world.engines)


async def _quiet(manager: ReplicaManager, world: World) -> None:
    """Settled, and every death noticed."""
    while True:
        await manager.settled()
        if len(world.running()) == len(manager.present()):
            return
        await asyncio.sleep(0.005)
