"""Options that `strategy evolve`, `score` and `explain` share: on which workload, where, and what for."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from execution.workload import SCENARIOS, windows
from loop.commands.failing import InputError
from loop.commands.inputs import DATA_VARIABLE, choose_models, find_data, named_models, open_trace
from loop.compose.experiment import MAIN_CLUSTER, MAIN_MODELS, MAIN_WINDOW_S
from loop.compose.objective import Objective
from loop.compose.offline import OfflineSetup, offline_setup
from loop.compose.replay import ReplayConfig
from loop.compose.world import WorldSpec
from loop.contracts import ReplayMode, Slo, Window, Workload
from loop.controller import ControllerConfig

DEFAULT_WORKLOAD = "azure-volatile"

WorkloadName = Annotated[
    str,
    typer.Option(
        "--workload",
        "--trace",
        metavar="SCENARIO|TRACE",
        help="A trace file or folder (Azure, Mooncake, ServeGen, vLLM log, ...), a generator "
        f"(`execution workload list`), or a scenario: {', '.join(sorted(SCENARIOS))}.",
    ),
]
ClusterName = Annotated[str, typer.Option("--cluster", help="Packaged cluster or a YAML file.")]
ServedModels = Annotated[
    list[str] | None,
    typer.Option(
        "--serve",
        "--model-name",
        metavar="MODEL",
        help="Model to serve, by name, alias or YAML file; may be given several times. Default: those that the "
        f"workload names, else {', '.join(MAIN_MODELS)}.",
    ),
]
WindowSeconds = Annotated[
    float, typer.Option("--window", "--window-s", min=1.0, help="Seconds between two monitoring points.")
]
MaxWindows = Annotated[int, typer.Option("--max-windows", min=1, help="Use at most so many windows.")]
RateScale = Annotated[float, typer.Option("--rate-scale", min=0.001, help="Multiply the request rate.")]
Mode = Annotated[
    ReplayMode, typer.Option("--mode", help="batch: windows back to back; online: real arrival times.")
]
Goal = Annotated[
    Objective | None,
    typer.Option(
        "--objective", help="What is to be low. Default: time in batch replay, goodput (SLO misses) online."
    ),
]
SloTtft = Annotated[float, typer.Option("--slo-ttft-s", min=0.001, help="SLO: time to first token.")]
SloTpot = Annotated[float, typer.Option("--slo-tpot-s", min=0.001, help="SLO: time per output token.")]
Workers = Annotated[int, typer.Option("--workers", min=1, help="Processes.")]
Seed = Annotated[int, typer.Option("--seed", help="Of the workload, the perturbed worlds and evolution.")]
DataDir = Annotated[
    Path | None,
    typer.Option("--data-dir", help=f"Where trace data lie. Default: ${DATA_VARIABLE}, ../shared/data."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object, and nothing else.")]

WORKERS = max(1, min(8, os.cpu_count() or 2))


@dataclass(frozen=True, slots=True)
class Setting:
    """A checked choice of workload, cluster, models and goal."""

    workload: Workload
    windows: tuple[Window, ...]
    cluster: str
    models: tuple[str, ...]
    """As they are loaded: names or YAML files."""
    window_s: float
    mode: ReplayMode
    objective: Objective
    slo: Slo
    seed: int

    @property
    def title(self) -> str:
        """The workload and where it is served, for headings."""
        made = " (generated)" if self.workload.generated else ""
        return f"{self.workload.name}{made} on {Path(self.cluster).stem}"

    @property
    def requests(self) -> int:
        """In all windows."""
        return sum(len(w.requests) for w in self.windows)

    def describe(self) -> dict[str, object]:
        """What makes scores comparable, as plain values."""
        return {
            "workload": self.workload.name,
            "source": Path(self.workload.source).name,
            "requests": self.requests,
            "windows": len(self.windows),
            "window_s": self.window_s,
            "cluster": self.cluster,
            "models": list(self.models),
            "mode": self.mode.value,
            "objective": self.objective.value,
            "slo_ttft_s": self.slo.ttft_s,
            "slo_tpot_s": self.slo.tpot_s,
            "seed": self.seed,
        }

    def setup(self, perturbed: int) -> OfflineSetup:
        """The worlds to replay it in. Raises as `build_world`."""
        config = ReplayConfig(
            ControllerConfig(mode=self.mode), self.slo, self.window_s, self.workload.block_tokens
        )
        nominal = WorldSpec(self.cluster, self.models, seed=self.seed)
        return offline_setup(nominal, self.windows, config, self.objective, perturbed=perturbed)


@dataclass(frozen=True, slots=True)
class SettingOptions:
    """What the user gave, option by option."""

    workload: WorkloadName = DEFAULT_WORKLOAD
    cluster: ClusterName = MAIN_CLUSTER
    serve: ServedModels = None
    window: WindowSeconds = MAIN_WINDOW_S
    max_windows: MaxWindows = 1000
    rate_scale: RateScale = 1.0
    mode: Mode = ReplayMode.BATCH
    objective: Goal = None
    slo_ttft_s: SloTtft = 10.0
    slo_tpot_s: SloTpot = 0.2
    seed: Seed = 0
    data_dir: DataDir = None

    def open(self) -> Setting:
        """Check it and open the workload. Raises what `one_line_errors` turns into a line."""
        models = choose_models(self.serve or named_models(self.workload) or MAIN_MODELS)
        data_dir = find_data(self.data_dir)
        try:
            opened, events = open_trace(
                self.workload, tuple(models.values()), self.cluster, data_dir, self.seed, self.rate_scale
            )
        except InputError as error:  # the served model has another flag where --model names a language model
            text = str(error).replace("--model", "--serve").replace("--trace", "--workload")
            raise InputError(text) from None
        return Setting(
            opened,
            tuple(windows(opened, self.window, events))[: self.max_windows],
            self.cluster,
            tuple(models),
            self.window,
            self.mode,
            self.objective or (Objective.TIME if self.mode is ReplayMode.BATCH else Objective.GOODPUT),
            Slo(self.slo_ttft_s, self.slo_tpot_s),
            self.seed,
        )
