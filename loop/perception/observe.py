"""Perception: the state of the data plane and the window that ended become one Observation."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace

from loop.contracts import (
    Demand,
    DeploymentOption,
    DeviceView,
    Observation,
    PlaneSnapshot,
    ReplayMode,
    ReplicaView,
    Request,
    RequestRecord,
    Slo,
)
from loop.perception.stats import StatsCollector

HISTORY_WINDOWS = 8


class Perception:
    """Collects what one run shows, window by window. Register it as the data plane's record sink."""

    def __init__(
        self,
        models: Sequence[str],
        options: tuple[DeploymentOption, ...],
        *,
        slo: Slo,
        mode: ReplayMode,
        window_s: float,
        ahead: Callable[[], tuple[tuple[str, float], ...]] = lambda: (),
    ) -> None:
        """`ahead`: signals of what is expected of the devices, in [-1, 1], felt beside those of what is."""
        self._ahead = ahead
        self._models = tuple(models)
        self._options = options
        self._slo = slo
        self._mode = mode
        self._window_s = window_s
        self._history: deque[tuple[Demand, ...]] = deque(maxlen=HISTORY_WINDOWS)
        self._last: tuple[Demand, ...] = ()
        self._devices: dict[str, tuple[bool, float, bool]] = {}
        self._per_model: dict[str, StatsCollector] = {}
        self._arrived: dict[str, int] = {}
        self.run = StatsCollector(slo)
        """All windows that have ended."""
        self._reset()

    def prime(self, obs: Observation, previous: Observation | None) -> None:
        """Begin with another run's past, for a replay that starts in the middle: `obs` is what was seen at
        the first window to replay, `previous` at the one before it (None: there was none).
        """
        over = tuple(replace(d, waiting=0, waiting_input_tokens=0, running=0) for d in obs.demand)
        self._last = over if previous is not None else ()
        self._history = deque(obs.history, maxlen=HISTORY_WINDOWS)
        self._devices = {d.id: _state(d) for d in previous.devices} if previous is not None else {}

    def __call__(self, record: RequestRecord) -> None:
        """Take in one finished request."""
        self._per_model[record.model](record)

    @property
    def window(self) -> StatsCollector:
        """All models' requests of the window that runs."""
        whole = StatsCollector(self._slo)
        for collector in self._per_model.values():
            whole.merge(collector)
        return whole

    def arrived(self, requests: Sequence[Request]) -> None:
        """Count requests handed to the data plane."""
        for request in requests:
            self._arrived[request.model] = self._arrived.get(request.model, 0) + 1

    def end_window(self, seconds: float) -> None:
        """Close the window, which took `seconds`; what it showed becomes history."""
        demand = tuple(
            self._per_model[m].demand(
                m,
                arrived=self._arrived.get(m, 0),
                seconds=seconds,
                waiting=0,
                waiting_tokens=0,
                running=0,
            )
            for m in self._models
        )
        self.run.merge(self.window)
        if self._last:
            self._history.append(self._last)
        self._last = demand
        self._reset()

    def observe(
        self,
        snapshot: PlaneSnapshot,
        *,
        tick: int,
        released: Sequence[Request] = (),
        last_serving_s: float = 0.0,
        last_reconfiguration_s: float = 0.0,
        ticks_since_replan: int = 0,
    ) -> Observation:
        """What a policy sees now. `released` are requests of this instant that are not submitted yet."""
        demand = self._demand_now(snapshot, released)
        felt = _signals(demand if self._last else (), snapshot.devices, snapshot.replicas, self._slo)
        signals = (*felt, *self._ahead())
        values = [value for _, value in signals]
        return Observation(
            tick=tick,
            now_s=snapshot.now_s,
            window_s=self._window_s,
            mode=self._mode,
            devices=snapshot.devices,
            options=self._options,
            plan=snapshot.plan,
            replicas=snapshot.replicas,
            demand=demand,
            history=tuple(self._history),
            slo=self._slo,
            pain=max(0.0, -min(values, default=0.0)),
            pleasure=max(0.0, max(values, default=0.0)),
            signals=signals,
            changes=self._changes(snapshot.devices),
            last_serving_s=last_serving_s,
            last_reconfiguration_s=last_reconfiguration_s,
            ticks_since_replan=ticks_since_replan,
        )

    def _reset(self) -> None:
        self._per_model = {m: StatsCollector(self._slo) for m in self._models}
        self._arrived = {}

    def _demand_now(self, snapshot: PlaneSnapshot, released: Sequence[Request]) -> tuple[Demand, ...]:
        """The last window's demand with the backlog of this instant."""
        waiting = dict.fromkeys(self._models, 0)
        tokens = dict(waiting)
        running = dict(waiting)
        for backlog in snapshot.backlog:
            waiting[backlog.model] = backlog.waiting
            tokens[backlog.model] = backlog.waiting_input_tokens
            running[backlog.model] = backlog.running
        for request in released:
            waiting[request.model] += 1
            tokens[request.model] += request.input_tokens
        last = {d.model: d for d in self._last}
        empty = StatsCollector(self._slo)
        out: list[Demand] = []
        for m in self._models:
            past = last.get(m) or empty.demand(
                m, arrived=0, seconds=0.0, waiting=0, waiting_tokens=0, running=0
            )
            fields = {name: getattr(past, name) for name in Demand.__slots__}
            fields |= {"waiting": waiting[m], "waiting_input_tokens": tokens[m], "running": running[m]}
            out.append(Demand(**fields))
        return tuple(out)

    def _changes(self, devices: Sequence[DeviceView]) -> tuple[str, ...]:
        """Name what differs from the last monitoring point, grouped by node."""
        now = {d.id: _state(d) for d in devices}
        node = {d.id: d.node for d in devices}
        changes: dict[str, None] = {}
        for device, state in now.items():
            before = self._devices.get(device, (True, 1.0, False))
            if state[0] != before[0]:
                changes[f"{'up' if state[0] else 'down'}:{node[device]}"] = None
            if state[1] != before[1]:
                changes[f"speed:{node[device]}={state[1]:g}"] = None
            if state[2] and not before[2]:
                changes[f"leaving:{node[device]}"] = None
        self._devices = now
        return tuple(changes)


