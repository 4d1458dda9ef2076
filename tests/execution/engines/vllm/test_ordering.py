"""The order of a queue: by answers, by arrival where there are none, whatever the policy does."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from execution.engines.vllm.ordering import QueueOrder, policy_source, sandboxed
from loop.contracts import (
    REJECT,
    Memo,
    PolicyCrashed,
    PolicyError,
    PolicyFault,
    PolicySource,
    PolicyTimeout,
    ReplicaView,
    RequestView,
    Role,
)
from tests.examples import up_to
from tests.execution.engines.vllm import policies

REPLICA = ReplicaView(
    id=0, model="m", role=Role.MIXED, kind="cpu", node="n", tp=1, pp=1, ready_in_s=0.0, running=1, waiting=3,
    waiting_tokens=30, kv_tokens=0, kv_capacity_tokens=1024, outstanding_tokens=10.0, max_num_seqs=1,
    max_num_batched_tokens=64, prefill_tokens_per_s=1000.0, decode_step_s=0.01, decode_tokens_per_s=100.0, speed=1.0,
)  # fmt: skip


@dataclass(frozen=True)
class Item:
    """A request in the queue."""

    key: str
    tokens: int = 1
    given: float = 0.0
    begun: bool = False

    def view(self, now_s: float) -> RequestView:
        return RequestView(
            id=hash(self.key), model="m", arrival_s=now_s, now_s=now_s, input_tokens=self.tokens,
            predicted_output_tokens=1.0, tier=0, retries=0,
        )  # fmt: skip


class Scripted:
    """A runner that answers by a function of the prompt's length, or raises what that returns."""

    def __init__(self, answer) -> None:
        self.answer = answer
        self.asked: list[int] = []
        self.closed = False

    def priority(self, request: RequestView, replica: ReplicaView, memo: Memo) -> float:
        self.asked.append(request.input_tokens)
        found = self.answer(request.input_tokens)
        if isinstance(found, PolicyFault):
            raise found
        return found

    def close(self) -> None:
        self.closed = True


class Batched(Scripted):
    """One crossing for many."""

    crossings = 0

    def priorities(
        self, requests: Sequence[RequestView], replica: ReplicaView, memo: Memo
    ) -> Sequence[float]:
        self.crossings += 1
        return [self.answer(request.input_tokens) for request in requests]


def order_of(runner: Scripted, **options) -> QueueOrder:
    order = QueueOrder(lambda _: runner, **{"budget_s": 60.0, **options})
    order.swap(policy_source("p", "p"), REPLICA).result()
    runner.asked.clear()
    return order


def keys(order: QueueOrder, items: Sequence[Item], *, seats: bool = True) -> str:
    return "".join(items[i].key for i in order.arrange(items, REPLICA, seats=seats)[0])


ITEMS = [Item("a", 30), Item("b", 10), Item("c", 20)]


@pytest.fixture
def real() -> Iterator[QueueOrder]:
    """With policies in the real sandbox."""
    order = QueueOrder(sandboxed("strategy.evolve.sandbox", 0.5), budget_s=60.0)
    yield order
    order.close()


def test_without_a_policy_given_priorities_count_and_then_arrival() -> None:
    order = QueueOrder(lambda _: pytest.fail("nothing to load"))
    items = [Item("a", given=1.0), Item("b"), Item("c", given=-1.0), Item("d")]
    assert keys(order, items) == "cbda"


def test_by_answers() -> None:
    assert keys(order_of(Scripted(float)), ITEMS) == "bca"


def test_equal_answers_keep_the_order_of_arrival() -> None:
    assert keys(order_of(Scripted(lambda _: 1.0)), ITEMS) == "abc"


def test_without_a_free_seat_only_newcomers_are_asked_about() -> None:
    runner = Scripted(float)
    order = order_of(runner)
    keys(order, ITEMS[:2], seats=False)
    keys(order, ITEMS, seats=False)
    assert runner.asked == [30, 10, 20]
    keys(order, ITEMS, seats=True)
    assert sorted(runner.asked[3:]) == [10, 20, 30]


