"""What a trigger may look at, with units: so that conditions compare seconds with seconds, shares with shares."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Unit(StrEnum):
    """Of a feature or a constant. What differs in unit is never compared."""

    SECONDS = "seconds"
    SHARE = "share"
    WINDOWS = "windows"
    REQUESTS = "requests"
    TOKENS = "tokens"
    DEVICES = "devices"


@dataclass(frozen=True, slots=True)
class Feature:
    """One number of the observation."""

    source: str
    unit: Unit
    constant: str
    """Stem of the name of a threshold for it."""
    default: str
    low_high: str
    words: str
    needs: tuple[str, ...] = ()
    """Names of the policy API that the source uses."""


FEATURES = (
    Feature("obs.pain", Unit.SHARE, "PAIN", "0.3", "0.02 to 0.95", "pain"),
    Feature("obs.pleasure", Unit.SHARE, "PLEASURE", "0.8", "0.05 to 0.99", "pleasure"),
    Feature(
        "min((d.goodput for d in obs.demand), default=1.0)",
        Unit.SHARE,
        "GOODPUT",
        "0.9",
        "0.1 to 0.99",
        "the least goodput of any model",
    ),
    Feature(
        "min((d.speed for d in usable_devices(obs)), default=1.0)",
        Unit.SHARE,
        "DEVICE_SPEED",
        "0.8",
        "0.2 to 0.99",
        "the speed of the slowest device",
        ("usable_devices",),
    ),
    Feature(
        "max((d.prefix_hit for d in obs.demand), default=0.0)",
        Unit.SHARE,
        "PREFIX_HIT",
        "0.3",
        "0.02 to 0.95",
        "the share of prompt tokens found in caches",
    ),
    Feature(
        "obs.last_serving_s",
        Unit.SECONDS,
        "SERVING_S",
        "60.0",
        "1 to 1200",
        "the time that the last window took to serve",
    ),
    Feature(
        "obs.last_reconfiguration_s",
        Unit.SECONDS,
        "STALL_S",
        "20.0",
        "0.5 to 300",
        "the stall of the last change",
    ),
    Feature("obs.window_s", Unit.SECONDS, "WINDOW_S", "150.0", "10 to 3600", "the length of a window"),
    Feature(
        "plan_makespan_s(obs, keep(obs), loads(obs))",
        Unit.SECONDS,
        "EXPECTED_S",
        "60.0",
        "1 to 1200",
        "the time that what waits is expected to take",
        ("keep", "loads", "plan_makespan_s"),
    ),
    Feature(
        "max((d.ttft_p99_s for d in obs.demand), default=0.0)",
        Unit.SECONDS,
        "TTFT_S",
        "30.0",
        "0.5 to 600",
        "the worst time to the first token",
    ),
    Feature(
        "obs.ticks_since_replan",
        Unit.WINDOWS,
        "REST_WINDOWS",
        "2",
        "1 to 12",
        "the number of windows since the last change",
    ),
    Feature(
        "sum(d.waiting for d in obs.demand)",
        Unit.REQUESTS,
        "WAITING",
        "500",
        "10 to 20000",
        "the number of waiting requests",
    ),
    Feature(
        "sum(d.finished for d in obs.demand)",
        Unit.REQUESTS,
        "FINISHED",
        "500",
        "10 to 20000",
        "the number of requests finished in the last window",
    ),
    Feature(
        "max((d.input_tokens_mean for d in obs.demand), default=0.0)",
        Unit.TOKENS,
        "PROMPT_TOKENS",
        "2000.0",
        "50 to 50000",
        "the mean length of prompts",
    ),
    Feature(
        "max((d.output_tokens_mean for d in obs.demand), default=0.0)",
        Unit.TOKENS,
        "ANSWER_TOKENS",
        "250.0",
        "10 to 4000",
        "the mean length of answers",
    ),
    Feature(
        "len(usable_devices(obs))",
        Unit.DEVICES,
        "DEVICES",
        "32",
        "1 to 256",
        "the number of usable devices",
        ("usable_devices",),
    ),
)

SUFFIXES = {
    "_S": Unit.SECONDS,
    "_WINDOWS": Unit.WINDOWS,
    "_TOKENS": Unit.TOKENS,
    "_SHARE": Unit.SHARE,
    "_LIMIT": Unit.SHARE,
}
"""Ends of the names of constants that say their unit."""


def unit_of(constant: str) -> Unit | None:
    """The unit that the name of a constant states; None: it states none."""
    if constant.removeprefix("MIN_").removeprefix("MAX_") in _STEMS:
        return _STEMS[constant.removeprefix("MIN_").removeprefix("MAX_")]
    return next((unit for suffix, unit in SUFFIXES.items() if constant.endswith(suffix)), None)


_STEMS = {feature.constant: feature.unit for feature in FEATURES}
