"""Metrics in Prometheus' text form, with the ecosystem's names.

HTTP: `http_requests_total` and `http_request_duration_seconds`. Generation: OpenTelemetry's semantic conventions for
GenAI servers (`gen_ai.server.time_to_first_token`, ...; semantic conventions 1.30, 2025) in Prometheus' spelling,
with their bucket limits. Whatever the backend tells stands behind them.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence

from loop.contracts.engine import Metric

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"
Labels = tuple[tuple[str, str], ...]

DURATION_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0)
TTFT_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
PER_TOKEN_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)


class Counter:
    """A number that grows, for each set of labels."""

    kind = "counter"

    def __init__(self, name: str, help_text: str) -> None:
        self.name = name
        self.help = help_text
        self._values: dict[Labels, float] = {}

    def add(self, labels: Labels, value: float = 1.0) -> None:
        """Grow."""
        self._values[labels] = self._values.get(labels, 0.0) + value

    def lines(self) -> Iterable[str]:
        """Its series."""
        return (_line(self.name, labels, value) for labels, value in self._values.items())


class Histogram:
    """How often values fell into each bucket, for each set of labels."""

    kind = "histogram"

    def __init__(self, name: str, help_text: str, limits: Sequence[float]) -> None:
        self.name = name
        self.help = help_text
        self._limits = tuple(limits)
        self._counts: dict[Labels, list[int]] = {}
        self._sums: dict[Labels, float] = {}

    def observe(self, labels: Labels, value: float) -> None:
        """Count a value."""
        counts = self._counts.get(labels)
        if counts is None:
            counts = self._counts[labels] = [0] * (len(self._limits) + 1)
        counts[bisect_left(self._limits, value)] += 1
        self._sums[labels] = self._sums.get(labels, 0.0) + value

    def lines(self) -> Iterable[str]:
        """Its series: cumulative buckets, sum, count."""
        for labels, counts in self._counts.items():
            total = 0
            for limit, count in zip((*self._limits, math.inf), counts, strict=True):
                total += count
                yield _line(f"{self.name}_bucket", (*labels, ("le", _number(limit))), total)
            yield _line(f"{self.name}_sum", labels, self._sums[labels])
            yield _line(f"{self.name}_count", labels, total)


class GatewayMetrics:
    """All that the gateway counts."""

    def __init__(self) -> None:
        self.requests = Counter("http_requests_total", "HTTP requests answered.")
        self.duration = Histogram(
            "http_request_duration_seconds", "From the headers to the end of the answer.", DURATION_S
        )
        self.cut = Counter("http_requests_aborted_total", "Requests whose answer did not come to its end.")
        self.generation = Histogram(
            "gen_ai_server_request_duration_seconds",
            "Generation requests, from arrival to the last token.",
            DURATION_S,
        )
        self.ttft = Histogram(
            "gen_ai_server_time_to_first_token_seconds", "From arrival to the first token.", TTFT_S
        )
        self.per_token = Histogram(
            "gen_ai_server_time_per_output_token_seconds",
            "Between tokens after the first, mean of a request.",
            PER_TOKEN_S,
        )
        self.tokens = Counter("gen_ai_server_token_usage_total", "Tokens served, by gen_ai_token_type.")

    def text(self, gauges: Iterable[Metric], backend: Iterable[Metric]) -> bytes:
        """The page."""
        lines: list[str] = []
        for own in (
            self.requests,
            self.duration,
            self.cut,
            self.generation,
            self.ttft,
            self.per_token,
            self.tokens,
        ):
            lines += _header(own.name, own.kind, own.help)
            lines += own.lines()
        groups: dict[str, list[Metric]] = {}
        for metric in (*gauges, *backend):
            groups.setdefault(metric.name, []).append(metric)
        for name, group in groups.items():
            lines += _header(name, group[0].kind, group[0].help)
            lines += (_line(name, metric.labels, metric.value) for metric in group)
        return "\n".join([*lines, ""]).encode()


def _header(name: str, kind: str, help_text: str) -> tuple[str, str]:
    escaped = help_text.replace("\\", r"\\").replace("\n", r"\n")
    return f"# HELP {name} {escaped}", f"# TYPE {name} {kind}"


def _line(name: str, labels: Labels, value: float) -> str:
    if not labels:
        return f"{name} {_number(value)}"
    inside = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels)
    return f"{name}{{{inside}}} {_number(value)}"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _number(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else repr(float(value))
