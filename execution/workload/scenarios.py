"""Named scenarios: a workload and the events of the cluster, a few lines each on top of the combinators."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from execution.workload import events, generators, mixing, modulate
from execution.workload.errors import WorkloadError
from execution.workload.readers import azure, mooncake, servegen
from loop.contracts import ClusterEvent, Workload

DAY_SHARE = 0.06
"""Of ServeGen's compressed day in `diurnal-burst`: the whole is far more than one cluster serves."""
REASONING_PROMPT = generators.LognormalLengths(400, 6000)
REASONING_ANSWER = generators.LognormalLengths(1800, 12_000, 16_384)
"""Answers with their chain of thought: thousands of tokens and a heavy tail. An assumption: no trace was at hand."""

Built = tuple[Workload, tuple[ClusterEvent, ...]]


@dataclass(frozen=True, slots=True)
class Setting:
    """What a scenario is built for."""

    model: str
    data_dir: Path | None = None
    """Where trace files are; None, or files that are not there: generated equivalents."""
    seed: int = 0
    duration_s: float = 3500.0
    rate_scale: float = 1.0
    """Multiplies the rate of the base workload."""
    nodes: Sequence[str] = ()
    """Nodes that may be lost or throttled: the first one is lost. Empty: no such events."""
    spot: Sequence[str] = ()
    """Nodes or devices that may be reclaimed."""
    other_model: str | None = None
    """Second model, of scenarios that have two."""

    def trace(self, pattern: str) -> Path | None:
        """The first file of the data directory that matches."""
        return next(iter(sorted(self.data_dir.glob(pattern))), None) if self.data_dir else None

    def at(self, share: float) -> float:
        """A moment, as a share of the duration."""
        return round(share * self.duration_s, 3)


def scenario(
    name: str,
    data_dir: str | Path | None = None,
    *,
    model: str,
    seed: int = 0,
    duration_s: float = 3500.0,
    rate_scale: float = 1.0,
    nodes: Sequence[str] = (),
    spot: Sequence[str] = (),
    other_model: str | None = None,
) -> Built:
    """Build (workload, events) of a named scenario; arguments as in Setting. Equal arguments, equal results.

    Raises:
        WorkloadError: for an unknown name, a malformed trace, or an argument out of range.
    """
    if name not in SCENARIOS:
        raise WorkloadError(f"no scenario {name!r}; known: {', '.join(sorted(SCENARIOS))}")
    generators.check(0.0, duration_s, rate_scale)
    setting = Setting(
        model=model,
        data_dir=None if data_dir is None else Path(data_dir),
        seed=seed,
        duration_s=duration_s,
        rate_scale=rate_scale,
        nodes=nodes,
        spot=spot,
        other_model=other_model,
    )
    workload, happened = SCENARIOS[name](setting)
    return replace(workload, name=name), events.ordered(happened)


def azure_volatile(setting: Setting) -> Built:
    """Azure conversations; a shift to Mooncake's long ones; a burst x 2; the loss of a node."""
    at = setting.at
    workload = _azure_conv(setting)
    workload = mixing.mix_shift(
        workload, _mooncake(setting), at(0.30), at(0.15), share=0.5, end_s=at(0.85), seed=setting.seed + 2
    )
    workload = modulate.burst(workload, 2.0, at(0.55), at(0.65), seed=setting.seed + 3)
    return workload, _loss(setting, at(0.45), at(0.75))


def diurnal(setting: Setting) -> Built:
    """ServeGen's large model service over a day that is compressed into the duration."""
    day_s = 86_400.0
    factor = day_s / setting.duration_s
    path = setting.trace("servegen/language/m-large")
    rate_scale = setting.rate_scale / factor
    if path is not None:
        day = servegen.read(
            path, model=setting.model, duration_s=day_s, rate_scale=rate_scale, seed=setting.seed
        )
    else:
        day = generators.generate(
            "servegen-m-large",
            model=setting.model,
            seed=setting.seed,
            start_s=0.0,
            duration_s=day_s,
            rate_scale=rate_scale,
        )
    return modulate.scale(day, factor, method="time"), ()


