"""A linear cost model, a small cluster and simple policies: what the twin's tests compute by hand with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from execution.twin import NOMINAL, Twin, WorldParameters
from hw_profiles.performance import InfeasibleError
from loop.contracts import (
    EMPTY_PLAN,
    REJECT,
    Finish,
    Memo,
    Observation,
    Plan,
    ReplicaSpec,
    ReplicaView,
    Request,
    RequestRecord,
    RequestView,
    Role,
)


@dataclass(frozen=True)
class FakeProfile:
    memory_bytes: int = 80 * 10**9
    memory_bytes_per_s: float = 2e12
    usd_per_hour: float = 3.6


@dataclass(frozen=True)
class FakeDevice:
    id: str
    node: str
    kind: str = "gpu"
    spot: bool = False
    profile: FakeProfile = field(default_factory=FakeProfile)


class FakeTopology:
    """`nodes` nodes of four devices: d0, d1, ... on n0, n1, ..."""

    def __init__(self, nodes: int = 2) -> None:
        self.devices: Mapping[str, FakeDevice] = {
            f"d{i}": FakeDevice(f"d{i}", f"n{i // 4}") for i in range(4 * nodes)
        }
        self.nodes = {f"n{k}": tuple(f"d{i}" for i in range(4 * k, 4 * k + 4)) for k in range(nodes)}

    def bandwidth_bytes_per_s(self, a: str, b: str) -> float:
        return 1e9 if self.devices[a].node == self.devices[b].node else 1e8

    def latency_s(self, a: str, b: str) -> float:
        return 1e-3 if self.devices[a].node == self.devices[b].node else 2e-3


BASE_S = 0.01
PER_SEQUENCE_S = 1e-4
PER_CONTEXT_S = 1.7e-6
PER_PROMPT_TOKEN_S = 3.1e-5
PER_CHUNK_CONTEXT_S = 1.3e-7
KNEE_TOKENS = 700
"""Beyond this many decode tokens of context each further one costs more: a second linear piece."""
BEYOND_S = 0.9e-6


@dataclass(frozen=True)
class LinearCosts:
    """Costs that are linear in everything, except for one knee in the decode context."""

    kv_capacity_tokens: int = 100_000
    kv_bytes_per_token: int = 100
    start_s: float = 5.0
    busy_watts: float = 700.0
    idle_watts: float = 100.0
    first_token_s: float = 0.0
    prefill_tokens_per_s: float = 1.0 / PER_PROMPT_TOKEN_S
    scale: float = 1.0
    padded: bool = False

    def decode_s(self, n: int, kv: int) -> float:
        if not n:
            return 0.0
        return n * PER_SEQUENCE_S + kv * PER_CONTEXT_S + max(0, kv - KNEE_TOKENS) * BEYOND_S

    def iteration_s(
        self, n_decode: int, kv_decode_tokens: int, chunks: Sequence[tuple[int, int]] = ()
    ) -> float:
        prompts = sum(c * PER_PROMPT_TOKEN_S + c * x * PER_CHUNK_CONTEXT_S for c, x in chunks)
        return self.scale * (BASE_S + self.decode_s(n_decode, kv_decode_tokens) + prompts)

    def decode_segment(self, n_decode: int, kv_decode_tokens: int) -> tuple[float, float, float]:
        base = BASE_S + n_decode * PER_SEQUENCE_S
        if kv_decode_tokens < KNEE_TOKENS:
            return self.scale * base, self.scale * PER_CONTEXT_S, float(KNEE_TOKENS)
        lifted = base - KNEE_TOKENS * BEYOND_S
        return self.scale * lifted, self.scale * (PER_CONTEXT_S + BEYOND_S), float("inf")


class LinearPerformance:
    """Every replica costs the same, but for its size: tp devices are tp times as fast and hold as much more."""

    def __init__(self, **changes: float) -> None:
        self._changes = changes

    def replica(
        self, model: object, devices: Sequence[FakeDevice], tp: int, pp: int, topology: object
    ) -> LinearCosts:
        if model == "huge":
            raise InfeasibleError("huge does not fit")
        capacity = int(self._changes.get("kv_capacity_tokens", 100_000))
        rest = {k: v for k, v in self._changes.items() if k != "kv_capacity_tokens"}
        # A little apart from each other, so that no two replicas ever tie.
        scale = (1.0 + 0.0137 * int(devices[0].id[1:])) / len(devices)
        return LinearCosts(kv_capacity_tokens=capacity * len(devices), scale=scale, **rest)


class RoundRobin:
    """Takes turns, by a counter in the memo."""

    name = "round-robin"
    digest = "000000000000"

    def should_replan(self, obs: Observation, memo: Memo) -> bool:
        return False

    def plan(self, obs: Observation, budget_s: float, memo: Memo) -> Plan:
        return EMPTY_PLAN

    def route(self, request: RequestView, replicas: Sequence[ReplicaView], memo: Memo) -> int:
        turn = memo.get("turn", 0.0)
        memo["turn"] = turn + 1.0
        return int(turn) % len(replicas)

    def priority(self, request: RequestView, replica: ReplicaView, memo: Memo) -> float:
        return 0.0


class LeastLoaded(RoundRobin):
    """Looks at everything a view says, and serves higher tiers first."""

    def route(self, request: RequestView, replicas: Sequence[ReplicaView], memo: Memo) -> int:
        def load(i: int) -> float:
            view = replicas[i]
            hit = request.cached_tokens[i] if request.cached_tokens else 0
            return (
                view.ready_in_s
                + (view.waiting_tokens + request.input_tokens - hit) / view.prefill_tokens_per_s
                + view.outstanding_tokens / view.decode_tokens_per_s
                + view.decode_step_s * (view.running + view.waiting)
                + view.kv_tokens / view.kv_capacity_tokens
            )

        return min(range(len(replicas)), key=load)

    def priority(self, request: RequestView, replica: ReplicaView, memo: Memo) -> float:
        return -float(request.tier)


class Picky(RoundRobin):
    """Refuses prompts above 100 tokens."""

    def priority(self, request: RequestView, replica: ReplicaView, memo: Memo) -> float:
        return REJECT if request.input_tokens > 100 else 0.0


def spec(
    *devices: str, model: str = "m", role: Role = Role.MIXED, seqs: int = 64, budget: int = 512
) -> ReplicaSpec:
    return ReplicaSpec(
        model, devices, tp=len(devices), role=role, max_num_seqs=seqs, max_num_batched_tokens=budget
    )


class Bench:
    """A twin with its records at hand."""

    def __init__(
        self,
        *,
        policy: RoundRobin | None = None,
        world: WorldParameters = NOMINAL,
        leap: bool = True,
        block_tokens: int = 64,
        seed: int = 0,
        **costs: float,
    ) -> None:
        self.records: list[RequestRecord] = []
        self.twin = Twin(
            topology=FakeTopology(),
            models={"m": "m", "other": "other", "huge": "huge"},
            performance=LinearPerformance(**costs),
            sink=self.records.append,
            seed=seed,
            block_tokens=block_tokens,
            world=world,
            leap=leap,
        )
        self.twin.use(policy or RoundRobin(), Memo())

    def serving(self, *specs: ReplicaSpec) -> Bench:
        """Apply a plan and wait until it serves."""
        expected_s = self.twin.apply(Plan(specs)).expected_s
        self.twin.run_until(self.twin.now_s + expected_s + 1e-9)
        return self

    def record(self, request_id: int) -> RequestRecord:
        (found,) = [record for record in self.records if record.id == request_id]
        return found

    def finishes(self) -> dict[int, Finish]:
        return {record.id: record.finish for record in self.records}


def request(
    number: int,
    at_s: float,
    prompt: int,
    output: int,
    *,
    model: str = "m",
    hashes: tuple[int, ...] = (),
    tier: int = 0,
) -> Request:
    return Request(number, at_s, model, prompt, output, hashes, tier)
