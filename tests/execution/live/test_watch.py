"""What fell behind is reported, once; and as often as is asked for, but no oftener."""

from execution.compiler.port import Bucket
from execution.engines.torch.core import DECODE
from execution.live.swap import Check, GuardedDecode
from execution.live.variants import Table, Variant
from execution.live.watch import Watch
from tests.execution.live.helpers import PLAIN, bench_of


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def guard_of(variant: Variant) -> GuardedDecode:
    guard = GuardedDecode(bench_of(PLAIN).eager, lambda *_: None)
    guard.exchange(Table.of(dict.fromkeys(range(1, 9), variant)))
    return guard


def checked(guard: GuardedDecode, variant: Variant, slower: float, count: int = 12) -> None:
    for number in range(count):
        original_s = 1e-3 * (1 + 0.01 * (number % 5))
        guard.checks.append(Check(variant, 4, 0.0, 1.0, slower * original_s, original_s))


def variant_of() -> Variant:
    return Variant("tried", Bucket(1, 8), lambda rows: rows)


def test_a_variant_that_fell_behind_is_reported_once() -> None:
    clock = Clock()
    watch = Watch(threads=1, every_s=1.0, clock=clock)
    variant = variant_of()
    guard = guard_of(variant)
    checked(guard, variant, 1.5)
    for _ in range(3):
        clock.now_s += 1.0
        watch.look(guard)
    ((place, found, what),) = watch.taken()
    assert (place, found) == (DECODE, variant)
    assert "slow-down: the original is 1.50x as fast" in what
    assert watch.quiet


def test_one_that_is_faster_and_one_that_was_hardly_seen_stay() -> None:
    clock = Clock()
    watch = Watch(threads=1, every_s=1.0, clock=clock)
    fast, seldom = variant_of(), variant_of()
    guard = guard_of(fast)
    checked(guard, fast, 0.5)
    checked(guard, seldom, 3.0, count=5)
    guard.exchange(Table.of({1: fast, 2: seldom}))
    clock.now_s = 2.0
    watch.look(guard)
    watch.look(None)
    assert watch.quiet


def test_it_looks_no_oftener_than_it_was_told() -> None:
    clock = Clock()
    watch = Watch(threads=1, every_s=1.0, clock=clock)
    variant = variant_of()
    guard = guard_of(variant)
    checked(guard, variant, 2.0)
    clock.now_s = 0.9
    watch.look(guard)
    assert watch.quiet
    clock.now_s = 1.0
    watch.look(guard)
    assert not watch.quiet


def test_faults_are_taken_in_their_order() -> None:
    watch = Watch(threads=1, every_s=1.0)
    variant = variant_of()
    watch.report("head", variant, "one")
    watch.report(DECODE, variant, "two")
    assert [(place, what) for place, _, what in watch.taken()] == [("head", "one"), (DECODE, "two")]
    assert watch.taken() == []
