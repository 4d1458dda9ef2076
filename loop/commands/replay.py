"""`autopoiesis loop replay`: every baseline and the evolving system on one volatile workload."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from pydantic import TypeAdapter
from rich.console import Console
from rich.live import Live
from rich.syntax import Syntax

from execution.workload import SCENARIOS, open_workload, scenario, windows
from hw_profiles import load_cluster
from loop.commands.failing import InputError, one_line_errors
from loop.compose.evolving import DEFAULT_EVALUATIONS, EvolutionConfig
from loop.compose.experiment import (
    MAIN_CLUSTER,
    MAIN_MODELS,
    MAIN_WINDOW_S,
    Experiment,
    ExperimentConfig,
)
from loop.compose.objective import Objective
from loop.contracts import ClusterEvent, PolicySource, ReplayMode, Slo, Workload
from loop.runner.report import policy_diff, write_report
from loop.runner.results import ExperimentResult
from loop.runner.table import final_table, headline, live_table
from strategy.baselines import list_baselines
from strategy.evolve import check_policy
from strategy.policy import digest_of

DATA_VARIABLE = "AUTOPOIESIS_DATA"
DEFAULT_SCENARIO = "azure-volatile"
_RESULT = TypeAdapter(ExperimentResult)


def replay(
    trace: Annotated[
        str,
        typer.Option(
            help="A trace file or folder (Azure, Mooncake, ServeGen, vLLM log, ...), or the name of a scenario: "
            f"{', '.join(sorted(SCENARIOS))}."
        ),
    ] = DEFAULT_SCENARIO,
    cluster: Annotated[str, typer.Option(help="Packaged cluster or a YAML file.")] = MAIN_CLUSTER,
    model: Annotated[
        list[str] | None, typer.Option(help="Model to serve; may be given several times.")
    ] = None,
    policy: Annotated[
        list[Path] | None,
        typer.Option(help="A policy file of your own, run in a sandbox beside the baselines."),
    ] = None,
    baseline: Annotated[
        list[str] | None,
        typer.Option(help=f"Baseline to run: all (default), none, or of {', '.join(list_baselines())}."),
    ] = None,
    first: Annotated[
        str, typer.Option(help="Baseline that the evolving system begins with.")
    ] = "least_loaded",
    mode: Annotated[
        ReplayMode, typer.Option(help="batch: windows back to back; online: real arrival times.")
    ] = ReplayMode.BATCH,
    objective: Annotated[
        Objective | None,
        typer.Option(help="What evolution lowers. Default: time in batch replay, goodput online."),
    ] = None,
    window_s: Annotated[
        float, typer.Option(min=1.0, help="Seconds between two monitoring points.")
    ] = MAIN_WINDOW_S,
    rate_scale: Annotated[float, typer.Option(min=0.001, help="Multiply the request rate.")] = 1.0,
    max_windows: Annotated[int, typer.Option(min=1, help="Use at most so many windows.")] = 1000,
    slo_ttft_s: Annotated[float, typer.Option(min=0.001, help="SLO: time to first token.")] = 10.0,
    slo_tpot_s: Annotated[float, typer.Option(min=0.001, help="SLO: time per output token.")] = 0.2,
    evaluations: Annotated[
        int, typer.Option(min=0, help="Evaluations in the twin that each step of evolution may spend.")
    ] = DEFAULT_EVALUATIONS,
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = max(1, min(8, os.cpu_count() or 2)),
    seed: Annotated[int, typer.Option(help="Of the workload, the hidden world and evolution.")] = 0,
    oracle: Annotated[bool, typer.Option(help="Also show the limit: the best policy of each window.")] = True,
    searched: Annotated[bool, typer.Option(help="Also run tuned static and best of N random.")] = True,
    data_dir: Annotated[
        Path | None, typer.Option(help=f"Where trace data lie. Default: ${DATA_VARIABLE}, ../shared/data.")
    ] = None,
    out: Annotated[
        Path, typer.Option(help="Folder for report.html, result.json, journal and policies.")
    ] = Path("out"),
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON, and nothing else.")] = False,
) -> None:
    """Replay a workload over a cluster with every baseline and with the system that rewrites its policy.

    Without options: an hour of Azure conversations with a mix shift, a burst and the loss of a node, on 64
    mixed GPUs.
    """
    with one_line_errors():
        models = tuple(model or MAIN_MODELS)
        data = find_data(data_dir)
        workload, events = open_trace(trace, models, cluster, data, seed, rate_scale)
        cut = tuple(windows(workload, window_s, events))[:max_windows]
        config = ExperimentConfig(
            title=f"{workload.name} on {Path(cluster).stem}",
            cluster=cluster,
            models=models,
            window_s=window_s,
            mode=mode,
            seed=seed,
            slo=Slo(slo_ttft_s, slo_tpot_s),
            objective=objective or (Objective.TIME if mode is ReplayMode.BATCH else Objective.GOODPUT),
            baselines=choose_baselines(baseline),
            users=tuple(read_policy(path) for path in policy or ()),
            first=choose_baselines([first])[0],
            evolution=EvolutionConfig(evaluations=evaluations),
            workers=workers,
            searched=searched and evaluations > 0,
            oracle=oracle,
        )
        out = prepare(out)
        errors = Console(stderr=True)
        experiment = Experiment(config, workload, cut, out)
        with showing(experiment, errors):
            result = experiment.run()
        paths = save(result, out)
    if json:
        sys.stdout.write(_RESULT.dump_json(result).decode() + "\n")
        return
    show(result, paths["report"], Console(width=None if sys.stdout.isatty() else 140))


def find_data(given: Path | None) -> Path | None:
    """The folder of trace data: as given, from the environment, beside the checkout, or none."""
    if given is not None:
        if not given.is_dir():
            raise InputError(f"{given}: no such folder (--data-dir)")
        return given
    named = os.environ.get(DATA_VARIABLE)
    if named:
        if not Path(named).is_dir():
            raise InputError(f"{named}: no such folder (${DATA_VARIABLE})")
        return Path(named)
    beside = Path("../shared/data")
    return beside if beside.is_dir() else None


def open_trace(
    trace: str,
    models: tuple[str, ...],
    cluster: str,
    data: Path | None,
    seed: int,
    rate_scale: float = 1.0,
) -> tuple[Workload, tuple[ClusterEvent, ...]]:
    """A scenario by its name, else a trace from a file or folder."""
    topology = load_cluster(cluster)
    if trace in SCENARIOS:
        return scenario(
            trace,
            data,
            model=models[0],
            seed=seed,
            rate_scale=rate_scale,
            nodes=tuple(topology.nodes),
            spot=tuple(d.id for d in topology.devices.values() if d.spot),
            other_model=models[1] if len(models) > 1 else None,
        )
    if not Path(trace).exists():
        raise InputError(
            f"{trace}: neither a file nor a scenario; scenarios are {', '.join(sorted(SCENARIOS))} (--trace)"
        )
    return open_workload(trace, model=models[0], rate_scale=rate_scale, seed=seed), ()


def choose_baselines(names: list[str] | None) -> tuple[str, ...]:
    """All, none, or those named."""
    known = list_baselines()
    if not names or names == ["all"]:
        return tuple(known)
    if names == ["none"]:
        return ()
    for name in names:
        if name not in known:
            raise InputError(f"{name}: no such baseline; there are {', '.join(known)}")
    return tuple(names)


def read_policy(path: Path) -> PolicySource:
    """A policy file of the user's; it must at least parse and keep the rules of the policy API."""
    try:
        source = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error
    problems = check_policy(source)
    if problems:
        raise InputError(f"{path}:{problems[0].line}: {problems[0].message}")
    return PolicySource(path.stem, source, digest_of(source), operator="user", note=f"from {path.name}")


