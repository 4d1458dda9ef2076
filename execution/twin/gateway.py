"""The gateway: every request enters here, is routed by the policy, comes back here when it loses its replica,
and leaves with exactly one record."""

from __future__ import annotations

from collections.abc import Mapping

from execution.twin.engine import IDLE
from execution.twin.listing import Listing
from execution.twin.meter import Meter
from execution.twin.predictor import OutputPredictor
from execution.twin.prefix_cache import PrefixIndex
from execution.twin.replica import Replica
from execution.twin.sequence import Sequence
from loop.contracts import (
    REJECT,
    BatchedPolicy,
    Finish,
    Memo,
    Policy,
    RecordSink,
    ReplicaView,
    Request,
    RequestView,
)

_new_view = tuple.__new__


class PolicyAnswerError(ValueError):
    """A policy answered with something that is no replica or no priority."""


class ModelPool:
    """The replicas of one model, by the work they take."""

    __slots__ = ("_bits", "decode", "entry", "index")

    def __init__(self) -> None:
        self.entry = Listing()
        """MIXED and PREFILL: take arrivals."""
        self.decode = Listing()
        self.index = PrefixIndex()
        self._bits: set[int] = set()

    def take_bit(self) -> int:
        """A bit in the masks of the prefix index that no live replica has."""
        bit = 1
        while bit in self._bits:
            bit <<= 1
        self._bits.add(bit)
        return bit

    def give_bit(self, bit: int) -> None:
        """Its replica is gone."""
        self._bits.discard(bit)