def flash_crowd(setting: Setting) -> Built:
    """Azure conversations hit by a crowd of eight times the rate that ebbs away; with a second model, the crowd
    comes for that one, which had a tenth of the requests before."""
    at = setting.at
    base, other = _azure_conv(setting), setting.other_model

    def crowd(workload: Workload, factor: float) -> Workload:
        return modulate.flash_crowd(
            workload, factor, at(0.4), at(0.12), rise_s=at(0.01) + 1.0, seed=setting.seed + 1
        )

    if other is None:
        return crowd(base, 8.0), ()
    mixed = mixing.model_mix_shift(
        base, {setting.model: 0.9, other: 0.1}, {setting.model: 0.9, other: 0.1}, 0.0, 0.0, seed=setting.seed
    )
    calm = replace(mixed, requests=tuple(r for r in mixed.requests if r.model != other))
    theirs = replace(mixed, requests=tuple(r for r in mixed.requests if r.model == other))
    return mixing.merge(calm, crowd(theirs, 60.0), share_prefixes=True), ()


def long_context_wave(setting: Setting) -> Built:
    """Conversations into which a wave of very long prompts rolls and ebbs away."""
    at = setting.at
    base = _mooncake(setting)
    wave = _generated(setting, "long-context", seed=setting.seed + 1, rate_scale=1.0)
    workload = mixing.mix_shift(
        base, wave, at(0.35), at(0.15), share=0.5, end_s=at(0.75), seed=setting.seed + 2
    )
    return workload, ()


def model_mix(setting: Setting) -> Built:
    """Two models whose shares of the requests change places."""
    if setting.other_model is None:
        raise WorkloadError("scenario model-mix needs other_model: the second model that is served")
    workload = mixing.model_mix_shift(
        _azure_conv(setting),
        {setting.model: 0.85, setting.other_model: 0.15},
        {setting.model: 0.25, setting.other_model: 0.75},
        setting.at(0.35),
        setting.at(0.25),
        seed=setting.seed + 1,
    )
    return workload, ()


def spot(setting: Setting) -> Built:
    """Azure conversations on devices that are reclaimed and come back, with stragglers among the rest."""
    churn = events.spot_churn(
        setting.spot,
        setting.duration_s,
        mean_up_s=setting.at(0.4),
        mean_down_s=setting.at(0.12),
        notice_s=min(120.0, setting.at(0.03)),
        seed=setting.seed + 1,
    )
    slow = events.stragglers(
        setting.nodes,
        setting.duration_s,
        mean_between_s=setting.at(0.5),
        mean_length_s=setting.at(0.1),
        seed=setting.seed + 2,
    )
    return _for_two(setting, _azure_conv(setting), 0.7, 0.4), (*churn, *slow)


def diurnal_burst(setting: Setting) -> Built:
    """ServeGen's large model service over a compressed day, with three times the rate for a while; with a second
    model, that one has Azure's conversations, most of them when the first has least to do."""
    at = setting.at
    day, _ = diurnal(replace(setting, rate_scale=DAY_SHARE * setting.rate_scale))
    if setting.other_model is None:
        return modulate.burst(day, 3.0, at(0.5), at(0.6), seed=setting.seed + 3), ()
    chat = mixing.rename_model(_azure_conv(setting), setting.other_model)
    chat = modulate.diurnal(
        chat, setting.duration_s, 0.9, phase_s=at(0.4), seed=setting.seed + 4
    )  # its quarter of the day is the evening: it rises as the other ebbs
    chat = modulate.burst(chat, 3.0, at(0.7), at(0.8), seed=setting.seed + 3)
    return mixing.merge(day, chat), ()


def mix_shift(setting: Setting) -> Built:
    """Azure conversations of which more and more, in the end nearly all, become Mooncake's long ones."""
    at = setting.at
    shifted = mixing.mix_shift(
        _azure_conv(setting), _mooncake(setting), at(0.25), at(0.35), share=0.9, seed=setting.seed + 2
    )
    return shifted, ()


def node_loss(setting: Setting) -> Built:
    """Azure and Mooncake conversations; the given nodes fail one after another, and come back in that order."""
    workload = mixing.mix_shift(
        _azure_conv(setting), _mooncake(setting), 0.0, 0.0, share=0.25, seed=setting.seed + 2
    )
    happened: list[ClusterEvent] = []
    for index, node in enumerate(setting.nodes):
        happened += events.node_loss(
            node, setting.at(0.2 + 0.1 * index), back_at_s=setting.at(0.65 + 0.1 * index)
        )
    return workload, tuple(happened)


def thermal_throttling(setting: Setting) -> Built:
    """Azure and Mooncake conversations while a heat wave slows one node after another, and ebbs away."""
    workload = mixing.mix_shift(
        _azure_conv(setting), _mooncake(setting), 0.0, 0.0, share=0.25, seed=setting.seed + 2
    )
    happened: list[ClusterEvent] = []
    for index, node in enumerate(setting.nodes):
        begins, step = 0.15 + 0.1 * index, 0.2
        happened += events.throttle(node, setting.at(begins), 0.7)
        happened += events.throttle(
            node, setting.at(begins + step), 0.35, heals_at_s=setting.at(min(0.95, begins + step + 0.35))
        )
    return workload, tuple(happened)


