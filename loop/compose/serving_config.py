"""What `autopoiesis loop serve` is told: one YAML file, and flags that say otherwise.

cluster: local-2            # a packaged cluster or a YAML file; or `slots: 2`, cores of this machine
engine: torch
models:
- model: tiny-llama       # a built-in model, a directory of weights, or (simulated) a packaged profile
window_s: 15
evolution: {evaluations: 8}
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from hw_profiles import ProfileError
from hw_profiles.profile import Strict
from hw_profiles.yamlfile import Document, validated
from strategy.live import CanaryKind, LiveConfig

Option = str | int | float | bool
EngineName = Literal["torch", "vllm", "simulated"]

DEFAULT_MODEL = "tiny-llama"
DEFAULT_SIMULATED_MODEL = "llama-3.1-8b"
DEFAULT_PORT = 8000
EXECUTION_JOURNAL = "execution.jsonl"
"""In OUT: what torch engines compiled, swapped in and took back."""


class ServingConfigError(ValueError):
    """A configuration that cannot be used; the message names the key, the place and the way out."""


class ModelConfig(Strict):
    """One model to serve."""

    model: str
    """A built-in model, a directory with config.json and weights, or a packaged profile (simulated engines)."""
    name: str | None = None
    """As clients call it; None: as its profile is called."""
    engine: EngineName | None = None
    """None: that of the whole."""
    options: dict[str, Option] = Field(default_factory=dict)
    """Of its engines (dtype, threads, ...); they come before those of the whole."""
    python: str = ""
    """Interpreter of its engines' processes (a virtual environment that has vLLM, say); empty: that of the whole."""
    environment: dict[str, str] = Field(default_factory=dict)
    """Variables for its engines' processes."""


class EvolutionConfigSection(Strict):
    """How hard evolution tries beside serving."""

    enabled: bool = True
    evaluations: int = Field(default=8, ge=1, le=1000)
    """Policies scored in the twin, each on one stage of the cascade, in one step."""
    step_deadline_s: float = Field(default=60.0, gt=0)
    workers: int = Field(default=1, ge=1, le=64)
    """Scoring processes, at the lowest priority."""
    worlds: int = Field(default=1, ge=0, le=16)
    """Perturbed worlds in the proof."""
    rehearse: bool = True
    """Candidates are also scored on changes that have not happened yet."""
    keep_windows: int = Field(default=64, ge=2)
    """Past windows that are remembered."""
    shadow_windows: int = Field(default=2, ge=0)
    """Windows in which a proven policy decides unseen."""
    canary: Literal["none", "traffic", "windows"] = "traffic"
    """How it is tried on real work then."""
    canary_share: float = Field(default=0.1, gt=0, le=1)
    canary_min_windows: int = Field(default=2, ge=1)
    canary_max_windows: int = Field(default=20, ge=1)
    watch_windows: int = Field(default=3, ge=0)
    """Latest windows of a promoted policy that are compared with what its predecessors would have done."""

    @model_validator(mode="after")
    def _order(self) -> Self:
        if self.canary_min_windows > self.canary_max_windows:
            raise ValueError(
                f"canary_min_windows {self.canary_min_windows} is more than canary_max_windows "
                f"{self.canary_max_windows}"
            )
        return self

    def live(self) -> LiveConfig:
        """For the live layer."""
        return LiveConfig(
            shadow_windows=self.shadow_windows,
            canary=CanaryKind(self.canary),
            canary_share=self.canary_share,
            canary_min_windows=self.canary_min_windows,
            canary_max_windows=self.canary_max_windows,
            watch_windows=self.watch_windows,
        )


