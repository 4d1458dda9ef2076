"""Statistics of finished requests in memory that does not grow with their number."""

from __future__ import annotations

from math import log

from loop.contracts import Demand, Finish, Quantiles, RequestRecord, ServingStats, Slo

_RATIO = 1.01
_LOG_RATIO = log(_RATIO)
_COUNTERS = (
    "finished",
    "rejected",
    "lost",
    "input_tokens",
    "output_tokens",
    "cached_tokens",
    "good",
    "preemptions",
    "retries",
)


class LogHistogram:
    """Counts in buckets that grow by 1 %, so every quantile is right to 0.5 % of its value.

    The idea is DDSketch's (Masson, Rim, Lee 2019); values below `low` fall into one bucket that reads 0.
    Mean, minimum and maximum are exact.
    """

    __slots__ = ("_buckets", "_inverse_low", "_low", "_max", "_min", "count", "total")

    def __init__(self, low: float = 1e-4) -> None:
        self._low = low
        self._inverse_low = 1.0 / low
        self._buckets: dict[int, int] = {}
        self._min = float("inf")
        self._max = 0.0
        self.count = 0
        self.total = 0.0

    def add(self, value: float) -> None:
        """Count one value (>= 0)."""
        self.count += 1
        self.total += value
        self._max = max(self._max, value)
        self._min = min(self._min, value)
        bucket = int(log(value * self._inverse_low) / _LOG_RATIO) if value > self._low else -1
        self._buckets[bucket] = self._buckets.get(bucket, 0) + 1

    def merge(self, other: LogHistogram) -> None:
        """Count all that another histogram (of the same `low`) has counted."""
        self.count += other.count
        self.total += other.total
        self._min = min(self._min, other._min)
        self._max = max(self._max, other._max)
        buckets = self._buckets
        for bucket, count in other._buckets.items():
            buckets[bucket] = buckets.get(bucket, 0) + count

    @property
    def mean(self) -> float:
        """Exact; 0.0 of nothing."""
        return self.total / self.count if self.count else 0.0

    @property
    def maximum(self) -> float:
        """Exact; 0.0 of nothing."""
        return self._max

    def quantile(self, q: float) -> float:
        """The value below which a share `q` of all lie; 0.0 of nothing."""
        return self.quantiles((q,))[0]

    def quantiles(self, qs: tuple[float, ...]) -> list[float]:
        """Several quantiles (ascending `qs`) in one pass."""
        if not self.count:
            return [0.0] * len(qs)
        found: list[float] = []
        seen = 0
        buckets = iter(sorted(self._buckets.items()))
        bucket, size = next(buckets)
        for q in qs:
            rank = q * (self.count - 1) + 1
            while seen + size < rank:
                seen += size
                bucket, size = next(buckets)
            middle = self._low * _RATIO ** (bucket + 0.5) if bucket >= 0 else 0.0
            found.append(min(max(middle, self._min), self._max))
        return found

    def summary(self) -> Quantiles:
        """Mean, p50, p90 and p99."""
        p50, p90, p99 = self.quantiles((0.5, 0.9, 0.99))
        return Quantiles(self.count, self.mean, p50, p90, p99)


class StatsCollector:
    """A sink of request records (one `StatsCollector` for a window, one for a run)."""

    def __init__(self, slo: Slo) -> None:
        self._slo = slo
        self.ttft_s = LogHistogram()
        self.tpot_s = LogHistogram(1e-5)
        self.e2e_s = LogHistogram()
        self.inputs = LogHistogram(1.0)
        self.outputs = LogHistogram(1.0)
        self.finished = self.rejected = self.lost = 0
        self.input_tokens = self.output_tokens = self.cached_tokens = 0
        self.good = self.preemptions = self.retries = 0

    def __call__(self, record: RequestRecord) -> None:
        """Count one record."""
        if record.finish is not Finish.OK:
            if record.finish is Finish.CANCELLED:
                return  # its client went away: it says nothing of the service
            if record.finish is Finish.REJECTED:
                self.rejected += 1
            else:
                self.lost += 1
            return
        ttft = record.first_token_s - record.arrival_s
        tpot = (record.last_token_s - record.first_token_s) / max(1, record.output_tokens - 1)
        self.finished += 1
        self.ttft_s.add(ttft)
        self.tpot_s.add(tpot)
        self.e2e_s.add(record.last_token_s - record.arrival_s)
        self.inputs.add(record.input_tokens)
        self.outputs.add(record.output_tokens)
        self.input_tokens += record.input_tokens
        self.output_tokens += record.output_tokens
        self.cached_tokens += record.cached_tokens
        self.preemptions += record.preemptions
        self.retries += record.retries
        if ttft <= self._slo.ttft_s and tpot <= self._slo.tpot_s:
            self.good += 1

    def merge(self, other: StatsCollector) -> None:
        """Count all that another collector of the same SLO has counted."""
        for name in ("ttft_s", "tpot_s", "e2e_s", "inputs", "outputs"):
            getattr(self, name).merge(getattr(other, name))
        for name in _COUNTERS:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def stats(self) -> ServingStats:
        """Everything so far."""
        return ServingStats(
            finished=self.finished,
            rejected=self.rejected,
            lost=self.lost,
            input_tokens=self.input_tokens,
            output_tokens=self.output_tokens,
            ttft_s=self.ttft_s.summary(),
            tpot_s=self.tpot_s.summary(),
            e2e_s=self.e2e_s.summary(),
            good=self.good,
            preemptions=self.preemptions,
            retries=self.retries,
            cached_tokens=self.cached_tokens,
        )

    def demand(
        self, model: str, *, arrived: int, seconds: float, waiting: int, waiting_tokens: int, running: int
    ) -> Demand:
        """What a policy sees of one model's window of `seconds`, and of its backlog now."""
        ttft50, ttft99 = self.ttft_s.quantiles((0.5, 0.99))
        tpot50, tpot99 = self.tpot_s.quantiles((0.5, 0.99))
        return Demand(
            model=model,
            arrived=arrived,
            finished=self.finished,
            rejected=self.rejected,
            rate_per_s=arrived / seconds if seconds > 0 else 0.0,
            input_tokens_mean=self.inputs.mean,
            input_tokens_p90=self.inputs.quantile(0.9),
            output_tokens_mean=self.outputs.mean,
            output_tokens_p90=self.outputs.quantile(0.9),
            waiting=waiting,
            waiting_input_tokens=waiting_tokens,
            running=running,
            ttft_p50_s=ttft50,
            ttft_p99_s=ttft99,
            tpot_p50_s=tpot50,
            tpot_p99_s=tpot99,
            goodput=self.good / self.finished if self.finished else 1.0,
            prefix_hit=self.cached_tokens / self.input_tokens if self.input_tokens else 0.0,
            output_tokens_max=self.outputs.maximum,
        )
