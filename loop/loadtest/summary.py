"""What a load test found, in numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from loop.contracts import Slo
from loop.loadtest.drive import Drive
from loop.loadtest.outcome import CLIENT_LIMIT, OK, Outcome
from loop.loadtest.server import Server

BINS = 60
LATE_S = 0.05
"""A client that is this late in one of a hundred cases measures itself."""
BUSY_SHARE = 0.85
"""Of one core."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean and quantiles, in seconds; zeros of nothing."""

    count: int = 0
    mean: float = 0.0
    p50: float = 0.0
    p90: float = 0.0
    p95: float = 0.0
    p99: float = 0.0
    max: float = 0.0


@dataclass(frozen=True, slots=True)
class ErrorKind:
    """Requests that failed in the same way."""

    kind: str
    count: int
    example: str


@dataclass(frozen=True, slots=True)
class ClientState:
    """How the client itself did: what is late here is not the server's fault."""

    send_lag_s: Spread
    """How much later than due requests were sent."""
    loop_lag_s: Spread
    """How late the client's clock rang."""
    cpu_share: float
    """Of one core."""
    connections: int
    most_in_flight: int
    overloaded: bool
    """Late or busy enough to be in the latencies."""


@dataclass(frozen=True, slots=True)
class Bin:
    """A stretch of the test; requests counted where they were due, answers where they ended."""

    start_s: float
    sent: int
    answered: int
    failed: int
    output_tokens: int
    in_flight: int
    """At its end."""
    ttft_p50_s: float | None
    ttft_p90_s: float | None
    e2e_p50_s: float | None
    e2e_p90_s: float | None


@dataclass(frozen=True, slots=True)
class LoadReport:
    """All of it. Latencies are of answered requests, from sending; rates over `elapsed_s`."""

    url: str
    model: str
    endpoint: str
    workload: str
    generated: bool
    planned: int
    sent: int
    answered: int
    failed: int
    ended_by_hand: bool
    elapsed_s: float
    slo: Slo
    good: int
    """Answered within the SLO."""
    input_tokens: int
    output_tokens: int
    ttft_s: Spread
    tpot_s: Spread
    """Of answers of more than one token."""
    itl_s: Spread
    """Between two pieces of one answer."""
    e2e_s: Spread
    errors: tuple[ErrorKind, ...]
    client: ClientState
    clipped: int
    """Requests made shorter to fit the model."""
    short_answers: int
    """Answered with fewer tokens than the workload wanted."""
    counted_by_server: bool
    """Tokens are as the server counted them; else as many as pieces came."""
    bins: tuple[Bin, ...]

    @property
    def goodput(self) -> float:
        """Share of the requests that were due (those that failed or were not sent included) within the SLO."""
        due = self.answered + self.failed
        return self.good / due if due else 1.0

    def per_s(self, count: float) -> float:
        """A count as a rate over the test."""
        return count / self.elapsed_s if self.elapsed_s > 0.0 else 0.0


def spread(values: Sequence[float]) -> Spread:
    """Mean and quantiles."""
    if not len(values):
        return Spread()
    array = np.asarray(values, dtype=np.float64)
    p50, p90, p95, p99 = (float(v) for v in np.quantile(array, (0.5, 0.9, 0.95, 0.99)))
    return Spread(len(array), float(array.mean()), p50, p90, p95, p99, float(array.max()))


def summarise(
    drive: Drive, server: Server, slo: Slo, *, workload: str, generated: bool, connections: int = 0
) -> LoadReport:
    """The report of a drive that has ended, or was ended."""
    outcomes = drive.outcomes
    answered = [o for o in outcomes if o.error == OK]
    failed = [o for o in outcomes if o.error != OK]
    sent = [o for o in outcomes if o.error != CLIENT_LIMIT]
    return LoadReport(
        url=server.origin.text,
        model=server.model,
        endpoint=f"{server.traits.path}, {'token ids' if server.traits.as_tokens else 'text'}",
        workload=workload,
        generated=generated,
        planned=drive.total,
        sent=len(sent),
        answered=len(answered),
        failed=len(failed),
        ended_by_hand=drive.ended_by_hand,
        elapsed_s=drive.elapsed_s,
        slo=slo,
        good=sum(1 for o in answered if o.ttft_s <= slo.ttft_s and o.tpot_s <= slo.tpot_s),
        input_tokens=sum(o.input_tokens for o in answered),
        output_tokens=sum(o.output_tokens for o in answered),
        ttft_s=spread([o.ttft_s for o in answered]),
        tpot_s=spread([o.tpot_s for o in answered if o.output_tokens > 1]),
        itl_s=spread(drive.gaps_s),
        e2e_s=spread([o.e2e_s for o in answered]),
        errors=_errors(failed),
        client=_client(drive, sent, connections),
        clipped=drive.clipped,
        short_answers=sum(1 for o in answered if o.output_tokens < o.wanted_output_tokens),
        counted_by_server=server.traits.usage,
        bins=_bins(outcomes, drive.elapsed_s),
    )


def _errors(failed: Sequence[Outcome]) -> tuple[ErrorKind, ...]:
    counts = Counter(o.error for o in failed)
    examples: dict[str, str] = {}
    for o in failed:
        examples.setdefault(o.error, o.detail)
    return tuple(ErrorKind(kind, count, examples[kind]) for kind, count in counts.most_common())


def _client(drive: Drive, sent: Sequence[Outcome], connections: int) -> ClientState:
    send, loop = spread([max(0.0, o.lag_s) for o in sent]), spread(drive.loop_lags_s)
    share = drive.cpu_s / drive.elapsed_s if drive.elapsed_s > 0.0 else 0.0
    late = max(send.p99, loop.p99) > LATE_S
    return ClientState(
        send, loop, share, connections, drive.most_in_flight, overloaded=late or share > BUSY_SHARE
    )


def _bins(outcomes: Sequence[Outcome], elapsed_s: float) -> tuple[Bin, ...]:
    if not outcomes or elapsed_s <= 0.0:
        return ()
    width_s = elapsed_s / BINS
    due: list[list[Outcome]] = [[] for _ in range(BINS)]
    ended: list[list[Outcome]] = [[] for _ in range(BINS)]
    for o in outcomes:
        due[_bin(o.due_s, width_s)].append(o)
        ended[_bin(o.done_s, width_s)].append(o)
    bins, in_flight = [], 0
    for i in range(BINS):
        ok = [o for o in due[i] if o.error == OK]
        ttft, e2e = spread([o.ttft_s for o in ok]), spread([o.e2e_s for o in ok])
        in_flight += sum(1 for o in due[i] if o.sent_s >= 0.0)
        in_flight -= sum(1 for o in ended[i] if o.sent_s >= 0.0)
        finished = [o for o in ended[i] if o.error == OK]
        bins.append(
            Bin(
                start_s=i * width_s,
                sent=len(due[i]),
                answered=len(finished),
                failed=len(ended[i]) - len(finished),
                output_tokens=sum(o.output_tokens for o in finished),
                in_flight=max(0, in_flight),
                ttft_p50_s=ttft.p50 if ok else None,
                ttft_p90_s=ttft.p90 if ok else None,
                e2e_p50_s=e2e.p50 if ok else None,
                e2e_p90_s=e2e.p90 if ok else None,
            )
        )
    return tuple(bins)


def _bin(at_s: float, width_s: float) -> int:
    return min(BINS - 1, max(0, int(at_s / width_s)))
