"""Monitoring windows: a workload and its events, cut into equal half-open intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from execution.workload.errors import WorkloadError
from loop.contracts import ClusterEvent, Window, Workload

MAX_WINDOWS = 1_000_000


def windows(workload: Workload, window_s: float, events: Sequence[ClusterEvent] = ()) -> list[Window]:
    """Cut into windows [k * window_s, (k + 1) * window_s), empty ones included, up to the last request or event.

    Every request and every event is in exactly one window; a workload with neither has no windows.

    Raises:
        WorkloadError: when window_s is not positive and finite, an event lies before 0, or there would be
            more than a million windows.
    """
    if not (math.isfinite(window_s) and window_s > 0):
        raise WorkloadError(f"window of {window_s:g} s: must be longer than 0")
    for event in events:
        if not (math.isfinite(event.at_s) and event.at_s >= 0):
            raise WorkloadError(
                f"event {event.kind} of {event.target} at {event.at_s:g} s: must be at 0 or later"
            )
    requests = workload.requests
    moments = [request.arrival_s for request in requests]
    ordered = sorted(events, key=lambda event: event.at_s)
    event_moments = [event.at_s for event in ordered]
    last_s = max(moments[-1:] + event_moments[-1:], default=-1.0)
    if last_s < 0:
        return []
    if last_s / window_s >= MAX_WINDOWS:
        raise WorkloadError(
            f"{workload.name}: windows of {window_s:g} s cut {last_s:g} s into more than {MAX_WINDOWS}"
        )
    count = math.floor(last_s / window_s) + 1
    # Division and multiplication may round differently: make sure that the last moment is inside.
    count += count * window_s <= last_s
    edges = np.arange(count + 1) * window_s
    cuts = np.searchsorted(moments, edges, side="left").tolist()
    event_cuts = np.searchsorted(event_moments, edges, side="left").tolist()
    bounds = edges.tolist()
    return [
        Window(
            index=k,
            start_s=bounds[k],
            end_s=bounds[k + 1],
            requests=requests[cuts[k] : cuts[k + 1]],
            events=tuple(ordered[event_cuts[k] : event_cuts[k + 1]]),
        )
        for k in range(count)
    ]
