"""The problem of choosing an order of execution: operations, what must come before what, and the buffers they touch.

Nothing of tensors or graphs here: operations are 0..n-1 in program order, sets of them are ints used as bit masks.

    problem = OrderProblem.of([Operation(before=(), allocates=8, touches=()), ...], keep={3})
    peak_bytes(problem, problem.program)

An operation's own buffer is live from its start; a buffer is freed right after the last operation that touches it, so
inputs and output of an operation are live together, as they are in eager torch. Buffers in `keep` (the graph's
outputs) stay to the end. What the caller owns (inputs, weights) is not counted.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation; buffers are named by the operation that allocates them."""

    before: tuple[int, ...]
    """Operations that must have run: data, and writes in place that come before or after a read."""
    allocates: int
    """Bytes of new memory that it gives; 0 for views and for writes in place."""
    touches: tuple[int, ...]
    """Operations whose buffers it reads or writes, or whose memory its value shares."""
    reuses: tuple[int, ...] = ()
    """Operations whose buffer it could take over for its own value, should it be the last to touch it."""


@dataclass(frozen=True, slots=True)
class OrderProblem:
    """Operations as bit masks."""

    before: tuple[int, ...]
    """Mask of the operations that must have run, one an operation."""
    after: tuple[tuple[int, ...], ...]
    """Operations that wait for this one."""
    size: tuple[int, ...]
    """Bytes of each operation's own buffer."""
    touches: tuple[tuple[int, ...], ...]
    """Buffers with a size that may be freed after this operation: its own among them, kept ones not."""
    users: tuple[int, ...]
    """Mask of the operations that touch each operation's buffer, itself among them."""
    reuses: tuple[tuple[int, ...], ...]
    """Buffers of its own size that each operation could take over."""

    @staticmethod
    def of(operations: Sequence[Operation], keep: Collection[int] = ()) -> OrderProblem:
        """From operations in a valid program order. Raises ValueError when one waits for a later one."""
        n = len(operations)
        before, users = [0] * n, [1 << i for i in range(n)]
        after: list[list[int]] = [[] for _ in range(n)]
        for i, operation in enumerate(operations):
            for j in set(operation.before):
                if not 0 <= j < i:
                    raise ValueError(
                        f"operation {i} waits for operation {j}, which program order puts no earlier"
                    )
                before[i] |= 1 << j
                after[j].append(i)
            for j in operation.touches:
                users[j] |= 1 << i
        kept = set(keep)
        touches = tuple(
            tuple(b for b in dict.fromkeys((i, *op.touches)) if operations[b].allocates and b not in kept)
            for i, op in enumerate(operations)
        )
        return OrderProblem(
            before=tuple(before),
            after=tuple(tuple(waiting) for waiting in after),
            size=tuple(op.allocates for op in operations),
            touches=touches,
            users=tuple(users),
            reuses=tuple(
                tuple(b for b in op.reuses if b in touches[i] and operations[b].allocates == op.allocates)
                for i, op in enumerate(operations)
            ),
        )

    def __len__(self) -> int:
        return len(self.size)

    @property
    def program(self) -> tuple[int, ...]:
        """The order that was given."""
        return tuple(range(len(self)))

    @property
    def first_ready(self) -> int:
        """Mask of the operations that wait for nothing."""
        return sum(1 << i for i, mask in enumerate(self.before) if not mask)

    def freed_after(self, i: int, done: int) -> int:
        """Bytes freed right after operation i; `done` includes it."""
        users, size = self.users, self.size
        freed = 0
        for b in self.touches[i]:
            if not users[b] & ~done:
                freed += size[b]
        return freed

    def taken_over(self, i: int, done: int) -> int | None:
        """The buffer in whose place operation i puts its value; None: it takes new memory. `done` includes i."""
        for b in self.reuses[i]:
            if not self.users[b] & ~done:
                return b
        return None

    def rise(self, i: int, done: int) -> int:
        """Bytes live beside what was, while operation i runs; `done` includes it."""
        return self.size[i] if not self.reuses[i] or self.taken_over(i, done) is None else 0

    def ready_after(self, i: int, done: int, ready: int) -> int:
        """The ready operations once i has run; `done` includes it, `ready` may."""
        ready &= ~(1 << i)
        before = self.before
        for j in self.after[i]:
            if not before[j] & ~done:
                ready |= 1 << j
        return ready


def members(mask: int) -> Iterator[int]:
    """The operations of a mask, in program order."""
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low


def live_bytes(problem: OrderProblem, order: Sequence[int]) -> list[int]:
    """Bytes live while each operation of the order runs. Raises ValueError for an order that is not valid."""
    if sorted(order) != list(range(len(problem))):
        raise ValueError(f"an order of {len(problem)} operations names each once; got {len(order)} names")
    done = live = 0
    curve = []
    for i in order:
        if problem.before[i] & ~done:
            missing = next(members(problem.before[i] & ~done))
            raise ValueError(f"operation {i} comes before operation {missing}, for which it must wait")
        done |= 1 << i
        curve.append(live + problem.rise(i, done))
        live += problem.size[i] - problem.freed_after(i, done)
    return curve


def peak_bytes(problem: OrderProblem, order: Sequence[int]) -> int:
    """The most bytes live at once in this order."""
    return max(live_bytes(problem, order), default=0)


def least_peak_bytes(problem: OrderProblem, i: int) -> int:
    """Bytes live while operation i runs, in any order: what it touches and what it gives."""
    own = 0 if problem.reuses[i] else problem.size[i]
    return own + sum(problem.size[b] for b in problem.touches[i] if b != i)
