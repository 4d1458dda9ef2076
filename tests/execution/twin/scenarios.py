"""Random cases for the property tests: workloads, clusters, reconfigurations and failures."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import strategies as st

from execution.twin import WorldParameters
from loop.contracts import ClusterEvent, EventKind, Plan, ReplicaSpec, Request, Role
from tests.execution.twin.doubles import Bench, LeastLoaded, RoundRobin, spec

PLANS: tuple[tuple[ReplicaSpec, ...], ...] = (
    (spec("d0"),),
    (spec("d0", seqs=3, budget=40), spec("d1", seqs=64, budget=512)),
    (spec("d0", "d1"), spec("d4", budget=100)),
    (spec("d2", budget=64), spec("d3", "d4"), spec("d5", model="other")),
    (spec("d0", role=Role.PREFILL, budget=128), spec("d4", role=Role.DECODE)),
    (
        spec("d0", role=Role.PREFILL),
        spec("d1", role=Role.PREFILL, budget=64),
        spec("d2", role=Role.DECODE, seqs=4),
        spec("d5", role=Role.DECODE),
        spec("d6", seqs=8),
    ),
    (
        spec("d0", role=Role.PREFILL, budget=128),
        spec("d4", role=Role.DECODE),
        spec("d1", role=Role.DECODE),
    ),
    (),
)


@dataclass(frozen=True)
class Scenario:
    """One whole run."""

    requests: tuple[Request, ...]
    plans: tuple[tuple[float, int], ...]
    """(time, index into PLANS)."""
    events: tuple[ClusterEvent, ...]
    kv_capacity_tokens: int
    jitter: float
    scan: bool
    padded: bool

    def run(self, *, leap: bool) -> Bench:
        """Play it to its end, then close it."""
        policy = LeastLoaded() if self.scan else RoundRobin()
        bench = Bench(
            policy=policy,
            leap=leap,
            world=WorldParameters(jitter=self.jitter, start_scale=1.1),
            kv_capacity_tokens=self.kv_capacity_tokens,
            start_s=0.7,
            padded=self.padded,
        )
        twin = bench.twin
        twin.submit(self.requests)
        for event in self.events:
            twin.inject(event)
        for at_s, index in self.plans:
            twin.run_until(at_s)
            down = {view.id for view in twin.snapshot().devices if not view.available}
            twin.apply(Plan(tuple(s for s in PLANS[index] if not down.intersection(s.devices))))
        twin.run_until_idle(200.0)
        twin.close()
        return bench


def _times(limit_s: float) -> st.SearchStrategy[float]:
    # Irregular, so that no two things happen at the same instant but by accident of rounding.
    return st.integers(0, 10**6).map(lambda i: limit_s * (i + 0.3183098861837907) / 10**6)


@st.composite
def scenarios(draw: st.DrawFn) -> Scenario:
    """Loads from idle to far too much, memory from ample to scarce, prefixes shared or not."""
    count = draw(st.integers(1, 40))
    span_s = draw(st.sampled_from([0.0, 1.0, 6.0]))
    arrivals = sorted(draw(_times(span_s)) for _ in range(count)) if span_s else [0.0] * count
    shared = draw(st.booleans())
    longest = draw(st.sampled_from([30, 200, 900]))
    requests = []
    for number, at_s in enumerate(arrivals):
        prompt = draw(st.integers(1, longest))
        family = draw(st.integers(0, 3))
        depth = draw(st.integers(0, 14))
        hashes = tuple(1000 * (family if i < depth else 10 + number) + i for i in range(-(-prompt // 64)))
        requests.append(
            Request(
                number,
                at_s,
                draw(st.sampled_from(["m", "m", "m", "other"])),
                prompt,
                draw(st.sampled_from([1, 2, 5, 17, 60, 250])),
                hashes if shared else (),
                draw(st.integers(0, 2)),
            )
        )
    plans = [(0.0, draw(st.integers(0, len(PLANS) - 2)))]
    later = sorted(draw(_times(8.0)) for _ in range(draw(st.integers(0, 3))))
    plans += [(at_s, draw(st.integers(0, len(PLANS) - 1))) for at_s in later]
    return Scenario(
        requests=tuple(requests),
        plans=tuple(plans),
        events=tuple(draw(st.lists(_events(), max_size=4))),
        kv_capacity_tokens=draw(st.sampled_from([640, 1600, 100_000])),
        jitter=draw(st.sampled_from([0.0, 0.0, 0.2])),
        scan=draw(st.booleans()),
        padded=draw(st.booleans()),
    )


@st.composite
def _events(draw: st.DrawFn) -> ClusterEvent:
    kind = draw(st.sampled_from(list(EventKind)))
    return ClusterEvent(
        at_s=draw(_times(8.0)),
        kind=kind,
        target=draw(st.sampled_from(["d0", "d1", "d2", "d4", "d5", "n0", "n1"])),
        factor=draw(st.sampled_from([0.3, 0.77, 1.0])),
        notice_s=draw(st.sampled_from([0.0, 0.9])),
    )
