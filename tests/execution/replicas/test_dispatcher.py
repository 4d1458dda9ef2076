"""Requests find their replica by the policy's word, and are seen through to their last token."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace

import pytest

from execution.engines.tokenizer import ByteTokenizer
from execution.replicas.dispatcher import Dispatcher, DispatcherOptions, ServedModel
from execution.replicas.manager import ManagerOptions, ReplicaManager
from loop.contracts import (
    REJECT,
    DeadlineError,
    EngineCrashedError,
    EngineFinish,
    EngineOutput,
    EngineRequest,
    Finish,
    InvalidRequestError,
    Memo,
    Observation,
    Plan,
    RejectedError,
    ReplicaView,
    Request,
    RequestRecord,
    RequestView,
    SamplingParams,
    ServeError,
    ServeRequest,
    UnavailableError,
    UnknownModelError,
)
from tests.execution.replicas.scripted import CONTEXT_TOKENS, MODEL, OTHER, World, devices, echo, plan, spec

OPTIONS = ManagerOptions(backoff_s=0.0, max_deaths=1000, poll_s=0.01, drain_limit_s=0.05)
PROMPT = tuple(b"Hello, world! ")


class Turns:
    """A policy under test: takes replicas in turn, or as it is told, and remembers what it was shown."""

    name, digest = "turns", "t0"

    def __init__(self, answer: Callable[[RequestView, Sequence[ReplicaView]], int] | None = None) -> None:
        self.seen: list[tuple[RequestView, tuple[ReplicaView, ...]]] = []
        self.order: Callable[[RequestView], float] = lambda request: request.arrival_s
        self._answer = answer or (lambda request, replicas: request.id % len(replicas))

    def should_replan(self, obs: Observation, memo: Memo) -> bool:
        return False

    def plan(self, obs: Observation, budget_s: float, memo: Memo) -> Plan:
        return obs.plan

    def route(self, request: RequestView, replicas: Sequence[ReplicaView], memo: Memo) -> int:
        self.seen.append((request, tuple(replicas)))
        return self._answer(request, replicas)

    def priority(self, request: RequestView, replica: ReplicaView, memo: Memo) -> float:
        return self.order(request)


class InOneCrossing(Turns):
    """A BatchedPolicy."""

    def dispatch(
        self, request: RequestView, replicas: Sequence[ReplicaView], memo: Memo
    ) -> tuple[int, float]:
        self.seen.append((request, tuple(replicas)))
        return 0, 7.0

    def priority(self, request: RequestView, replica: ReplicaView, memo: Memo) -> float:
        raise AssertionError("asked twice")


@dataclass
class Scene:
    """A dispatcher over scripted engines."""

    world: World
    manager: ReplicaManager
    dispatcher: Dispatcher
    policy: Turns
    records: list[RequestRecord] = field(default_factory=list)
    workload: list[Request] = field(default_factory=list)

    def request(self, name: str = "q", tokens: int = 8, **more: object) -> ServeRequest:
        made = ServeRequest(name, MODEL, PROMPT, SamplingParams(max_tokens=tokens, temperature=0.0))
        return replace(made, **more)  # type: ignore[arg-type]

    async def answer(self, request: ServeRequest) -> list[EngineOutput]:
        return [output async for output in self.dispatcher.serve(request)]

    def ask(self, name: str = "q", tokens: int = 8, **more: object) -> asyncio.Task[list[EngineOutput]]:
        return asyncio.create_task(self.answer(self.request(name, tokens, **more)))

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(60.0):
            while not condition():
                await asyncio.sleep(0)

    def give(self, outputs: int) -> None:
        """Let every request have some more outputs."""
        for engine in self.world.running():
            engine.give(outputs)

    async def sent(self, count: int) -> None:
        """So many requests have reached engines in all."""
        await self.until(lambda: sum(len(e.seen) for e in self.world.engines) >= count)


def play(
    act: Callable[[Scene], Awaitable[None]],
    *on: str,
    world: World | None = None,
    policy: Turns | None = None,
    options: ManagerOptions = OPTIONS,
    bounds: DispatcherOptions | None = None,
) -> Scene:
    """Run one scene on replicas of some devices; in the end no load is left anywhere."""

    async def run() -> Scene:
        there = world or World()
        manager = ReplicaManager(there.build, devices(4), [MODEL, OTHER], options=options)
        tokenizer = ByteTokenizer()
        deciding = policy or Turns()
        scene = Scene(there, manager, None, deciding)  # type: ignore[arg-type]
        scene.dispatcher = Dispatcher(
            manager,
            [ServedModel(name, tokenizer, CONTEXT_TOKENS, 7) for name in (MODEL, OTHER)],
            deciding,
            sink=scene.records.append,
            workload=scene.workload.append,
            options=bounds,
        )
        try:
            await manager.apply(plan(*on))
            await manager.settled()
            async with asyncio.timeout(120.0):
                await act(scene)
                await scene.dispatcher.idle()
            for replica in manager.present():
                load = replica.load
                assert (load.in_flight, load.started, load.waiting_tokens, load.kv_tokens) == (0, 0, 0, 0)
                assert load.outstanding_tokens == 0.0
            assert manager.meter.busy == manager.meter.pending == 0
        finally:
            await manager.close()
        return scene

    return asyncio.run(run())


def tokens(outputs: Sequence[EngineOutput]) -> list[int]:
    return [token for output in outputs for token in output.token_ids]


def text(outputs: Sequence[EngineOutput]) -> str:
    return "".join(output.text for output in outputs)


def test_an_answer_streams_and_leaves_one_record() -> None:
    async def act(scene: Scene) -> None:
        outputs = await scene.answer(scene.request("r1", tokens=20, tier=2))
        assert tokens(outputs) == echo(PROMPT)[:20]
        assert text(outputs) == bytes(echo(PROMPT)[:20]).decode()
        assert {o.request_id for o in outputs} == {"r1"}
        assert [o.finish for o in outputs[:-1]] == [None] * (len(outputs) - 1)
        assert outputs[-1].finish is EngineFinish.LENGTH

    scene = play(act, "d0")
    (record,) = scene.records
    assert (record.id, record.model, record.finish) == (0, MODEL, Finish.OK)
    assert (record.input_tokens, record.output_tokens, record.replica) == (len(PROMPT), 20, 0)
    assert 0.0 <= record.arrival_s <= record.queued_s <= record.scheduled_s
    assert record.scheduled_s <= record.first_token_s <= record.last_token_s
    (request,) = scene.workload
    assert (request.id, request.input_tokens, request.output_tokens, request.tier) == (0, len(PROMPT), 20, 2)
    assert scene.dispatcher.outcomes == {(MODEL, "ok"): 1}


def test_the_policy_sees_the_state_and_its_word_counts() -> None:
    policy = Turns(lambda request, replicas: 1)
    policy.order = lambda request: 5.5

    async def act(scene: Scene) -> None:
        first = scene.ask("a", tokens=4)
        await scene.sent(1)
        second = scene.ask("b", tokens=4, tier=3)
        await scene.sent(2)
        scene.give(1)
        await scene.until(lambda: scene.manager.serving(MODEL)[1].load.started == 2)
        third = scene.ask("c", tokens=4)
        await scene.sent(3)
        while not all(task.done() for task in (first, second, third)):
            scene.give(4)
            await asyncio.sleep(0)

    scene = play(act, "d0", "d1", world=World(manual=True), policy=policy)
    (one, at_first), (two, then), (_, at_last) = policy.seen
    assert (one.id, one.model, one.input_tokens, one.tier, one.retries) == (0, MODEL, len(PROMPT), 0, 0)
    assert one.predicted_output_tokens == 128.0
    assert 0.0 <= one.arrival_s <= one.now_s
    assert two.tier == 3
    assert [(v.id, v.model, v.running, v.waiting) for v in at_first] == [(0, MODEL, 0, 0), (1, MODEL, 0, 0)]
    assert (at_first[0].kind, at_first[0].node, at_first[0].max_num_seqs) == ("slot", "n0", 8)
    busy = then[1]
    assert (busy.running, busy.waiting_tokens, busy.outstanding_tokens) == (1, len(PROMPT), 128.0)
    later = at_last[1]
    assert (later.running, later.waiting_tokens) == (2, 0)
    assert later.kv_tokens == 2 * (len(PROMPT) + 1)
    assert later.outstanding_tokens == 2 * 127.0
    engine = scene.world.engines[1]
    assert [r.priority for r in engine.seen] == [5.5] * 3
    assert not scene.world.engines[0].seen


def test_a_batched_policy_is_asked_once() -> None:
    async def act(scene: Scene) -> None:
        await scene.answer(scene.request())

    scene = play(act, "d0", "d1", policy=InOneCrossing())
    assert [r.priority for r in scene.world.engines[0].seen] == [7.0]
    assert len(scene.policy.seen) == 1


def test_predicted_lengths_are_learnt() -> None:
    async def act(scene: Scene) -> None:
        for _ in range(40):
            await scene.answer(scene.request(tokens=10))
        assert scene.policy.seen[-1][0].predicted_output_tokens == pytest.approx(
            (4 * 128.0 + 39 * 10) / (4 + 39)
        )

    play(act, "d0")


def test_a_request_that_the_policy_refuses_is_rejected() -> None:
    policy = Turns()
    policy.order = lambda request: REJECT

    async def act(scene: Scene) -> None:
        with pytest.raises(RejectedError) as caught:
            await scene.answer(scene.request())
        assert caught.value.retry_after_s >= 1.0
        assert scene.dispatcher.desk.faults.total == 0

    scene = play(act, "d0", policy=policy)
    assert [r.finish for r in scene.records] == [Finish.REJECTED]
    assert scene.records[0].queued_s == -1.0


@pytest.mark.parametrize("wrong", [-1, 2, True, "first", None, float("nan")])
def test_what_is_no_replica_is_decided_without_the_policy(wrong: object) -> None:
    async def act(scene: Scene) -> None:
        assert len(tokens(await scene.answer(scene.request()))) == 8

    scene = play(act, "d0", "d1", policy=Turns(lambda request, replicas: wrong))  # type: ignore[arg-type, return-value]
    assert scene.dispatcher.desk.faults.infeasible == 1


def test_a_policy_that_raises_or_has_no_order_loses_nobody() -> None:
    def raises(request: RequestView, replicas: Sequence[ReplicaView]) -> int:
        raise ZeroDivisionError("oh")

    nan = Turns()
    nan.order = lambda request: float("nan")
    for policy in (Turns(raises), nan):

        async def act(scene: Scene) -> None:
            assert len(tokens(await scene.answer(scene.request()))) == 8

        scene = play(act, "d0", policy=policy)
        assert scene.dispatcher.desk.faults.total == 1
        assert len(scene.dispatcher.desk.faults.examples) == 1


def test_a_swap_takes_effect_between_two_requests() -> None:
    async def act(scene: Scene) -> None:
        other = Turns(lambda request, replicas: 1)
        first = scene.ask("a")
        await scene.sent(1)
        scene.dispatcher.use(other, Memo())
        second = scene.ask("b")
        await scene.sent(2)
        assert [len(e.seen) for e in scene.world.engines] == [1, 1]
        scene.give(9)
        await asyncio.gather(first, second)
        assert (len(scene.policy.seen), len(other.seen)) == (1, 1)
        assert scene.dispatcher.desk.swaps == 1
        assert len(scene.dispatcher.desk.swap_pauses_s) == 1

    play(act, "d0", "d1", world=World(manual=True), policy=Turns(lambda request, replicas: 0))


def test_a_lost_replica_is_replaced_and_each_token_comes_once() -> None:
    async def act(scene: Scene) -> None:
        task = scene.ask(tokens=6)
        await scene.sent(1)
        scene.world.on("d0").give(2)
        await scene.until(lambda: scene.manager.serving(MODEL)[0].load.kv_tokens == len(PROMPT) + 2)
        scene.world.on("d0").crash()
        await scene.sent(2)
        retried = scene.world.on("d1").seen[0]
        assert retried.generated == 2
        assert retried.prompt_token_ids == (*PROMPT, *echo(PROMPT)[:2])
        scene.world.on("d1").give(9)
        outputs = await task
        assert tokens(outputs) == echo(PROMPT)[:6]
        assert text(outputs) == "Hello,"

    policy = Turns(lambda request, replicas: 0)
    scene = play(act, "d0", "d1", world=World(manual=True), policy=policy)
    (record,) = scene.records
    assert (record.finish, record.retries, record.output_tokens, record.replica) == (Finish.OK, 1, 6, 1)
    view = policy.seen[1][0]
    assert (view.retries, view.input_tokens, view.predicted_output_tokens) == (1, len(PROMPT) + 2, 126.0)


def test_an_answer_that_lacked_only_its_end_is_ended_here() -> None:
    async def act(scene: Scene) -> None:
        engine = scene.world.on("d0")
        genuine = engine.generate

        async def without_an_end(request: EngineRequest) -> AsyncGenerator[EngineOutput, None]:
            async for output in genuine(request):
                yield replace(output, finish=None)
            engine.crash()
            raise EngineCrashedError("with the last word on its lips")

        engine.generate = without_an_end  # type: ignore[method-assign]
        outputs = await scene.answer(scene.request(tokens=3))
        assert tokens(outputs) == echo(PROMPT)[:3]
        assert text(outputs) == "Hel"
        assert [o.finish for o in outputs] == [None, None, None, EngineFinish.LENGTH]
        assert not scene.world.on("d1").seen

    play(act, "d0", "d1", policy=Turns(lambda request, replicas: 0))


def test_a_request_that_loses_too_many_replicas_is_given_up() -> None:
    async def act(scene: Scene) -> None:
        task = scene.ask()
        for attempt in range(1, 4):
            await scene.sent(attempt)
            next(e for e in scene.world.running() if e.requests).crash("poison")
        with pytest.raises(UnavailableError, match="3 times, the last time: poison"):
            await task

    scene = play(act, "d0", "d1", world=World(manual=True), bounds=DispatcherOptions(max_retries=2))
    assert scene.records[0].finish is Finish.LOST


def test_a_full_queue_sends_the_request_elsewhere_and_then_back_to_the_client() -> None:
    async def act(scene: Scene) -> None:
        scene.world.on("d0").busy = True
        await scene.answer(scene.request())
        assert len(scene.world.on("d1").seen) == 1
        scene.world.on("d1").draining = True
        with pytest.raises(RejectedError, match="2 replicas of tiny have full queues") as caught:
            await scene.answer(scene.request())
        assert 1.0 <= caught.value.retry_after_s <= 30.0

    scene = play(act, "d0", "d1", policy=Turns(lambda request, replicas: 0))
    assert [r.finish for r in scene.records] == [Finish.OK, Finish.REJECTED]


def test_a_request_that_was_begun_waits_for_room_instead_of_being_rejected() -> None:
    async def act(scene: Scene) -> None:
        task = scene.ask(tokens=4)
        await scene.sent(1)
        scene.give(1)
        await scene.until(lambda: scene.manager.serving(MODEL)[0].load.started == 1)
        scene.world.on("d1").busy = True
        scene.world.on("d0").crash()
        await scene.until(lambda: scene.dispatcher.backlog()[0].waiting == 1)
        scene.world.on("d1").busy = False
        await scene.until(lambda: any(e.requests for e in scene.world.running()))
        scene.give(9)
        assert tokens(await task) == echo(PROMPT)[:4]

    world = World(manual=True, gates={})
    play(
        act,
        "d0",
        "d1",
        world=world,
        policy=Turns(lambda request, replicas: 0),
        bounds=DispatcherOptions(busy_pause_s=0.001),
    )


def test_requests_wait_for_a_replica_that_is_to_come() -> None:
    async def act(scene: Scene) -> None:
        gate = scene.world.gates["d0"] = asyncio.Event()
        await scene.manager.apply(plan("d0"))
        tasks = [scene.ask(f"q{i}") for i in range(3)]
        await scene.until(lambda: scene.dispatcher.backlog()[0].waiting == 3)
        backlog = scene.dispatcher.backlog()[0]
        assert (backlog.running, backlog.waiting_input_tokens) == (0, 3 * len(PROMPT))
        assert not scene.dispatcher.models()[0].ready
        gate.set()
        for outputs in await asyncio.gather(*tasks):
            assert len(tokens(outputs)) == 8
        assert scene.dispatcher.models()[0].ready

    play(act)


def test_waiting_ends_at_the_deadline_or_when_nothing_is_to_come() -> None:
    async def act(scene: Scene) -> None:
        with pytest.raises(UnavailableError, match="none is to come"):
            await scene.answer(scene.request())
        gate = scene.world.gates["d0"] = asyncio.Event()
        await scene.manager.apply(plan("d0"))
        with pytest.raises(UnavailableError, match="before the deadline"):
            await scene.answer(scene.request(deadline_s=time.monotonic() + 0.02))
        waits = scene.ask()
        await scene.until(lambda: scene.dispatcher.backlog()[0].waiting == 1)
        await scene.manager.apply(plan())
        with pytest.raises(UnavailableError, match="none is to come"):
            await waits
        gate.set()

    scene = play(act)
    assert [r.finish for r in scene.records] == [Finish.LOST] * 3


def test_a_deadline_in_the_middle_ends_the_answer_and_frees_the_engine() -> None:
    async def act(scene: Scene) -> None:
        got: list[EngineOutput] = []

        async def read() -> None:
            async for output in scene.dispatcher.serve(
                scene.request(tokens=9, deadline_s=time.monotonic() + 0.05)
            ):
                got.append(output)

        task = asyncio.create_task(read())
        await scene.sent(1)
        scene.give(2)
        with pytest.raises(DeadlineError, match="2 of at most 9 tokens"):
            await task
        assert tokens(got) == echo(PROMPT)[:2]
        await scene.until(lambda: not scene.world.on("d0").requests)

    scene = play(act, "d0", world=World(manual=True))
    assert len(scene.world.engines[0].cancelled) == 1
    assert [r.finish for r in scene.records] == [Finish.LOST]


@pytest.mark.parametrize("how", ["close", "cancel"])
def test_a_client_that_goes_away_frees_the_engine(how: str) -> None:
    async def act(scene: Scene) -> None:
        stream = scene.dispatcher.serve(scene.request())
        if how == "close":
            scene.world.manual = False
            await anext(stream)
            scene.world.manual = True
            await stream.aclose()
        else:
            task = asyncio.ensure_future(anext(stream))
            await scene.sent(1)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        assert not scene.world.on("d0").requests
        assert scene.dispatcher.pending == 0

    scene = play(act, "d0", world=World(manual=True))
    assert [r.finish for r in scene.records] == [Finish.CANCELLED]


def test_requests_in_queues_move_to_a_replica_that_becomes_ready() -> None:
    async def act(scene: Scene) -> None:
        tasks = [scene.ask(f"q{i}", tokens=2) for i in range(6)]
        await scene.sent(6)
        before = scene.world.on("d0")
        await scene.manager.apply(plan(spec("d0", seqs=2), "d1"))
        await scene.manager.settled()
        fresh = scene.world.on("d1")
        await scene.until(lambda: len(fresh.seen) == 4)
        while not all(task.done() for task in tasks):
            scene.give(1)
            await asyncio.sleep(0)
        assert [tokens(task.result()) for task in tasks] == [echo(PROMPT)[:2]] * 6
        assert len(before.seen) == 6

    async def start(scene: Scene) -> None:
        await scene.manager.apply(plan(spec("d0", seqs=2)))
        await scene.manager.settled()
        await act(scene)

    policy = Turns(lambda request, replicas: len(replicas) - 1)
    scene = play(start, "d0", world=World(manual=True), policy=policy)
    assert scene.dispatcher.moves == 4
    assert [r.retries for r in scene.records] == [0] * 6


def test_a_move_that_comes_too_late_loses_nothing() -> None:
    async def act(scene: Scene) -> None:
        await scene.manager.apply(plan(spec("d0", seqs=1)))
        await scene.manager.settled()
        old = scene.world.on("d0")
        tasks = [scene.ask(f"q{i}", tokens=5) for i in range(2)]
        await scene.sent(2)
        old.deaf = True
        await scene.manager.apply(plan(spec("d0", seqs=1), "d1"))
        await scene.manager.settled()
        await scene.until(lambda: scene.dispatcher.moves == 1)
        old.give(2)  # it has begun after all
        replica = scene.manager.serving(MODEL)[0]
        await scene.until(lambda: replica.load.kv_tokens == 2 * (len(PROMPT) + 2))
        old.deaf = False
        await old.cancel(list(old.requests)[1])  # and hears of it only now
        await scene.sent(3)
        scene.give(9)
        for task in tasks:
            outputs = await task
            assert tokens(outputs) == echo(PROMPT)[:5]
            assert text(outputs) == "Hello"
            assert outputs[-1].finish is EngineFinish.LENGTH
        assert scene.world.on("d1").seen[0].generated == 2

    play(act, "d0", world=World(manual=True), policy=Turns(lambda request, replicas: len(replicas) - 1))


def test_prefixes_are_remembered_where_they_were_computed() -> None:
    long = tuple(range(97, 97 + 20)) * 4

    async def act(scene: Scene) -> None:
        await scene.answer(scene.request(prompt_token_ids=long))
        await scene.answer(scene.request(prompt_token_ids=(*long, 1, 2)))
        await scene.answer(scene.request(prompt_token_ids=(*long[:40], 1, 2)))
        await scene.answer(scene.request(prompt_token_ids=(1, 2, *long)))
        scene.world.on("d0").crash()
        await scene.until(lambda: scene.manager.deaths == 1)
        await scene.manager.settled()
        await scene.answer(scene.request(prompt_token_ids=long))

    policy = Turns(lambda request, replicas: 0)
    play(act, "d0", "d1", policy=policy)
    assert [view.cached_tokens for view, _ in policy.seen] == [(), (80, 0), (32, 0), (), ()]


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"model": "gpt"}, UnknownModelError, "no model 'gpt'"),
        ({"prompt_token_ids": ()}, InvalidRequestError, "empty"),
        ({"prompt_token_ids": (1,) * CONTEXT_TOKENS}, InvalidRequestError, "holds 1024"),
        ({"sampling": SamplingParams(max_tokens=0)}, InvalidRequestError, "max_tokens"),
    ],
)
def test_what_cannot_be_served_is_not_accepted(
    change: dict[str, object], error: type[ServeError], says: str
) -> None:
    async def act(scene: Scene) -> None:
        with pytest.raises(error, match=says):
            await scene.answer(scene.request(**change))

    scene = play(act, "d0")
    assert scene.records == []


def test_what_every_engine_refuses_is_invalid() -> None:
    async def act(scene: Scene) -> None:
        scene.world.on("d0").refusal = "unknown adapter 'x'"
        await scene.answer(scene.request())
        scene.world.on("d1").refusal = "unknown adapter 'x'"
        with pytest.raises(InvalidRequestError, match="unknown adapter 'x'"):
            await scene.answer(scene.request())

    scene = play(act, "d0", "d1", policy=Turns(lambda request, replicas: 0))
    assert [r.finish for r in scene.records] == [Finish.OK, Finish.INFEASIBLE]
    assert scene.manager.deaths == 0


def test_after_shutting_nothing_more_is_accepted_and_the_rest_finishes() -> None:
    async def act(scene: Scene) -> None:
        task = scene.ask()
        await scene.sent(1)
        scene.dispatcher.shut()
        with pytest.raises(UnavailableError, match="shutting down"):
            await scene.answer(scene.request())
        idle = asyncio.create_task(scene.dispatcher.idle())
        await asyncio.sleep(0)
        assert not idle.done()
        scene.give(9)
        await task
        await idle

    play(act, "d0", world=World(manual=True))


def test_snapshot_and_metrics_tell_the_same_story() -> None:
    async def act(scene: Scene) -> None:
        tasks = [scene.ask(f"q{i}", tokens=2) for i in range(10)]
        await scene.sent(10)
        scene.give(1)
        await scene.until(lambda: scene.manager.serving(MODEL)[0].load.started == 10)
        await scene.manager.apply(plan("d0", spec("d1", model=OTHER)))
        snapshot = scene.dispatcher.snapshot()
        assert snapshot.plan == plan("d0", spec("d1", model=OTHER))
        assert [d.id for d in snapshot.devices] == ["d0", "d1", "d2", "d3"]
        assert (snapshot.replicas[0].model, snapshot.replicas[0].running) == (MODEL, 10)
        backlog = snapshot.backlog[0]
        assert (backlog.model, backlog.running, backlog.waiting) == (MODEL, 10, 0)
        assert snapshot.resources.device_s > 0.0
        metrics = {(m.name, m.labels): m.value for m in scene.dispatcher.metrics()}
        assert metrics["autopoiesis_requests_running", (("model_name", MODEL),)] == 10
        assert metrics["autopoiesis_replicas", (("model_name", MODEL), ("stage", "ready"))] == 1
        assert metrics["vllm:num_requests_running", (("model_name", MODEL), ("engine", "0"))] == 0
        assert metrics["autopoiesis_policy_info", (("name", "turns"), ("digest", "t0"))] == 1
        kinds = {m.name: m.kind for m in scene.dispatcher.metrics()}
        assert all((kind == "counter") == name.endswith("_total") for name, kind in kinds.items())
        names = [m.name for m in scene.dispatcher.metrics()]
        assert sorted(set(names), key=names.index) == [n for i, n in enumerate(names) if n not in names[:i]]
        scene.give(9)
        await asyncio.gather(*tasks)
        done = {(m.name, m.labels): m.value for m in scene.dispatcher.metrics()}
        assert done["autopoiesis_requests_total", (("model_name", MODEL), ("outcome", "ok"))] == 10

    play(act, "d0", world=World(manual=True))


def test_a_sink_that_fails_and_an_engine_with_a_defect_leave_no_trace() -> None:
    async def act(scene: Scene) -> None:
        engine = scene.world.on("d0")

        async def defect(request: EngineRequest) -> AsyncGenerator[EngineOutput, None]:
            yield EngineOutput(request.id, (1,), "")
            raise ZeroDivisionError("a defect")

        genuine, engine.generate = engine.generate, defect  # type: ignore[method-assign]
        with pytest.raises(ZeroDivisionError):
            await scene.answer(scene.request())
        assert [r.finish for r in scene.records] == [Finish.LOST]
        engine.generate = genuine  # type: ignore[method-assign]
        scene.dispatcher._sink = lambda record: scene.records[99]  # type: ignore[assignment, return-value]
        assert len(tokens(await scene.answer(scene.request()))) == 8

    play(act, "d0")


def test_two_requests_of_one_name_do_not_meet() -> None:
    async def act(scene: Scene) -> None:
        first, second = await asyncio.gather(
            scene.answer(scene.request("same")), scene.answer(scene.request("same", tokens=3))
        )
        assert (len(tokens(first)), len(tokens(second))) == (8, 3)

    play(act, "d0")