def test_a_budget_that_is_spent_leaves_the_rest_at_their_last_answer() -> None:
    runner = Scripted(lambda tokens: -tokens)
    ticks = iter(range(1000))
    order = QueueOrder(lambda _: runner, budget_s=1.5, clock=lambda: float(next(ticks)))
    order.swap(policy_source("p", "p"), REPLICA).result()
    runner.asked.clear()
    seen = []
    for _ in range(4):  # two fit into one step
        keys(order, ITEMS)
        seen.append(len(runner.asked))
    assert seen == [2, 4, 6, 8]
    assert set(runner.asked[:3]) == {10, 20, 30}  # the one that was left out comes next
    assert keys(order, ITEMS) == "acb"


def test_who_has_no_answer_keeps_the_place_of_first_come_first_served() -> None:
    runner = Scripted(lambda tokens: PolicyError("not for thirty") if tokens == 30 else -tokens)
    order = order_of(runner)
    items = [Item("b", 10), Item("a", 30), Item("c", 20)]
    assert keys(order, items) == "cab"
    assert order.faults.errors == 1
    assert order.faults.examples == ("not for thirty",)


@pytest.mark.parametrize("answer", [float("nan"), -float("inf"), "1", None, True])
def test_answers_that_cannot_be_sorted_by_do_not_count(answer) -> None:
    order = order_of(Scripted(float))
    order._now.runner.answer = lambda _: answer  # type: ignore[union-attr]
    assert keys(order, ITEMS) == "abc"
    assert order.faults.infeasible == 3


@pytest.mark.parametrize("fault", [PolicyTimeout("late"), PolicyCrashed("gone")])
def test_a_lost_process_ends_the_asking_of_this_step(fault: PolicyFault) -> None:
    runner = Scripted(float)
    order = order_of(runner)
    runner.answer = lambda _: fault
    assert keys(order, ITEMS) == "abc"
    assert len(runner.asked) == 1
    assert order.faults.total == 1


def test_refused_requests_are_told_apart_and_begun_ones_go_last() -> None:
    order = order_of(Scripted(lambda tokens: REJECT if tokens > 15 else 0.0))
    items = [Item("a", 30, begun=True), Item("b", 10), Item("c", 20)]
    kept, refused = order.arrange(items, REPLICA, seats=True)
    assert [items[i].key for i in kept] == ["b", "a"]
    assert [items[i].key for i in refused] == ["c"]
    assert order.report()["rejected"] == 1


def test_many_in_one_crossing_where_the_runner_can() -> None:
    runner = Batched(float)
    order = order_of(runner)
    assert keys(order, ITEMS) == "bca"
    assert (runner.crossings, runner.asked) == (1, [])


def test_a_batch_of_the_wrong_length_is_a_fault() -> None:
    runner = Batched(float)
    order = order_of(runner)
    runner.priorities = lambda requests, replica, memo: [1.0]  # type: ignore[method-assign]
    assert keys(order, ITEMS) == "abc"
    assert order.faults.errors == 1


def test_a_policy_that_cannot_be_loaded_leaves_the_old_one() -> None:
    good = Scripted(float)

    def load(source: PolicySource) -> Scripted:
        if source.source == "bad":
            raise PolicyError("does not parse")
        return good

    order = QueueOrder(load, budget_s=60.0)
    order.swap(policy_source("good", "good"), REPLICA).result()
    with pytest.raises(PolicyError, match="does not parse"):
        order.swap(policy_source("bad", "bad"), REPLICA).result()
    assert order.policy is not None
    assert (order.policy.name, good.closed) == ("good", False)
    assert keys(order, ITEMS) == "bca"


def test_a_policy_must_answer_an_example_before_it_orders() -> None:
    bad = Scripted(lambda _: float("nan"))
    order = QueueOrder(lambda _: bad)
    with pytest.raises(PolicyError, match="nan"):
        order.swap(policy_source("bad", "bad"), REPLICA).result()
    assert (order.policy, bad.closed) == (None, True)