class Gateway:
    """Routing, retries and records."""

    __slots__ = (
        "_batched",
        "_block_tokens",
        "_memo",
        "_meter",
        "_policy",
        "_predictor",
        "_sink",
        "held",
        "pools",
        "returned",
        "woken",
    )

    def __init__(
        self,
        models: Mapping[str, object],
        sink: RecordSink,
        meter: Meter,
        *,
        block_tokens: int,
        prior_output_tokens: float,
    ) -> None:
        self.pools = {name: ModelPool() for name in models}
        self.held: dict[str, list[Sequence]] = {name: [] for name in models}
        """Requests whose model has no replica."""
        self.returned: list[Sequence] = []
        """Requests to be routed (anew) before time goes on."""
        self.woken: list[Replica] = []
        """Idle replicas that got work at this instant; they begin when the instant is over."""
        self._policy: Policy | None = None
        self._batched: BatchedPolicy | None = None
        self._memo = Memo()
        self._sink = sink
        self._meter = meter
        self._block_tokens = block_tokens
        self._predictor = OutputPredictor(prior_output_tokens)

    def use(self, policy: Policy, memo: Memo) -> None:
        """Route and order by this policy from now on."""
        self._policy = policy
        self._batched = policy if isinstance(policy, BatchedPolicy) else None
        self._memo = memo

    def divert(self, sink: RecordSink) -> None:
        """Hand records to this sink from now on."""
        self._sink = sink

    def outside(self) -> tuple[object, ...]:
        """What a fork does not copy, since it gets its own."""
        return (self._policy, self._batched, self._memo, self._sink)

    # -- in ----------------------------------------------------------------------------------------------

    def arrive(self, request: Request, number: int, now_s: float) -> Sequence:
        """A request enters. Raises ValueError for a model that nobody declared, or impossible lengths."""
        if request.model not in self.pools:
            raise ValueError(
                f"request {request.id} asks for model {request.model!r}; known are {', '.join(self.pools)}"
            )
        if request.input_tokens < 1 or request.output_tokens < 1:
            raise ValueError(
                f"request {request.id} has {request.input_tokens} input and {request.output_tokens} output "
                "tokens; both must be at least 1"
            )
        meter = self._meter
        if not meter.pending:
            meter.touch(now_s)
        meter.pending += 1
        return Sequence(request, number)

    def route_returned(self, now_s: float) -> None:
        """Route all that came back, oldest first."""
        returned, self.returned = self.returned, []
        returned.sort(key=lambda seq: (seq.request.arrival_s, seq.number))
        for seq in returned:
            self.route(seq, now_s)

    def retry(self, lost: list[Sequence]) -> None:
        """These lost their replica: they begin again from the start."""
        for seq in lost:
            seq.restart()
            seq.retries += 1
        self.returned += lost

    def take_held(self) -> None:
        """Replicas have changed: whatever waited for one is to be routed."""
        for waiting in self.held.values():
            self.returned += waiting
            waiting.clear()

    def route(self, seq: Sequence, now_s: float) -> None:
        """Ask the policy for a replica and a place in its queue."""
        request = seq.request
        pool = self.pools[request.model]
        listing = pool.entry
        if not listing.replicas:
            self.held[request.model].append(seq)
            return
        views = listing.views(now_s)
        replicas = listing.replicas
        size = request.input_tokens + request.output_tokens - 1
        if size > listing.least_capacity:
            able = [r.position for r in replicas if size <= r.engine.capacity_blocks << 4]
            if not able:
                self.close(seq, Finish.INFEASIBLE, -1.0, -1, now_s)
                return
            replicas = [replicas[i] for i in able]
            views = tuple(views[i] for i in able)
        predicted = self._predictor.predict(request.model, request.input_tokens)
        cached = self._cached(pool.index, request, replicas) if request.block_hashes else ()
        index, seq.priority = self._choose(seq, predicted, cached, views, now_s)
        if seq.priority == REJECT:
            self.close(seq, Finish.REJECTED, -1.0, -1, now_s)
            return
        seq.predicted = int(predicted + 0.5)
        self.enqueue(seq, replicas[index], now_s)

    def enqueue(self, seq: Sequence, replica: Replica, now_s: float) -> None:
        """Put it into the queue of a replica, which begins at the end of this instant if it idled."""
        if replica.engine.enqueue(seq, now_s):
            self.stir(replica)

    def stir(self, replica: Replica) -> None:
        """Let an idle replica look at its queue at the end of this instant."""
        if not replica.woken and replica.engine.mode == IDLE:
            replica.woken = True
            self.woken.append(replica)

    def choose_decode(self, seq: Sequence, now_s: float) -> Replica | None:
        """Ask the policy for the replica that decodes a prefilled sequence; None: there is none for it."""
        request = seq.request
        listing = self.pools[request.model].decode
        size = request.input_tokens + request.output_tokens - 1
        able = [r.position for r in listing.replicas if size <= r.engine.capacity_blocks << 4]
        if not able:
            return None
        views = listing.views(now_s)
        if len(able) < len(views):
            views = tuple(views[i] for i in able)
        predicted = self._predictor.predict(request.model, request.input_tokens)
        view = self._view(seq, predicted, (), now_s)
        if self._batched is not None:
            index = self._batched.dispatch(view, views, self._memo)[0]
        else:
            index = self._need_policy().route(view, views, self._memo)
        self._check_index(index, len(views), request)
        return listing.replicas[able[index]]

    # -- out ---------------------------------------------------------------------------------------------

    def completed(self, seq: Sequence, replica: Replica, now_s: float) -> None:
        """All output tokens are out."""
        request = seq.request
        self._predictor.learn(request.model, request.input_tokens, request.output_tokens)
        delivery_s = replica.costs.first_token_s
        seq.first_token_s += delivery_s
        self.close(seq, Finish.OK, now_s + delivery_s, replica.id, now_s)

    def close(self, seq: Sequence, finish: Finish, last_token_s: float, replica: int, now_s: float) -> None:
        """The one record of a request."""
        meter = self._meter
        if meter.pending == 1:
            meter.touch(now_s)
        meter.pending -= 1
        self._sink(seq.record(finish, last_token_s, replica))

    # -- asking the policy -------------------------------------------------------------------------------

    def _need_policy(self) -> Policy:
        if self._policy is None:
            raise RuntimeError("the twin has no policy: call use(policy, memo) before requests arrive")
        return self._policy

    def _choose(
        self,
        seq: Sequence,
        predicted: float,
        cached: tuple[int, ...],
        views: tuple[ReplicaView, ...],
        now_s: float,
    ) -> tuple[int, float]:
        view = self._view(seq, predicted, cached, now_s)
        if self._batched is not None:
            index, priority = self._batched.dispatch(view, views, self._memo)
            self._check_index(index, len(views), seq.request)
        else:
            policy = self._need_policy()
            index = policy.route(view, views, self._memo)
            self._check_index(index, len(views), seq.request)
            priority = policy.priority(view, views[index], self._memo)
        if priority != priority:  # noqa: PLR0124 - NaN has no place in an order
            raise PolicyAnswerError(f"priority of request {seq.request.id} is not a number")
        return index, priority

    @staticmethod
    def _view(seq: Sequence, predicted: float, cached: tuple[int, ...], now_s: float) -> RequestView:
        request = seq.request
        return _new_view(
            RequestView,
            (
                request.id,
                request.model,
                request.arrival_s,
                now_s,
                request.input_tokens,
                predicted,
                request.tier,
                seq.retries,
                cached,
            ),
        )

    @staticmethod
    def _check_index(index: int, count: int, request: Request) -> None:
        if not (isinstance(index, int) and 0 <= index < count):
            raise PolicyAnswerError(
                f"route of request {request.id} ({request.model}) answered {index!r}: not one of {count} replicas"
            )

    def _cached(self, index: PrefixIndex, request: Request, replicas: list[Replica]) -> tuple[int, ...]:
        whole = request.input_tokens // self._block_tokens
        found = index.matches(request.block_hashes[:whole])
        if not found:
            return ()
        most = (request.input_tokens - 1) & ~15
        each = self._block_tokens
        return tuple(min(found.get(r.prefix_bit, 0) * each, most) for r in replicas)
