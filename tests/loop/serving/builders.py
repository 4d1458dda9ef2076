"""Small values of a live run."""

from __future__ import annotations

from typing import Any

from loop.contracts import EMPTY_PLAN, Finish, Quantiles, RequestRecord, Resources, ServingStats, WindowResult
from loop.journal_serving import ServedRequest

STATS = ServingStats(0, 0, 0, 0, 0, Quantiles(), Quantiles(), Quantiles(), 0, 0, 0, 0)


def window_result(index: int) -> WindowResult:
    return WindowResult(index, 5.0, 5.0, 0.0, 0.0, 0.0, False, "first", EMPTY_PLAN, STATS, Resources())


def record(number: int = 0, **changes: Any) -> RequestRecord:
    base = RequestRecord(number, "m", Finish.OK, 1.0, 1.1, 1.2, 1.5, 3.0, 20, 9, 16, 2, 0, 1)
    return base._replace(**changes)


def served(number: int = 0, **changes: Any) -> ServedRequest:
    return ServedRequest(record(number, **changes), f"req-{number}", 1, "d" * 12, 64, (3, -5, 1 << 62))
