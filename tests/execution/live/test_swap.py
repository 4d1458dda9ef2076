"""Guards: who answers, and what happens to a variant that is wrong, late, broken or without numbers."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import nn

from execution.compiler.port import Bucket
from execution.engines.torch.step import Row
from execution.live.decode.proof import Bench
from execution.live.swap import Guarded, GuardedDecode
from execution.live.variants import Table, Variant
from tests.execution.live.helpers import PLAIN, bench_of

Faults = list[tuple[str, str]]


class Double(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2


def guarded(call: Callable[[torch.Tensor], torch.Tensor], faults: Faults, **more: int) -> Guarded:
    guard = Guarded("layers.0.mlp", Double(), lambda name, _, what: faults.append((name, what)), **more)
    variant = Variant("fast", Bucket(2, 4), call)
    guard.exchange(Table.of(dict.fromkeys((2, 3, 4), variant)), like=torch.zeros(1))
    return guard


def test_a_call_goes_to_the_variant_only_where_it_fits() -> None:
    seen: list[int] = []

    def fast(x: torch.Tensor) -> torch.Tensor:
        seen.append(x.shape[0])
        return x + x

    guard = guarded(fast, [])
    for x in (
        torch.ones(1, 3),
        torch.ones(3, 3),
        torch.ones(5, 3),
        torch.ones(3, 3, dtype=torch.float64),
        torch.ones(3, 6)[:, ::2],
    ):
        assert torch.equal(guard(x), x * 2)
    assert seen == [3]
    guard.exchange(Table())
    guard(torch.ones(3, 3))
    assert seen == [3]


def test_an_exception_is_answered_by_the_original_and_the_variant_is_out() -> None:
    def broken(x: torch.Tensor) -> torch.Tensor:
        raise ValueError("not today")

    faults: Faults = []
    guard = guarded(broken, faults)
    assert torch.equal(guard(torch.ones(2, 3)), torch.full((2, 3), 2.0))
    assert faults == [("layers.0.mlp", "exception: ValueError: not today")]
    assert guard.table.variants() == []


def test_a_sample_of_calls_is_recomputed_later_and_a_mismatch_takes_the_variant_out() -> None:
    faults: Faults = []
    guard = guarded(lambda x: x * 2.01, faults, check_every=3)
    for _ in range(2):
        guard(torch.ones(2, 3))
    assert guard.check_pending() == []
    guard(torch.ones(2, 3))
    (check,) = guard.check_pending()
    assert not check.ok
    assert check.error == pytest.approx(0.01, rel=1e-3)
    assert faults[0][1].startswith("mismatch")
    assert guard.table.variants() == []


def test_a_later_change_of_the_input_in_place_does_not_disturb_the_check() -> None:
    faults: Faults = []
    guard = guarded(lambda x: x + x, faults, check_every=1)
    x = torch.ones(2, 3)
    guard(x)
    x.zero_()
    assert guard.check_pending()[0].ok
    assert faults == []


# ---- decode ----

ROWS = [Row(5, 3, 0), Row(6, 9, 1)]


@pytest.fixture
def bench() -> Bench:
    bench = bench_of(PLAIN, lanes=4, length=32)
    draw = torch.Generator().manual_seed(2)
    for memory in bench.kv:
        memory.normal_(generator=draw)
    return bench


def decode_guard(
    bench: Bench, spoil: Callable[[torch.Tensor, list[int]], object], faults: Faults, *, least: int = 64
) -> GuardedDecode:
    """The variant is the original itself, spoilt."""

    def call(rows: Sequence[Row]) -> tuple[torch.Tensor, list[int]]:
        logits = bench.eager(rows)[0].clone()
        best = logits.argmax(-1).tolist()
        spoil(logits, best)
        return logits, best

    guard = GuardedDecode(bench.eager, lambda name, _, what: faults.append((name, what)), least=least)
    guard.exchange(Table.of(dict.fromkeys((1, 2, 3), Variant("fast", Bucket(1, 3), call))))
    return guard


@torch.inference_mode()
def test_a_right_step_is_checked_now_and_then_and_stays(bench: Bench) -> None:
    faults: Faults = []
    guard = decode_guard(bench, lambda logits, best: None, faults, least=4)
    for _ in range(40):
        logits, best = guard(ROWS)
    assert best == logits.argmax(-1).tolist()
    assert faults == []
    assert 1 <= len(guard.checks) <= 10
    assert all(check.ok for check in guard.checks)
    assert guard.serves(2)
    assert not guard.serves(4)


@torch.inference_mode()
def test_wrong_logits_reach_nobody_in_a_checked_step(bench: Bench) -> None:
    faults: Faults = []
    guard = decode_guard(bench, lambda logits, best: logits[1].add_(0.5), faults)
    right = bench.eager(ROWS)[0]
    for _ in range(8):
        logits, _ = guard(ROWS)
    assert torch.equal(logits, right)
    assert len(faults) == 1
    assert faults[0][1].startswith("mismatch")
    assert not guard.serves(2)


@torch.inference_mode()
def test_wrong_memory_is_noticed_though_the_logits_are_right(bench: Bench) -> None:
    faults: Faults = []

    def spoil(logits: torch.Tensor, best: list[int]) -> None:
        bench.kv[1][0, 0, 3] += 1.0

    guard = decode_guard(bench, spoil, faults)
    for _ in range(8):
        guard(ROWS)
    assert len(faults) == 1
    expected = [memory.clone() for memory in bench.kv]
    bench.eager(ROWS)
    assert all(torch.equal(a, b) for a, b in zip(expected, bench.kv, strict=True))


@torch.inference_mode()
def test_an_exception_in_a_step_costs_nobody_their_token(bench: Bench) -> None:
    def spoil(logits: torch.Tensor, best: list[int]) -> None:
        raise OSError("gone")

    faults: Faults = []
    guard = decode_guard(bench, spoil, faults)
    assert torch.equal(guard(ROWS)[0], bench.eager(ROWS)[0])
    assert faults == [("decode", "exception: OSError: gone")]


@torch.inference_mode()
def test_no_numbers_are_the_variants_fault_only_where_the_original_has_some(bench: Bench) -> None:
    def spoil(logits: torch.Tensor, best: list[int]) -> None:
        logits[0] = float("nan")
        best[0] = -1

    faults: Faults = []
    guard = decode_guard(bench, spoil, faults)
    assert bool(guard(ROWS)[0].isfinite().all())
    assert "no numbers in row 0" in faults[0][1]

    faults.clear()
    for memory in bench.kv:
        memory[0, :, 1] = float("nan")
    guard = decode_guard(bench, spoil, faults)
    logits, _ = guard(ROWS)
    assert bool(logits[0].isnan().all())
    assert faults == []