class ExecutionConfigSection(Strict):
    """Whether torch engines make themselves faster while they serve."""

    evolve: bool = False
    """Find what is hot, compile it in the background, prove it, and swap it in."""
    int8: bool = False
    """Decode with int8 weights; answers change a little."""
    compile_budget: int = Field(default=60, ge=1)
    """CPU seconds a minute that compilers may take."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.int8 and not self.evolve:
            raise ValueError("'int8' is what execution may evolve to: it needs 'evolve'")
        return self

    def options(self, out: str) -> dict[str, Option]:
        """For a torch engine of a server that writes to `out`."""
        if not self.evolve:
            return {}
        return {
            "evolve_execution": True,
            "int8": self.int8,
            "compile_budget": self.compile_budget,
            "execution_journal": str(Path(out) / EXECUTION_JOURNAL),
        }


class TelemetryConfigSection(Strict):
    """How this machine is watched while it serves."""

    enabled: bool = True
    """Devices in the journal, in the metrics and in what is felt; a device that is lost gets no replicas."""
    period_s: float = Field(default=0.1, ge=0.02, le=10)
    """Between two looks at the GPUs; longer by itself where sampling takes more than `budget`."""
    budget: float = Field(default=0.01, gt=0, le=1)
    """Share of one core."""


class GateConfigSection(Strict):
    """What the gate allows of a plan, whoever made it."""

    dry_run: bool = False
    """After the first plan: tell what others would do, and do nothing."""
    changes_per_minute: int = Field(default=60, ge=1)
    """Plans that change something."""
    max_share_stopped: float = Field(default=1.0, gt=0, le=1)
    """Of the replicas, how many one plan may end; at least one may always be."""
    min_running: int = Field(default=1, ge=0)
    """Replicas that a plan must leave."""


class ServingConfig(Strict):
    """All of it. Times in seconds."""

    cluster: str | None = None
    """A packaged cluster or a YAML file; None: slots of this machine, or virtual GPUs where all is simulated."""
    slots: int | None = Field(default=None, ge=1, le=1024)
    """Instead of a cluster: so many engine processes of this machine's own, one core each."""
    slot_memory_gib: float | None = Field(default=None, gt=0)
    """Memory of a slot for weights and KV cache; None: as profile `cpu-slot` says."""
    coefficients: str | None = None
    """A coefficients file (`profiles calibrate --from-journal`); None: OUT/coefficients.json.gz where it is there, else
    the packaged one."""
    engine: EngineName = "torch"
    options: dict[str, Option] = Field(default_factory=dict)
    """Of all engines."""
    python: str = ""
    """Interpreter of engine processes; empty: this one."""
    environment: dict[str, str] = Field(default_factory=dict)
    """Variables for all engines' processes."""
    models: list[ModelConfig] = Field(default_factory=list)
    """None given: the small built-in one."""
    policy: str = "default"
    """What serves first: `default`, a baseline, or a policy file."""

    plan: str | None = None
    """A file of `physical plan --out` (or with an action `deploy`): the first plan; None: the policy makes it."""

    window_s: float = Field(default=15.0, gt=0)
    """Between two monitoring points."""
    budget_s: float = Field(default=2.0, gt=0)
    """What `plan` may take."""
    slo_ttft_s: float = Field(default=2.0, gt=0)
    slo_tpot_s: float = Field(default=0.1, gt=0)
    reject_share: float = Field(default=0.0, ge=0, le=1)
    """Share of the requests that a policy may refuse."""
    max_waiting: int = Field(default=4096, ge=1)
    """Queue of one engine."""

    host: str = "127.0.0.1"
    port: int | None = Field(default=None, ge=0, le=65535)
    """None: 8000, or the next free one; 0: any."""
    token_file: str | None = None
    """Bearer tokens, `TOKEN [TIER]` a line; None: $AUTOPOIESIS_TOKENS."""
    allow_open: bool = False
    """Listen beyond this machine without tokens all the same."""
    deadline_s: float = Field(default=600.0, gt=0)
    """For a request that names none."""
    drain_s: float = Field(default=30.0, ge=0)
    """What is in flight may take so long at the end."""

    out: str = "out/serve"
    """Folder of journal, live store and archive."""
    seed: int = 0
    evolution: EvolutionConfigSection = Field(default_factory=EvolutionConfigSection)
    execution: ExecutionConfigSection = Field(default_factory=ExecutionConfigSection)
    telemetry: TelemetryConfigSection = Field(default_factory=TelemetryConfigSection)
    gate: GateConfigSection = Field(default_factory=GateConfigSection)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.cluster is not None and self.slots is not None:
            raise ValueError("'cluster' and 'slots' say the same thing twice: give one of them")
        if self.slot_memory_gib is not None and self.cluster is not None:
            raise ValueError("'slot_memory_gib' belongs to 'slots', not to 'cluster'")
        names = [m.name or m.model for m in self.models]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"models: '{name}' is there twice")
        return self

    @property
    def served(self) -> tuple[ModelConfig, ...]:
        """The models, the default one where none is named."""
        if self.models:
            return tuple(self.models)
        simulated = self.engine == "simulated" and self.slots is None
        return (ModelConfig(model=DEFAULT_SIMULATED_MODEL if simulated else DEFAULT_MODEL),)

    def engine_of(self, model: ModelConfig) -> EngineName:
        """The engine of a model."""
        return model.engine or self.engine

    @property
    def engines(self) -> frozenset[EngineName]:
        """All that are needed."""
        return frozenset(self.engine_of(m) for m in self.served)


def load_serving_config(path: Path | None, flags: Mapping[str, Any]) -> ServingConfig:
    """The file's settings with the flags' in their place; a nested flag is a mapping of its own.

    Raises:
        ServingConfigError: names the file, the line and the key, or the flag.
    """
    values: dict[str, Any] = {}
    if path is not None:
        try:
            document = Document(path, str(path))
            validated(document, ServingConfig)
        except ProfileError as error:
            more = "".join(f"; {problem}" for problem in error.problems[1:3])
            raise ServingConfigError(f"{error.problems[0]}{more}") from error
        values = document.value
    try:
        return ServingConfig.model_validate(_over(values, flags))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        said = str(first["ctx"]["error"]) if first["type"] == "value_error" else first["msg"]
        raise ServingConfigError(f"{key}: {said}" if key else said) from error


def _over(values: Mapping[str, Any], flags: Mapping[str, Any]) -> dict[str, Any]:
    """`values`, with each of `flags` that is not None in its place. A cluster takes the place of slots, and the other
    way round."""
    merged = dict(values)
    given = {key: value for key, value in flags.items() if value is not None}
    for one, other in (("cluster", "slots"), ("slots", "cluster")):
        if one in given and other not in given:
            merged.pop(other, None)
    for key, value in given.items():
        nested = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _over(merged[key], value) if nested else value
    if isinstance(flags.get("evolution"), Mapping):
        merged["evolution"] = {k: v for k, v in merged["evolution"].items() if v is not None}
    return merged