def prepare(out: Path) -> Path:
    """The folder for what is written; an older journal and archive there are moved aside, never mixed."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name in ("journal.sqlite", "archive.sqlite"):
            if (out / name).exists():
                for suffix in ("", "-wal", "-shm"):
                    old = out / f"{name}{suffix}"
                    if old.exists():
                        old.replace(out / f"previous-{name}{suffix}")
    except OSError as error:
        raise InputError(f"{out}: cannot be written: {error} (--out)") from error
    return out


def save(result: ExperimentResult, out: Path) -> dict[str, Path]:
    """Report, JSON, and the first and last policy as files that `--policy` takes."""
    paths = {"report": write_report(result, out / "report.html")}
    texts = {
        "result.json": _RESULT.dump_json(result).decode(),
        "first_policy.py": result.first.source,
        "last_policy.py": result.last.source,
    }
    for name, text in texts.items():
        part = out / f"{name}.part"
        part.write_text(text, encoding="utf-8")
        part.replace(out / name)
        paths[name] = out / name
    return paths


def show(result: ExperimentResult, report: Path, console: Console) -> None:
    """Table, diff, and where the report is."""
    console.print(final_table(result, console.width))
    diff = policy_diff(result.first, result.last)
    if diff:
        console.print("\n[bold]How the policy was rewritten, first to last[/bold]")
        console.print(Syntax("\n".join(diff), "diff", background_color="default", word_wrap=False))
    else:
        console.print("\nThe first policy still serves: nothing that evolution tried was proven better.")
    console.print(f"\n{headline(result)}")
    console.print(f"report: {report.resolve()}", soft_wrap=True, highlight=False)


@contextmanager
def showing(experiment: Experiment, console: Console) -> Iterator[None]:
    """A live table on a terminal; a line for each change of status elsewhere."""
    title = experiment.config.title

    def table() -> object:
        return live_table(title, experiment.progress, experiment.status)

    if console.is_terminal:
        with Live(get_renderable=table, console=console, refresh_per_second=4, transient=True):  # type: ignore[arg-type]
            yield
        return
    said = ""

    def say() -> None:
        nonlocal said
        if experiment.status != said:
            said = experiment.status
            console.print(said, highlight=False)

    experiment.on_progress = say
    yield
