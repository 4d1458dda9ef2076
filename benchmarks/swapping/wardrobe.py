"""Policies to swap, each in a sandbox of its own: the baselines, and programs that evolution might have written."""

from __future__ import annotations

import asyncio
from itertools import cycle

from loop.contracts import Parent, PolicySource
from loop.guard import GuardedPolicy
from strategy.baselines import load_baseline
from strategy.evolve.sandbox import SandboxedPolicy, SandboxLimits, WorkerSupply
from strategy.evolve.synthesise.builtin import BuiltinSynthesiser

BASELINES = ("round_robin", "least_loaded", "kv_aware", "threshold_autoscaler", "periodic_rebalance")
EVOLVED = 5


def sources(seed: int) -> list[PolicySource]:
    """Baselines and evolved programs in turn."""
    known = [load_baseline(name).as_source() for name in BASELINES]
    written = BuiltinSynthesiser(seed).ask([Parent(source, 1.0) for source in known], None, EVOLVED)
    return [source for pair in zip(known, written, strict=False) for source in pair]


class Wardrobe:
    """One loaded policy after the other. Loading happens in a thread: the event loop serves meanwhile."""

    def __init__(self, seed: int) -> None:
        self._turn = cycle(sources(seed))
        self._limits = SandboxLimits()
        self._supply = WorkerSupply(self._limits)
        self._worn: list[SandboxedPolicy] = []
        self.kinds: set[str] = set()
        """Digests of all that were loaded."""

    async def next(self) -> GuardedPolicy:
        """The next policy, ready to decide."""
        policy = await asyncio.to_thread(self._load)
        self._worn.append(policy)
        self.kinds.add(policy.digest)
        return GuardedPolicy(policy, load_baseline("least_loaded"))

    async def discard_old(self) -> None:
        """End the sandboxes of all but the latest policy."""
        old, self._worn = self._worn[:-1], self._worn[-1:]
        for policy in old:
            await asyncio.to_thread(policy.close)

    def close(self) -> None:
        """End all sandboxes."""
        for policy in self._worn:
            policy.close()
        self._supply.close()

    def _load(self) -> SandboxedPolicy:
        return SandboxedPolicy(next(self._turn), self._limits, supply=self._supply)