def test_swapping_closes_the_one_before_and_none_is_a_policy_too() -> None:
    runners = {"one": Scripted(float), "two": Scripted(lambda tokens: -tokens)}
    order = QueueOrder(lambda source: runners[source.source], budget_s=60.0)
    order.swap(policy_source("", "one"), REPLICA).result()
    assert keys(order, ITEMS) == "bca"
    order.swap(policy_source("", "two"), REPLICA).result()
    assert keys(order, ITEMS) == "acb"
    assert (runners["one"].closed, runners["two"].closed) == (True, False)
    order.swap(None, REPLICA).result()
    assert keys(order, ITEMS) == "abc"
    assert runners["two"].closed
    assert order.report()["swaps"] == 3


def test_a_policy_that_fails_step_after_step_gives_way_to_the_one_before() -> None:
    good, bad = Scripted(float), Scripted(float)
    loaded = {"good": good, "bad": bad}
    order = QueueOrder(lambda source: loaded[source.source], budget_s=60.0, max_faulty_steps=3)
    order.swap(policy_source("good", "good"), REPLICA).result()
    order.swap(policy_source("bad", "bad"), REPLICA).result()
    bad.answer = lambda _: PolicyError("only in service")
    for _ in range(2):
        assert keys(order, ITEMS) == "abc"
    assert order.policy.digest == policy_source("", "bad").digest  # type: ignore[union-attr]
    keys(order, ITEMS)
    order._loader.submit(lambda: None).result()  # what was under way is done
    assert order.policy.name == "good"  # type: ignore[union-attr]
    assert bad.closed
    assert order.report()["reverted"] == 1


def test_swaps_while_the_queue_is_ordered() -> None:
    order = QueueOrder(lambda _: Scripted(float), budget_s=60.0)
    over = threading.Event()

    def swap() -> None:
        for n in range(50):
            order.swap(policy_source("", str(n)), REPLICA).result()
        over.set()

    thread = threading.Thread(target=swap)
    thread.start()
    seen = {keys(order, ITEMS) for _ in range(50)}
    while not over.is_set():
        seen.add(keys(order, ITEMS))
    thread.join()
    assert seen <= {"abc", "bca"}
    assert (keys(order, ITEMS), order.faults.total) == ("bca", 0)


@settings(max_examples=up_to(40))
@given(
    st.lists(
        st.tuples(st.sampled_from(["ok", "reject", "fault", "nan"]), st.integers(1, 50), st.booleans()),
        max_size=30,
    )
)
def test_nobody_is_lost_and_nobody_comes_twice(requests: list[tuple[str, int, bool]]) -> None:
    kinds = {10_000 * (i + 1) + tokens: kind for i, (kind, tokens, _) in enumerate(requests)}
    items = [
        Item(str(i), 10_000 * (i + 1) + tokens, begun=begun) for i, (_, tokens, begun) in enumerate(requests)
    ]

    def answer(tokens: int):
        kind = kinds.get(tokens, "ok")
        return {"ok": float(tokens % 7), "reject": REJECT, "nan": float("nan"), "fault": PolicyError("x")}[
            kind
        ]

    order = order_of(Scripted(answer))
    kept, refused = order.arrange(items, REPLICA, seats=True)
    assert sorted(kept + refused) == list(range(len(items)))
    assert set(refused) == {
        i for i, (kind, _, begun) in enumerate(requests) if kind == "reject" and not begun
    }


def test_a_policy_in_the_sandbox(real: QueueOrder) -> None:
    real.swap(policy_source("long", policies.LONGEST_FIRST), REPLICA).result()
    assert keys(real, ITEMS) == "acb"
    real.swap(policy_source("short", policies.SHORTEST_FIRST), REPLICA).result()
    assert keys(real, ITEMS) == "bca"
    assert real.faults.total == 0


@pytest.mark.parametrize(
    "source",
    [
        policies.NO_PYTHON,
        policies.RAISES,
        policies.NOT_A_NUMBER,
        pytest.param(policies.HANGS, marks=pytest.mark.slow),
    ],
)
def test_broken_policies_are_refused_by_the_sandbox(real: QueueOrder, source: str) -> None:
    real.swap(policy_source("short", policies.SHORTEST_FIRST), REPLICA).result()
    with pytest.raises(PolicyFault):
        real.swap(policy_source("broken", source), REPLICA).result()
    assert keys(real, ITEMS) == "bca"
