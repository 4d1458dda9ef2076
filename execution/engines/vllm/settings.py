"""What the plug-in is told: by `--additional-config '{"autopoiesis": {...}}'`, or by the environment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from loop.contracts import EngineError

SECTION = "autopoiesis"
"""Key in vLLM's additional configuration."""
POLICY_VARIABLE = "AUTOPOIESIS_POLICY"
MAX_POLICY_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class PluginSettings:
    """Of the scheduler plug-in."""

    policy: str = ""
    """Path of the policy file to begin with; empty: first come, first served."""
    sandbox: str = "strategy.evolve.sandbox"
    """Module whose SandboxedPolicy and SandboxLimits run a policy in a locked process of its own. By name: the
    layers do not import each other."""
    ask_s: float = 0.02
    """For one crossing to the policy's process; then it is killed and replaced."""
    step_budget_s: float = 0.002
    """For asking in one step of the engine; who was not asked in it keeps the last answer."""
    max_faulty_steps: int = 8
    """In a row; then the policy before takes over again."""
    device_kind: str = "cpu"
    """As policies see it in ReplicaView.kind."""
    predicted_output_tokens: float = 128.0
    """Expected length of an answer as long as none has finished."""


def plugin_settings(additional_config: object, environment: Mapping[str, str]) -> PluginSettings:
    """The section of vLLM's `additional_config`, with the policy file of the environment where it names none.

    Raises:
        EngineError: an unknown key, or a value of the wrong type.
    """
    section = additional_config.get(SECTION, {}) if isinstance(additional_config, Mapping) else {}
    if not isinstance(section, Mapping):
        raise EngineError(f"additional_config.{SECTION}: an object is expected, not {section!r:.60}")
    types = {f.name: type(getattr(PluginSettings(), f.name)) for f in fields(PluginSettings)}
    values: dict[str, Any] = {}
    for key, value in section.items():
        if key not in types:
            raise EngineError(
                f"additional_config.{SECTION}.{key}: no such setting; there are {', '.join(types)}"
            )
        kind = types[key]
        number = kind is float and isinstance(value, int | float) and not isinstance(value, bool)
        if not number and not (isinstance(value, kind) and not isinstance(value, bool)):
            raise EngineError(f"additional_config.{SECTION}.{key}: {value!r:.60} is no {kind.__name__}")
        values[key] = kind(value)
    for name in ("ask_s", "step_budget_s", "max_faulty_steps", "predicted_output_tokens"):
        if name in values and not values[name] > 0:
            raise EngineError(f"additional_config.{SECTION}.{name}: must be above 0, not {values[name]}")
    settings = PluginSettings(**values)
    if not settings.policy and environment.get(POLICY_VARIABLE):
        settings = replace(settings, policy=environment[POLICY_VARIABLE])
    return settings


def read_policy(path: str) -> str:
    """Source of a policy file. Raises EngineError, naming the file."""
    try:
        source = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise EngineError(f"{path}: the policy cannot be read: {error}") from error
    if len(source.encode()) > MAX_POLICY_BYTES:
        raise EngineError(f"{path}: a policy may have {MAX_POLICY_BYTES} bytes, this one has more")
    return source
