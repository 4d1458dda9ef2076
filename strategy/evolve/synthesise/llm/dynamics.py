"""What the cluster sees, in words and numbers: aggregates of an observation, no request and no host name."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from statistics import fmean, pstdev

from loop.contracts import Demand, DeviceView, Observation, ReplayMode

_STEADY = 0.15
"""Relative change below which a series counts as steady."""


def dynamics_text(obs: Observation) -> str:
    """The observation as a few short paragraphs."""
    mode = (
        "batch replay: a window's requests are released together, and what counts is when the last one is done"
        if obs.mode is ReplayMode.BATCH
        else "online: requests come at their times"
    )
    lines = [
        f"Windows of {obs.window_s:g} s, {mode}. SLO: TTFT {obs.slo.ttft_s:g} s, TPOT {obs.slo.tpot_s:g} s."
    ]
    windows = (*obs.history, obs.demand)
    for demand in obs.demand:
        lines += _model_lines(demand, [_of(window, demand.model) for window in windows])
    if len(obs.demand) > 1 and len(windows) > 1:
        lines.append(_mix_line(windows))
    lines += _device_lines(obs.devices)
    lines.append(f"Serving now: {_plan_text(obs)}.")
    lines.append(
        f"Last window served in {obs.last_serving_s:.4g} s; the last reconfiguration stalled "
        f"{obs.last_reconfiguration_s:.4g} s, {obs.ticks_since_replan} windows ago."
    )
    lines.append(_feeling_line(obs))
    lines.append(f"Changed since the last window: {_changes_text(obs.changes)}.")
    return "\n".join(lines)


def without_names(text: str, devices: Sequence[DeviceView]) -> str:
    """The text without ids of these devices and their nodes: reasons of death may quote them."""
    ids, nodes = {d.id for d in devices} - {""}, {d.node for d in devices} - {""}
    for names, what in ((ids, "<device>"), (nodes, "<node>")):
        if names:
            longest_first = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
            text = re.sub(rf"(?<![\w/-])(?:{longest_first})(?![\w-])", what, text)
    return text


def trend(series: Sequence[float]) -> str:
    """In words: steady, rising, falling or volatile, by the halves of the series and its spread."""
    if len(series) < 2 or not any(series):
        return "steady"
    mean = fmean(series)
    half = len(series) // 2
    before, after = fmean(series[:half]), fmean(series[-half:])
    change = (after - before) / max(before, 0.01 * mean)
    spread = pstdev(series) / mean
    last = series[-1] / max(fmean(series[:-1]), 0.01 * mean)
    if last > 2.0 and series[-1] > 1.5 * max(series[:-1]):
        return f"burst: the last is {last:.1f} times the mean before"
    if abs(change) > max(_STEADY, spread):
        return f"{'rising' if change > 0 else 'falling'} by {abs(change):.0%}"
    return f"volatile, +-{spread:.0%}" if spread > 2 * _STEADY else "steady"


def _model_lines(now: Demand, past: Sequence[Demand | None]) -> list[str]:
    arrived = [float(d.arrived) if d else 0.0 for d in past]
    lines = [
        f"Model {now.model}: {now.arrived} requests in the last window, per window so far "
        f"{_series(arrived)} ({trend(arrived)}); backlog {now.waiting}, running {now.running}.",
        f"  Prompt tokens mean {now.input_tokens_mean:.0f}, p90 {now.input_tokens_p90:.0f}"
        f" ({trend(_known(past, 'input_tokens_mean'))}); output tokens mean {now.output_tokens_mean:.0f},"
        f" p90 {now.output_tokens_p90:.0f} ({trend(_known(past, 'output_tokens_mean'))});"
        f" prefix cache hits {now.prefix_hit:.0%}.",
    ]
    if now.finished:
        lines.append(
            f"  Finished {now.finished}, rejected {now.rejected}: TTFT p50 {now.ttft_p50_s:.3g} s,"
            f" p99 {now.ttft_p99_s:.3g} s; TPOT p50 {now.tpot_p50_s:.3g} s, p99 {now.tpot_p99_s:.3g} s;"
            f" goodput {now.goodput:.1%}."
        )
    return lines


def _mix_line(windows: Sequence[Sequence[Demand]]) -> str:
    """Shares of the requests by model, at first and at last."""

    def shares(window: Sequence[Demand]) -> str:
        total = sum(d.arrived for d in window) or 1
        return ", ".join(f"{d.model} {d.arrived / total:.0%}" for d in sorted(window, key=lambda d: d.model))

    return f"Mix of models: {shares(windows[0])} {len(windows) - 1} windows ago; {shares(windows[-1])} now."


def _device_lines(devices: Sequence[DeviceView]) -> list[str]:
    lines = []
    for kind in sorted({d.kind for d in devices}):
        mine = [d for d in devices if d.kind == kind]
        up = [d for d in mine if d.available]
        slow = [d for d in up if d.speed < 0.98]
        leaving = [d for d in up if d.leaving_in_s is not None]
        text = f"Devices {kind}: {len(up)} of {len(mine)} available on {len({d.node for d in mine})} nodes"
        text += f", {sum(d.spot for d in mine)} spot" if any(d.spot for d in mine) else ""
        if slow:
            text += f", {len(slow)} slowed to {min(d.speed for d in slow):.0%} at worst"
        if leaving:
            text += f", {len(leaving)} leaving within {max(d.leaving_in_s or 0.0 for d in leaving):.0f} s"
        lines.append(text + ".")
    return lines


def _plan_text(obs: Observation) -> str:
    kinds = {d.id: d.kind for d in obs.devices}
    counts = Counter(
        f"{s.model} on {kinds.get(s.devices[0], 'lost devices')} tp={s.tp} pp={s.pp} {s.role.value}"
        f" max_num_seqs={s.max_num_seqs} max_num_batched_tokens={s.max_num_batched_tokens}"
        for s in obs.plan.replicas
    )
    return "; ".join(f"{n} x {what}" for what, n in sorted(counts.items())) or "nothing yet"


def _feeling_line(obs: Observation) -> str:
    signals = sorted(obs.signals, key=lambda signal: signal[1])
    text = ", ".join(f"{name} {value:+.2f}" for name, value in signals) or "none"
    return f"Pain {obs.pain:.2f}, pleasure {obs.pleasure:.2f} (0 to 1). Signals (negative hurts): {text}."


def _changes_text(changes: Sequence[str]) -> str:
    """Counts by kind of change; the nodes' names stay here."""
    counts = Counter(change.partition(":")[0] for change in changes)
    return ", ".join(f"{n} x {what}" for what, n in sorted(counts.items())) or "nothing"


def _of(window: Sequence[Demand], model: str) -> Demand | None:
    return next((d for d in window if d.model == model), None)


def _known(past: Sequence[Demand | None], field: str) -> list[float]:
    return [value for d in past if d is not None and (value := float(getattr(d, field))) > 0]


def _series(values: Sequence[float]) -> str:
    return " ".join(f"{value:.0f}" for value in values)