def _state(device: DeviceView) -> tuple[bool, float, bool]:
    """What of a device is worth telling when it changes."""
    return device.available, round(device.speed, 2), device.leaving_in_s is not None


def _signals(
    demand: Sequence[Demand], devices: Sequence[DeviceView], replicas: Sequence[ReplicaView], slo: Slo
) -> tuple[tuple[str, float], ...]:
    """Named signals in [-1, 1]; negative hurts, positive pleases."""
    finished = sum(d.finished for d in demand)
    missed = sum(d.finished * (1 - d.goodput) for d in demand) / finished if finished else 0.0
    ttft = max((d.ttft_p99_s for d in demand), default=0.0)
    available = [d for d in devices if d.available]
    slow = 1 - min((d.speed for d in available), default=1.0)
    lost = 1 - len(available) / len(devices) if devices else 0.0
    full = max((r.kv_tokens / r.kv_capacity_tokens for r in replicas if r.kv_capacity_tokens), default=0.0)
    raw = {
        "slo_misses": -missed,
        "queueing": -(1 - slo.ttft_s / ttft) if ttft > slo.ttft_s else 0.0,
        "throttling": -slow,
        "lost_capacity": -lost,
        "memory_pressure": -max(0.0, (full - 0.9) / 0.1),
        "headroom": max(0.0, 1 - ttft / slo.ttft_s) if finished else 0.0,
        "goodput": 1 - missed if finished else 0.0,
    }
    return tuple((name, max(-1.0, min(1.0, value))) for name, value in raw.items())
