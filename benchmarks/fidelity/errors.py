"""Errors of one group of predictions, and the row that reports them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True)
class Group:
    """What a set of predictions has in common."""

    source: str
    system: str
    model: str
    engine: str
    regime: str
    table: bool
    """Operator tables were measured on this very device kind."""


@dataclass(slots=True)
class Ledger:
    """Signed relative errors by group and metric, what was left out, and why."""

    errors: dict[Group, dict[str, list[float]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(list))
    )
    left_out: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    def add(self, group: Group, **pairs: tuple[float, float]) -> None:
        """Note predictions as metric=(predicted, measured)."""
        for metric, (predicted, measured) in pairs.items():
            if measured > 0:
                self.errors[group][metric].append(predicted / measured - 1.0)

    def rows(self) -> list[dict[str, Any]]:
        """One row a group: counts, median, p90 and median signed error of each metric."""
        found = []
        for group, metrics in sorted(self.errors.items(), key=lambda item: str(item[0])):
            row: dict[str, Any] = {
                "source": group.source,
                "system": group.system,
                "model": group.model,
                "engine": group.engine,
                "regime": group.regime,
                "table": group.table,
                "n": max(len(values) for values in metrics.values()),
            }
            for metric, values in metrics.items():
                row[f"{metric}_median"] = median_error(values)
                row[f"{metric}_p90"] = float(np.quantile(np.abs(values), 0.9))
                row[f"{metric}_bias"] = float(np.median(values))
            found.append(row)
        return found

    def pooled(self, metric: str, *, source: str | None = None, table: bool | None = None) -> list[float]:
        """All errors of a metric, of one source and of devices with (or without) tables."""
        return [
            error
            for group, metrics in self.errors.items()
            if (source is None or group.source == source) and (table is None or group.table == table)
            for error in metrics.get(metric, [])
        ]


def median_error(errors: Sequence[float]) -> float:
    """Median absolute relative error; NaN of none."""
    return float(np.median(np.abs(errors))) if len(errors) else float("nan")