def elastic(setting: Setting) -> Built:
    """Azure conversations that swell and ebb on a pool of which the spot part comes and goes with notice."""
    at = setting.at
    notice_s = min(120.0, at(0.03))
    workload = modulate.diurnal(_azure_conv(setting), setting.duration_s, 0.6, seed=setting.seed + 4)
    workload = _for_two(setting, workload, 0.8, 0.3)
    happened: list[ClusterEvent] = []
    for index, target in enumerate(setting.spot):
        joins = 0.1 + 0.4 * index / max(1, len(setting.spot))
        leaves = 0.6 + 0.3 * index / max(1, len(setting.spot))
        happened += events.node_loss(target, 0.0, back_at_s=at(joins))
        happened += events.spot_preemption(target, at(leaves), notice_s=notice_s)
    return workload, tuple(happened)


def reasoning_wave(setting: Setting) -> Built:
    """Azure conversations of which, for a while, a part is reasoning with answers of thousands of tokens."""
    at = setting.at
    chat = _azure_conv(setting)
    thinking = generators.gamma(
        1.0,
        setting.duration_s,
        model=setting.model,
        seed=setting.seed + 1,
        cv=1.2,
        input_tokens=REASONING_PROMPT,
        output_tokens=REASONING_ANSWER,
    )
    wave = mixing.mix_shift(
        chat, thinking, at(0.25), at(0.1), share=0.4, end_s=at(0.75), seed=setting.seed + 2
    )
    return wave, ()


SCENARIOS: Mapping[str, Callable[[Setting], Built]] = {
    "azure-volatile": azure_volatile,
    "diurnal": diurnal,
    "flash-crowd": flash_crowd,
    "long-context-wave": long_context_wave,
    "model-mix": model_mix,
    "spot": spot,
    "diurnal-burst": diurnal_burst,
    "mix-shift": mix_shift,
    "node-loss": node_loss,
    "thermal-throttling": thermal_throttling,
    "elastic": elastic,
    "reasoning-wave": reasoning_wave,
}


def _for_two(setting: Setting, workload: Workload, before: float, after: float) -> Workload:
    """The first model's share moves from `before` to `after` in the middle; all of it without a second model."""
    other = setting.other_model
    if other is None:
        return workload
    return mixing.model_mix_shift(
        workload,
        {setting.model: before, other: 1.0 - before},
        {setting.model: after, other: 1.0 - after},
        setting.at(0.35),
        setting.at(0.25),
        seed=setting.seed + 1,
    )


def _azure_conv(setting: Setting) -> Workload:
    path = setting.trace("azure/AzureLLMInferenceTrace_conv*.csv")
    if path is None:
        return _generated(setting, "azure-conv", seed=setting.seed, rate_scale=setting.rate_scale)
    return _prepared(setting, azure.read(path, model=setting.model))


def _mooncake(setting: Setting) -> Workload:
    path = setting.trace("mooncake/conversation_trace.jsonl")
    if path is None:
        return _generated(setting, "mooncake-conversation", seed=setting.seed, rate_scale=setting.rate_scale)
    return _prepared(setting, mooncake.read(path, model=setting.model))


def _prepared(setting: Setting, trace: Workload) -> Workload:
    """A trace cut to the duration and scaled; one that is shorter than the duration is repeated."""
    whole = trace
    while trace.requests[-1].arrival_s < setting.duration_s * 0.99:
        trace = mixing.concat(trace, whole, gap_s=1.0)
    trace = mixing.cut(trace, 0.0, setting.duration_s)
    if setting.rate_scale == 1.0:
        return trace
    return modulate.scale(trace, setting.rate_scale, seed=setting.seed)


def _generated(setting: Setting, name: str, *, seed: int, rate_scale: float) -> Workload:
    return generators.generate(
        name,
        model=setting.model,
        seed=seed,
        start_s=0.0,
        duration_s=setting.duration_s,
        rate_scale=rate_scale,
    )


def _loss(setting: Setting, at_s: float, back_at_s: float) -> tuple[ClusterEvent, ...]:
    if not setting.nodes:
        return ()
    return events.node_loss(setting.nodes[0], at_s, back_at_s=back_at_s)
